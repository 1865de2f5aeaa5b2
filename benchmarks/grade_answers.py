"""How often graders agree with a table of labelled answers, beside math-verify used plainly.

    python benchmarks/grade_answers.py                     # these graders and math-verify
    python benchmarks/grade_answers.py --before REVISION   # and those of an earlier commit
    python benchmarks/grade_answers.py --part 5            # only one part of the table

Prints Markdown tables: lines as labelled, and in brackets how many wrong answers were taken for right. math-verify is
used as its documentation shows, `verify(parse(expected), parse(text))`, on the lines of kind `math`.
"""

import argparse
import importlib.util
import json
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType

import math_verify

from rlt_jax.errors import UserError, command
from rlt_jax.evals import answers

TABLE = Path(__file__).parents[1] / "tests" / "evals" / "answers.jsonl"
Case = Mapping[str, str]


@command
def main() -> None:
    """Grade the table as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=TABLE, help="JSON Lines with kind, group, text, expected, right")
    parser.add_argument("--part", type=int, help="only lines of this part")
    parser.add_argument("--before", metavar="REVISION", help="also grade with rlt_jax/evals/answers.py of this commit")
    args = parser.parse_args()
    if not args.table.is_file():
        raise UserError(f"expected a table of answers, but {args.table} does not exist: check --table")
    cases = [json.loads(line) for line in args.table.read_text(encoding="utf-8").splitlines()]
    cases = [case for case in cases if args.part in (None, case["part"])]
    graders: dict[str, Callable[[Case], bool | None]] = {"math-verify": plainly}
    if args.before:
        graders["before"] = grader(earlier_answers(args.before))
    graders["now"] = grader(answers)

    verdicts, seconds = {}, {}
    for name, grade in graders.items():
        start = time.monotonic()
        verdicts[name] = [grade(case) for case in cases]
        seconds[name] = time.monotonic() - start
    groups = defaultdict(list)
    for number, case in enumerate(cases):
        groups[f"{case['kind']}: {case['group']}"].append(number)
        groups[f"**{case['kind']}**"].append(number)
    print(f"| group | lines | {' | '.join(graders)} |\n|---|---|{'---|' * len(graders)}")
    for group in sorted(groups):
        cells = [cell([(cases[i]["right"], verdicts[name][i]) for i in groups[group]]) for name in graders]
        print(f"| {group} | {len(groups[group])} | {' | '.join(cells)} |")
    print("\n" + ", ".join(f"{name}: {took:.1f} s" for name, took in seconds.items()) + "\n")
    for line in disagreements(cases, verdicts["now"]):
        print(line)


def plainly(case: Case) -> bool | None:
    """math-verify's verdict; None for other kinds of answers."""
    if case["kind"] != "math":
        return None
    return math_verify.verify(math_verify.parse(case["expected"]), math_verify.parse(case["text"]))


def grader(module: ModuleType) -> Callable[[Case], bool]:
    """The verdict of a module with the three graders."""

    def grade(case: Case) -> bool:
        if case["kind"] == "choice":
            return module.grade_choice(case["text"], case["expected"], "ABCD").correct
        return getattr(module, f"grade_{case['kind']}")(case["text"], case["expected"]).correct

    return grade


def earlier_answers(revision: str) -> ModuleType:
    """rlt_jax/evals/answers.py as it was, beside today's other modules."""
    source = subprocess.run(
        ["git", "show", f"{revision}:rlt_jax/evals/answers.py"], cwd=TABLE.parent, capture_output=True, text=True
    )
    if source.returncode:
        raise UserError(
            f"expected a commit with rlt_jax/evals/answers.py, but: {source.stderr.strip()}: check --before"
        )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "earlier_answers.py"
        file.write_text(source.stdout, encoding="utf-8")
        spec = importlib.util.spec_from_file_location("earlier_answers", file)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


def cell(pairs: list[tuple[bool, bool | None]]) -> str:
    """`97.5 % (2)`: the share of verdicts as labelled, and how many wrong answers were taken for right."""
    if any(verdict is None for _, verdict in pairs):
        return ""
    agree = sum(right == verdict for right, verdict in pairs) / len(pairs)
    return f"{agree:.1%} ({sum(bool(verdict) and not right for right, verdict in pairs)})".replace("%", " %")


def disagreements(cases: list[Case], verdicts: list[bool | None]) -> Iterator[str]:
    """The lines on which the graders and the table differ."""
    for case, verdict in zip(cases, verdicts):
        if verdict != case["right"]:
            print_as = "taken for right" if verdict else "taken for wrong"
            yield f"{print_as}: {case['text']!r}, expected {case['expected']!r} ({case['why']})"


if __name__ == "__main__":
    main()
