"""Which differences between a study's arms are certain, and which it could have found: in words, with their numbers."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from rlt_jax.evals.crossed import MOST_SEEDS, Spread, mean_spread, seeds_needed, smallest_difference
from rlt_jax.report.curves import Panel
from rlt_jax.studies.cells import MISSING, limits, markdown_table, mean_cell
from rlt_jax.studies.comparison import LEVEL, QUANTITIES, Arm, Difference

MORE_SEEDS = (3, 5, 10, 20)  # of which the report says what they would find
POWERED = ("component/solution_logp/mean", "component/thought_kl/mean", "completion_length/mean")
DECISIVE = QUANTITIES[0]

Unlike = Mapping[str, Mapping[str, str]]  # arm -> metric that is not comparable with the first arm's -> why


def certainty_markdown(arms: Mapping[str, Arm], unlike: Unlike, *, difference: float | None = None) -> str:
    """What is certain, and what the study could find, as Markdown; "" for a study of one arm.

    Args:
      difference: in the solution log-prob, nats per token, of which to say how many seeds would show it.
    """
    if len(arms) < 2:
        return ""
    first, tested = next(iter(arms)), _tested_arms(arms)
    parts = [
        "## Which differences are certain",
        f"Against {first}. *Certain*: would hold for other seeds and other questions, at the {100 * LEVEL:g} % level, "
        f"corrected for the {tested} arms that are compared (Holm, each quantity by itself). *Certain only by itself*: "
        "without that correction, so one of several such differences may be chance. *In these runs only*: the interval "
        "over the questions leaves out 0, the one that counts other seeds too does not.",
    ]
    rows = [_row(name, arm.from_first[DECISIVE.metric]) for name, arm in _compared(arms)]
    if rows:
        half = "± over questions, of these runs", "± for other seeds and questions"
        parts.append(
            markdown_table(
                [f"{DECISIVE.title}, {DECISIVE.unit}", "seeds", "questions", "difference", *half, "p", "p (Holm)", ""],
                rows,
            )
        )
    parts.append("\n".join(f"- {_sentence(name, arm, unlike.get(name, {}))}" for name, arm in _others(arms)))
    if lines := list(power_lines(arms, difference=difference)):
        parts += ["## What this study can find", "\n".join(f"- {line}" for line in lines)]
    return "\n\n".join(parts) + "\n"


def power_lines(arms: Mapping[str, Arm], *, difference: float | None = None) -> Iterator[str]:
    """What differences the seeds given can show, for the main quantities that two or more seeds have."""
    for quantity in QUANTITIES:
        if quantity.metric not in POWERED or (design := _design(arms, quantity.metric)) is None:
            continue
        yield _power_line(quantity, design, difference if quantity is DECISIVE else None)


def certainty_facts(arms: Mapping[str, Arm], unlike: Unlike) -> dict[str, Any]:
    """All numbers of a comparison as plain values, for a JSON file."""
    return {
        "first": next(iter(arms)),
        "arms": {name: _facts(arm, unlike.get(name, {})) for name, arm in arms.items()},
        "power": {quantity.metric: _power_facts(arms, quantity.metric) for quantity in QUANTITIES},
    }


def _facts(arm: Arm, unlike: Mapping[str, str]) -> dict[str, Any]:
    seconds = arm.step_seconds
    return {
        "finished": arm.finished,
        "planned": arm.planned,
        "step_seconds": None if seconds is None else {"mean": seconds[0], "half_width": seconds[1]},
        "changes": {
            metric: {
                "first": change.first,
                "last": change.last,
                "change": change.change,
                "half_width": change.half_width,
                "over": change.over,
            }
            for metric, change in arm.changes.items()
        },
        "differences": {
            metric: {
                "mean": found.mean,
                "half_width": found.half_width,
                "half_width_over_questions": found.over_questions,
                "seeds": found.seeds,
                "questions": found.questions,
                "p": found.p_value,
                "p_holm": found.corrected,
                "certain": found.certain,
                "variances": None if found.spread is None else found.spread._asdict(),
            }
            for metric, found in arm.from_first.items()
        },
        "not_comparable": dict(unlike),
    }


def _power_facts(arms: Mapping[str, Arm], metric: str) -> dict[str, Any] | None:
    design = _design(arms, metric)
    if design is None:
        return None
    counts = sorted({design.seeds, *MORE_SEEDS})
    return {
        **design._asdict(),
        "spread": design.spread._asdict(),
        "smallest_difference": {
            str(seeds): smallest_difference(design.spread, seeds=seeds, questions=design.questions) for seeds in counts
        },
    }


class _Design(NamedTuple):
    """What is known of a metric's differences before they are looked at."""

    spread: Spread  # of a difference, mean over the arms that differ at all
    measured: int  # seeds that it is known from: the fewest of any arm
    seeds: int  # that the study has in the end
    questions: int  # the fewest of any arm; 1: the metric is not recorded by question
    arms: int  # that are compared


def _design(arms: Mapping[str, Arm], metric: str) -> _Design | None:
    """None: no arm has two seeds that are finished here and in the first arm, and differ."""
    known = [arm.from_first[metric] for _, arm in _others(arms) if metric in arm.from_first]
    tested = [(found, found.spread) for found in known if found.spread is not None]
    # arms that are equal in all runs would make the study look better than it is
    spreads = [spread for _, spread in tested if sum(spread) > 0]
    if not spreads:
        return None
    return _Design(
        mean_spread(spreads),
        min(found.seeds for found, _ in tested),
        max(arm.planned for arm in arms.values()),
        max(1, min(found.questions for found, _ in tested)),
        len(tested),
    )


def _power_line(quantity: Panel, design: _Design, difference: float | None) -> str:
    digits = _digits(quantity)

    def found_with(seeds: int, level: float = LEVEL) -> str:
        found = smallest_difference(design.spread, seeds=seeds, questions=design.questions, level=level)
        return f"{found:.{digits}f}"

    of_questions = f" and {design.questions} questions" if design.questions > 1 else ""
    line = (
        f"{quantity.title}: with {design.seeds} seeds{of_questions}, a true difference of {found_with(design.seeds)} "
        f"{quantity.unit} is found in 4 of 5 studies"
    )
    if design.arms > 1:
        line += f" ({found_with(design.seeds, LEVEL / design.arms)} if it must be certain among {design.arms} arms)"
    line += "."
    if more := [f"{seeds} seeds: {found_with(seeds)}" for seeds in MORE_SEEDS if seeds > design.seeds]:
        line += f" With {', '.join(more)}."
    if difference is not None:
        line += f" {_needed(design, difference)}"
    deviations = {
        name: variance**0.5
        for name, variance in design.spread._asdict().items()
        if name == "seeds" or design.questions > 1
    }
    return (
        f"{line} (Standard deviations of a difference: "
        f"{', '.join(f'{name} {deviation:.{digits}f}' for name, deviation in deviations.items())}; themselves known "
        f"from {design.measured} seeds only.)"
    )


def _needed(design: _Design, difference: float) -> str:
    needed = seeds_needed(design.spread, difference, questions=design.questions)
    if needed is not None:
        return f"{difference:g} takes {needed} seeds."
    return (
        f"{difference:g} is not found with {MOST_SEEDS} seeds either, as questions differ by more: take more held-out "
        "questions."
    )


def _row(name: str, found: Difference) -> list[str]:
    digits = _digits(DECISIVE)
    halves = (MISSING if half is None else f"{half:.{digits}f}" for half in (found.over_questions, found.half_width))
    p_values = (MISSING if p is None else _p_text(p) for p in (found.p_value, found.corrected))
    return [
        name,
        str(found.seeds),
        str(found.questions) if found.questions else MISSING,
        f"{found.mean:+.{digits}f}",
        *halves,
        *p_values,
        "certain" if found.certain else "not certain",
    ]


def _sentence(name: str, arm: Arm, unlike: Mapping[str, str]) -> str:
    """What is certain, what not, and what cannot be compared, of one arm."""
    if not arm.from_first:
        why = f"not comparable: {_titles(unlike)}" if unlike and arm.finished else "no seed is finished in both arms"
        return f"**{name}**: {why}."
    seeds = max(found.seeds for found in arm.from_first.values())
    certain, by_itself, only_here, open_, equal = [], [], [], [], []
    for quantity in QUANTITIES:
        if (found := arm.from_first.get(quantity.metric)) is None:
            continue
        text = f"{_in_text(quantity)} {_amount(found, quantity)}"
        if found.certain:
            certain.append(text)
        elif found.mean == 0 and not found.half_width and not found.over_questions:
            equal.append(_in_text(quantity))
        elif found.p_value is not None and found.p_value < LEVEL:
            by_itself.append(text)
        elif _leaves_out_0(found):
            only_here.append(text)
        else:
            open_.append(text)
    parts = {
        "certain": certain,
        "certain only by itself": by_itself,
        "in these runs only": only_here,
        "not certain": open_,
        "equal in all runs": equal,
        "not comparable": [_titles(unlike)] if unlike else [],
    }
    words = "; ".join(f"{what}: {', '.join(which)}" for what, which in parts.items() if which)
    alone = " With one seed nothing is certain: another one may differ." if seeds == 1 else ""
    return f"**{name}**: {words}.{alone}"


def _leaves_out_0(found: Difference) -> bool:
    low, high = limits(found.mean, found.over_questions)
    return isinstance(low, float) and isinstance(high, float) and (low > 0 or high < 0)


def _titles(unlike: Mapping[str, str]) -> str:
    titles = {quantity.metric: _in_text(quantity) for quantity in QUANTITIES}
    return ", ".join(f"{titles[metric]} ({why})" for metric, why in unlike.items() if metric in titles)


def _amount(found: Difference, quantity: Panel) -> str:
    return mean_cell(found.mean, found.half_width, _digits(quantity), signed=True)


def _in_text(quantity: Panel) -> str:
    """Its title within a sentence: `explanation KL`."""
    return quantity.title[0].lower() + quantity.title[1:]


def _p_text(p_value: float) -> str:
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _digits(quantity: Panel) -> int:
    return 1 if quantity.unit == "tokens" else 3


def _others(arms: Mapping[str, Arm]) -> list[tuple[str, Arm]]:
    return list(arms.items())[1:]


def _compared(arms: Mapping[str, Arm]) -> Iterator[tuple[str, Arm]]:
    """The arms that have a difference in the decisive quantity."""
    for name, arm in _others(arms):
        if DECISIVE.metric in arm.from_first:
            yield name, arm


def _tested_arms(arms: Mapping[str, Arm]) -> int:
    return sum(1 for _, arm in _others(arms) if any(found.p_value is not None for found in arm.from_first.values()))
