"""Write rows of unit conversions, as a first data set of one's own might be: question, solution, a trace of three
sentences.

    python benchmarks/unit_rows.py --out units.jsonl --rows 60
"""

import json
import random
from pathlib import Path

import tyro

UNITS = (  # (larger unit, smaller unit, how many of it make a larger one)
    ("metres", "centimetres", 100),
    ("kilometres", "metres", 1000),
    ("hours", "minutes", 60),
    ("kilograms", "grams", 1000),
    ("litres", "millilitres", 1000),
)


def unit_rows(count: int, *, seed: int = 0) -> list[dict[str, str]]:
    """Rows with question, solution and reasoning_trace; the numbers have one decimal."""
    chance = random.Random(seed)
    rows = []
    for _ in range(count):
        larger, smaller, factor = chance.choice(UNITS)
        tenths = chance.randrange(11, 100)
        number, result = f"{tenths / 10:g}", f"{tenths * factor // 10}"
        rows.append(
            {
                "question": f"How many {smaller} are {number} {larger}?",
                "solution": result,
                "reasoning_trace": f"There are {factor} {smaller} in one of the {larger}. So multiply {number} by "
                f"{factor}. That makes {result} {smaller}.",
            }
        )
    return rows


def main(out: Path, rows: int = 60, seed: int = 0) -> None:
    """Write the rows.

    Args:
      out: JSON Lines file to write.
      rows: how many.
      seed: of the numbers and units.
    """
    out.write_text("".join(json.dumps(row) + "\n" for row in unit_rows(rows, seed=seed)), encoding="utf-8")


if __name__ == "__main__":
    tyro.cli(main)
