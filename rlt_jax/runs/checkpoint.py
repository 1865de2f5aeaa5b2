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

COPIES_GB = 4  # of arrays on their way into a checkpoint at one time, unless one is larger
_SHOWN = 4  # differences in one message


def open_checkpoints(folder: Path, *, keep: int, like: Arrays = ()) -> ocp.CheckpointManager:
    """The manager of `folder` (made when missing); it keeps the newest `keep` checkpoints.

    Args:
      like: the arrays to be saved, or their shapes: the largest bounds the host memory that saving takes.
    Raises:
      UserError: `folder` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(
            f"expected a folder for checkpoints, but {folder} is a file: move it, or take another run folder"
        )
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
    largest = max((leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(like)), default=0)
    limit = max(COPIES_GB, largest / 1e9)  # Orbax refuses an array that is larger than its limit
    # Left to itself Orbax copies all arrays to the host, and encodes all of them, before it writes the first: twice the
    # memory of an optimizer whose state fills the host already. Each of these three is needed to bound that.
    arrays = ocp.PyTreeCheckpointHandler(
        save_concurrent_gb=limit,
        save_device_host_concurrent_gb=limit,
        is_prioritized_key_fn=lambda key: False,
        restore_concurrent_gb=limit,
    )
    handlers = {"arrays": arrays, "facts": ocp.JsonCheckpointHandler()}
    return ocp.CheckpointManager(folder.resolve(), item_handlers=handlers, options=options)


def save_checkpoint(manager: ocp.CheckpointManager, step: int, arrays: Arrays, facts: dict[str, int]) -> None:
    """Write step's checkpoint; it appears under its name only when complete. Saving a step twice is a no-op."""
    if manager.latest_step() == step:
        return
    written = ocp.args.JsonSave({**facts, "arrays": _signature(arrays)})
    manager.save(step, args=ocp.args.Composite(arrays=ocp.args.PyTreeSave(arrays), facts=written))
    manager.wait_until_finished()


def restore_checkpoint(
    manager: ocp.CheckpointManager, like: Arrays, *, seed: int, max_steps: int
) -> tuple[Arrays, dict[str, Any]]:
    """The newest checkpoint as (arrays, facts), placed like `like` (arrays or ShapeDtypeStructs).

    Raises:
      UserError: it is damaged; its arrays have other names, shapes or types than this run's (another model, dtype or
        optimizer); it was written under another seed, so that data order and sampling would not go on where they
        stopped; or the run would end before it.
    """
    step = manager.latest_step()
    where = f"{manager.directory}/{step}"
    try:
        facts = manager.restore(step, args=ocp.args.Composite(facts=ocp.args.JsonRestore()))["facts"]
        written_seed, written = facts["seed"], facts["arrays"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise _damaged(where, error) from error
    # Compared here, as Orbax casts types and drops what one side lacks without a word.
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
    """When one read fails, Orbax abandons the others, and these print tracebacks of their own: from their threads,
    and as tasks and futures of asyncio whose failure nobody asked for.

    After a failure such complaints, and no others, are dropped: the failure itself is raised.
    """
    before, asyncio_log = sys.unraisablehook, logging.getLogger("asyncio")

    def hook(unraisable: Any) -> None:
        abandoned = "Event loop is closed" in str(unraisable.exc_value) or "_read_array" in repr(unraisable.object)
        if not abandoned:
            before(unraisable)

    sys.unraisablehook = hook
    asyncio_log.addFilter(_is_no_abandoned_read)
    yield
    sys.unraisablehook = before  # not reached after a failure: late complaints are still to come
    asyncio_log.removeFilter(_is_no_abandoned_read)


def _is_no_abandoned_read(record: logging.LogRecord) -> bool:
    return re.search(r"(?s)exception was never retrieved.*(orbax|tensorstore)", record.getMessage()) is None


def _damaged(where: str, error: Exception) -> UserError:
    reason = str(error).splitlines()[0][:200]
    return UserError(
        f"{where}: expected a whole checkpoint, but it cannot be read ({type(error).__name__}: {reason}): delete this "
        "folder to go on from the checkpoint before it, or choose another --output-dir"
    )
