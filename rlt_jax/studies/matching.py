"""Match two data sets in length, so that comparing what they teach compares quality, not length."""

from collections.abc import Mapping


def balanced_questions(
    first: Mapping[int, int], second: Mapping[int, int], *, tolerance: float, least_share: float = 0.5
) -> list[int]:
    """Choose questions of both sets so that the tokens of the two sets differ by at most `tolerance`.

    With d_q = first[q] - second[q], the questions with the largest excess of the longer set are left out first, until

        |sum d_q| <= tolerance * min(sum first[q], sum second[q])

    or only `least_share` of the common questions is left; the sets then stay unequal, which the caller reports.

    Args:
      first, second: question -> tokens of its explanation.
      tolerance, least_share: shares, 0 to 1.
    Returns:
      The questions, ascending.
    """
    common = sorted(first.keys() & second.keys())
    sign = 1 if sum(first[q] - second[q] for q in common) > 0 else -1
    by_excess = sorted(common, key=lambda q: sign * (first[q] - second[q]))  # the largest excess last
    least = max(1, round(least_share * len(common)))
    first_tokens, second_tokens = sum(first[q] for q in common), sum(second[q] for q in common)
    while len(by_excess) > least and sign * (first_tokens - second_tokens) > tolerance * min(
        first_tokens, second_tokens
    ):
        left_out = by_excess.pop()
        first_tokens, second_tokens = first_tokens - first[left_out], second_tokens - second[left_out]
    return sorted(by_excess)
