"""A run's plan on this machine: its ledger, what fits, what to lower, and the checks of the machine."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import psutil

from rlt_jax.configs import TrainConfig
from rlt_jax.device.gpu import Gpu, read_gpu
from rlt_jax.device.jax_setup import share_gpu_memory, use_compilation_cache
from rlt_jax.models import ModelConfig
from rlt_jax.planner.advice import Suggestion, suggest
from rlt_jax.planner.ledger import Ledger, PhaseName
from rlt_jax.planner.preflight import Check, preflight
from rlt_jax.planner.run_plan import (
    FoundModel,
    find_model,
    largest_update_tokens,
    longest_context,
    plan,
    planned_bytes,
    shortfalls,
)
from rlt_jax.types import GB


@dataclass(frozen=True)
class Report:
    """Everything that `rlt_jax.plan` reports; sizes in bytes."""

    config: TrainConfig
    teacher: FoundModel
    student: FoundModel
    ledger: Ledger
    gpu: Gpu | None
    gpu_bytes: float | None  # what the run may take; None: not known
    host_bytes: float | None
    shortfalls: list[str]
    longest_context: int | None  # tokens
    largest_update: int | None  # tokens of a pass of the update
    suggestions: list[Suggestion]
    checks: list[Check]

    @property
    def failed_checks(self) -> list[Check]:
        """The checks that say that the plan does not hold on this machine."""
        return [check for check in self.checks if check.status == "problem" and check.concerns_plan]

    @property
    def fits(self) -> bool:
        """Whether the ledger fits, and this machine can hold to it."""
        return not self.shortfalls and not self.failed_checks


def make_report(config: TrainConfig, *, compile_programs: bool, start_checks: Sequence[Check] = ()) -> Report:
    """Plan a run on this machine.

    Args:
      start_checks: of the run's chats and rows (`runs/start_check.py`).
    Raises:
      UserError: a model's architecture cannot be found.
    """
    teacher, student = find_model(config.teacher), find_model(config.student)
    gpu = read_gpu()
    bounds = [planned_bytes(config), None if gpu is None else float(gpu.total_bytes)]
    gpu_bytes = min((bound for bound in bounds if bound is not None), default=None)
    host_bytes = None if config.host_gb is None else config.host_gb * GB
    if host_bytes is None and gpu is not None:  # without a GPU the run will be on another machine
        host_bytes = psutil.virtual_memory().total
    total = None if gpu is None else gpu.total_bytes
    capability = None if gpu is None else gpu.capability
    plan_of = partial(
        plan, config, teacher=teacher.config, student=student.config, gpu_bytes=total, capability=capability
    )
    by_formula = ledger = plan_of()
    if gpu is not None and compile_programs:
        compiled = _compile(config, ledger, teacher.config, student.config)
        ledger = plan_of(compiled=compiled)
    missing = shortfalls(ledger, gpu_bytes=gpu_bytes, host_bytes=host_bytes)
    # Other lengths and passes are planned by formula alone: what the compiler needs beyond that is not theirs to use.
    beyond = max(ours.gpu_bytes - formula.gpu_bytes for ours, formula in zip(ledger.phases, by_formula.phases))
    room = None if gpu_bytes is None else gpu_bytes - max(beyond, 0.0)
    return Report(
        config=config,
        teacher=teacher,
        student=student,
        ledger=ledger,
        gpu=gpu,
        gpu_bytes=gpu_bytes,
        host_bytes=host_bytes,
        shortfalls=missing,
        longest_context=None if room is None else longest_context(ledger, room, positions=teacher.config.max_positions),
        largest_update=None if room is None else largest_update_tokens(ledger, room),
        suggestions=suggest(config, teacher.config, student.config, gpu_bytes=room, host_bytes=host_bytes)
        if missing
        else [],
        checks=preflight(config, ledger, gpu=gpu, host_bytes=host_bytes, start_checks=start_checks),
    )


def _compile(
    config: TrainConfig, ledger: Ledger, teacher: ModelConfig, student: ModelConfig
) -> dict[PhaseName, float] | None:
    """Compile the run's programs for the GPU and return their temporaries; None where JAX does not see a GPU."""
    share_gpu_memory()
    import jax

    from rlt_jax.planner.compiled_sizes import compiled_temporaries

    if jax.default_backend() != "gpu":
        return None
    use_compilation_cache()
    print("compiling the run's programs for the GPU ...", file=sys.stderr, flush=True)
    return compiled_temporaries(config, ledger.run, teacher, student)
