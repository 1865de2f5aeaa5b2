"""What a supervised run takes where its settings are open: values that follow the rows and the model.

    batch          16 rows, or all of them if there are fewer
    epochs         10, or as many more as make 200 steps for up to 1e7 parameters, 200 · 1e7 / N for N of them above
    learning rate  1e-5 · sqrt(7e9 / N) for a model of N parameters, at least 1e-5 and at most 1e-3

With the paper's 17,000 rows and 7B parameters these are the paper's values (RLT, arXiv 2506.08388): batch 16,
10 epochs, 1e-5. The measurements behind the other numbers are in docs/sft.md.
"""

import math
from dataclasses import dataclass, replace

from rlt_jax.configs.sft import BATCH, SftConfig
from rlt_jax.errors import UserError

EPOCHS = 10
LEAST_STEPS, SMALL = 200, 1e7  # steps in which a model of so many parameters learns tags and end of an explanation
LEARNING_RATE, ITS_PARAMETERS = 1e-5, 7e9  # the paper's, and the size of the paper's models
HIGHEST_RATE = 1e-3


@dataclass(frozen=True)
class Schedule:
    """The values of a run that were given or follow."""

    rows: int  # usable
    batch: int  # rows per gradient step
    epochs: int | None  # None: max_steps was given
    max_steps: int
    learning_rate: float  # peak

    def apply(self, config: SftConfig) -> SftConfig:
        """The configuration with the open values filled in; running it again gives the same schedule."""
        return replace(
            config, train_batch_size=self.batch, num_train_epochs=self.epochs, learning_rate=self.learning_rate
        )


def schedule_of(config: SftConfig, *, rows: int, parameters: int, source: str) -> Schedule:
    """Decide what the configuration leaves open.

    Args:
      rows: usable rows, 1 or more.
      parameters: of the model.
      source: where the rows are from, for the error message.
    Raises:
      UserError: fewer rows than the configuration wants in a step.
    """
    batch = min(BATCH, rows) if config.train_batch_size is None else config.train_batch_size
    steps_per_epoch = rows // batch
    if steps_per_epoch == 0:
        raise UserError(
            f"train_batch_size={batch}: expected at most the {rows} usable rows of {source}: lower it, leave it out, "
            "or give more rows"
        )
    rate = learning_rate_for(parameters) if config.learning_rate is None else config.learning_rate
    if config.max_steps is not None:
        return Schedule(rows, batch, config.num_train_epochs, config.max_steps, rate)
    epochs = config.num_train_epochs
    if epochs is None:
        epochs = max(EPOCHS, math.ceil(least_steps(parameters) / steps_per_epoch))
    return Schedule(rows, batch, epochs, epochs * steps_per_epoch, rate)


def least_steps(parameters: int) -> int:
    """Gradient steps below which a model has not learned its format; a larger one brings more with it."""
    return math.ceil(LEAST_STEPS * min(SMALL / parameters, 1))


def learning_rate_for(parameters: int) -> float:
    """Peak learning rate for a model of so many parameters, to two digits."""
    rate = LEARNING_RATE * math.sqrt(ITS_PARAMETERS / parameters)
    return float(f"{min(max(rate, LEARNING_RATE), HIGHEST_RATE):.1e}")


def describe_schedule(config: SftConfig, schedule: Schedule, *, parameters: int) -> list[str]:
    """Say which values follow, and from what; nothing about those that were given.

    Args:
      config: as given, with the open values.
    """
    lines = []
    per_epoch = schedule.rows // schedule.batch
    if config.max_steps is None and config.num_train_epochs is None:
        why = "" if schedule.epochs == EPOCHS else f" ({EPOCHS} would be only {EPOCHS * per_epoch} steps)"
        lines.append(
            f"{schedule.rows} rows: {schedule.epochs} epochs of {per_epoch} steps of {schedule.batch} rows = "
            f"{schedule.max_steps} steps{why}; --num-train-epochs or --max-steps changes that"
        )
    elif config.train_batch_size is None and schedule.batch < BATCH:
        lines.append(f"{schedule.rows} rows: all of them in each step; --train-batch-size changes that")
    if config.learning_rate is None:
        lines.append(
            f"{_millions(parameters)} parameters: learning rate {schedule.learning_rate:g} "
            f"({LEARNING_RATE:g} from 7B parameters on, more for smaller models); --learning-rate changes that"
        )
    return lines


def _millions(parameters: int) -> str:
    return f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.1f}M"
