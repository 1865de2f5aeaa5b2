"""The whole pipeline: warm-up, anchors, RLT, explanations, distillation, evaluation; and the results of several seeds.

    python scripts/pipeline.py --study scripts/studies/tiny.yaml --work runs/pipeline/seed-1 --seed 1
    python scripts/pipeline.py --work runs/pipeline/seed-1 --collect seed-1.tar.gz
    python scripts/pipeline.py --summary runs/pipeline/seed-1 runs/pipeline/seed-2 --out runs/pipeline/results

Every stage is one or more `python -m rlt_jax.NAME`, one process each. The same call again skips what is done and goes
on with what is not. What each stage does and every file of the work folder: docs/pipeline.md.
"""

import io
import json
import math
import re
import signal
import sys
import tarfile
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import tyro

from rlt_jax.configs import (
    STAGES,
    PipelineStudy,
    ScoreConfig,
    Stage,
    Task,
    check_same_settings,
    check_same_task,
    explained_sources,
    load_config,
    load_study,
    pipeline_tasks,
    save_config,
    told_settings,
)
from rlt_jax.data import (
    anchor_rows,
    balanced_questions,
    check_same_tokenizer,
    load_rows,
    load_tokenizer,
    own_thought,
    read_prompt_file,
    student_rows,
    tags_of,
)
from rlt_jax.errors import UserError, run_command
from rlt_jax.launch import OutOfTime, run_logged
from rlt_jax.ranking import select_rows
from rlt_jax.report.comparison import Evaluations, compare, comparison_markdown, draw_comparison, write_comparison_csv
from rlt_jax.report.folder import writing_to
from rlt_jax.report.outcomes import (
    CAPTION,
    MATCHED_FILE,
    NAMES,
    SECONDS_FILE,
    draw_outcomes,
    estimate,
    finished_tasks,
    outcome_tables,
    table_markdown,
    write_outcome_csv,
)
from rlt_jax.report.whole_file import whole_file
from rlt_jax.types import Row

NOT_DONE = 3  # exit code when --minutes were not enough
MOST_PACKED = 15_500_000  # bytes of an archive: less than 16 MiB with its own overhead
PACKED = (  # what --collect takes: what the summary needs first, then what is good to read, as long as there is room
    ("results/*", SECONDS_FILE, "tasks/*.yaml", "*/config.yaml", "*/metrics.jsonl", "*/eval.jsonl", "*/curves.png"),
    ("evaluated/*.summary.json", "tasks/*.log", "*/logs/training.log", "*/completions.jsonl", "evaluated/*.jsonl"),
    ("explained/*.jsonl", "data/*.jsonl"),
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the script can be told."""

    study: Path | None = None
    """YAML file with models, data and sizes, such as scripts/studies/tiny.yaml."""
    work: Path | None = None
    """Folder of everything that is made, one per seed."""
    seed: int = 42
    """Seed of data order, sampling and evaluation, 0 to 2**31 - 1."""
    stages: tuple[Stage, ...] = ()
    """Stages to run now. Empty: all but no-kl."""
    no_kl: tyro.conf.FlagCreatePairsOff[bool] = False
    """Run the stage no-kl too: RLT without the KL term of the reward."""
    minutes: float | None = None
    """Stop after so long, whatever is running, with exit code 3; the same call goes on. None: until all is done."""
    quiet: tyro.conf.FlagCreatePairsOff[bool] = False
    """Do not show what the commands print; it is in WORK/tasks/*.log."""
    collect: Path | None = None
    """Pack the small files of --work (numbers, pictures, logs, texts; at most 16 MiB) into this .tar.gz, a new file."""
    summary: tuple[Path, ...] = ()
    """Work folders to compare, one per seed, also ones unpacked from --collect: tables and pictures go to --out."""
    out: Path = Path("runs/pipeline-results")
    """Folder of the summary."""


def main() -> None:
    """Run the stages, then collect, then summarise: whatever is asked for."""
    options = tyro.cli(Options, description=__doc__)
    check_options(options)
    if options.study is not None and options.work is not None:
        run_pipeline(options, load_study(options.study), options.work)
    if options.collect is not None and options.work is not None:
        collect(options.work, options.collect)
    if options.summary:
        summarise(options.summary, options.out)


def check_options(options: Options) -> None:
    """Refuse what cannot work, before anything is done.

    Raises:
      UserError: the first mistake.
    """
    if not (options.study or options.collect or options.summary):
        raise UserError("nothing to do: give --study FILE and --work DIR, or --collect FILE, or --summary DIR ...")
    if (options.study or options.collect) and options.work is None:
        raise UserError("--work is missing: give the folder of the pipeline's files")
    if options.minutes is not None and not 0 < options.minutes < math.inf:
        raise UserError(f"--minutes {options.minutes:g}: expected a number above 0; leave it out for no limit")
    if not 0 <= options.seed < 2**31:
        raise UserError(f"--seed {options.seed}: expected a whole number from 0 to 2**31 - 1")
    if options.collect is not None:
        if not options.collect.name.endswith(".tar.gz"):
            raise UserError(f"--collect {options.collect}: expected a name that ends in .tar.gz")
        if options.collect.exists():
            raise UserError(f"--collect {options.collect} exists: choose another file, or delete it")
    made = options.work.resolve() if options.study and options.work else None  # by the stages of this very call
    there = [work for work in options.summary if work.resolve() != made]
    for work in there:
        if not (work / SECONDS_FILE).exists():
            raise UserError(f"--summary {work}: expected the work folder of a pipeline, but it has no {SECONDS_FILE}")
    told = [(work, told_settings(work / "tasks")) for work in there]
    now = [(work, options.seed) for work in options.summary if work not in there]
    check_seeds([*((work, seed_of(its)) for work, its in told), *now])
    check_same_study(told)


def check_seeds(seeds: Sequence[tuple[Path, int | None]]) -> None:
    """Refuse work folders of which two are of one seed.

    Raises:
      UserError: two such folders.
    """
    folder_of: dict[int, Path] = {}
    for work, seed in seeds:
        if seed is not None and folder_of.setdefault(seed, work) is not work:
            raise UserError(
                f"--summary {folder_of[seed]} {work}: both are of seed {seed}, expected one folder for each seed: they "
                "would be taken for two seeds that agree"
            )


def check_same_study(told: Sequence[tuple[Path, Mapping[str, Any]]]) -> None:
    """Refuse to compare work folders that differ by more than their seed.

    Args:
      told: folders with `told_settings`.
    Raises:
      UserError: two of them, and the settings in which commands of both differ.
    """
    for work, its in told[1:]:
        first, theirs = told[0]
        common = [name for name in theirs.keys() & its.keys() if not name.endswith(".seed")]
        if different := [name for name in common if theirs[name] != its[name]]:
            shown = ", ".join(sorted(different)[:6]) + (", ..." if len(different) > 6 else "")
            raise UserError(
                f"--summary {first} {work}: expected folders of one study, which differ by their seed alone, but "
                f"these settings differ: {shown}"
            )


def seed_of(told: Mapping[str, Any]) -> int | None:
    """The seed that the commands of a work folder were told; None where none was told any."""
    return next((value for name, value in told.items() if name.endswith(".seed") and isinstance(value, int)), None)


def run_pipeline(options: Options, study: PipelineStudy, work: Path) -> None:
    """Run the chosen stages of a study under one seed.

    Raises:
      UserError: anything in the study that cannot work, before the first command; a command that failed.
      SystemExit: code 3 when the time is up.
    """
    started = time.monotonic()
    deadline = None if options.minutes is None else started + 60 * options.minutes
    tasks = pipeline_tasks(study, work, seed=options.seed)
    needs_no_kl = options.no_kl or "no-kl" in study.students
    chosen = options.stages or tuple(stage for stage in STAGES if stage != "no-kl" or needs_no_kl)
    if options.no_kl and "no-kl" not in chosen:
        chosen = (*chosen, "no-kl")
    for task in tasks:
        check_same_task(task, settings_file(task, work))
    check_matching(study, work)
    check_needs([task for task in tasks if task.stage in chosen])
    if not all(task.result.exists() for task in tasks if task.stage in chosen):
        check_models(study)
    write_problems(study, work)
    for stage in (stage for stage in STAGES if stage in chosen):
        before = time.monotonic()
        its = [task for task in tasks if task.stage == stage]
        if stage == "distil" and not all(task.result.exists() for task in its):
            write_distillation(study, work)
        for task in its:
            run_task(task, study, work, quiet=options.quiet, deadline=deadline)
        finish_stage(stage, study, work)
        print(f"[{stage}] {time.monotonic() - before:.1f} s", flush=True)
    print(
        f"{', '.join(stage for stage in STAGES if stage in chosen)}: done in {time.monotonic() - started:.1f} s: {work}"
    )


def check_needs(tasks: Sequence[Task]) -> None:
    """Refuse tasks that need what is not there and what none of them makes.

    Raises:
      UserError: every missing path once, a line for each stage.
    """
    made = {task.result for task in tasks}
    missing: dict[Path, Stage] = {}
    for task in [task for task in tasks if not task.result.exists()]:
        for path in [path for path in task.needs if path not in made and not path.exists()]:
            missing.setdefault(path, task.stage)
    if missing:
        raise UserError(
            "\n".join(
                f"{stage} needs {', '.join(str(path) for path, needed_by in missing.items() if needed_by == stage)}: "
                f"run the stages before {stage} first"
                for stage in dict.fromkeys(missing.values())
            )
        )


def check_matching(study: PipelineStudy, work: Path) -> None:
    """Stop where students have been trained on questions that another token_tolerance left.

    Raises:
      UserError: so it is.
    """
    matched = work / "results" / MATCHED_FILE
    if matched.exists() and (before := read_json_lines(matched)[0].get("tolerance")) != study.token_tolerance:
        raise UserError(
            f"{matched}: questions were matched with token_tolerance={before}, now it is {study.token_tolerance:g}: "
            "give another --work, or delete this file, distil/ and student-*/"
        )


def check_models(study: PipelineStudy) -> None:
    """Refuse models and prompts that cannot work, before hours are spent on what comes before them.

    Raises:
      UserError: a model or prompt file that is not there or of another kind, or an asked student of another vocabulary.
    """
    from rlt_jax.planning import find_model  # here: it loads JAX, which the stages' own processes do

    for name in ("teacher", "student", "asked_student"):
        if (model := getattr(study, name)) is not None:
            try:
                find_model(model)
            except UserError as error:
                raise UserError(f"{name}: {error}") from None
    for prompt in (study.teacher_prompt_file, study.student_prompt_file):
        if prompt is not None:
            read_prompt_file(prompt)
    check_same_tokenizer(load_tokenizer(study.teacher), load_tokenizer(study.asked_student or study.student))


def run_task(task: Task, study: PipelineStudy, work: Path, *, quiet: bool, deadline: float | None) -> None:
    """Run one command unless its result is there, and record how long it took."""
    if task.result.exists():
        if task.name not in finished_tasks(work):
            record_seconds(task, work, 0.0, finished=True)
        print(f"[{task.stage}] {task.name}: done already", flush=True)
        return
    if deadline is not None and time.monotonic() >= deadline:
        time_is_up(task)
    prepare(task, study, work)
    save_config(task.config, settings_file(task, work))
    print(f"[{task.stage}] python -m rlt_jax.{task.command} --config {settings_file(task, work)}", flush=True)
    before, failure, finished = time.monotonic(), None, False
    try:
        failure = run_logged(
            f"rlt_jax.{task.command}",
            ["--config", str(settings_file(task, work))],
            task.name,
            work / "tasks" / f"{task.name}.log",
            quiet=quiet,
            seconds=None if deadline is None else deadline - before,
        )
        finished = failure is None and task.result.exists()
    except OutOfTime:
        time_is_up(task)
    finally:
        record_seconds(task, work, time.monotonic() - before, finished=finished)
    if failure is not None or not finished:
        raise UserError(f"{task.name} failed: {failure or f'it left no {task.result}'}: mend it, the same call goes on")
    print(f"[{task.stage}] {task.name}: {time.monotonic() - before:.1f} s", flush=True)


def time_is_up(task: Task) -> NoReturn:
    """End with the exit code that says so."""
    print(f"[{task.stage}] {task.name}: the time is up, the same call goes on", flush=True)
    raise SystemExit(NOT_DONE)


def settings_file(task: Task, work: Path) -> Path:
    """What a command is told."""
    return work / "tasks" / f"{task.name}.yaml"


def record_seconds(task: Task, work: Path, seconds: float, *, finished: bool) -> None:
    """Append a line to the file of times."""
    line = {"stage": task.stage, "task": task.name, "seconds": round(seconds, 2), "finished": finished}
    with writing_to(work), (work / SECONDS_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def write_problems(study: PipelineStudy, work: Path) -> None:
    """data/{train,explain,heldout,test}.jsonl: the rows of the study, where they are not there yet.

    Raises:
      UserError: too few rows, or a solution without the answer that data.answer describes.
    """
    files = {name: work / "data" / f"{name}.jsonl" for name in ("train", "explain", "heldout", "test")}
    settings = work / "tasks" / "data.yaml"
    check_same_settings(study.data, settings, "data")
    if settings.exists() and all(file.exists() for file in files.values()):
        return
    data = study.data
    needed = max(data.heldout_rows, data.test_rows)
    train = load_rows(data.path, split=data.split, log=print).rows
    if data.heldout_path is None:
        train, heldout = train[:-needed], train[-needed:]
    else:
        heldout = load_rows(data.heldout_path, split=data.heldout_split, log=print).rows
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
            f"{data.path}: expected rows with a reasoning_trace for the warm-up, but none of {len(train)} has one: add "
            "that column"
        )
    chosen = {
        "train": [row_columns(row) for row in train],
        "explain": [row_columns(row) for row in train[: data.explain_rows]],
        "heldout": [row_columns(row) for row in heldout[: data.heldout_rows]],
        "test": [{**row_columns(row), "answer": answer_of(row, data.answer)} for row in heldout[: data.test_rows]],
    }
    with writing_to(work):
        settings.parent.mkdir(parents=True, exist_ok=True)
    for name, rows in chosen.items():
        write_lines(files[name], rows)
    save_config(study.data, settings)


def row_columns(row: Row) -> dict[str, str]:
    """A row as a line of a data set."""
    columns = {"question": row.question, "solution": row.solution}
    optional = {"reasoning_trace": row.reasoning_trace, "system": row.system}
    return columns | {name: text for name, text in optional.items() if text is not None}


def answer_of(row: Row, pattern: str | None) -> str:
    """The answer alone."""
    if pattern is None:
        return row.solution.strip()
    found = re.findall(pattern, row.solution)
    if not found:
        raise UserError(
            f"held-out row {row.number}: data.answer={pattern!r} is not in its solution ({row.solution[-60:]!r}): mend "
            "the expression"
        )
    return found[-1]


def prepare(task: Task, study: PipelineStudy, work: Path) -> None:
    """Write the rows that a command reads, and make way for what it writes."""
    if isinstance(task.config, ScoreConfig):
        write_lines(Path(task.config.data), scored_rows(task, study, work))
    with writing_to(work):
        task.result.parent.mkdir(parents=True, exist_ok=True)


def scored_rows(task: Task, study: PipelineStudy, work: Path) -> Iterable[dict[str, Any]]:
    """The rows of a score command: anchors, or a student's thoughts."""
    tags = tags_of(study.tags)
    if task.stage == "anchors":
        return anchor_rows(load_rows(str(work / "data" / "heldout.jsonl"), on_bad_row="stop").rows, tags)
    answers = read_json_lines(work / "evaluated" / f"{task.name.removeprefix('logp-')}.jsonl")
    rows = load_rows(str(work / "data" / "test.jsonl"), on_bad_row="stop").rows
    return student_rows(rows, [(answer["row"], answer["completion"]) for answer in answers], tags)


def write_distillation(study: PipelineStudy, work: Path) -> None:
    """distil/SOURCE.jsonl: for each student the same questions, each with its best explanation.

    Also results/matched.jsonl, one line: questions asked, common to all teachers, and left, and the tokens of the last.

    Raises:
      UserError: no common question, or a student has been trained on questions that were matched otherwise.
    """
    matched = work / "results" / MATCHED_FILE
    best = {source: best_rows(work / "explained" / f"{source}.jsonl") for source in explained_sources(study)}
    common = set.intersection(*(set(rows) for rows in best.values()))
    tokens = {
        source: {question: row["tokens"] for question, row in rows.items() if question in common}
        for source, rows in best.items()
    }
    questions = balanced_questions(tokens["warmup"], tokens["rlt"], tolerance=study.token_tolerance)
    if not questions:
        raise UserError(f"no question has a usable explanation by each teacher: look at {work}/tasks/explain-*.log")
    own = read_json_lines(work / "data" / "explain.jsonl")
    summed = {source: sum(of_question[question] for question in questions) for source, of_question in tokens.items()}
    facts = {
        "tolerance": study.token_tolerance,
        "asked": len(own),
        "common": len(common),
        "questions": len(questions),
        "tokens": summed,
    }
    if matched.exists() and read_json_lines(matched) != [facts]:
        raise UserError(
            f"{matched}: students were trained on questions that were matched otherwise: give another --work, or "
            "delete this file, distil/ and student-*/"
        )
    for source in study.students:
        rows = own if source == "traces" else best[source]
        write_lines(work / "distil" / f"{source}.jsonl", [rows[question] for question in questions])
    write_lines(matched, [facts])
    print(
        f"[distil] {len(questions)} of {len(common)} questions that all teachers explained, tokens {summed}", flush=True
    )
    fewer, more = sorted((summed["warmup"], summed["rlt"]))
    if more - fewer > study.token_tolerance * fewer:
        print(
            f"[distil] WARNING {more / fewer - 1:.1%} more tokens for one student than for the other (token_tolerance "
            f"allows {study.token_tolerance:.1%}): half of the questions have been left out, and no more are",
            flush=True,
        )


def best_rows(file: Path) -> dict[int, dict[str, Any]]:
    """Question -> its best-rewarded explanation."""
    rows = read_json_lines(file)
    kept = select_rows(np.array([row["reward"] for row in rows]), [row["row"] for row in rows], best_of_question=1)
    return {rows[i]["row"]: rows[i] for i in kept}


def finish_stage(stage: Stage, study: PipelineStudy, work: Path) -> None:
    """Condense what a stage found out about each prompt into the small files that the summary reads."""
    results = work / "results"
    match stage:
        case "anchors":
            write_lines(results / "anchors.jsonl", anchor_values(study, work))
        case "explain":
            for source in explained_sources(study):
                write_lines(results / f"explained-{source}.jsonl", explained_values(work, source))
        case "evaluate":
            for student in ("base", *study.students):
                write_lines(results / f"student-{student}.jsonl", student_values(study, work, student))


def anchor_values(study: PipelineStudy, work: Path) -> Iterable[dict[str, Any]]:
    """One line per anchor and held-out question."""
    stem = work / "anchors" / "anchors"
    rows, scores = read_json_lines(Path(f"{stem}.rows.jsonl")), read_json_lines(Path(f"{stem}.scores.jsonl"))
    for i, (row, score) in enumerate(zip(rows, scores, strict=True)):
        yield {"kind": row["kind"], "row": i % study.data.heldout_rows, **scored_values(score)}


def scored_values(score: Mapping[str, Any]) -> dict[str, float]:
    """What is kept of a line with reward and components."""
    components = score["components"]
    return {
        "reward": score["reward"],
        "solution_logp": components["solution_logp/mean"],
        "thought_kl": components["thought_kl/mean"],
        "copy_rate": score["copy_rate"],
        "repeat_rate": score["repeat_rate"],
    }


def explained_values(work: Path, source: str) -> Iterable[dict[str, Any]]:
    """One line per explanation of a training question."""
    rows = read_json_lines(work / "explained" / f"{source}.jsonl")
    best = {(row["row"], row["sample"]) for row in best_rows(work / "explained" / f"{source}.jsonl").values()}
    for row in rows:
        place = {"row": row["row"], "sample": row["sample"], "kept": (row["row"], row["sample"]) in best}
        yield {**place, "tokens": row["tokens"], **scored_values(row)}


def student_values(study: PipelineStudy, work: Path, student: str) -> Iterable[dict[str, Any]]:
    """One line per test question, means over its samples."""
    stem = work / "evaluated" / student
    found: dict[int, dict[str, list[float]]] = {}
    for answer in read_json_lines(work / "evaluated" / f"{student}.jsonl"):
        closed = own_thought(answer["completion"], tags_of(study.tags))[1]
        values = {"accuracy": answer["correct"], "closed": closed, "tokens": answer["tokens"]}
        of_question = found.setdefault(answer["row"], {})
        for name, value in values.items():
            of_question.setdefault(name, []).append(float(value))
    rows, scores = read_json_lines(Path(f"{stem}.rows.jsonl")), read_json_lines(Path(f"{stem}.scores.jsonl"))
    for row, score in zip(rows, scores, strict=True):
        logp = score["components"]["solution_logp/mean"]
        found[row["place"]].setdefault(f"{row['kind']}_logp", []).append(logp)
    for place, of_question in sorted(found.items()):
        yield {"row": place, **{name: float(np.mean(values)) for name, values in of_question.items()}}


def collect(work: Path, archive: Path) -> None:
    """Pack the small files of a work folder, those that the summary needs first.

    Raises:
      UserError: no such folder, or what the summary needs is too large.
    """
    if not (work / SECONDS_FILE).exists():
        raise UserError(f"--work {work}: expected the folder of a pipeline, but it has no {SECONDS_FILE}")
    room, left_out = MOST_PACKED, []
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for number, patterns in enumerate(PACKED):
            files = sorted({file for pattern in patterns for file in work.glob(pattern) if file.is_file()})
            for file in sorted(files, key=lambda file: file.stat().st_size):
                size = len(zlib.compress(file.read_bytes())) + 1024
                if size <= room:
                    tar.add(file, arcname=f"{work.name}/{file.relative_to(work)}", recursive=False)
                    room -= size
                elif number == 0:
                    raise UserError(f"{file} does not fit into an archive of 16 MiB with the other numbers")
                else:
                    left_out.append(str(file.relative_to(work)))
    with whole_file(archive, "--collect") as path:
        path.write_bytes(packed.getvalue())
    rest = f", without {', '.join(dict.fromkeys(left_out))}" if left_out else ""
    print(f"{len(packed.getvalue()) / 1e6:.1f} MB{rest}: {archive}")


def summarise(works: Sequence[Path], out: Path) -> None:
    """summary.md, .csv and pictures of work folders that differ by their seed."""
    from rlt_jax.evaluation import read_run  # here: it loads JAX, which the stages' own processes do

    tables = outcome_tables(works)
    if not tables:
        raise UserError("--summary: no stage has finished in any of these folders")
    runs: dict[str, list[Evaluations]] = {}
    for arm in ("rlt", "no-kl"):
        for work in (work for work in works if arm in finished_tasks(work)):
            config = load_config(work / arm / "config.yaml")
            if found := read_run(work / arm, last=config.max_steps, seed=config.seed):
                runs.setdefault(arm, []).append(found)
    parts = [table_markdown(table) for table in tables]
    if runs:
        arms = compare(runs, {arm: len(works) for arm in runs})
        parts.insert(2, f"## RLT\n\n{comparison_markdown(arms)}\n![Held-out metrics over steps](rlt.png)\n")
        with whole_file(out / "rlt.csv", "the summary") as path:
            write_comparison_csv(arms, path)
        with whole_file(out / "rlt.png", "the summary") as path:
            draw_comparison(runs, path, levels=anchor_levels(tables))
    for table in tables:
        if table.title.startswith("Students"):
            with whole_file(out / "students.png", "the summary") as path:
                draw_outcomes(table, path, measures=("accuracy", "own_logp", "none_logp", "true_logp"))
            parts.append("![Students on held-out problems](students.png)\n")
    with whole_file(out / "summary.csv", "the summary") as path:
        write_outcome_csv(tables, path)
    text = f"{len(works)} seed{'s' if len(works) > 1 else ''}. {CAPTION}\n\n" + "\n".join(parts)
    with whole_file(out / "summary.md", "the summary") as path:
        path.write_text(text, encoding="utf-8")
    print(text)
    print(f"summary: {out}")


def anchor_levels(tables: Iterable[Any]) -> dict[str, dict[str, float]]:
    """Mean solution log-prob of each anchor, to draw beside the curves."""
    rows: Mapping[str, Any] = next((table.rows for table in tables if NAMES["true"] in table.rows), {})
    levels = {name: estimate(rows[name]["solution_logp"]).mean for name in NAMES.values() if name in rows}
    return {"component/solution_logp/mean": levels}


def write_lines(file: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """JSON Lines, whole or not at all."""
    with whole_file(file, "the file") as path, path.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(line) + "\n" for line in lines)


def read_json_lines(file: Path) -> list[dict[str, Any]]:
    """All objects of a JSON Lines file."""
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def stop_commands(*_: object) -> None:
    """On SIGTERM: leave as on Ctrl-C, so that the command that runs is ended too."""
    raise SystemExit(128 + signal.SIGTERM)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop_commands)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    run_command(main)
