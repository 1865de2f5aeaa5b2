"""The process behind `mathematics.py`: reads `["expected", "given"]` per line, writes whether they are equal.

Runs as a program by its path, so it imports nothing of the package.
"""

import contextlib
import json
import logging
import resource
import signal
import sys
from dataclasses import replace

import math_verify
import sympy

SECONDS = 10  # for one comparison; the parent gives up earlier
MEMORY = 4 << 30  # bytes; a huge power fails instead of taking the machine's
_DEFAULT = math_verify.LatexExtractionConfig()
LATEX = replace(  # without its own removal of units, which takes "3 less" for 3
    _DEFAULT, normalization_config=replace(_DEFAULT.normalization_config, units=False, boxed="none")
)
DIGITS = 40  # of a comparison by value


def equal(expected: str, given: str) -> bool:
    """math-verify's verdict on exact numbers, confirmed by value where both sides have one."""
    pair = [_exact(_parse(formula)) for formula in (expected, given)]
    if any(formula is None for formula in pair):
        return False
    right, found = pair
    if not math_verify.verify([right], [found], timeout_seconds=None):
        return False
    return _confirmed(right, found)


def _parse(formula: str) -> sympy.Basic | None:
    found = math_verify.parse(f"${formula}$", [LATEX], parsing_timeout=None)
    return found[0] if found and not isinstance(found[0], str) else None


def _exact(formula: sympy.Basic | None) -> sympy.Basic | None:
    """Decimals as fractions, or math-verify compares six digits of them."""
    if not isinstance(formula, sympy.Basic):
        return formula  # a matrix
    floats = formula.atoms(sympy.Float)
    return formula.xreplace({number: sympy.Rational(str(number)) for number in floats})


def _confirmed(right: sympy.Basic, found: sympy.Basic) -> bool:
    """Compare numbers by value: math-verify takes two numbers below 1e-15 for equal."""
    if not all(isinstance(formula, sympy.Expr) and formula.is_number for formula in (right, found)):
        return True
    percent = sympy.UnevaluatedExpr(sympy.Rational(1, 100))
    if right.has(percent) or found.has(percent):
        return True
    a, b = (sympy.N(formula.doit(), DIGITS) for formula in (right, found))
    return bool(abs(a - b) <= abs(a) * sympy.Float(10) ** -20)


def main() -> None:
    """Answer until the input ends."""
    logging.disable(logging.CRITICAL)  # math-verify warns that it has no timeout: the parent process has
    answers, sys.stdout = sys.stdout, sys.stderr  # so that no library prints among the answers
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    equal("1", "2")  # loads the grammar
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        signal.alarm(SECONDS)  # ends the process, should nobody be left to kill it
        try:
            answer = equal(*json.loads(line))
        except (Exception, RecursionError, MemoryError):
            answer = False  # what cannot be compared is not equal
        signal.alarm(0)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
