"""`python -m rlt_jax.ablate`: a whole small study, interrupted and continued, with an arm that cannot run."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlt_jax import ablate as ablate_command
from rlt_jax.configs import load_config
from rlt_jax.evals.crossed import crossed
from rlt_jax.studies.run_states import is_finished

pytestmark = pytest.mark.slow

STUDY = """\
base:
  preset: tiny
  max_steps: 2
  train_batch_size: 8
  num_generations: 4
  per_device_train_batch_size: 8
  score_batch_size: 8
  max_completion_length: 8
  eval_steps: 1
  save_steps: 1
  learning_rate: 1e-3
  data: {eval_rows: 8}
  checkpoint: {export: false}
arms:
  paper: {}
  no-kl: {reward: {kl_penalty_reward_coeff: [0]}}
  broken: {teacher: /no/such/model}
seeds: [1, 2]
"""
LOGP = "eval/component/solution_logp/mean"


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def table(folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    """(arm, metric) -> its line of comparison.csv."""
    with (folder / "comparison.csv").open(newline="") as file:
        return {(record["arm"], record["metric"]): record for record in csv.DictReader(file)}


def change(folder: Path, metric: str) -> float:
    """Last value less first of a run's held-out metric."""
    values = [line[metric] for line in lines(folder / "metrics.jsonl") if metric in line]
    assert len(values) == 3
    return values[-1] - values[0]


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("study") / "study.yaml"
    path.write_text(STUDY)
    return path


@pytest.fixture(scope="module")
def interrupted(study) -> tuple[Path, tuple, int, str]:
    """(folder, flags, exit code, what it said) of the study, stopped with Ctrl-C after the first run's checkpoint."""
    folder = study.parent / "out"
    flags = ("--study", study, "--output-dir", folder)
    line = [sys.executable, "-m", "rlt_jax.ablate", *map(str, flags), "--only", "paper", "no-kl"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts behind `&` ignores Ctrl-C
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        signal.signal(signal.SIGINT, before)
        assert process.stdout is not None
        said = []
        for printed in process.stdout:
            said.append(printed)
            if printed.startswith("paper, seed 1: step 1/2  reward"):  # early: on a busy machine the signal comes late
                process.send_signal(signal.SIGINT)
    return folder, flags, process.returncode, "".join(said)


@pytest.fixture(scope="module")
def done(interrupted, command) -> tuple[Path, tuple, str, str]:
    """(folder, flags, what is printed, table before) of the same study, continued over two calls."""
    folder, flags, code, _ = interrupted
    assert code == 130
    assert not (folder / "no-kl").exists() and not (folder / "comparison.csv").exists()
    saved = {path.name for path in (folder / "paper" / "seed-1" / "checkpoints").iterdir()}
    assert saved & {"1", "2"}
    first = command("ablate", *flags, "--only", "paper", "no-kl", "--seeds", 1)
    before = (folder / "comparison.csv").read_text()
    return folder, flags, first + command("ablate", *flags, "--only", "no-kl", "paper"), before


def test_the_running_command_saves_before_the_study_ends(interrupted):
    folder, _, _, said = interrupted
    of_run, own = [line for line in said.splitlines() if "stopped by SIG" in line]
    assert of_run.startswith("paper, seed 1: stopped by SIGINT: ")
    assert f"resume with python -m rlt_jax.train --config {folder}/paper/seed-1.yaml" in of_run
    assert own == "stopped by SIGINT: the same command leaves finished runs alone and resumes the others"
    assert "Traceback" not in said


def test_an_interrupted_study_resumes_where_it_stopped(done):
    folder, _, printed, _ = done
    log = (folder / "paper" / "seed-1" / "logs" / "training.log").read_text()
    assert "resuming from step" in log
    steps = [line["step"] for line in lines(folder / "paper" / "seed-1" / "metrics.jsonl") if "reward" in line]
    assert steps == [1, 2]
    headings = [line for line in printed.splitlines() if line.startswith("[")]
    assert headings == [
        f"[1/2] paper, seed 1: {folder}/paper/seed-1",
        f"[2/2] no-kl, seed 1: {folder}/no-kl/seed-1",
        "[1/4] paper, seed 1: already finished",
        f"[2/4] paper, seed 2: {folder}/paper/seed-2",
        "[3/4] no-kl, seed 1: already finished",
        f"[4/4] no-kl, seed 2: {folder}/no-kl/seed-2",
    ]
    assert "no-kl, seed 2: step 2/2  reward" in printed
    assert "step 2/2  reward" in (folder / "no-kl" / "seed-2.log").read_text()


def test_every_run_has_the_configuration_of_its_arm(done):
    folder, *_ = done
    for arm, weights in {"paper": (3.0, 0.03), "no-kl": (0.0,)}.items():
        for seed in (1, 2):
            config = load_config(folder / arm / f"seed-{seed}" / "config.yaml")
            assert (config.seed, config.max_steps, config.reward.kl_penalty_reward_coeff) == (seed, 2, weights)
            assert config == load_config(folder / arm / f"seed-{seed}.yaml")


def test_the_table_is_that_of_the_runs(done):
    folder, _, printed, _ = done
    records = table(folder)
    for arm in ("paper", "no-kl"):
        for metric in (LOGP, "eval/reward", "eval/component/thought_kl/mean"):
            ours, changes = records[arm, metric], [change(folder / arm / f"seed-{seed}", metric) for seed in (1, 2)]
            mean, half_width = sum(changes) / 2, 12.7062 * abs(changes[0] - changes[1]) / 2  # t(1); sd / sqrt(2)
            assert float(ours["change"]) == pytest.approx(mean, abs=1e-9)
            assert float(ours["ci_low"]) == pytest.approx(mean - half_width, rel=1e-4, abs=1e-6)
            assert float(ours["ci_high"]) == pytest.approx(mean + half_width, rel=1e-4, abs=1e-6)
            assert (ours["seeds"], ours["planned"], ours["ci_over"]) == ("2", "2", "seeds")
    assert records["paper", LOGP]["first"] == records["no-kl", LOGP]["first"]  # same model, same prompts, same seeds
    assert records["broken", LOGP]["seeds"] == "0"
    first, second = (by_question(folder / arm, LOGP.removeprefix("eval/component/")) for arm in ("paper", "no-kl"))
    expected = crossed(second - first)
    ours = records["no-kl", LOGP]
    assert float(ours["from_first"]) == pytest.approx(expected.mean, abs=1e-9)
    assert float(ours["from_first_high"]) == pytest.approx(expected.mean + expected.over_both, abs=1e-9)
    assert float(ours["p"]) == pytest.approx(expected.p_value, rel=1e-6) and ours["certain"] == "false"
    assert (ours["from_first_seeds"], ours["from_first_questions"]) == ("2", "8")
    assert records["no-kl", "eval/reward"]["from_first"] == ""  # other weights
    facts = json.loads((folder / "comparison.json").read_text())
    numbers = facts["arms"]["no-kl"]["differences"][LOGP.removeprefix("eval/")]
    assert (numbers["mean"], numbers["p_holm"]) == pytest.approx((expected.mean, expected.p_value), rel=1e-6, abs=1e-9)
    assert facts["runs"]["broken"]["1"] == {"state": "not begun", "steps": 0, "note": ""}
    markdown = (folder / "comparison.md").read_text()
    assert markdown.startswith("| arm | seeds | Solution log-prob, nats per token | Reward, nats, weighted |")
    assert "| broken | 0/2 | – |" in markdown and "not comparable: reward (reward.kl_penalty_reward_coeff)" in markdown
    assert "- broken, seeds 1, 2: not begun" in markdown and "## Which differences are certain" in markdown
    assert markdown.partition("\n![")[0] in printed
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")


def by_question(arm: Path, name: str) -> np.ndarray:
    """The last values of a quantity, f64[2 seeds, 8 questions]."""
    return np.array(
        [[line[name] for line in lines(arm / f"seed-{seed}" / "eval.jsonl") if line["step"] == 2] for seed in (1, 2)]
    )


def test_a_dry_run_knows_the_hours_of_finished_arms_and_writes_nothing(done, main, capsys):
    folder, flags, *_ = done
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(SystemExit) as end:
        main(ablate_command, *flags, "--dry-run")
    assert end.value.code == 1
    printed = capsys.readouterr().out
    assert "Arms: 3, seeds: 2 (1, 2), runs in" in printed and "4 are finished and 2 are to train" in printed
    assert "| paper | 0 | – | 0 | – |" in printed and "| broken | 2 | – | unknown | – |" in printed
    assert "- broken cannot run: expected a model's folder" in printed
    assert "| no-kl |  | 0.0 |" in printed  # the teacher is that of the first arm
    main(ablate_command, *flags, "--dry-run", "--only", "paper", "no-kl")  # exit code 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_with_one_seed_the_interval_is_over_prompts(done):
    """The table after the first call, when each arm had one seed."""
    folder, _, _, before = done
    record = next(csv.DictReader(before.splitlines()))
    assert (record["arm"], record["metric"], record["seeds"], record["ci_over"]) == ("paper", LOGP, "1", "prompts")
    by_prompt: dict[int, dict[int, float]] = {}
    for line in lines(folder / "paper" / "seed-1" / "eval.jsonl"):
        by_prompt.setdefault(line["row"], {})[line["step"]] = line["solution_logp/mean"]
    changes = [values[2] - values[0] for values in by_prompt.values()]
    mean = sum(changes) / 8
    error = (sum((x - mean) ** 2 for x in changes) / 7 / 8) ** 0.5
    assert float(record["change"]) == pytest.approx(mean, abs=1e-6)
    assert float(record["ci_high"]) == pytest.approx(mean + 2.36462 * error, rel=1e-4)  # t(7)


def test_a_finished_study_trains_nothing_and_prints_the_same(done, main, capsys):
    folder, flags, *_ = done
    before = {path: path.read_bytes() for path in folder.rglob("*.jsonl")}
    main(ablate_command, *flags, "--only", "paper", "no-kl")
    everything = capsys.readouterr().out
    assert everything.count("already finished") == 4
    main(ablate_command, *flags, "--summary-only")
    assert everything.endswith(capsys.readouterr().out)
    assert before == {path: path.read_bytes() for path in folder.rglob("*.jsonl")}


def test_a_failing_arm_is_reported_and_does_not_stop_the_others(done, study, tmp_path):
    """broken comes before paper here, whose runs are taken over from the finished study."""
    folder, *_ = done
    shutil.copytree(folder / "paper", tmp_path / "out" / "paper")
    arms = "arms:\n  broken: {teacher: /no/such/model}\n  paper: {}\nseeds: [1, 2]\n"
    (tmp_path / "study.yaml").write_text(STUDY.partition("arms:")[0] + arms)
    flags = ("--study", tmp_path / "study.yaml", "--output-dir", tmp_path / "out", "--seeds", "2")
    line = [sys.executable, "-m", "rlt_jax.ablate", *map(str, flags)]
    ended = subprocess.run(line, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr and ended.stderr.startswith("error: 1 of 2 runs failed:\n  broken, seed 2: ")
    assert (
        "exit code 2 (error: expected a model's folder or its name on the Hugging Face hub, but /no/such/model"
        in ended.stderr
    )
    assert f"see {tmp_path}/out/broken/seed-2.log" in ended.stderr
    assert "[2/2] paper, seed 2: already finished" in ended.stdout
    assert "| paper | 2/2 | " in ended.stdout and "| broken | 0/2 | – |" in ended.stdout
    assert "- broken, seed 2: failed at step 0 of 2: exit code 2 (error: expected a model's folder" in ended.stdout
    assert "- broken, seed 1: not begun" in (tmp_path / "out" / "comparison.md").read_text()
    assert table(tmp_path / "out")["paper", LOGP] == table(folder)["paper", LOGP]


def test_a_run_is_finished_when_it_left_what_it_was_to_leave(done, tmp_path):
    folder, *_ = done
    shutil.copytree(folder / "paper" / "seed-1", tmp_path / "run")
    run = replace(load_config(tmp_path / "run" / "config.yaml"), output_dir=str(tmp_path / "run"))
    exporting = replace(run, checkpoint=replace(run.checkpoint, export=True))
    last, final = tmp_path / "run" / "checkpoints" / "2", tmp_path / "run" / "final"
    assert is_finished(run)
    assert not is_finished(replace(run, max_steps=3))
    assert not is_finished(exporting)
    final.mkdir()
    assert is_finished(exporting)
    os.utime(final, (0, 0))  # of a run that was shorter then
    assert not is_finished(exporting)
    shutil.rmtree(last)
    assert not is_finished(run)
    assert is_finished(replace(run, checkpoint=replace(run.checkpoint, at_end=False)))


REFUSED = {
    "other settings": ("learning_rate: 1e-3", "learning_rate: 2e-3", "holds a run with other settings (learning_rate)"),
    "no held-out rows": ("data: {eval_rows: 8}", "data: {eval_rows: 0}", "eval_steps=1 but data.eval_rows=0"),
    "no evaluations": ("eval_steps: 1", "eval_steps: 0", "arms are compared on held-out rows: set eval_steps"),
    "an arm that cannot be": ("/no/such/model}", "x, num_generations: 3}", "num_generations=3 does not divide"),
}


@pytest.mark.parametrize(("old", "new", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_study_that_cannot_work_stops_before_its_first_run(done, main, tmp_path, capsys, old, new, message):
    folder, *_ = done
    assert old in STUDY
    (tmp_path / "study.yaml").write_text(STUDY.replace(old, new).replace("seeds: [1, 2]", "seeds: [3, 2, 1]"))
    files = sorted(folder.rglob("*"))
    with pytest.raises(SystemExit) as end:
        main(ablate_command, "--study", tmp_path / "study.yaml", "--output-dir", folder)
    assert end.value.code == 2
    printed = capsys.readouterr()
    assert message in printed.err and "seed 3" not in printed.out
    assert sorted(folder.rglob("*")) == files


def test_arms_on_rows_of_their_own_are_said_to_be_evaluated_on_different_ones(main, tmp_path, capsys):
    """And none of them on the package's arithmetic."""
    (tmp_path / "study.yaml").write_text(
        "base: {preset: tiny, data: {path: a.jsonl}}\narms: {a: {}, b: {data: {path: b.jsonl}}}\nseeds: [1]\n"
    )
    (tmp_path / "out").mkdir()
    flags = ("--study", tmp_path / "study.yaml", "--output-dir", tmp_path / "out", "--summary-only")
    main(ablate_command, *flags)
    assert "arms are evaluated on different rows (a: at the end of a.jsonl; b: at the end of b.jsonl)" in (
        capsys.readouterr().out
    )


def test_nothing_to_compare_yet(study, main, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    main(ablate_command, "--study", study, "--output-dir", tmp_path / "out", "--summary-only")
    assert capsys.readouterr().out == f"{tmp_path}/out: no run is finished, nothing to compare\n"
    assert list((tmp_path / "out").iterdir()) == []


ASKED = {
    "a folder that is not there": (
        ("--summary-only",),
        "--output-dir {}/out: expected the folder of a study, but there is none: give the folder of its runs, or "
        "leave out --summary-only to train them",
    ),
    "a seed twice": (("--seeds", 1, 1), "--seeds: 1 is given twice"),
    "a grid of nothing": (("--grid", "loss.beta"), "--grid loss.beta: expected FIELD=VALUES, such as loss.beta=0,0.04"),
}


@pytest.mark.parametrize(("flags", "message"), ASKED.values(), ids=ASKED.keys())
def test_what_cannot_be_asked_for(study, main, tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as end:
        main(ablate_command, "--study", study, "--output-dir", tmp_path / "out", *flags)
    assert end.value.code == 2
    assert capsys.readouterr().err == f"error: {message.format(tmp_path)}\n"
    assert not (tmp_path / "out").exists()
