"""Warn of a model that does not write in the format that it is read in, as long as something can be done about it."""

from collections.abc import Sequence

FEW = 0.05  # share of the explanations that close their tags
FIRST_STEPS = 3  # steps of a run that are watched


class MatchWatch:
    """Warn, once, if hardly any explanation of the first steps closes its tags: each other one earns the same price."""

    def __init__(self, *, max_completion_length: int) -> None:
        self._max_completion_length = max_completion_length
        self._warned = False

    def __call__(self, matched: Sequence[bool], finished: Sequence[bool], *, step: int) -> str | None:
        """The warning, if there is one.

        Args:
          matched: whether each explanation closed its tags.
          finished: whether it ended by itself.
          step: that sampled it; 0: an evaluation before the first.
        """
        if self._warned or step > FIRST_STEPS or sum(matched) >= FEW * len(matched):
            return None
        self._warned = True
        return f"step {step}: {match_advice(matched, finished, max_completion_length=self._max_completion_length)}"


def match_advice(matched: Sequence[bool], finished: Sequence[bool], *, max_completion_length: int) -> str:
    """What is wrong with explanations of which hardly any closes its tags, and what to do."""
    cut_off = len(finished) - sum(finished)
    found = (
        f"only {sum(matched)} of {len(matched)} explanations close their tags, so the reward tells hardly any of them "
        f"apart ({cut_off} were cut off at --max-completion-length {max_completion_length}, {sum(finished)} ended by "
        "themselves)"
    )
    format_advice = (
        "give the prompt and tags that the teacher was trained with (--data.teacher-prompt-file, --data.tags), or warm "
        "it up with rlt_jax.sft --target teacher"
    )
    if 2 * cut_off > len(finished):
        return f"{found}: raise --max-completion-length if its explanations are longer; else {format_advice}"
    return f"{found}: {format_advice}"
