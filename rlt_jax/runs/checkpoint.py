"""Checkpoints of a run (Orbax): everything that the next step depends on, so that a resumed run repeats it bit for bit.

Arrays: policy, optimizer (moments, low halves of the masters), reference. Facts: step, seed, data position. All
randomness of a run is derived from (seed, step), so seed and step are the state of its random numbers, and the weights'
version is the step.
"""

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from rlt_jax.errors import UserError

Arrays = Any
CheckpointManager = ocp.CheckpointManager

COPIES_GB = 4  # of arrays being written to a checkpoint at a time, unless one array is larger
_SHOWN = 4  # differences listed in a message


def open_checkpoints(folder: Path, *, keep: int, like: Arrays = ()) -> ocp.CheckpointManager:
    """Open the checkpoints of `folder` (created if missing), of which the newest `keep` are kept.

    Args:
      like: the arrays to be saved, or their shapes; the largest sets the host memory that saving takes.
    Raises:
      UserError: `folder` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(
            f"expected a folder for checkpoints, but {folder} is a file: move it, or choose another run folder"
        )
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
    largest = max((leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(like)), default=0)
    limit = max(COPIES_GB, largest / 1e9)  # Orbax refuses an array that is larger than its limit
    # By default Orbax copies all arrays to the host, and encodes all of them, before it writes the first: twice the
    # memory of an optimizer state that already fills the host. Each of the first three arguments is needed to bound it.
    arrays = ocp.PyTreeCheckpointHandler(
        save_concurrent_gb=limit,
        save_device_host_concurrent_gb=limit,
        is_prioritized_key_fn=lambda key: False,
        restore_concurrent_gb=limit,
    )
    handlers = {"arrays": arrays, "facts": ocp.JsonCheckpointHandler()}
    return ocp.CheckpointManager(folder.resolve(), item_handlers=handlers, options=options)


def save_checkpoint(manager: ocp.CheckpointManager, step: int, arrays: Arrays, facts: dict[str, int]) -> None:
    """Write the checkpoint of a step; it gets its name only when complete. Saving a step twice is a no-op."""
    if manager.latest_step() == step:
        return
    written = ocp.args.JsonSave({**facts, "arrays": _signature(arrays)})
    manager.save(step, args=ocp.args.Composite(arrays=ocp.args.PyTreeSave(arrays), facts=written))
    manager.wait_until_finished()


def restore_checkpoint(
    manager: ocp.CheckpointManager, like: Arrays, *, seed: int, max_steps: int
) -> tuple[Arrays, dict[str, Any]]:
    """Restore the newest checkpoint as (arrays, facts), placed like `like` (arrays or ShapeDtypeStructs).

    Raises:
      UserError: it is damaged; its arrays have other names, shapes or types than this run's (another model, dtype or
        optimizer); it was written under another seed, so that data order and sampling would not continue where they
        stopped; or it is later than the run's last step.
    """
    step = manager.latest_step()
    where = f"{manager.directory}/{step}"
    try:
        facts = manager.restore(step, args=ocp.args.Composite(facts=ocp.args.JsonRestore()))["facts"]
        written_seed, written = facts["seed"], facts["arrays"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise _damaged(where, error) from error
    # Compared here, as Orbax silently casts types and drops what one side lacks.
    expected = _signature(like)
    differences = [
        f"{name}: this run has {expected.get(name, 'none')}, the checkpoint {written.get(name, 'none')}"
        for name in sorted(
            expected.keys() | written.keys(), key=lambda name: (name not in expected or name not in written, name)
        )
        if expected.get(name) != written.get(name)
    ]
    if differences:
        shown = "\n  ".join(differences[:_SHOWN])
        raise UserError(
            f"{where}: expected a checkpoint of this run's model, dtype and optimizer, but {len(differences)} arrays "
            f"differ:\n  {shown}\nresume with the configuration that wrote it, or choose another --output-dir"
        )
    if written_seed != seed:
        raise UserError(
            f"{where}: expected seed {seed}, but the checkpoint was written with seed {written_seed}: resume with "
            f"--seed {written_seed}, or choose another --output-dir"
        )
    if step > max_steps:
        raise UserError(
            f"{where}: expected a checkpoint of at most step {max_steps}, the run's last: raise --max-steps, or choose "
            "another --output-dir"
        )
    shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    abstract = ocp.args.PyTreeRestore(shapes, restore_args=ocp.checkpoint_utils.construct_restore_args(shapes))
    try:
        with _quiet_when_failing():
            arrays = manager.restore(step, args=ocp.args.Composite(arrays=abstract))["arrays"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise _damaged(where, error) from error
    return arrays, facts


def _signature(arrays: Arrays) -> dict[str, str]:
    """Name -> type and shape of every array."""
    leaves = jax.tree_util.tree_leaves_with_path(arrays)
    return {jax.tree_util.keystr(path): f"{leaf.dtype.name}{list(leaf.shape)}" for path, leaf in leaves}


@contextmanager
def _quiet_when_failing() -> Iterator[None]:
    """Drop the tracebacks of abandoned reads after a failure, and no others; the failure itself is raised.

    When one read fails, Orbax abandons the others, and these print their own tracebacks: from their threads, and as
    asyncio tasks and futures whose exception was never retrieved.
    """
    previous_hook, asyncio_log = sys.unraisablehook, logging.getLogger("asyncio")

    def hook(unraisable: Any) -> None:
        abandoned = "Event loop is closed" in str(unraisable.exc_value) or "_read_array" in repr(unraisable.object)
        if not abandoned:
            previous_hook(unraisable)

    sys.unraisablehook = hook
    asyncio_log.addFilter(_is_no_abandoned_read)
    yield
    sys.unraisablehook = previous_hook  # not reached after a failure: more tracebacks may follow
    asyncio_log.removeFilter(_is_no_abandoned_read)


def _is_no_abandoned_read(record: logging.LogRecord) -> bool:
    return re.search(r"(?s)exception was never retrieved.*(orbax|tensorstore)", record.getMessage()) is None


def _damaged(where: str, error: Exception) -> UserError:
    reason = str(error).splitlines()[0][:200]
    return UserError(
        f"{where}: expected a whole checkpoint, but it cannot be read ({type(error).__name__}: {reason}): delete this "
        "folder to resume from the checkpoint before it, or choose another --output-dir"
    )
