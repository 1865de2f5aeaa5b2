"""`python -m rlt_jax.score` against the original's rewards, through files and flags alone."""

import datetime
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from rlt_jax import score as score_command
from rlt_jax.losses import ORIGINAL_NAMES

pytestmark = pytest.mark.slow

# Golden cases whose prompt ends with the start tag and two newlines, and on which we differ: see tests/data/test_spans
MENDED = {
    *("thought_occurs_in_question", "trailing_merge_mismatch", "leading_merge_mismatch"),
    *("missing_end_tag_empty_completion", "empty_thought_after_padding", "empty_thought_no_padding"),
}
# A case whose explanation holds a tag of the chat, for which the original has no penalty: see rlt_jax/data/forged.py
FORGED = {"contains_solution_tags"}
WITH_PENALTY = {"match_reward", "total_with_kl", "total_with_surprisal"}  # components that include the penalty
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
    """Rewards to 1e-3, and every component the original logged; a forged tag adds the penalty and nothing else."""
    names = recorded["configs"][config]["component_names"]
    exponentiates = config in ("schulman", "exp_scalar", "exp_list")  # log-ratios of up to 20 nats
    close = {"abs": 1e-3, "rel": 1e-3 if exponentiates else 1e-6}
    assert [record["row"] for record in records] == list(range(len(cases)))
    for record, (index, case) in zip(records, cases, strict=True):
        forged = case["id"] in FORGED
        penalty = recorded["configs"][config]["reward_kwargs"]["not_matched_penalty"] if forged else 0.0
        assert record["reward"] == pytest.approx(arrays[f"{config}/reward"][index] + penalty, **close), case["id"]
        assert record["matched"] is not (case["match_penalised"] or forged), case["id"]
        assert record["thought_tokens"] == np.diff(case["teacher_thought_token_span"])
        assert record["solution_tokens"] == np.diff(case["student_solution_token_span"])
        logged = dict(zip(names, arrays[f"{config}/components"][index]))
        compared = [ours for ours, theirs in ORIGINAL_NAMES.items() if theirs in logged]
        if config == "no_teacher_entropy":  # the original runs the teacher all the same, to log what no reward reads
            compared = [ours for ours in compared if not ours.startswith(("thought_kl", "kl_reward", "total_with_kl"))]
        assert set(compared) == record["components"].keys()
        for ours in compared:
            theirs = logged[ORIGINAL_NAMES[ours]] + (penalty if ours in WITH_PENALTY else 0.0)
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


def test_chunks_change_nothing(main, flags, short_cases, recorded, golden, tmp_path, monkeypatch):
    """Rows are scored and written some at a time: here 16 in two chunks of 8."""
    monkeypatch.setattr(score_command, "BATCHES_PER_CHUNK", 1)
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


@pytest.fixture(scope="module")
def explained(tiny, tmp_path_factory) -> tuple[Path, list[dict]]:
    """Rows of four questions, each with its own trace and those of the next two; the second is broken."""
    problems = read(tiny / "eval.jsonl")[:4]
    rows = [
        {
            **{name: problem[name] for name in ("question", "solution", "system") if name in problem},
            "explanation": problems[(i + shift) % 4]["reasoning_trace"],
            "source": {"problem": i, "shift": shift, "π": None},
        }
        for shift in (0, 1, 2)
        for i, problem in enumerate(problems)
    ]
    rows.insert(1, {"question": "What is 1+1?", "solution": "2"})
    return write(tmp_path_factory.mktemp("explained") / "rows.jsonl", rows), rows


@pytest.fixture(scope="module")
def models(tiny) -> tuple:
    prompt = ("--teacher-prompt-file", tiny / "teacher_prompt.txt")
    return ("--teacher", tiny / "teacher", "--student", tiny / "student", *prompt, "--score-batch-size", 16)


def best(records: list[dict], rows: list[dict], count: int) -> list[int]:
    """Numbers of the best rows of each question, worked out anew."""
    of_question: dict[str, list[dict]] = {}
    for record in sorted(records, key=lambda record: (-record["reward"], record["row"])):
        of_question.setdefault(rows[record["row"]]["question"], []).append(record)
    return sorted(record["row"] for ranked in of_question.values() for record in ranked[:count])


def test_the_best_explanations_are_kept_as_a_data_set(command, models, explained, tmp_path):
    data, rows = explained
    names = ("scores.jsonl", "kept/rows.jsonl", "kept/histogram.png")
    out, selected, histogram = (tmp_path / name for name in names)
    printed = command(
        *("score", *models, "--data", data, "--out", out, "--selected-out", selected, "--histogram", histogram),
        *("--best-of-question", 2, "--top-fraction", 0.75, "--reward.kl-penalty-reward-coeff", 0),
    )
    records, kept = {record["row"]: record["reward"] for record in read(out)}, read(selected)
    assert len(records) == 12 and len(kept) == 6  # 12 rows -> 2 of each of 4 questions -> 0.75 of 8
    numbers = [rows.index({k: v for k, v in row.items() if k not in ("reward", "rank")}) for row in kept]
    assert numbers == sorted(numbers)
    candidates = best(read(out), rows, 2)
    assert numbers == sorted(sorted(candidates, key=lambda number: -records[number])[:6])
    assert [row["reward"] for row in kept] == [records[number] for number in numbers]
    in_order = sorted(kept, key=lambda row: -row["reward"])
    assert [row["rank"] for row in in_order] == [1, 2, 3, 4, 5, 6]
    assert [row["source"]["shift"] for row in in_order[:4]] == [0] * 4  # the questions' own traces explain best

    lines = printed.splitlines()
    table = lines[lines.index("rewards") + 1 : -2]
    assert len(table) == 12 and sum(int(line.split()[3]) for line in table) == 12
    mean = np.mean([row["reward"] for row in kept])
    assert lines[-1] == f"6 rows kept, mean reward {mean:.4f}: {selected}"
    assert lines[-2].startswith("12 rows scored, 1 skipped, mean reward ")
    assert histogram.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["histogram.png", "kept", "rows.jsonl", "scores.jsonl"]


def test_a_selection_can_be_scored_again(main, models, explained, tmp_path):
    """Without a limit every usable row is kept; `reward` and `rank` of an earlier selection are replaced."""
    data, rows = explained
    for number, source in enumerate((data, tmp_path / "kept-0.jsonl")):
        out, kept = tmp_path / f"scores-{number}.jsonl", tmp_path / f"kept-{number}.jsonl"
        main(score_command, *models, "--data", source, "--out", out, "--selected-out", kept)
    assert read(tmp_path / "kept-0.jsonl") == read(tmp_path / "kept-1.jsonl")
    assert len(read(kept)) == len(rows) - 1


REFUSED_SELECTIONS = {
    "nothing to select for": (["--top-fraction", "0.5"], "top_fraction select rows for selected_out: give that file"),
    "no rows": (["--best-of-question", "0", "--selected-out", "{}/k"], "best_of_question=0: expected a positive whole"),
    "no share": (["--top-fraction", "1.5", "--selected-out", "{}/k"], "top_fraction=1.5: expected a share above 0"),
    "no picture": (["--histogram", "{}/h.jpg"], "h.jpg: expected a name that ends in .png"),
    "one file twice": (["--selected-out", "{}/scores.jsonl"], "out, selected_out and histogram name the same file"),
    "kept rows exist": (["--selected-out", "{}/old.png"], "--selected-out {}/old.png exists: choose another file"),
    "picture exists": (["--histogram", "{}/old.png"], "--histogram {}/old.png exists: choose another file"),
    "below a file": (["--selected-out", "{}/old.png/k"], "cannot write --selected-out {}/old.png/k"),
}


@pytest.mark.parametrize(("flags", "message"), REFUSED_SELECTIONS.values(), ids=REFUSED_SELECTIONS.keys())
def test_selections_that_cannot_be_made_leave_nothing(main, models, explained, tmp_path, capsys, flags, message):
    (tmp_path / "old.png").write_text("old")
    line = [flag.replace("{}", str(tmp_path)) for flag in flags]
    with pytest.raises(SystemExit) as end:
        main(score_command, *models, "--data", explained[0], "--out", tmp_path / "scores.jsonl", *line)
    assert end.value.code == 2
    assert message.replace("{}", str(tmp_path)) in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["old.png"] and (tmp_path / "old.png").read_text() == "old"


def test_columns_that_json_cannot_hold_are_refused_before_scoring(main, models, tmp_path, capsys):
    """A parquet file's date, when the kept rows are to be written as JSON Lines."""
    columns = {"question": ["What is 1+1?"], "solution": ["2"], "explanation": ["One and one."]}
    table = pyarrow.table({**columns, "day": [datetime.date(2025, 1, 1)]})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    line = (*models, "--data", tmp_path / "rows.parquet", "--out", tmp_path / "scores.jsonl")
    with pytest.raises(SystemExit):
        main(score_command, *line, "--selected-out", tmp_path / "kept.jsonl")
    assert "row 0: --selected-out is JSON Lines, which cannot hold its column day" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["rows.parquet"]
    main(score_command, *line)  # no such need without the flag
    assert len(read(tmp_path / "scores.jsonl")) == 1
