"""The results of a study's pipelines, one per seed, as tables and pictures."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rlt_jax.configs.presets import load_config
from rlt_jax.errors import UserError
from rlt_jax.report.whole_file import whole_file
from rlt_jax.studies.comparable import REWARD
from rlt_jax.studies.comparison import Evaluations, compare, read_run
from rlt_jax.studies.comparison_report import comparison_markdown, draw_comparison, write_comparison_csv
from rlt_jax.studies.outcome_report import CAPTION, draw_outcomes, table_markdown, write_outcome_csv
from rlt_jax.studies.outcomes import BASELINE_NAMES, STUDENTS_TITLE, Table, Values, estimate, outcome_tables
from rlt_jax.studies.pipeline_folder import finished_tasks

STUDENT_MEASURES = ("accuracy", "own_logp", "none_logp", "true_logp")  # panels of students.png


def summarise(works: Sequence[Path], out: Path) -> None:
    """Write summary.md, summary.csv, rlt.csv, rlt.png and students.png, and print summary.md.

    Args:
      works: work folders that `check_summary_folders` accepts.
      out: folder for the summary.
    Raises:
      UserError: no stage has finished in any folder, a results file is broken, or `out` cannot be written.
    """
    tables = outcome_tables(works)
    if not tables:
        raise UserError("--summary: no stage has finished in any of these folders")
    parts = [table_markdown(table) for table in tables]
    if runs := read_runs(works):
        planned = {arm: len(works) for arm in runs}
        arms = compare(runs, planned, apart={"no-kl": (REWARD,)})  # its reward has no KL term
        parts.insert(2, f"## RLT\n\n{comparison_markdown(arms)}\n![Held-out metrics over steps](rlt.png)\n")
        with whole_file(out / "rlt.csv", "the summary") as path:
            write_comparison_csv(arms, path)
        with whole_file(out / "rlt.png", "the summary") as path:
            draw_comparison(runs, path, levels=baseline_levels(tables))
    for table in tables:
        if table.title == STUDENTS_TITLE:
            with whole_file(out / "students.png", "the summary") as path:
                draw_outcomes(table, path, measures=STUDENT_MEASURES)
            parts.append("![Students on held-out problems](students.png)\n")
    with whole_file(out / "summary.csv", "the summary") as path:
        write_outcome_csv(tables, path)
    text = f"{len(works)} seed{'s' if len(works) > 1 else ''}. {CAPTION}\n\n" + "\n".join(parts)
    with whole_file(out / "summary.md", "the summary") as path:
        path.write_text(text, encoding="utf-8")
    print(text)
    print(f"summary: {out}")


def read_runs(works: Sequence[Path]) -> dict[str, list[Evaluations]]:
    """Read the evaluations of finished runs: arm (`rlt`, `no-kl`) -> runs, without arms that have none."""
    runs: dict[str, list[Evaluations]] = {}
    for arm in ("rlt", "no-kl"):
        for work in (work for work in works if arm in finished_tasks(work)):
            config = load_config(work / arm / "config.yaml")
            if evaluations := read_run(work / arm, last=config.max_steps, seed=config.seed):
                runs.setdefault(arm, []).append(evaluations)
    return runs


def baseline_levels(tables: Iterable[Table]) -> dict[str, dict[str, float]]:
    """Mean solution log-prob of each baseline, to draw with the curves: metric -> baseline -> value."""
    rows: Mapping[str, Mapping[str, Sequence[Values]]] = next(
        (table.rows for table in tables if BASELINE_NAMES["true"] in table.rows), {}
    )
    known = [name for name in BASELINE_NAMES.values() if "solution_logp" in rows.get(name, {})]
    return {"component/solution_logp/mean": {name: estimate(rows[name]["solution_logp"]).mean for name in known}}
