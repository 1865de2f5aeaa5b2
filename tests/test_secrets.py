"""No password and no token in any log, file or message: by their forms, and as values of the environment."""

import json
import logging
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import rlt_jax
from rlt_jax.configs.presets import PRESETS
from rlt_jax.configs.schema import DataConfig, SamplerConfig
from rlt_jax.errors import UserError
from rlt_jax.secrets import is_secret, public_environment, redacted, redacted_values
from rlt_jax.terminal import VisibleFormatter

TINY = Path(rlt_jax.__file__).parent / "assets" / "tiny"
TOKEN = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz01234567"
SECRET = "vEry-s3cret-v4lue"

HIDDEN = [
    ("http://user:pass@host:8000/x", "http://***@host:8000/x"),
    ("at https://user:p@ss/w%20ord@host, then", "at https://***@host, then"),
    (f"https://{TOKEN}@huggingface.co/a/b", "https://***@huggingface.co/a/b"),
    ("socks5://only-user@proxy:1080", "socks5://***@proxy:1080"),
    (f"token {TOKEN}.", "token hf_***."),
    ("Authorization: Bearer abc.def-123", "Authorization: Bearer ***"),
    ("{'Authorization': 'Basic dXNlcjpwYXNz'}", "{'Authorization': 'Basic ***'}"),
    ("sent Bearer eyJhbGciOiJIUzI1NiJ9.e30.x", "sent Bearer ***"),
    ("sk-proj-" + "a1" * 20, "sk-***"),
    ("https://cdn/x?a=1&X-Amz-Signature=0a9&Key-Pair-Id=K", "https://cdn/x?a=1&X-Amz-Signature=***&Key-Pair-Id=K"),
    ("https://h/x?token=abc#y", "https://h/x?token=***"),
]
ORDINARY = [
    "http://127.0.0.1:8000/v1/completions",
    "https://huggingface.co/team/model@main",
    "a mail to someone@example.com",
    "Basic arithmetic, Bearer bonds",
    "runs/hf_a_model_of_a_long_name_indeed/final",
    "task-1234567890123456789012345678901234567890",
    "token=3 tokens; sk-learn",
    "3:4 odds: see http://a.b/c and d@e",
]


@pytest.mark.parametrize(("text", "shown"), HIDDEN, ids=range(len(HIDDEN)))
def test_forms(text, shown):
    assert redacted(text) == shown
    assert redacted(shown) == shown


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_texts_stay(text):
    assert redacted(text) == text


@pytest.mark.parametrize("text", ["a-" * 10**6, "ab:/" * 10**5, "x://a:" * 10**5, "?a" * 10**6, "hf_" * 10**6])
def test_long_texts_take_no_time(text):
    start = time.process_time()  # whatever else the machine does
    assert redacted(text) == text
    assert time.process_time() - start < 5


def test_values_of_the_environment(monkeypatch):
    for name in (
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "WANDB_API_KEY",
        "OPENAI_API_KEY",
        "VLLM_API_KEY",
        "DB_PASSWORD",
    ):
        assert is_secret(name)
        with monkeypatch.context() as patch:
            patch.setenv(name, SECRET)
            assert redacted(f"a {SECRET} b") == "a *** b"
            assert redacted_values({"x": [SECRET, 1, (SECRET,)], "y": {"z": SECRET}}) == {
                "x": ["***", 1, ("***",)],
                "y": {"z": "***"},
            }
            assert name not in public_environment() and "PATH" in public_environment()
    for name in ("TOKENIZERS_PARALLELISM", "PATH", "HOME", "VLLM_NO_USAGE_STATS", "CUDA_VISIBLE_DEVICES", "HF_HOME"):
        assert not is_secret(name)
    monkeypatch.setenv("SHORT_TOKEN", "training")  # an ordinary word
    assert redacted("training") == "training"


def test_the_log_holds_none_of_an_exception_either():
    try:
        raise OSError(f"401 for https://user:pass@hub/x with {TOKEN}")
    except OSError:
        record = logging.LogRecord("rlt_jax", logging.ERROR, "f", 1, "asked %s", (TOKEN,), sys.exc_info())
    line = VisibleFormatter("%(message)s").format(record)
    assert TOKEN not in line and "pass" not in line and "asked hf_***" in line and "https://***@hub/x" in line


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: DataConfig(path=f"https://{TOKEN}@huggingface.co/x"),
            r"^path=https://\*\*\*@huggingface.co/x: expected",
        ),
        (
            lambda: SamplerConfig(url="http://user:pass@127.0.0.1:8000"),
            r"^url=http://\*\*\*@127.0.0.1:8000: expected no",
        ),
        (lambda: replace(PRESETS["tiny"], output_dir=TOKEN), r"^output_dir=hf_\*\*\*: expected no password or token"),
    ],
)
def test_settings_that_hold_a_secret_are_refused(make, message):
    """They would be written into config.yaml, and a redacted one could not be compared with a resumed run's."""
    with pytest.raises(UserError, match=message):
        make()


def run(*words: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )


SCRIPT = """
import logging, sys, threading, warnings
from rlt_jax.errors import UserError, run_command
from rlt_jax.report.log import setup_logging
def main():
    secret = {secret!r}
    {body}
run_command(main)
"""


@pytest.mark.parametrize(
    "body",
    [
        "raise UserError(f'expected x, came {secret}')",
        "raise RuntimeError(f'a bug with {secret}')",
        "from pathlib import Path; setup_logging(Path(sys.argv[1])).warning('a line of %s', secret)",
        "print(f'a library says {secret}', file=sys.stderr)",
        "warnings.warn(f'a warning of {secret}')",
        "logging.getLogger('httpx').warning('a record of %s', secret)",
        "thread = threading.Thread(target=lambda: 1 / 0, name=secret); thread.start(); thread.join()",
        "setup_logging(None); import pathlib; pathlib.Path(secret).read_text()",
    ],
    ids=["user error", "bug", "log", "stderr", "warning", "other log", "thread", "no such file"],
)
@pytest.mark.parametrize("secret", [SECRET, "https://me:wordpass1@host/x"], ids=["value", "form"])
def test_every_channel_of_a_command(body, secret, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(secret="", body=body).replace("secret = ''", "secret = sys.argv[2]"))
    done = run(script, tmp_path / "run", secret, WANDB_API_KEY=SECRET)
    written = "".join(file.read_text() for file in (tmp_path / "run").rglob("*") if file.is_file())
    shown = done.stdout + done.stderr + written
    assert "***" in shown and SECRET not in shown and "wordpass1" not in shown, shown


def test_command_lines_that_hold_one(tmp_path):
    data = f"https://me:wordpass1@huggingface.co/x?token={TOKEN}"
    flags = ["--preset", "tiny", "--output-dir", tmp_path / "run"]
    for words in (
        ["--learning-rate", TOKEN],
        ["--print-config", "--sampler.url", data],
    ):
        done = run("-m", "rlt_jax.train", *flags, *words, JAX_PLATFORMS="cpu")
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert "***" in done.stdout + done.stderr
        assert TOKEN not in done.stdout + done.stderr and "wordpass1" not in done.stdout + done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_leaves_none_in_its_folder(tmp_path):
    """Though the environment holds several."""
    secrets = {"HF_TOKEN": TOKEN, "WANDB_API_KEY": SECRET, "https_proxy": "http://me:wordpass1@proxy:3128"}
    sizes = ["--train-batch-size", "4", "--num-generations", "4", "--per-device-train-batch-size", "4"]
    sizes += ["--score-batch-size", "4", "--max-completion-length", "8", "--eval-steps", "0", "--max-steps", "1"]
    done = run(
        "-m",
        "rlt_jax.train",
        "--preset",
        "tiny",
        *sizes,
        "--output-dir",
        tmp_path / "run",
        JAX_PLATFORMS="cpu",
        **secrets,
    )
    assert done.returncode == 0, done.stderr
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert len(files) > 5 and json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 1
    for secret in (TOKEN, SECRET, "wordpass1"):
        assert secret not in done.stdout + done.stderr
        assert not [file for file in files if secret.encode() in file.read_bytes()]
