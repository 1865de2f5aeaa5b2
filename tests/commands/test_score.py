"""`python -m rlt_jax.score` against the original's rewards, through files and flags alone."""

import json
from pathlib import Path

import numpy as np
import pytest

from rlt_jax import score as score_command
from rlt_jax.losses import ORIGINAL_NAMES

# Golden cases whose prompt ends with the start tag and two newlines, and on which we differ: see tests/data/test_spans
MENDED = {
    *("thought_occurs_in_question", "trailing_merge_mismatch", "leading_merge_mismatch"),
    *("missing_end_tag_empty_completion", "empty_thought_after_padding", "empty_thought_no_padding"),
}
FLAGS = {  # the original's argument -> our flag, where another name or another spelling is needed
    "normalize_log_prob_fn": "normalize-log-prob",
    "normalize_kl_fn": "normalize-kl",
    "reduction_log_prob_fn": "reduction-log-prob",
    "reduction_kl_fn": "reduction-kl",
}


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def reward_flags(kwargs: dict) -> list[str]:
    """Every argument of the original's reward as a flag."""
    flags = []
    for name, value in kwargs.items():
        flag = FLAGS.get(name, name.replace("_", "-"))
        if isinstance(value, bool):
            flags.append(f"--reward.{flag}" if value else f"--reward.no-{flag}")
        else:
            flags += [f"--reward.{flag}", *(str(x) for x in (value if isinstance(value, list) else [value]))]
    return flags


@pytest.fixture(scope="module")
def recorded(golden) -> dict:
    return json.loads((golden / "reward_cases.json").read_text())


@pytest.fixture(scope="module")
def cases(recorded) -> list[tuple[int, dict]]:
    """(row of the arrays, case) of the cases that are scored."""
    by_name = {case["id"]: case for case in recorded["cases"]}
    chosen = [
        (index, by_name[name])
        for index, name in enumerate(recorded["case_order"])
        if name not in MENDED and by_name[name]["inputs"]["prompts"].endswith("<|begin_of_explanation|>\n\n")
    ]
    assert len(chosen) == 17
    return chosen


@pytest.fixture(scope="module")
def short_cases(cases) -> list[tuple[int, dict]]:
    """All but the one with a thought of 900 tokens, which takes longer than the others together."""
    chosen = [(index, case) for index, case in cases if case["id"] != "very_long"]
    assert len(chosen) == 16
    return chosen


@pytest.fixture(scope="module")
def flags(golden, tmp_path_factory) -> tuple:
    """Models and prompts of the golden cases."""
    folder = tmp_path_factory.mktemp("prompts")
    texts = json.loads((golden / "data_cases.json").read_text())
    for name in ("teacher", "student"):
        (folder / f"{name}.txt").write_text(texts[f"{name}_system_prompt"] + "\n")
    return (
        *("--teacher", golden / "teacher", "--student", golden / "student"),
        *("--teacher-prompt-file", folder / "teacher.txt", "--student-prompt-file", folder / "student.txt"),
    )


def write_cases(path: Path, cases) -> Path:
    columns = {"question": "questions", "solution": "solutions_content", "completion": "completions"}
    return write(path, [{ours: case["inputs"][theirs] for ours, theirs in columns.items()} for _, case in cases])


def assert_original(records: list[dict], cases, recorded: dict, arrays, config: str) -> None:
    """Rewards to 1e-3, and every component the original logged."""
    names = recorded["configs"][config]["component_names"]
    exponentiates = config in ("schulman", "exp_scalar", "exp_list")  # log-ratios of up to 20 nats
    close = {"abs": 1e-3, "rel": 1e-3 if exponentiates else 1e-6}
    assert [record["row"] for record in records] == list(range(len(cases)))
    for record, (index, case) in zip(records, cases, strict=True):
        assert record["reward"] == pytest.approx(arrays[f"{config}/reward"][index], **close), case["id"]
        assert record["matched"] is not case["match_penalised"], case["id"]
        assert record["thought_tokens"] == np.diff(case["teacher_thought_token_span"])
        assert record["solution_tokens"] == np.diff(case["student_solution_token_span"])
        logged = dict(zip(names, arrays[f"{config}/components"][index]))
        compared = [ours for ours, theirs in ORIGINAL_NAMES.items() if theirs in logged]
        assert set(compared) == record["components"].keys()
        for ours in compared:
            theirs = logged[ORIGINAL_NAMES[ours]]
            assert record["components"][ours] == pytest.approx(theirs, **close), (case["id"], ours)


def test_rewards_of_the_papers_run_are_the_originals(command, flags, cases, recorded, golden, tmp_path):
    """The defaults are the original's `rlt` configuration."""
    out = tmp_path / "new folder" / "scores.jsonl"
    printed = command("score", *flags, "--data", write_cases(tmp_path / "rows.jsonl", cases), "--out", out)
    records, arrays = read(out), np.load(golden / "reward_cases.npz")
    assert_original(records, cases, recorded, arrays, "rlt")
    mean = np.mean([record["reward"] for record in records])
    assert printed.splitlines()[-1] == f"17 rows scored, 0 skipped, mean reward {mean:.4f}: {out}"
    assert [path.name for path in out.parent.iterdir()] == ["scores.jsonl"]  # nothing half-written stays


@pytest.mark.parametrize(
    "config",
    ["yaml_defaults", "schulman", "no_teacher_entropy", "exp_scalar", "exp_list", "clipped", "temps_off_penalty"],
)
def test_every_flag_reaches_the_reward(main, flags, short_cases, recorded, golden, tmp_path, config):
    """The original's other configurations change each argument at least once."""
    settings = recorded["configs"][config]
    temperature = ("--temperature", settings["trainer_temperature"])
    data, out = write_cases(tmp_path / "rows.jsonl", short_cases), tmp_path / "scores.jsonl"
    reward = reward_flags(settings["reward_kwargs"])
    main(score_command, *flags, *temperature, *reward, "--data", data, "--out", out)
    assert_original(read(out), short_cases, recorded, np.load(golden / "reward_cases.npz"), config)


def test_pieces_change_nothing(main, flags, short_cases, recorded, golden, tmp_path, monkeypatch):
    """Rows are scored and written some at a time: here 16 in two pieces of 8."""
    monkeypatch.setattr(score_command, "BATCHES_A_PIECE", 1)
    data, out = write_cases(tmp_path / "rows.jsonl", short_cases), tmp_path / "scores.jsonl"
    main(score_command, *flags, "--data", data, "--out", out)
    assert_original(read(out), short_cases, recorded, np.load(golden / "reward_cases.npz"), "rlt")


def test_a_bare_explanation_is_a_completion_that_closed_its_tags(main, flags, cases, tmp_path):
    (_, case), *_ = cases
    assert case["id"] == "well_formed_short"
    text = case["teacher_thought_text"]
    row = {"question": case["inputs"]["questions"], "solution": case["inputs"]["solutions_content"]}
    forms = [
        {"completion": text + "<|end_of_explanation|>"},
        {"explanation": text},
        {"explanation": text.strip()},
        {"explanation": f"<|begin_of_explanation|>{text}<|end_of_explanation|>"},
        {"explanation": f"<|begin_of_thought|>\n\n{text}<|end_of_thought|>"},
    ]
    data = write(tmp_path / "rows.jsonl", [{**row, **form} for form in forms])
    out = tmp_path / "scores.jsonl"
    main(score_command, *flags, "--data", data, "--out", out)
    first, *others = read(out)
    assert first["matched"]
    for other in others:
        assert other["matched"] and other["thought_tokens"] == first["thought_tokens"] == 22
        assert other["reward"] == pytest.approx(first["reward"], abs=1e-4)


def test_a_copied_solution_shows_in_the_copy_rate(main, flags, tmp_path):
    solution = "The answer is 17 times 3, which makes 51, as the table shows."
    rows = [
        {"question": "What?", "solution": solution, "explanation": solution},
        {"question": "What?", "solution": solution, "explanation": "Seventeen and seventeen and seventeen more."},
    ]
    out = tmp_path / "scores.jsonl"
    main(score_command, *flags, "--data", write(tmp_path / "rows.jsonl", rows), "--out", out)
    copied, own = read(out)
    assert copied["copy_rate"] > 0.8 and own["copy_rate"] == 0.0


def test_rows_that_cannot_be_scored_are_counted_and_keep_their_numbers(main, flags, tmp_path, capsys):
    row = {"question": "What is 1+1?", "solution": "2"}
    rows = [
        {**row, "explanation": "One and one."},
        row,
        {**row, "completion": "a", "explanation": "b"},
        {**row, "solution": " ", "explanation": "b"},
        {**row, "completion": "No tag"},
    ]
    out = tmp_path / "scores.jsonl"
    main(score_command, *flags, "--data", write(tmp_path / "rows.jsonl", rows), "--out", out)
    records = read(out)
    assert [(record["row"], record["matched"]) for record in records] == [(0, True), (4, False)]
    assert records[1]["components"]["match_reward"] == -1.0
    assert "2 rows scored, 3 skipped, mean reward " in capsys.readouterr().out


def test_the_tiny_student_depends_on_the_explanation(main, tiny, tmp_path):
    """Solution log-prob at temperature 1: the true trace is worth at least 1 nat per token over another row's."""
    rows = read(tiny / "eval.jsonl")[:64]
    traces = [row.pop("reasoning_trace") for row in rows]
    means = {}
    for name, explained in {"true": traces, "shuffled": traces[1:] + traces[:1]}.items():
        data = write(tmp_path / f"{name}.jsonl", [{**row, "explanation": x} for row, x in zip(rows, explained)])
        out = tmp_path / f"{name}-scores.jsonl"
        models = ("--teacher", tiny / "teacher", "--student", tiny / "student", "--score-batch-size", 32)
        main(
            score_command,
            *models,
            *("--data", data, "--out", out, "--reward.unbias-student-log-probs-temp", "None"),
        )
        means[name] = np.mean([record["components"]["solution_logp/mean"] for record in read(out)])
    assert means["true"] - means["shuffled"] >= 1.0
    assert means["true"] > -1.0
