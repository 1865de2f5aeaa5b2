"""Checkpoints of a run (Orbax): everything that the next step depends on, so that a resumed run repeats it bit for bit.

Arrays: policy, optimizer (moments, low halves of the masters), reference. Facts: step, seed, data position. All
randomness of a run is derived from (seed, step), so seed and step are the state of its random numbers, and the weights'
version is the step.
"""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from rlt_jax.errors import UserError

Arrays = Any


def open_checkpoints(folder: Path, *, keep: int) -> ocp.CheckpointManager:
    """The manager of `folder` (made when missing); it keeps the newest `keep` checkpoints."""
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
    return ocp.CheckpointManager(folder.resolve(), options=options)


def save_checkpoint(manager: ocp.CheckpointManager, step: int, arrays: Arrays, facts: dict[str, int]) -> None:
    """Write step's checkpoint; it appears under its name only when complete. Saving a step twice is a no-op."""
    if manager.latest_step() == step:
        return
    manager.save(step, args=ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), facts=ocp.args.JsonSave(facts)))
    manager.wait_until_finished()


def restore_checkpoint(manager: ocp.CheckpointManager, like: Arrays, *, seed: int) -> tuple[Arrays, dict[str, int]]:
    """The newest checkpoint as (arrays, facts), placed like `like` (arrays or ShapeDtypeStructs).

    Raises:
      UserError: its arrays have other shapes or another structure than this run's (another model, dtype or optimizer),
        or it was written under another seed: data order and sampling would not go on where they stopped.
    """
    step = manager.latest_step()
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    items = ocp.args.Composite(arrays=ocp.args.StandardRestore(abstract), facts=ocp.args.JsonRestore())
    try:
        restored = manager.restore(step, args=items)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{manager.directory}/{step}: expected a checkpoint of this model, dtype and optimizer, but it does not "
            f"fit ({error}). Resume with the configuration that wrote it, or choose another --output-dir"
        ) from error
    facts = restored["facts"]
    if facts["seed"] != seed:
        raise UserError(
            f"{manager.directory}/{step}: expected seed {seed}, but the checkpoint was written with seed "
            f"{facts['seed']}: resume with --seed {facts['seed']}, or choose another --output-dir"
        )
    return restored["arrays"], facts
