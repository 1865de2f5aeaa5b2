"""The rows that a pipeline's commands read, and the small results files that its summary reads."""

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rlt_jax.configs.files import save_config
from rlt_jax.configs.pipeline import PipelineData, PipelineStudy, Stage
from rlt_jax.configs.score import ScoreConfig
from rlt_jax.data import load_rows, tags_of
from rlt_jax.data.columns import columns_named_by
from rlt_jax.errors import UserError
from rlt_jax.report.folder import writing_to
from rlt_jax.report.json_lines import read_json_lines, write_json_lines
from rlt_jax.rewards.ranking import select_rows
from rlt_jax.runs.rows import as_settings
from rlt_jax.studies.baselines import baseline_rows, own_thought, student_rows
from rlt_jax.studies.matching import balanced_questions
from rlt_jax.studies.pipeline_folder import MATCHED_FILE, check_same_settings, settings_file
from rlt_jax.studies.pipeline_tasks import Task, explained_sources
from rlt_jax.types import Row


def write_data_files(study: PipelineStudy, work: Path) -> None:
    """Write the study's rows to data/{train,explain,heldout,test}.jsonl, unless they are there already.

    Raises:
      UserError: there are too few rows, or a solution has no match for data.answer.
    """
    files = {name: work / "data" / f"{name}.jsonl" for name in ("train", "explain", "heldout", "test")}
    settings, data = settings_file(work, "data"), study.data
    check_same_settings(data, settings, "data")
    if settings.exists() and all(file.exists() for file in files.values()):
        return
    train, heldout = read_study_rows(data)
    contents = {
        "train": [row_columns(row) for row in train],
        "explain": [row_columns(row) for row in train[: data.explain_rows]],
        "heldout": [row_columns(row) for row in heldout[: data.heldout_rows]],
        "test": [{**row_columns(row), "answer": answer_of(row, data.answer)} for row in heldout[: data.test_rows]],
    }
    with writing_to(work):
        settings.parent.mkdir(parents=True, exist_ok=True)
    for name, rows in contents.items():
        write_json_lines(files[name], rows)
    save_config(data, settings)


def read_study_rows(data: PipelineData) -> tuple[list[Row], list[Row]]:
    """Read the rows to train on, and all held-out rows.

    Raises:
      UserError: there are too few rows, or no row to train on has a reasoning_trace.
    """
    needed = max(data.heldout_rows, data.test_rows)
    load = partial(load_rows, columns=columns_named_by(data, spelled=as_settings), log=print, say=print)
    loaded = load(data.path, split=data.split, subset=data.subset, flag="data.subset")
    train = list(loaded.rows)
    if data.heldout_path is None:
        train, heldout = train[:-needed], train[-needed:]
    else:
        subset, flag = data.heldout_subset, "data.heldout_subset"
        heldout = list(load(data.heldout_path, split=data.heldout_split, subset=subset, flag=flag).rows)
    if len(heldout) < needed or not train:
        raise UserError(
            f"expected {needed} held-out rows (data.heldout_rows={data.heldout_rows}, data.test_rows={data.test_rows}) "
            f"and rows to train on, but there are {len(heldout)} and {len(train)}: lower those, or give more rows"
        )
    train = train[: data.train_rows]
    if data.explain_rows is not None and data.explain_rows > len(train):
        raise UserError(f"data.explain_rows={data.explain_rows}: expected at most the {len(train)} rows to train on")
    if all(row.reasoning_trace is None for row in train):
        raise UserError(
            f"{data.path}: expected rows with a reasoning_trace for the warm-up, but none of {len(train)} has one: "
            + (f"add {loaded.trace_hint}, which looks right, or " if loaded.trace_hint else "")
            + "add that column"
        )
    return train, heldout


def row_columns(row: Row) -> dict[str, str]:
    """The columns of a row in a data file."""
    columns = {"question": row.question, "solution": row.solution}
    optional = {"reasoning_trace": row.reasoning_trace, "system": row.system}
    return columns | {name: text for name, text in optional.items() if text is not None}


def answer_of(row: Row, pattern: str | None) -> str:
    """The answer in a row's solution: the last match of the pattern's group; without a pattern, the whole solution.

    Raises:
      UserError: there is no match.
    """
    if pattern is None:
        return row.solution.strip()
    matches = re.findall(pattern, row.solution)
    if not matches:
        raise UserError(
            f"held-out row {row.number}: data.answer={pattern!r} is not in its solution ({row.solution[-60:]!r}): fix "
            "the expression"
        )
    return matches[-1]


def write_rows_to_score(task: Task, study: PipelineStudy, work: Path) -> None:
    """Write the rows that a score command reads, baselines or a student's thoughts; nothing for other commands."""
    if not isinstance(task.config, ScoreConfig):
        return
    tags = tags_of(study.tags)
    if task.stage == "baselines":
        rows = load_rows(str(work / "data" / "heldout.jsonl"), on_bad_row="stop").rows
        write_json_lines(Path(task.config.data), baseline_rows(rows, tags))
    else:
        answers = read_json_lines(work / "evaluated" / f"{task.name.removeprefix('logp-')}.jsonl")
        completions = [(answer["row"], answer["completion"]) for answer in answers]
        rows = load_rows(str(work / "data" / "test.jsonl"), on_bad_row="stop").rows
        write_json_lines(Path(task.config.data), student_rows(rows, completions, tags))


def check_matching(study: PipelineStudy, work: Path) -> None:
    """Reject a token_tolerance that differs from the one that students were trained with.

    Raises:
      UserError: it differs.
    """
    matched = work / "results" / MATCHED_FILE
    if matched.exists() and (before := read_json_lines(matched)[0].get("tolerance")) != study.token_tolerance:
        raise UserError(
            f"{matched}: questions were matched with token_tolerance={before}, which is now {study.token_tolerance:g}: "
            "give another --work, or delete this file, distil/ and student-*/"
        )


def write_distillation(study: PipelineStudy, work: Path) -> None:
    """Write distil/SOURCE.jsonl: the same questions for each student, each with its best explanation.

    Also writes results/matched.jsonl, one line with the numbers of questions asked, explained by all teachers, and left
    after matching, and the tokens of the explanations left.

    Raises:
      UserError: no question is left, or a student has been trained on questions that were matched differently.
    """
    matched = work / "results" / MATCHED_FILE
    best = {source: best_rows(work / "explained" / f"{source}.jsonl") for source in explained_sources(study)}
    common = set.intersection(*(set(rows) for rows in best.values()))
    tokens = {source: {question: rows[question]["tokens"] for question in common} for source, rows in best.items()}
    questions = balanced_questions(tokens["warmup"], tokens["rlt"], tolerance=study.token_tolerance)
    if not questions:
        raise UserError(f"no question has a usable explanation by every teacher: look at {work}/tasks/explain-*.log")
    asked = read_json_lines(work / "data" / "explain.jsonl")
    total = {source: sum(lengths[question] for question in questions) for source, lengths in tokens.items()}
    facts = {
        "tolerance": study.token_tolerance,
        "asked": len(asked),
        "common": len(common),
        "questions": len(questions),
        "tokens": total,
    }
    if matched.exists() and read_json_lines(matched) != [facts]:
        raise UserError(
            f"{matched}: students were trained on questions that were matched differently: give another --work, or "
            "delete this file, distil/ and student-*/"
        )
    for source in study.students:
        rows = asked if source == "traces" else best[source]
        write_json_lines(work / "distil" / f"{source}.jsonl", [rows[question] for question in questions])
    write_json_lines(matched, [facts])
    print(
        f"[distil] {len(questions)} of {len(common)} questions that all teachers explained, tokens {total}", flush=True
    )
    fewer, more = sorted((total["warmup"], total["rlt"]))
    if more - fewer > study.token_tolerance * fewer:
        print(
            f"[distil] WARNING {more / fewer - 1:.1%} more tokens for one student than for the other (token_tolerance "
            f"allows {study.token_tolerance:.1%}): half of the questions are left out already, which is the limit",
            flush=True,
        )


def best_rows(file: Path) -> dict[int, dict[str, Any]]:
    """Question -> its best-rewarded explanation."""
    rows = read_json_lines(file)
    if unknown := [row["row"] for row in rows if row["reward"] is None]:
        raise UserError(
            f"{file}: expected a reward for every explanation, but {len(unknown)} have none, such as that of row "
            f"{unknown[0]}: delete the file and repeat the stage explain"
        )
    best = select_rows(np.array([row["reward"] for row in rows]), [row["row"] for row in rows], best_of_question=1)
    return {rows[i]["row"]: rows[i] for i in best}


def write_results(stage: Stage, study: PipelineStudy, work: Path) -> None:
    """Condense the results of a stage, by prompt, into the small files that the summary reads."""
    results = work / "results"
    match stage:
        case "baselines":
            write_json_lines(results / "baselines.jsonl", baseline_values(study, work))
        case "explain":
            for source in explained_sources(study):
                write_json_lines(results / f"explained-{source}.jsonl", explained_values(work, source))
        case "evaluate":
            for student in ("base", *study.students):
                write_json_lines(results / f"student-{student}.jsonl", student_values(study, work, student))


def baseline_values(study: PipelineStudy, work: Path) -> Iterator[dict[str, Any]]:
    """One line per baseline and held-out question."""
    for i, (row, score) in enumerate(scored_rows(work / "baselines" / "baselines")):
        yield {"kind": row["kind"], "row": i % study.data.heldout_rows, **scored_values(score)}


def explained_values(work: Path, source: str) -> Iterator[dict[str, Any]]:
    """One line per explanation of a training question."""
    file = work / "explained" / f"{source}.jsonl"
    best = {(row["row"], row["sample"]) for row in best_rows(file).values()}
    for row in read_json_lines(file):
        yield {
            "row": row["row"],
            "sample": row["sample"],
            "kept": (row["row"], row["sample"]) in best,
            "tokens": row["tokens"],
            **scored_values(row),
        }


def student_values(study: PipelineStudy, work: Path, student: str) -> Iterator[dict[str, Any]]:
    """One line per test question, with means over its samples."""
    stem, tags = work / "evaluated" / student, tags_of(study.tags)
    questions: dict[int, dict[str, list[float]]] = {}  # row -> column -> a value per sample
    for answer in read_json_lines(Path(f"{stem}.jsonl")):
        closed = own_thought(answer["completion"], tags)[1]
        columns = questions.setdefault(answer["row"], {})
        for name, value in {"accuracy": answer["correct"], "closed": closed, "tokens": answer["tokens"]}.items():
            columns.setdefault(name, []).append(float(value))
    for row, score in scored_rows(stem):
        if (logp := score["components"]["solution_logp/mean"]) is not None:  # null: it was not finite
            questions[row["place"]].setdefault(f"{row['kind']}_logp", []).append(logp)
    for number, columns in sorted(questions.items()):
        yield {"row": number, **{name: float(np.mean(values)) for name, values in columns.items()}}


def scored_rows(stem: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each row that a score command read, with its scores."""
    rows, scores = read_json_lines(Path(f"{stem}.rows.jsonl")), read_json_lines(Path(f"{stem}.scores.jsonl"))
    return zip(rows, scores, strict=True)


def scored_values(score: Mapping[str, Any]) -> dict[str, float | None]:
    """The values of a scored line that go into the results; None: it was not finite, or is none of the components."""
    components = score["components"]
    return {
        "reward": score["reward"],
        "solution_logp": components.get("solution_logp/mean"),
        "thought_kl": components.get("thought_kl/mean"),
        "copy_rate": score["copy_rate"],
        "repeat_rate": score["repeat_rate"],
    }
