"""Tables of a pipeline as shown: word by word, the numbers in full, the picture."""

import csv
import math

import numpy as np
import pytest
from PIL import Image

from rlt_jax.studies.outcome_report import draw_outcomes, table_markdown, write_outcome_csv
from rlt_jax.studies.outcomes import Measure, Table

TABLE = Table(
    "Title",
    "About.",
    (Measure("a", "A", "nats"), Measure("b", "B", "tokens", 1)),
    {"x": {"a": [{0: 1.0}, {0: 2.0}]}, "x − y": {"a": [{0: 0.5, 1: 0.5}], "b": [{0: 4.0}]}},
)


def test_markdown():
    half = 12.7062 * math.sqrt(0.5) / math.sqrt(2)
    assert table_markdown(TABLE) == (
        "## Title\n\nAbout.\n\n"
        "|  | seeds | A, nats | B, tokens |\n| :-- | --: | --: | --: |\n"
        f"| x | 2 | 1.500 ± {half:.3f} | – |\n"
        "| x − y | 1 | +0.500 ± 0.000 | +4.0 |\n"
    )


def test_csv_holds_the_numbers_in_full(tmp_path):
    write_outcome_csv([TABLE], tmp_path / "x.csv")
    with (tmp_path / "x.csv").open(newline="") as file:
        records = list(csv.DictReader(file))
    assert [(record["variant"], record["quantity"], record["over"]) for record in records] == [
        *(("x", "a", "seeds"), ("x − y", "a", "prompts"), ("x − y", "b", "")),
    ]
    assert float(records[0]["ci_high"]) - 1.5 == pytest.approx(12.70620474 * 0.5)
    assert (records[2]["mean"], records[2]["ci_low"], records[2]["unit"]) == ("4.0", "", "tokens")


def test_the_picture_has_a_dot_for_each_variant(tmp_path):
    rows = {name: {"a": [{0: value, 1: value + 1}]} for name, value in (("x", 1.0), ("y", 5.0))}
    draw_outcomes(Table("", "", TABLE.measures, rows), tmp_path / "x.png", measures=("a",))
    pixels = np.asarray(Image.open(tmp_path / "x.png").convert("RGB"))
    rows_with_dots = np.flatnonzero((pixels == (0xD9, 0x54, 0x1E)).all(axis=2).any(axis=1))
    assert 1 + (np.diff(rows_with_dots) > 1).sum() == 2
