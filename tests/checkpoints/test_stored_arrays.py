"""A folder of arrays: what comes back is what was written, bit for bit, or it is damaged."""

import gc
import json
import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from rlt_jax.checkpoints import stored_arrays
from rlt_jax.checkpoints.checksums import checksum
from rlt_jax.checkpoints.manifest import MANIFEST_FILE, Damaged, read_manifest
from rlt_jax.checkpoints.stored_arrays import read_arrays, write_arrays
from rlt_jax.errors import UserError
from rlt_jax.finite import NotFinite

RNG = np.random.default_rng(0)


def arrays():
    """Every type that a state has, odd names, and shapes without axes or elements."""
    bits = RNG.integers(0, 2**16, 3000).astype(np.uint16)
    weight = jnp.asarray(RNG.normal(size=(40, 30)), "float32")
    return {
        "float32": weight,
        "bfloat16": jnp.asarray(RNG.normal(size=(7, 5)), "bfloat16"),
        "float16": jnp.asarray(RNG.normal(size=3), "float16"),
        "low": [jnp.asarray(bits), jnp.asarray(bits[:1])],
        "count": jnp.asarray(-3, "int32"),
        "flag": jnp.asarray(True),
        "the same again": weight,
        "a/b.c['d'] ü": jnp.zeros((1, 1, 1)),
        "empty": jnp.zeros((0, 3), "bfloat16"),
        "pinned": jax.device_put(weight + 1, SingleDeviceSharding(jax.devices()[0], memory_kind="pinned_host")),
    }


def assert_same_bits(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert (a.dtype, a.shape, a.sharding.memory_kind) == (b.dtype, b.shape, b.sharding.memory_kind)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("part_gb", [4, 5e-6, 1e-9], ids=["one part", "several", "one for each array"])
@pytest.mark.parametrize("shapes", [True, False])
def test_everything_comes_back_bit_for_bit(tmp_path, monkeypatch, part_gb, shapes):
    monkeypatch.setattr(stored_arrays, "PART_GB", part_gb)
    saved, facts = arrays(), {"step": 3, "text": "ü", "number": 0.1, "list": [1, None]}
    write_arrays(tmp_path / "3", saved, facts)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), saved)
    restored, found = read_arrays(tmp_path / "3", like if shapes else saved)
    assert_same_bits(restored, saved)
    assert found == facts
    assert [path.name for path in tmp_path.iterdir()] == ["3"]


def test_the_manifest_says_what_is_there(tmp_path):
    write_arrays(tmp_path / "3", {"w": jnp.zeros((2, 3), "bfloat16")}, {"step": 3})
    record = json.loads((tmp_path / "3" / MANIFEST_FILE).read_text())
    assert record["format"] == 1 and record["facts"] == {"step": 3}
    (array,) = record["arrays"]
    assert (array["name"], array["dtype"], array["shape"]) == ("['w']", "bfloat16", [2, 3])
    files = {path.relative_to(tmp_path / "3").as_posix() for path in (tmp_path / "3").rglob("*") if path.is_file()}
    assert {file["path"] for file in record["files"]} == files - {MANIFEST_FILE}


@pytest.mark.parametrize("fails", ["not finite", "in Orbax", "in the manifest"])
def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch, fails):
    saved = arrays()
    if fails == "not finite":
        saved["bfloat16"] = saved["bfloat16"].at[3, 1].set(jnp.inf)
    else:
        name = "_orbax" if fails == "in Orbax" else "write_manifest"
        monkeypatch.setattr(stored_arrays, name, lambda *args: (_ for _ in ()).throw(OSError(5, "no")))
    with pytest.raises(NotFinite if fails == "not finite" else OSError) as refusal:
        write_arrays(tmp_path / "3", saved, {})
    assert fails != "not finite" or refusal.value.culprit == "['bfloat16']"
    assert list(tmp_path.iterdir()) == []


# Damage.


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("whole")
    saved = {"w": jnp.asarray(RNG.normal(size=(8, 8)), "float32"), "b": jnp.asarray(RNG.normal(size=9), "bfloat16")}
    write_arrays(folder / "3", saved, {"step": 3})
    return folder / "3", saved


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    return shutil.copytree(whole[0], tmp_path / "3")


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def outcome(folder: Path, saved: dict) -> str:
    """damaged, or whole if exactly what was written comes back; anything else fails."""
    try:
        read, _ = read_arrays(folder, saved)
    except Damaged as error:
        assert str(error)
        return "damaged"
    assert_same_bits(read, saved)
    return "whole"


def test_no_flipped_bit_of_any_file_goes_unnoticed(whole, copy):
    """At 14 places of each file. Only the manifest may say the same in other bits."""
    _, saved = whole
    flips = 0
    for file in files_of(copy):
        data = file.read_bytes()
        places = {0, len(data) - 1, *RNG.integers(0, len(data), 12).tolist()}
        for at in places:
            changed = bytearray(data)
            changed[at] ^= 1 << int(RNG.integers(8))
            file.write_bytes(changed)
            assert outcome(copy, saved) == "damaged" or file.name == MANIFEST_FILE
            flips += 1
        file.write_bytes(data)
    assert flips > 100 and outcome(copy, saved) == "whole"


CHANGES = {
    "cut": lambda file, other: file.write_bytes(file.read_bytes()[:-1]),
    "longer": lambda file, other: file.write_bytes(file.read_bytes() + b" x"),
    "emptied": lambda file, other: file.write_bytes(b""),
    "deleted": lambda file, other: file.unlink(),
    "another file's content": lambda file, other: file.write_bytes(other.read_bytes()),
    "a folder": lambda file, other: [file.unlink(), file.mkdir()],
    "a pipe": lambda file, other: [file.unlink(), os.mkfifo(file)],
    "a link in a circle": lambda file, other: [file.unlink(), file.symlink_to(file)],
    "a link out": lambda file, other: [shutil.move(file, outside(file)), file.symlink_to(outside(file))],
}


def outside(file: Path) -> Path:
    """A place beside the folder 3 that holds the file."""
    folder = next(parent for parent in file.parents if parent.name == "3")
    return folder.with_name("elsewhere")


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_every_file_counts(whole, tmp_path, change):
    folder, saved = whole
    files = [file.relative_to(folder) for file in files_of(folder)]
    for i, name in enumerate(files):
        copy = shutil.copytree(folder, tmp_path / str(i) / "3")
        others = (copy / file for file in files[i + 1 :] + files)
        change(copy / name, next(other for other in others if other.read_bytes() != (copy / name).read_bytes()))
        assert outcome(copy, saved) == "damaged", name


def test_links_inside_and_files_that_are_not_listed_do_no_harm(whole, copy):
    (copy / "notes.txt").write_text("mine")
    (copy / "arrays" / "000" / "notes").mkdir()
    file = next(path for path in files_of(copy) if path.parent.name == "d")
    moved = file.rename(copy / "moved")
    file.symlink_to(moved)
    assert outcome(copy, whole[1]) == "whole"


def rewrite(folder: Path, change) -> None:
    """Change a manifest and its checksum with it."""
    record = json.loads((folder / MANIFEST_FILE).read_text())
    del record["checksum"]
    change(record)
    canonical = json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
    (folder / MANIFEST_FILE).write_text(json.dumps({**record, "checksum": checksum(canonical)}))


FORGED = {
    "a path above": lambda record: record["files"].append({**record["files"][0], "path": "../3/manifest.json"}),
    "an absolute path": lambda record: record["files"].append({**record["files"][0], "path": "/etc/passwd"}),
    "no path": lambda record: record["files"].append({**record["files"][0], "path": ""}),
    "a path with a zero": lambda record: record["files"].append({**record["files"][0], "path": "a\0b"}),
    "a path that is a number": lambda record: record["files"].append({**record["files"][0], "path": 7}),
    "no files": lambda record: record.pop("files"),
    "no shape": lambda record: record["arrays"][0].pop("shape"),
    "arrays of another kind": lambda record: record.update(arrays="none"),
    "another array's checksum": lambda record: record["arrays"][0].update(checksum=record["arrays"][1]["checksum"]),
    "another part": lambda record: record["arrays"][0].update(part=7),
    "a part that is a text": lambda record: record["arrays"][0].update(part="../.."),
    "facts of another kind": lambda record: record.update(facts=[1]),
    "a format that is a text": lambda record: record.update(format="1"),
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED.keys())
def test_a_forged_manifest_is_damaged(whole, copy, forge):
    rewrite(copy, forge)
    assert outcome(copy, whole[1]) == "damaged"


def test_a_text_nested_without_end_is_damaged(whole, copy):
    (copy / MANIFEST_FILE).write_text("[" * 200_000)
    assert outcome(copy, whole[1]) == "damaged"


def test_a_newer_format_is_refused(whole, copy):
    rewrite(copy, lambda record: record.update(format=2))
    with pytest.raises(UserError, match=r"it was written by a newer version of rlt_jax \(format 2\): update rlt_jax"):
        read_arrays(copy, whole[1])


def test_other_arrays_than_expected_are_refused(whole):
    folder, saved = whole
    with pytest.raises(UserError, match=r"1 arrays differ:\n  \['b'\]: this run has float32\[9\], the checkpoint bf"):
        read_arrays(folder, {**saved, "b": jnp.zeros(9)})


def test_arrays_that_orbax_reads_wrongly_are_noticed(whole, monkeypatch):
    """Files may be whole, and the memory that they are read into not."""
    folder, saved = whole
    restore = stored_arrays.ocp.Checkpointer.restore

    def wrong(self, *args, **options):
        return {name: array.at[(0,) * array.ndim].add(1) for name, array in restore(self, *args, **options).items()}

    monkeypatch.setattr(stored_arrays.ocp.Checkpointer, "restore", wrong)
    with pytest.raises(Damaged, match=r"the array \['b'\] does not match its checksum"):
        read_arrays(folder, saved)


# Memory.

COPIES = """
import pathlib, sys, jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from rlt_jax.checkpoints.stored_arrays import read_arrays, write_arrays
mesh = jax.make_mesh((2,), ("x",))
# NumPy copies an array of two devices, as it does one of a GPU; the array keeps that copy
arrays = [jax.device_put(jnp.arange(8.0) + i, NamedSharding(mesh, PartitionSpec("x"))) for i in range(3)]
probe = arrays[0] + 1
np.asarray(probe)
write_arrays(pathlib.Path(sys.argv[1]) / "1", arrays, {})
read, _ = read_arrays(pathlib.Path(sys.argv[1]) / "1", arrays)
held = [array._npy_value is not None for array in (probe, *arrays, *read)]
held += [shard._npy_value is not None for array in (*arrays, *read) for shard in array._arrays]
print(held.index(True), sum(held), np.array_equal(read[2], arrays[2]))
"""


def test_no_array_keeps_a_copy_of_itself_on_the_host(tmp_path):
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    line = [sys.executable, "-c", COPIES, str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, env=environment)
    assert (done.stdout, done.stderr) == ("0 1 True\n", "")


def test_copies_of_one_part_are_gone_before_the_next(tmp_path, monkeypatch):
    """Else a save or a restore would end with all arrays a second time on the host, whatever the size of a part."""
    views, alive = [], []
    view = stored_arrays._view

    def watched(leaf):
        alive.append(sum(view() is not None for view in views))
        new = view(leaf)
        views.extend(map(weakref.ref, (new, new.addressable_shards[0].data)))
        return new

    monkeypatch.setattr(stored_arrays, "PART_GB", 1e-9)
    monkeypatch.setattr(stored_arrays, "_view", watched)
    saved = [jnp.ones((100, 200)) * i for i in range(5)]
    gc.disable()
    try:
        write_arrays(tmp_path / "1", saved, {})
        read_arrays(tmp_path / "1", saved)
    finally:
        gc.enable()
    assert alive == [0] * 10


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() == "cpu", reason="there is no GPU")
def test_no_array_keeps_a_copy_of_itself_on_the_host_of_a_gpu(tmp_path):
    saved = arrays()
    write_arrays(tmp_path / "3", saved, {})
    assert [leaf._npy_value for leaf in jax.tree.leaves(saved)] == [None] * len(jax.tree.leaves(saved))
    assert read_manifest(tmp_path / "3").size > 0


def test_arrays_where_none_is_wanted_are_compared_and_dropped(tmp_path):
    """In a part with others, and in one of their own; what is damaged is damaged all the same."""
    state, reference = {"w": jnp.arange(6.0), "none": None}, {"w": jnp.ones((2, 3)), "v": jnp.zeros(0)}
    write_arrays(tmp_path / "1", (state, reference), {"step": 1})
    (read, nothing), facts = read_arrays(tmp_path / "1", (state, None))
    assert nothing is None and facts == {"step": 1}
    np.testing.assert_array_equal(read["w"], state["w"])
    with pytest.raises(UserError, match=r"\[1\]\['v'\]: this run has none, the checkpoint float32\[0\]"):
        read_arrays(tmp_path / "1", (state, {"w": reference["w"]}))
    write_arrays(tmp_path / "2", (state, None), {})
    with pytest.raises(UserError, match=r"\[1\]\['v'\]: this run has float32\[0\], the checkpoint none"):
        read_arrays(tmp_path / "2", (state, reference))
