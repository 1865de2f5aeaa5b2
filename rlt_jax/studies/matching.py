"""Two data sets of the same questions made equally long, so that a comparison of what they teach is one of quality."""

from collections.abc import Mapping


def balanced_questions(
    first: Mapping[int, int], second: Mapping[int, int], *, tolerance: float, least_share: float = 0.5
) -> list[int]:
    """Questions that are in both sets, without the fewest that make their tokens differ by more than `tolerance`.

    With d_q = first[q] - second[q], questions are left out in the order of the largest d_q on the longer side, until

        |sum d_q| <= tolerance * min(sum first[q], sum second[q])

    or only `least_share` of the common questions is left: then the sets stay unequal, which the caller reports.

    Args:
      first, second: question -> tokens of its explanation.
      tolerance, least_share: shares, 0 to 1.
    Returns:
      The questions, ascending.
    """
    common = sorted(first.keys() & second.keys())
    longer = 1 if sum(first[q] - second[q] for q in common) > 0 else -1
    by_excess = sorted(common, key=lambda q: longer * (first[q] - second[q]))  # the largest excess last
    least = max(1, round(least_share * len(common)))
    ours, theirs = sum(first[q] for q in common), sum(second[q] for q in common)
    while len(by_excess) > least and longer * (ours - theirs) > tolerance * min(ours, theirs):
        left_out = by_excess.pop()
        ours, theirs = ours - first[left_out], theirs - second[left_out]
    return sorted(by_excess)
