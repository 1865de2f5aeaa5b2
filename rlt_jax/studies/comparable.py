"""Which numbers of two arms measure the same thing, so that their difference means something."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict

from rlt_jax.configs import DataConfig, TrainConfig
from rlt_jax.configs.resume import changed_fields, leaves
from rlt_jax.runs.announce import evaluated_rows

REWARD, LOGP, KL = "reward", "component/solution_logp/mean", "component/thought_kl/mean"

_SCALE_OF = {  # field, or section with its dot -> the metrics whose scale or meaning it sets
    "reward.": (REWARD,),
    "reward.unbias_student_log_probs_temp": (LOGP, KL),
    "reward.student_tokens": (KL,),  # the solution has the student's own tokens either way
    "reward.use_schulman_kl_estimation": (KL,),
    "reward.unbias_teacher_log_probs": (KL,),
    "reward.use_reference_teacher_model": (KL,),
    "student": (REWARD, LOGP, KL),
    "data.tags": (REWARD, LOGP, KL),
    "data.student_prompt_file": (REWARD, LOGP, KL),
    "data.system_column": (REWARD, LOGP, KL),
}


def unlike_metrics(run: TrainConfig, first: TrainConfig) -> dict[str, str]:
    """The metrics that measure something else in `run` than in `first`: metric -> the fields that make it so."""
    unlike: dict[str, list[str]] = {}
    for field in changed_fields(run, first):
        for metric in _measured_by(field, run, first):
            unlike.setdefault(metric, []).append(field)
    return {metric: ", ".join(fields) for metric, fields in unlike.items()}


def same_rows(run: TrainConfig, first: TrainConfig) -> bool:
    """Whether two runs are evaluated on the same questions, as far as their settings say."""
    return _held_out(run.data) == _held_out(first.data)


def different_rows(runs: Mapping[str, Mapping[int, TrainConfig]]) -> str | None:
    """A line on arms that are evaluated on different rows, whose numbers cannot be compared; None if all share them."""
    data = {arm: next(iter(by_seed.values())).data for arm, by_seed in runs.items()}
    if len({_held_out(of_arm) for of_arm in data.values()}) < 2:
        return None
    names = "; ".join(
        f"{arm}: {'' if of_arm.eval_rows is None else f'{of_arm.eval_rows} '}{evaluated_rows(of_arm)}"
        for arm, of_arm in data.items()
    )
    return (
        f"arms are evaluated on different rows ({names}), so that their numbers cannot be compared: give "
        "data.eval_path and data.eval_rows in the base"
    )


def differing_fields(runs: Mapping[str, TrainConfig]) -> dict[str, dict[str, object]]:
    """The fields in which arms differ: field -> arm -> its value, in the order of the fields.

    Args:
      runs: arm -> one of its runs.
    """
    values = {arm: dict(leaves(asdict(run))) for arm, run in runs.items()}
    first = next(iter(values.values()))
    differing = [name for name in first if any(of_arm[name] != first[name] for of_arm in values.values())]
    return {name: {arm: of_arm[name] for arm, of_arm in values.items()} for name in differing if name != "output_dir"}


def _measured_by(field: str, run: TrainConfig, first: TrainConfig) -> Iterator[str]:
    for name, metrics in _SCALE_OF.items():
        if field == name or (name.endswith(".") and field.startswith(name)):
            yield from metrics
    if field == "temperature" and run.reward.unbias_teacher_log_probs:  # it divides the teacher's logits
        yield from (REWARD, KL)


def _held_out(data: DataConfig) -> tuple[object, ...]:
    """What decides which questions are evaluated, and how they are read."""
    at_end = data.eval_path is None and data.eval_split is None
    source = (data.path, data.split, data.subset) if at_end else data.held_out_source
    return at_end, *source, data.eval_rows, data.question_column, data.solution_column
