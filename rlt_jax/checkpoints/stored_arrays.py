"""A tree of arrays as a folder: written by Orbax, with a manifest of checksums, and read back verified.

    NAME/arrays/000/  001/  ...   the arrays, in parts of a few GB: what is in host memory at a time
    NAME/manifest.json            every array, every file, facts (see `manifest.py`)

Nothing is compressed: bfloat16 weights shrink by a tenth, and saving takes several times as long.
"""

import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from rlt_jax.checkpoints.checksums import THREADS, array_checksum
from rlt_jax.checkpoints.manifest import (
    MANIFEST_FILE,
    Damaged,
    Manifest,
    StoredArray,
    check_files,
    read_manifest,
    write_manifest,
)
from rlt_jax.disk import to_disk
from rlt_jax.errors import UserError

Arrays = Any

PART_GB = 4  # of arrays that are being written or read at a time, unless one array is larger
_SHOWN = 4  # differences listed in a message

__all__ = ["MANIFEST_FILE", "Damaged", "read_arrays", "refuse_other_arrays", "write_arrays"]


def write_arrays(folder: Path, arrays: Arrays, facts: Mapping[str, Any], *, finite: bool = True) -> Manifest:
    """Write a tree of arrays as a new folder of an existing one. It gets its name when all of it is on the disk.

    The arrays are read where they lie (GPU, pinned memory, main memory), about PART_GB of them at a time.

    Args:
      facts: plain values, to be read back with the arrays.
      finite: refuse infinities and NaNs.
    Raises:
      NotFinite: an array holds an infinity or a NaN.
      OSError: it cannot be written.
    Then nothing is left behind.
    """
    writing = folder.with_name(f".{folder.name}.writing-{os.getpid()}")
    shutil.rmtree(writing, ignore_errors=True)
    try:
        writing.mkdir()  # without parents: a run folder that vanished is not made again
        stored: list[StoredArray] = []
        for part, members in enumerate(_parts(_named(arrays))):
            stored += _write_part(writing, part, members, finite=finite)
        manifest = write_manifest(writing, stored, facts)
        writing.rename(folder)
        to_disk(folder.parent)
    except BaseException:
        shutil.rmtree(writing, ignore_errors=True)
        raise
    return manifest


def read_arrays(
    folder: Path, like: Arrays, *, check: Callable[[Manifest], None] = lambda manifest: None
) -> tuple[Arrays, Mapping[str, Any]]:
    """Read (arrays, facts), placed like `like` (arrays or ShapeDtypeStructs), after comparing all of it.

    Where `like` has None, the folder may have arrays: they are compared, too, and dropped.

    Args:
      check: called with the manifest before anything large is read; may refuse it.
    Raises:
      Damaged: a file or an array is not what was written.
      UserError: `like` has other names, types or shapes; or it cannot be read at all.
    """
    manifest = read_manifest(folder)
    places = dict(_named(like))
    holes = _holes(like)
    unwanted = {
        array.name: jax.ShapeDtypeStruct(array.shape, array.dtype)
        for array in manifest.arrays
        if array.name.startswith(holes)
    }
    refuse_other_arrays(folder, manifest, like)
    check(manifest)
    check_files(folder, manifest)
    by_part: dict[int, list[StoredArray]] = {}
    for array in manifest.arrays:
        by_part.setdefault(array.part, []).append(array)
    read: dict[str, jax.Array] = {}
    try:
        for part, members in by_part.items():
            read |= _read_part(folder, part, members, places | unwanted)
            for name in unwanted.keys() & read.keys():
                read.pop(name).delete()
    except Damaged:
        for leaf in read.values():  # room for another attempt, whoever holds the exception
            leaf.delete()
        raise
    return jax.tree.unflatten(jax.tree.structure(like), [read[name] for name in places]), manifest.facts


def refuse_other_arrays(folder: Path, manifest: Manifest, like: Arrays) -> None:
    """Compare names, types and shapes: Orbax alone casts types and drops what one side lacks.

    Arrays where `like` has None are left out.

    Raises:
      UserError: some differ, with the first of them.
    """
    expected = {name: f"{leaf.dtype.name}{list(leaf.shape)}" for name, leaf in _named(like)}
    holes = _holes(like)
    written = {array.name: str(array) for array in manifest.arrays if not array.name.startswith(holes)}
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
            f"{folder}: expected a checkpoint of this run's model, dtype and optimizer, but {len(differences)} arrays "
            f"differ:\n  {shown}\nresume with the configuration that wrote it, or choose another --output-dir"
        )


def _named(arrays: Arrays) -> list[tuple[str, Any]]:
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)]


def _holes(arrays: Arrays) -> tuple[str, ...]:
    """Where a tree has None: how the names of the arrays would begin that could stand there."""
    found = jax.tree_util.tree_leaves_with_path(arrays, is_leaf=lambda leaf: leaf is None)
    names = [jax.tree_util.keystr(path) for path, leaf in found if leaf is None]
    return tuple(f"{name}{then}" for name in names for then in "[.")


def _parts(leaves: Sequence[tuple[str, Any]]) -> Iterator[list[tuple[str, Any]]]:
    """The arrays in order, cut where PART_GB would be exceeded."""
    part: list[tuple[str, Any]] = []
    size = 0
    for name, leaf in leaves:
        if part and size + leaf.nbytes > PART_GB * 1e9:
            yield part
            part, size = [], 0
        part.append((name, leaf))
        size += leaf.nbytes
    if part:
        yield part


def _write_part(folder: Path, part: int, members: Sequence[tuple[str, Any]], *, finite: bool) -> list[StoredArray]:
    views = [_view(leaf) for _, leaf in members]
    sums = _checksums(views, [name for name, _ in members] if finite else None)
    if held := _held(views):
        with _quiet_when_failing(), _as_os_error(), _orbax() as orbax:
            orbax.save(_part_folder(folder, part), args=ocp.args.PyTreeSave(held))
    return [
        StoredArray(name, part, leaf.dtype.name, tuple(leaf.shape), found)
        for (name, leaf), found in zip(members, sums, strict=True)
    ]


def _read_part(
    folder: Path, part: int, members: Sequence[StoredArray], places: Mapping[str, Any]
) -> dict[str, jax.Array]:
    shapes = [
        jax.ShapeDtypeStruct(places[array.name].shape, places[array.name].dtype, sharding=_sharding(places[array.name]))
        for array in members
    ]
    arrays: dict[str, jax.Array] = {}
    if held := _held(shapes):
        args = ocp.args.PyTreeRestore(held, restore_args=ocp.checkpoint_utils.construct_restore_args(held))
        try:
            with _quiet_when_failing(), _orbax() as orbax:
                arrays = orbax.restore(_part_folder(folder, part), args=args)
        except (jax.errors.JaxRuntimeError, MemoryError):  # no room for it: not the files' fault
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error)[:200]}".splitlines()[0]
            raise Damaged(f"arrays/{part:03d} cannot be read ({reason})") from error
    read = {
        array.name: arrays[_key(i)] if _key(i) in arrays else jnp.zeros(shape.shape, shape.dtype, device=shape.sharding)
        for i, (array, shape) in enumerate(zip(members, shapes, strict=True))
    }
    found = _checksums([_view(leaf) for leaf in read.values()], None)
    for array, leaf, leaf_sum in zip(members, read.values(), found, strict=True):
        stored = f"{leaf.dtype.name}{list(leaf.shape)}"
        if stored != str(array) or leaf_sum != array.checksum:
            for other in read.values():
                other.delete()
            raise Damaged(f"the array {array.name} does not match its checksum")
    return read


def _checksums(views: Sequence[Any], names: Sequence[str] | None) -> list[str]:
    """The checksums of arrays; with names, also that all are finite."""

    def of(view: jax.Array, name: str | None) -> str:
        data = view.addressable_shards[0].data if len(view.sharding.device_set) == 1 else view
        return array_checksum(np.asarray(data), name)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(of, views, names if names is not None else [None] * len(views)))


def _view(leaf: Any) -> jax.Array:
    """The same buffers under another array.

    An array keeps the host copy that NumPy makes of it for as long as it lives: the state's would fill the host with a
    second state. A view's copy goes with the view.
    """
    leaf = jnp.asarray(leaf)
    return jax.make_array_from_single_device_arrays(
        leaf.shape, leaf.sharding, [shard.data for shard in leaf.addressable_shards]
    )


def _sharding(leaf: Any) -> Any:
    sharding = getattr(leaf, "sharding", None)
    return jax.sharding.SingleDeviceSharding(jax.devices()[0]) if sharding is None else sharding


def _held(leaves: Sequence[Any]) -> dict[str, Any]:
    """The arrays of a part under their names in it; Orbax stores none without elements."""
    return {_key(i): leaf for i, leaf in enumerate(leaves) if leaf.size}


def _key(i: int) -> str:
    return f"a{i:04d}"


def _part_folder(folder: Path, part: int) -> Path:
    return folder.resolve() / "arrays" / f"{part:03d}"


def _orbax() -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False, is_prioritized_key_fn=lambda key: False))


@contextmanager
def _as_os_error() -> Iterator[None]:
    """Raise what the system said where a file could not be written; Orbax raises many types, with it in their text."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        chain: BaseException | None = error
        while chain is not None:
            if found := re.search(r"os_error_code='(\d+)'", str(chain)):
                raise OSError(int(found[1]), os.strerror(int(found[1]))) from error
            chain = chain.__cause__ or chain.__context__
        raise


@contextmanager
def _quiet_when_failing() -> Iterator[None]:
    """Drop the tracebacks of abandoned reads and writes after a failure, and no others; the failure itself is raised.

    When one fails, Orbax abandons the others, and these print their own tracebacks: from their threads, and as asyncio
    tasks and futures whose exception was never retrieved.
    """
    for name in ("asyncio", "absl"):
        logging.getLogger(name).addFilter(_is_nothing_abandoned)  # no effect the second time
    previous_hook = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        abandoned = "Event loop is closed" in str(unraisable.exc_value) or "_read_array" in repr(unraisable.object)
        if not abandoned:
            previous_hook(unraisable)

    sys.unraisablehook = hook
    yield
    sys.unraisablehook = previous_hook  # not reached after a failure: more tracebacks may follow


def _is_nothing_abandoned(record: logging.LogRecord) -> bool:
    abandoned = r"(?s)exception was never retrieved.*(orbax|tensorstore)|_SignalingThread\.run\(\) raised"
    return re.search(abandoned, record.getMessage()) is None
