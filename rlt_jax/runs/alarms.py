"""Alarms: metrics beyond their limits (`configs.numbers.AlarmsConfig`), said when one begins and when it ends.

An alarm is a function of the metrics of logged steps alone, so that a resumed run rebuilds it from metrics.jsonl.
"""

import math
import statistics
from collections import deque
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, NamedTuple

from rlt_jax.configs import AlarmsConfig

PAST_NORMS = 50  # gradient norms whose median is compared with
FEWEST_NORMS = 5  # before, there is no alarm

ADVICE = {
    "zero_spread": "all completions of a question earned the same, so that nothing is learned: the teacher probably "
    "knows its rows by heart and writes one text again and again: warm it up with fewer epochs, give other rows, or "
    "raise --temperature",
    "cut_off": "the completions were cut off at the length limit, and none is judged as a whole: raise "
    "--max-completion-length, or warm the teacher up with shorter explanations",
    "kl": "the policy is far from the reference: lower --learning-rate, or raise --loss.beta",
    "entropy": "the teacher writes one text whatever is drawn: lower --learning-rate, raise --temperature, or resume "
    "from an earlier checkpoint",
    "sampler_mismatch": "the sampler's probabilities are not the policy's: the gradients are of other texts than those "
    "that were drawn; look at logs/vllm.log, or use --loss.importance-correction token",
    "grad_spike": "the gradient is clipped to --optimizer.max-grad-norm; if the reward falls afterwards, lower "
    "--learning-rate",
}
LASTING = ("zero_spread", "cut_off", "entropy")  # begin and end after `patience` logged steps


class Reading(NamedTuple):
    """A value and its limit."""

    value: float
    limit: float
    beyond: bool


class Alarms:
    """The alarms of a run. Call it with the metrics of each logged step."""

    def __init__(self, config: AlarmsConfig, *, max_grad_norm: float) -> None:
        self._config = config
        self._max_grad_norm = max_grad_norm  # a gradient that is not clipped is no spike
        self._norms: deque[float] = deque(maxlen=PAST_NORMS)
        self._opposed: dict[str, int] = {}  # name -> logged steps in a row that spoke against its present state
        self.active: set[str] = set()

    def restore(self, latest: Iterable[Mapping[str, Any]]) -> None:
        """Take in what counts of the lines of metrics.jsonl so far, without a word.

        Args:
          latest: the last line first.
        """
        steps = (line for line in latest if "grad_norm" in line)
        lines = list(islice(steps, PAST_NORMS + self._config.patience))[::-1]
        for line in lines[:1]:  # how long an alarm has lasted is no matter
            self.active = {name for name in ADVICE if line.get(f"alarm/{name}")}
        for line in lines:
            self(line)

    def __call__(self, metrics: Mapping[str, float | None]) -> tuple[dict[str, float], list[str]]:
        """`alarm/NAME` 0 or 1 for each alarm that the metrics allow, and what to say."""
        numbers = {name: value for name, value in metrics.items() if value is not None}
        said, states = [], {}
        for name, reading in self._readings(numbers).items():
            was = name in self.active
            self._opposed[name] = self._opposed.get(name, 0) + 1 if reading.beyond != was else 0
            needed = self._config.patience if name in LASTING else 1
            on = was if self._opposed[name] < needed else not was
            if on != was:
                self._opposed[name] = 0
            states[f"alarm/{name}"] = float(on)
            if on and not was:
                in_a_row = f" in {needed} logged steps in a row" if needed > 1 else ""
                found = f"{reading.value:.4g} (limit {reading.limit:.4g}){in_a_row}"
                said.append(f"alarm {name}: {found}: {ADVICE[name]}")
            elif was and not on:
                said.append(f"alarm {name} has ended: {reading.value:.4g} (limit {reading.limit:.4g})")
            self.active = self.active | {name} if on else self.active - {name}
        if norm := numbers.get("grad_norm"):  # not of steps without a gradient
            self._norms.append(norm)
        return states, said

    def _readings(self, metrics: Mapping[str, float]) -> dict[str, Reading]:
        config, found = self._config, {}

        def read(name: str, values: Iterable[str], limit: float | None, *, at_least: bool = False) -> None:
            known = [metrics[value] for value in values if value in metrics]
            if limit is not None and known:
                value = max(known)
                found[name] = Reading(value, limit, value >= limit if at_least else value > limit)

        read("zero_spread", ["near_zero_spread_share"], config.zero_spread, at_least=True)
        read("cut_off", ["cut_off_share"], config.cut_off, at_least=True)
        read("kl", ["kl"], config.kl)
        read("sampler_mismatch", ["sampler_logp_diff", "sync_logp_diff"], config.sampler_mismatch)
        if config.entropy is not None and "entropy" in metrics:
            value = metrics["entropy"]
            found["entropy"] = Reading(value, config.entropy, value < config.entropy)
        if config.grad_spike is not None and "grad_norm" in metrics:
            enough = len(self._norms) >= FEWEST_NORMS
            usual = config.grad_spike * statistics.median(self._norms) if enough else math.inf
            limit = max(usual, self._max_grad_norm)
            found["grad_spike"] = Reading(metrics["grad_norm"], limit, metrics["grad_norm"] > limit)
        return found
