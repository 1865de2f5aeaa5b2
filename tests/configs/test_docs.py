"""docs/configuration.md: its tables are those of the schema, its examples are true."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rlt_jax.configs import PRESETS, load_config

REPOSITORY = Path(__file__).parents[2]
DOCUMENT = (REPOSITORY / "docs" / "configuration.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["make_config_docs.py", "make_chat_docs.py"])
def test_written_pages_are_up_to_date(name):
    script = REPOSITORY / "scripts" / name
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_document_names_every_field():
    flags = []
    for name, value in dataclasses.asdict(PRESETS["tiny"]).items():
        names = [f"{name}.{part}" for part in value] if isinstance(value, dict) else [name]
        flags += ["--" + flag.replace("_", "-") for flag in names]
    assert re.findall(r"^\| `(--.*?)` \|", DOCUMENT, flags=re.MULTILINE) == flags


def test_the_example_file_can_be_read(tmp_path):
    example = re.search(r"```yaml\n(.*?)```", DOCUMENT, flags=re.DOTALL)
    (tmp_path / "run.yaml").write_text(example[1])
    config = load_config(tmp_path / "run.yaml")
    assert (config.preset, config.teacher, config.learning_rate) == ("mono85", "runs/sft/final", 2e-6)
    assert (config.data.path, config.data.eval_rows, config.reward.kl_penalty_reward_coeff) == (
        "problems.jsonl",
        64,
        (0.0,),
    )
