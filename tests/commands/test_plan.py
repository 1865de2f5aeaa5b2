"""`python -m rlt_jax.plan` as a user runs it: what it says, its exit codes, mistakes."""

import contextlib
import json
import os
import re
import subprocess
import sys

import pytest

from rlt_jax import plan as plan_command
from rlt_jax import train as train_command
from rlt_jax.configs import PRESETS, load_config
from rlt_jax.device.monitor import gpu_memory_reader
from tests.device.test_gpu import DRIVER

pytestmark = pytest.mark.skipif(gpu_memory_reader() is not None, reason="the plan would be that of this machine's GPU")


@pytest.fixture
def planned(main, capsys):
    """planned(*flags): (exit code, standard output, standard error) of the command in this process."""

    def run(*flags: object) -> tuple[int, str, str]:
        code = 0
        try:
            main(plan_command, *flags)
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    return run


def test_mono85_in_a_process_of_its_own():
    """Through the shell: tables as aligned text, no control characters, nothing on standard error."""
    line = [sys.executable, "-m", "rlt_jax.plan", "--preset", "mono85"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert lines[0] == "Plan of --preset mono85 (by formula, no GPU here); GB is 1e9 bytes"
    assert "  teacher Qwen/Qwen2.5-7B-Instruct: 7.616 B parameters (known)" in lines
    heads = "load generate teacher student reference update optimizer move ref sync save source"
    assert [line.split() for line in lines[lines.index("GPU, GB") + 1 :][:1]] == [heads.split()]
    (everything,) = (line.split() for line in lines if line.startswith("  all ") and "76.33" in line)
    assert " ".join(everything) == "all 33.16 63.18 24.68 39.91 39.91 76.33 54.45 33.16 63.18 17.93"
    assert "GPU: peak 76.33 GB in update; planned 77 GB, budget 85 GB" in lines
    assert "Pinned: 106.62 GB of the host's, under XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB=105 (GiB)" in lines
    assert any(line.startswith("vLLM: 46.8 GB hold the keys and values of 501,777 tokens") for line in lines)
    assert "  update 43,008 tokens; saves the attention of 2 and the MLP of 0 of 28 layers" in lines
    assert "  score 55,296 tokens (teacher, reference), 55,296 (student)" in lines
    assert "  rows of up to 12,288 tokens; attention: cuDNN's, over segments; what rows share is computed once" in lines
    longest = (
        "Longest context in 77 GB with one row a pass and no saved activations: 32,768 tokens of prompt and completion"
    )
    assert longest in lines
    assert "Largest pass of the update in 77 GB with no saved activations: 52,224 tokens at this run's lengths" in lines
    assert lines[-1] == "Fits"


@pytest.mark.parametrize("width", [80, 160])
def test_in_a_terminal_no_line_is_cut(width):
    """Tables where they are narrow enough, else a line for each phase, with the same numbers."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    with open(ours, "rb") as screen, open(theirs, "wb") as terminal:
        line = [sys.executable, "-m", "rlt_jax.plan", "--preset", "mono85"]
        process = subprocess.Popen(line, stdout=terminal, env=os.environ | {"COLUMNS": str(width), "TERM": "xterm"})
        terminal.close()
        shown = b""
        with contextlib.suppress(OSError):  # Linux ends a terminal so
            while part := screen.read1(65536):
                shown += part
        assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).replace("\r", "")
    assert "…" not in text
    if width == 80:
        assert "  update: trainer's context 1.20, teacher 15.23, vLLM asleep 1.50, gradients 30.46" in text
    else:
        (gradients,) = (line.split() for line in text.splitlines() if "gradients" in line)
        assert gradients == ["gradients", "30.46", "30.46", "exact"]
    assert text.splitlines()[-1] == "Fits"


def test_presets_side_by_side(planned):
    _, out, _ = planned("--preset", "mono85")
    table = out.split("Presets, by formula, GB\n")[1].split("\n\n")[0].splitlines()
    fits = {line[2:24].strip(): line.split()[-6] for line in table[1:]}
    assert fits == {
        "mono_basic": "yes",
        "mono85": "yes",
        "mono85_fallback": "yes",
        "mono96": "yes",
        "mono85, 16384 + 16384": "yes",
    }


LARGE = ("--preset", "mono_basic", "--memory.policy", "device", "--memory.gradients", "float32")


def test_mono_basic_fits_40_gb(planned):
    code, out, _ = planned("--preset", "mono_basic", "--host-gb", "143")
    assert (code, out.splitlines()[-1]) == (0, "Fits")
    assert "GPU: peak 39.36 GB in update; planned none, budget 40 GB" in out
    assert "Host: peak 142.78 GB in save; 143.0 GB may be used" in out
    table = out.split("GPU, GB\n")[1].split("\n\n")[0]
    heads, *rows = table.splitlines()
    (all_owners,) = (line.split() for line in rows if line.split()[0] == "all")
    assert all(float(size) <= 40 for size in all_owners[1:])
    (teacher,) = (line for line in rows if line.startswith("  teacher  "))
    for phase, there in (("load", True), ("generate", False), ("update", True), ("sync", False)):
        end = heads.index(phase) + len(phase)
        assert (teacher[end - 5 : end] == "15.23") == there
    assert "  pinned teacher " in out


def test_the_advice_for_a_run_that_does_not_fit_makes_it_fit(planned):
    code, out, _ = planned(*LARGE)
    assert code == 1
    verdict = out[out.index("Does not fit") :].splitlines()
    assert verdict[1].startswith("  GPU: 40 GB may be used, up to 14.59 GB too little for update 54.59 GB")
    assert verdict[2] == "It would fit with"
    advice = verdict[3].split("  (")[0].split()
    assert " ".join(advice) == "--memory.policy host --memory.gradients bfloat16"
    code, out, _ = planned(*LARGE, *advice)
    assert (code, out.splitlines()[-1]) == (0, "Fits")


def test_budget_and_host_replace_the_machine_s(planned):
    code, out, _ = planned("--preset", "mono85", "--host-gb", "110")
    assert code == 1
    assert "host: 110 GB may be used, up to 17.74 GB too little for save 127.74 GB" in out
    assert "  --memory.moments bfloat16  (GPU 76.33, host 96.60 GB)" in out
    code, out, _ = planned("--preset", "mono85", "--budget-gb", "48", "--planned-gb", "48")
    assert code == 1 and "GPU: 48 GB may be used" in out


def test_the_plan_follows_the_budget_in_the_share_of_the_preset(planned):
    code, out, err = planned("--preset", "mono85", "--budget-gb", "80")
    assert code == 1 and "in 72.5 GB with no saved activations: 38,912 tokens" in out
    code, out, _ = planned("--preset", "mono85", "--budget-gb", "80", "--update-tokens", "38912")
    assert code == 0 and "GPU: peak 72.48 GB" in out
    assert "note: planned_gb=72.5: follows budget_gb=80 (of 85, 77 were planned for)" in err


def test_rows_of_a_pass_replace_the_preset_s_tokens(planned):
    """Else the flag would have no effect."""
    code, out, err = planned("--preset", "mono85", "--per-device-train-batch-size", "2", "--score-batch-size", "1")
    assert code == 0 and "  update 24,576 tokens; " in out
    assert "  score 12,288 tokens (teacher, reference), 13,312 (student)" in out
    assert "note: update_tokens=None: follows per_device_train_batch_size=2" in err
    assert "note: score_tokens=None: follows score_batch_size=1" in err
    both = ("--per-device-train-batch-size", "2", "--update-tokens", "30000")
    assert "  update 30,720 tokens; " in planned("--preset", "mono85", *both)[1]


def test_json_for_scripts(planned):
    code, out, _ = planned(*LARGE, "--json")
    report = json.loads(out)
    assert (code, report["fits"], report["gpu_bytes"], report["host_bytes"]) == (1, False, 40e9, None)
    assert report["gpu_peak_phase"] == "update"
    phase = report["phases"]["update"]
    assert phase["gpu_bytes"] == report["gpu_peak_bytes"] == sum(entry["size"] for entry in phase["gpu"])
    assert {"owner": "gradients", "size": 4 * 7_615_616_512, "source": "exact"} in phase["gpu"]
    assert report["lower"][0]["flags"].endswith("--memory.gradients bfloat16")
    assert report["checkpoint_bytes"] == 14 * report["parameters"]["teacher"]
    assert (report["update_tokens"], report["score_tokens"]) == (6144, 18_432)
    assert report["run"]["update"] == {"attention": "cudnn", "sequences": 1, "length": 6144}
    assert report["gpu"] is None and report["vllm"]["sequences"] == 32
    assert {check["status"] for check in report["checks"]} <= {"ok", "warning", "problem"}


def test_a_run_without_a_budget(planned):
    code, out, _ = planned()  # tiny
    assert (code, out.splitlines()[-1]) == (0, "No budget and no GPU to compare with: give --budget-gb")
    assert "its folder)" in out and "vLLM:" not in out


def test_a_damaged_model_would_be_refused(planned, tiny, tmp_path):
    """The memory it needs is known, and shown, all the same."""
    (tmp_path / "config.json").write_text((tiny / "teacher" / "config.json").read_text())
    code, out, _ = planned("--preset", "tiny", "--teacher", tmp_path, "--budget-gb", "8")
    assert (code, out.splitlines()[-1]) == (1, "Cannot start: teacher, chats (see above)")
    assert any(line.split()[:2] == ["problem", "teacher"] for line in out.splitlines())
    assert any(line.startswith("GPU: peak ") for line in out.splitlines())


def test_what_training_refuses_does_not_fit(planned, main, capsys, tmp_path):
    """Completions that the models' positions have no room for: one check for both, in the same words."""
    flags = (
        "--preset",
        "tiny",
        "--budget-gb",
        "64",
        "--max-completion-length",
        "1024",
        "--output-dir",
        tmp_path / "run",
    )
    code, out, _ = planned(*flags)
    assert (code, out.splitlines()[-1]) == (1, "Cannot start: data (see above)")
    with pytest.raises(SystemExit, match="2"):
        main(train_command, *flags)
    refusal = capsys.readouterr().err.removeprefix("error: ").strip()
    assert "2048 x prompt and completion exceed the teacher's positions" in refusal and refusal in out
    report = json.loads(planned(*flags, "--json")[1])
    assert not report["fits"] and report["shortfalls"] == []
    assert list(tmp_path.iterdir()) == []


def test_a_saved_run_can_be_planned(planned, tmp_path):
    _, printed, _ = planned("--preset", "mono96", "--print-config")
    (tmp_path / "config.yaml").write_text(printed)
    assert load_config(tmp_path / "config.yaml") == PRESETS["mono96"]
    code, out, _ = planned("--config", tmp_path / "config.yaml")
    assert code == 0 and out.startswith("Plan of --preset mono96")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--preset", "mono58"], "preset=mono58: no such preset: did you mean mono85?"),
        (["--preset", "mono85", "--budget-gb", "70", "--planned-gb", "77"], "planned_gb=77 is more than budget_gb=70"),
        (["--preset", "mono85", "--host-gb", "-1"], "host_gb=-1: expected a positive number of GB, or None"),
        (["--preset", "mono85", "--teacher", "./runs/none"], "hub, but ./runs/none does not exist: "),
        (["--preset", "mono85", "--student", "nobody/nothing"], "there is no nobody/nothing here and HF_HUB_OFFLINE"),
    ],
)
def test_mistakes(planned, flags, message):
    code, out, err = planned(*flags)
    assert (code, out) == (2, "")
    assert message in err and "Traceback" not in err


def test_with_a_gpu_the_machine_counts(tmp_path, monkeypatch):
    """A module of NVML's interface stands in for a GPU, which JAX then does not see: nothing is compiled."""
    (tmp_path / "pynvml.py").write_text(DRIVER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def run(*flags: str) -> tuple[int, dict]:
        line = [sys.executable, "-m", "rlt_jax.plan", "--preset", "mono85", "--json", *flags]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        return done.returncode, json.loads(done.stdout)

    code, report = run("--host-gb", "200")
    assert report["gpu"]["name"] == "NVIDIA H100 80GB HBM3"
    assert (report["gpu_bytes"], report["host_bytes"], report["shortfalls"]) == (77e9, 200e9, [])
    problems = [check["name"] for check in report["checks"] if check["status"] == "problem" and check["concerns_plan"]]
    assert (code, problems) == (1, ["packages"])  # jax without its CUDA plugin
    code, report = run("--host-gb", "100", "--budget-gb", "96", "--planned-gb", "90")
    assert report["gpu_bytes"] == 80 * 2**30  # no more than there is
    assert len(report["shortfalls"]) == 2 and report["lower"][0]["flags"] == "--planned-gb 85 --memory.moments bfloat16"


def test_a_misspelt_flag(planned):
    code, out, err = planned("--preset", "mono85", "--budget", "70")
    assert (code, out) == (2, "")
    assert "--budget" in err and "--budget-gb" in err


def test_a_flag_of_the_wrong_type(planned):
    code, _, err = planned("--preset", "mono85", "--budget-gb", "much")
    assert code == 2 and "much" in err
