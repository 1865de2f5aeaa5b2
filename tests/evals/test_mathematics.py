"""Formulas compared by math-verify in a process of its own."""

import pytest

from rlt_jax.evals import mathematics
from rlt_jax.evals.mathematics import are_equal

EQUAL = [
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"),
    ("(x+1)^2", "x^{2}+2x+1"),
    ("[1,2]", r"\left[1, 2\right]"),
    (r"3.0 \times 10^{8}", "300000000"),
    ("0.5x", r"\frac{x}{2}"),
]
UNEQUAL = [
    ("0.333333", r"\frac{1}{3}"),  # math-verify compares six digits
    (r"6.6 \times 10^{-34}", r"7.6 \times 10^{-34}"),  # and takes small numbers for zero
    (r"\sqrt{2} \cdot 10^{-20}", r"\sqrt{3} \cdot 10^{-20}"),
    (r"\pi", "3.14159265358979"),
    ("(1,2]", "(1,2)"),
    ("x", "y"),
    ("(", "7"),
]


@pytest.mark.parametrize(("expected", "given"), EQUAL)
def test_equal(expected, given):
    assert are_equal(expected, given)


@pytest.mark.parametrize(("expected", "given"), UNEQUAL)
def test_unequal(expected, given):
    assert not are_equal(expected, given)


def test_a_process_that_dies_is_replaced():
    assert are_equal("x+1", "1+x")
    mathematics._worker.process.kill()
    mathematics._worker.process.wait()
    assert are_equal("x+2", "2+x")
