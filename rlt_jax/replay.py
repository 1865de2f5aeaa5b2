"""Compute a skipped step of a run again, and say which numbers are not finite: `python -m rlt_jax.replay RUN`.

Exit code: 0 if the step fails as it did in the run, 1 if it does not, 2 for a mistake.
"""

import logging
import sys
from pathlib import Path

from rlt_jax.configs import parse_command, run_or_print
from rlt_jax.configs.replay import ReplayConfig
from rlt_jax.device.jax_setup import use_compilation_cache
from rlt_jax.errors import command
from rlt_jax.report.log import setup_logging
from rlt_jax.rewards.rlt import RewardFn
from rlt_jax.runs.replay import Replayed, replay_step, same_machine
from rlt_jax.runs.skipping import SKIPPED_DIR, SkippedStep, read_step


def replay(config: ReplayConfig, *, reward_fn: RewardFn | None = None) -> Replayed:
    """Compute a skipped step again and print what each stage gives. Changes nothing in the run's folder.

    Args:
      reward_fn: the run's own reward function, if it had one. None: the one that the run's settings name; of one that
        was given in Python, the rewards that it returned are used.
    Raises:
      UserError: there is no such step, or what it needs is gone or has changed.
    """
    setup_logging(None)
    logging.getLogger("rlt_jax").setLevel(logging.WARNING)
    use_compilation_cache()
    run = Path(config.run)
    kept = read_step(run, config.step)
    print(f"step {kept.step} of {run}, with the weights of {kept.state.name.replace('state-', 'step ')}")
    print(f"recorded in stage {kept.fault['stage']}: {kept.fault['culprit']}")
    found = replay_step(kept, run / SKIPPED_DIR / str(kept.step), reward_fn=reward_fn)
    for name, result in found.stages:
        print(f"  {name:10s}  {result}")
    if found.rows:
        print(f"not finite on their own: {', '.join(found.rows)}")
    print(verdict(kept, found))
    return found


def verdict(kept: SkippedStep, found: Replayed) -> str:
    """Whether the step failed as it did in the run."""
    if not found.reproduced:
        return f"NOT REPRODUCED: {'; '.join(found.differences)}"
    if same_machine(kept):
        return "reproduced: the same fault, its values equal bit for bit"
    return (
        f"reproduced: a fault in the same stage (recorded on {kept.fault['device']} with JAX {kept.fault['jax']}, so "
        "that bits are not compared)"
    )


@command
def main() -> None:
    def run(config: ReplayConfig) -> None:
        if not replay(config).reproduced:
            raise SystemExit(1)

    run_or_print(*parse_command(ReplayConfig, sys.argv[1:], command="replay", description=__doc__), run=run)


if __name__ == "__main__":
    main()
