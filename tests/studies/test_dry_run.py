"""What a dry run says, without any training."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rlt_jax.configs import PRESETS, save_config
from rlt_jax.studies.dry_run import dry_run

TINY = replace(PRESETS["tiny"], max_steps=4, eval_steps=2, checkpoint=replace(PRESETS["tiny"].checkpoint, at_end=False))
TINY = replace(TINY, checkpoint=replace(TINY.checkpoint, export=False))


@pytest.fixture
def runs(tmp_path):
    """Two arms of two seeds; the second arm has larger passes."""
    arms = {"a": TINY, "b": replace(TINY, score_batch_size=128, data=replace(TINY.data, tags="r1"))}
    return {
        arm: {seed: replace(run, seed=seed, output_dir=str(tmp_path / arm / f"seed-{seed}")) for seed in (1, 2)}
        for arm, run in arms.items()
    }


def measure(run, *, steps: int = 4, seconds: float = 3.0) -> None:
    """The metrics of a run with steps of 3 s (the first: 9 s) and evaluations of 5 s."""
    folder, time, lines = Path(run.output_dir), 100.0, [{"step": 0, "time": 100.0, "eval/reward": -1.0}]
    folder.mkdir(parents=True)
    for step in range(1, steps + 1):
        taken = seconds + (6.0 if step == 1 else 0.0)
        time += taken
        lines.append({"step": step, "time": time, "seconds/step": taken})
        if step % 2 == 0:
            time += 5.0
            lines.append({"step": step, "time": time, "eval/reward": -1.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def lines_of(text: str, start: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start)]


def test_a_study_that_has_not_begun(runs, tmp_path):
    text, fits = dry_run(runs, runs, tmp_path)
    assert fits and list(tmp_path.iterdir()) == []
    assert text.startswith(
        f"Arms: 2, seeds: 2 (1, 2), runs in {tmp_path}: 4, of which 0 are finished and 4 are to train. No"
    )
    assert lines_of(text, "| arm |") == ["| arm | score_batch_size | data.tags |"]
    assert lines_of(text, "| a | 64") == ["| a | 64 | null |"] and lines_of(text, "| b | 128") == ["| b | 128 | r1 |"]
    assert "Hours unknown for all arms: no run of their size in" in text and "(`--only a --seeds 1`)" in text
    gpu = [float(line.split(" | ")[1]) for line in (lines_of(text, "| a | ")[-1], lines_of(text, "| b | ")[-1])]
    assert 1 < gpu[0] < gpu[1] < 10 and lines_of(text, "| b | ")[-1].endswith("| yes |")


def test_hours_are_those_of_finished_runs(runs, tmp_path):
    """4.5 s a step, 5 s an evaluation, of which there are three: 33 s a run."""
    measure(runs["a"][2])
    text, _ = dry_run(runs, runs, tmp_path)
    assert "of which 1 are finished and 3 are to train" in text
    assert f"| a | 1 | 4.50 | {33 / 3600:.2f} | a, seed 2 |" in text
    assert "| b | 2 | – | unknown | – |" in text and "Hours unknown for b:" in text  # its passes are larger
    assert f"{33 / 3600:.2f} hours for the arms with a measured time" in text


def test_arms_of_one_size_share_their_time_and_a_run_s_own_goes_first(runs, tmp_path):
    runs["c"] = {3: replace(TINY, loss=replace(TINY.loss, beta=0.0), output_dir=str(tmp_path / "c" / "seed-3"))}
    measure(runs["a"][1])
    assert "| c | 1 | 4.50 | 0.01 | a, seed 1 |" in dry_run(runs, runs, tmp_path)[0]
    measure(runs["a"][2], seconds=5.0)
    assert "| c | 1 | 5.50 | 0.01 | 2 runs of its size |" in dry_run(runs, runs, tmp_path)[0]
    longer = {arm: {seed: replace(run, max_steps=400) for seed, run in of.items()} for arm, of in runs.items()}
    measure(runs["c"][3], steps=6, seconds=99.0)
    text, _ = dry_run(longer, {"c": longer["c"]}, tmp_path)
    assert "Arms: 1, seeds: 1 (3), runs" in text and "| c | 1 | 100.00 | 11.39 | c, seed 3, 6 steps so far |" in text


def test_an_arm_that_does_not_fit(runs, tmp_path):
    runs["b"] = {seed: replace(run, budget_gb=3.0, planned_gb=2.0) for seed, run in runs["b"].items()}
    text, fits = dry_run(runs, runs, tmp_path)
    assert not fits
    assert lines_of(text, "| b | ")[-1].endswith("| no |") and lines_of(text, "| a | ")[-1].endswith("| yes |")
    assert "- b does not fit: GPU: 2 GB may be used" in text


def test_an_arm_whose_model_is_not_there_is_named_beside_the_others(runs, tmp_path):
    runs["b"] = {seed: replace(run, teacher="/no/such/model") for seed, run in runs["b"].items()}
    text, fits = dry_run(runs, runs, tmp_path)
    assert not fits and lines_of(text, "| b | ")[-1] == "| b | – | – | – | – | – | no |"
    assert "- b cannot run: expected a model's folder or its name on the Hugging Face hub, but /no/such/model" in text
    assert lines_of(text, "| a | ")[-1].endswith("| yes |")


def test_nothing_is_written_beside_a_study(runs, tmp_path):
    measure(runs["a"][1])
    save_config(runs["a"][1], tmp_path / "a" / "seed-1" / "config.yaml")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    dry_run(runs, runs, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
