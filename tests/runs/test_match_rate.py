"""The warning of explanations that do not close their tags."""

from rlt_jax.runs.match_rate import MatchWatch, match_advice


def test_one_warning_in_the_first_steps():
    watch = MatchWatch(max_completion_length=64)
    enough, few = [True] * 5 + [False] * 95, [True] * 4 + [False] * 96
    done = [True] * 100
    assert watch(enough, done, step=0) is None
    assert "step 1: only 4 of 100 explanations close their tags" in watch(few, done, step=1)
    assert watch(few, done, step=2) is None  # once
    assert MatchWatch(max_completion_length=64)(few, done, step=4) is None  # a collapse later is another matter


def test_the_advice_follows_what_happened():
    of_format = match_advice([False] * 4, [True, True, True, False], max_completion_length=64)
    assert "(1 were cut off at --max-completion-length 64, 3 ended by themselves)" in of_format
    assert "raise --max-completion-length" not in of_format and "rlt_jax.sft --target teacher" in of_format
    of_length = match_advice([False] * 4, [True, False, False, False], max_completion_length=64)
    assert "raise --max-completion-length" in of_length and "--data.tags" in of_length
