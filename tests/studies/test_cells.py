"""Cells of a study's tables."""

from rlt_jax.studies.cells import limits, markdown_table, mean_cell


def test_a_mean_with_and_without_its_interval():
    assert mean_cell(0.12345, 0.0321, 3, signed=False) == "0.123 ± 0.032"
    assert mean_cell(0.12345, 0.0321, 3, signed=True) == "+0.123 ± 0.032"
    assert mean_cell(-2.0, None, 1, signed=True) == mean_cell(-2.0, None, 1, signed=False) == "-2.0"


def test_limits_of_an_interval():
    assert limits(2.0, 0.5) == (1.5, 2.5)
    assert limits(2.0, None) == ("", "")


def test_a_markdown_table():
    assert markdown_table(["", "a", "b"], [["x", "1", "2"]]) == "|  | a | b |\n| :-- | --: | --: |\n| x | 1 | 2 |"
