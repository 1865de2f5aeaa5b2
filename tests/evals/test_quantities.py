"""One number, read exactly, with its unit."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlt_jax.evals.notation import plain
from rlt_jax.evals.quantities import read_quantity

READ = [  # text, value, unit
    ("1,234.5", "1234.5", ""),
    ("12\u202f345", "12345", ""),
    (".5", "0.5", ""),
    ("\u22125", "-5", ""),
    ("-$7", "-7", "$"),
    ("$7 left", "7", "$"),
    ("7 km/h", "7", "h^-1 km"),
    ("7 kilometers per hour", "7", "h^-1 km"),
    ("9.81 m s^-2", "9.81", "m s^-2"),
    ("9.81 m/s²", "9.81", "m s^-2"),
    (r"6\,\text{cm}^2", "6", "cm^2"),
    ("6 square centimeters", "6", "cm^2"),
    ("7 red apples", "7", "red apple"),
    ("7 million dollars", "7000000", "$"),
    ("25 %", "25", "%"),
    ("90 degrees", "90", "°"),
    ("3 1/2 cups", "7/2", "cup"),
    (r"-1\frac{1}{2}", "-3/2", ""),
    ("½", "1/2", ""),
    ("1.5 × 10^-3", "0.0015", ""),
    ("1.5e3", "1500", ""),
    ("2**10", "1024", ""),
    ("10⁻⁵", "0.00001", ""),
    (r"0.1\overline{6}", "1/6", ""),
]
NOT_READ = ["1,5", "1.234,5", "(1,234)", "12,34", "1/0", "7x", "7m", "7k", "7 or 8", "5-3", "+-5", "- 5", "10:30", "x"]
NOT_READ += ["7!", "7 tenths", "3 and a half", "10^1000000", "1e999999999", "9" * 5000, "", "$5 km", "1_000", "٣"]


@pytest.mark.parametrize(("text", "value", "unit"), READ)
def test_read(text, value, unit):
    assert read_quantity(plain(text)) == (Fraction(value), unit)


@pytest.mark.parametrize("text", NOT_READ)
def test_not_read(text):
    assert read_quantity(plain(text)) is None


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6, min_value=-(10**12), max_value=10**12))
def test_every_way_to_write_a_number_has_its_value(number):
    for text in (str(number), f"{number:f}", f"{number:,f}", f"{number:e}", f"{number:f}".replace("-", "\u2212")):
        assert read_quantity(plain(text)) == (Fraction(number), "")
