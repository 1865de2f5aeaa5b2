"""Checkpoints: everything comes back bit for bit, nothing damaged is used, and nothing of another run is taken."""

import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlt_jax.checkpoints import store as checkpoint
from rlt_jax.checkpoints.store import check_metric, checkpoint_steps, open_checkpoints
from rlt_jax.errors import UserError
from rlt_jax.finite import NotFinite
from rlt_jax.learner.optimizer import make_apply, make_optimizer
from rlt_jax.learner.state import init_state


def training_state(dtype, steps=2):
    """(state, reference) of a small model after some updates."""
    optimizer, _ = make_optimizer(
        learning_rate=1e-3,
        max_steps=10,
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_epsilon=1e-8,
        weight_decay=0.0,
        max_grad_norm=1.0,
        lr_scheduler="constant",
        warmup_ratio=0.0,
    )
    rng = np.random.default_rng(0)
    weights = {"w": jnp.asarray(rng.normal(size=(3, 4)), dtype), "b": jnp.asarray(rng.normal(size=5), dtype)}
    reference, state, apply = jax.tree.map(jnp.copy, weights), init_state(weights, optimizer), make_apply(optimizer)
    for _ in range(steps):
        gradients = {"w": jnp.asarray(rng.normal(size=(3, 4)), "float32"), "b": jnp.zeros(5)}
        state, _ = apply(state, gradients)
    return state, reference


def write(folder, arrays_of_step, *, keep=2, keep_best=None):
    """Checkpoints of some steps, one after the other; a step's value is its arrays, or (arrays, metric)."""
    checkpoints = open_checkpoints(folder, keep=keep, keep_best=keep_best)
    for step, arrays in arrays_of_step.items():
        arrays, metric = arrays if keep_best else (arrays, None)
        checkpoints.save(step, arrays, {"seed": 1}, metric=metric)
    checkpoints.close()
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """written(dtype): a folder with the checkpoints of steps 2, 4 and 6, of which 4 and 6 are kept."""
    folders = {}

    def of(dtype):
        if dtype not in folders:
            folder = tmp_path_factory.mktemp("checkpoints") / dtype
            folders[dtype] = write(folder, {step: training_state(dtype, steps=step) for step in (2, 4, 6)})
        return folders[dtype]

    return of


@pytest.fixture
def copy(written, tmp_path):
    """A copy of the float32 checkpoints of steps 4 and 6."""
    return shutil.copytree(written("float32"), tmp_path / "copy")


def restore(folder, like, *, seed=1, max_steps=10):
    return open_checkpoints(folder, keep=2).restore(like, seed=seed, max_steps=max_steps)


def message_of(*args, **options):
    with pytest.raises(UserError) as refusal:
        restore(*args, **options)
    return str(refusal.value)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def assert_same_bits(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_everything_comes_back_bit_for_bit(written, dtype):
    saved = training_state(dtype, steps=6)
    restored, facts, set_aside = restore(written(dtype), jax.tree.map(jnp.zeros_like, saved))
    assert (facts["step"], facts["seed"], set_aside) == (6, 1, [])
    assert_same_bits(restored, saved)


def test_the_newest_are_kept(written):
    assert names(written("float32")) == ["4", "6"]


def test_a_step_is_saved_once(tmp_path):
    write(tmp_path, {1: training_state("float32", steps=1)})
    write(tmp_path, {1: training_state("float32", steps=3)})
    arrays, *_ = restore(tmp_path, training_state("float32"))
    assert_same_bits(arrays, training_state("float32", steps=1))


@pytest.mark.parametrize(
    ("saved", "wanted", "difference"),
    [
        ("float32", "bfloat16", "[0].params['b']: this run has bfloat16[5], the checkpoint float32[5]"),
        ("bfloat16", "float32", "[0].params['b']: this run has float32[5], the checkpoint bfloat16[5]"),
    ],
)
def test_another_dtype_is_refused(written, saved, wanted, difference):
    """Orbax alone would cast the weights and leave out their low halves."""
    message = message_of(written(saved), training_state(wanted))
    assert difference in message
    assert "resume with the configuration that wrote it, or choose another --output-dir" in message


def test_another_shape_is_refused(written):
    state, reference = training_state("float32")
    message = message_of(written("float32"), (state, {**reference, "w": jnp.zeros((4, 4))}))
    assert "1 arrays differ:\n  [1]['w']: this run has float32[4, 4], the checkpoint float32[3, 4]\n" in message


def test_another_optimizer_is_refused(written):
    state, reference = training_state("float32")
    assert "arrays differ" in message_of(written("float32"), (state._replace(opt_state=()), reference))


def test_another_seed_is_refused(written):
    message = message_of(written("float32"), training_state("float32"), seed=2)
    assert "expected seed 2, but the checkpoint was written with seed 1: resume with --seed 1" in message


def test_a_run_that_ends_before_its_checkpoint_is_refused(written):
    message = message_of(written("float32"), training_state("float32"), max_steps=5)
    assert "6: expected a checkpoint of at most step 5, the run's last: raise --max-steps" in message


def test_the_arrays_may_go_once_the_save_is_waited_for(tmp_path):
    """As an update does with a state that it takes over."""
    state = training_state("bfloat16", steps=3)
    expected = jax.tree.map(np.asarray, state)
    checkpoints = open_checkpoints(tmp_path, keep=1)
    checkpoints.save(3, state, {"seed": 1})
    assert checkpoints.saving
    checkpoints.wait()
    assert not checkpoints.saving and checkpoints.last_saved.step == 3 and checkpoints.last_saved.size > 0
    for leaf in jax.tree.leaves(state):
        leaf.delete()
    arrays, *_ = restore(tmp_path, training_state("bfloat16"))
    assert_same_bits(arrays, expected)


def test_numbers_that_are_not_finite_are_not_saved(tmp_path):
    write(tmp_path, {1: training_state("float32", steps=1)})
    state, reference = training_state("float32")
    with pytest.raises(NotFinite) as refusal:
        write(tmp_path, {2: (state, {**reference, "w": reference["w"].at[2, 1].set(jnp.nan)})})
    assert refusal.value.culprit == "[1]['w']"
    assert names(tmp_path) == ["1"]


# Damaged checkpoints.

DAMAGE = {
    "no arrays": (lambda folder: shutil.rmtree(folder / "arrays"), "arrays/000/_CHECKPOINT_METADATA is missing"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing"),
    "broken manifest": (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json is no JSON"),
    "manifest of another kind": (lambda folder: (folder / "manifest.json").write_text("[]"), "is no object"),
    "empty": (lambda folder: [shutil.rmtree(folder), folder.mkdir()], "manifest.json is missing"),
    "a file": (lambda folder: [shutil.rmtree(folder), folder.write_text("")], "it is a file, not a folder"),
    "another step's": (
        lambda folder: [shutil.rmtree(folder), shutil.copytree(folder.with_name("4"), folder)],
        "manifest.json is that of step 4, seed 1",
    ),
    "a link that leads nowhere": (
        lambda folder: [shutil.rmtree(folder), folder.symlink_to("nowhere")],
        "manifest.json is missing",
    ),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_used(copy, logged, damage, reason):
    damage(copy / "6")
    arrays, facts, set_aside = restore(copy, training_state("float32"))
    assert facts["step"] == 4
    assert_same_bits(arrays, training_state("float32", steps=4))
    assert names(copy) == ["4", "damaged-6"] and set_aside == [copy / "damaged-6"]
    first, second = logged.messages
    assert first.startswith(f"{copy}/6: a damaged checkpoint (") and reason in first
    assert first.endswith("): it is now damaged-6")
    assert second == "the checkpoint of step 4 is whole: steps 5 to 6 are lost and will be repeated"


def test_what_was_set_aside_before_stays(copy):
    for name in ("damaged-6", "damaged-6-2"):
        (copy / name).mkdir()
    (copy / "6" / "manifest.json").unlink()
    assert restore(copy, training_state("float32")).set_aside == [copy / "damaged-6-3"]


def test_nothing_is_renamed_while_none_is_whole(copy):
    (copy / "6" / "manifest.json").unlink()
    (copy / "4" / "manifest.json").write_text("{}")
    assert message_of(copy, training_state("float32")) == (
        f"{copy}: expected a whole checkpoint, but none of 2 is:\n  6: manifest.json is missing\n  4: manifest.json is "
        "none of rlt_jax\nput back what is missing or damaged from a copy, or choose another --output-dir to start over"
    )
    assert names(copy) == ["4", "6"]


def test_nothing_is_renamed_where_the_older_one_is_refused(copy):
    (copy / "6" / "manifest.json").unlink()
    assert "expected seed 2" in message_of(copy, training_state("float32"), seed=2)
    assert names(copy) == ["4", "6"]


def test_names_that_are_no_steps_are_not_looked_at(copy):
    for name in ("08", "+9", "٩", "9.orbax-checkpoint-tmp", ".9.writing-1x", "nine", "damaged-9"):
        (copy / name).mkdir()
    assert checkpoint_steps(copy) == [4, 6]
    assert restore(copy, training_state("float32")).facts["step"] == 6


def test_what_killed_processes_left_is_removed(copy):
    for name in (".8.writing-123", ".2.deleting-123"):
        shutil.copytree(copy / "6", copy / name)
    assert restore(copy, training_state("float32")).facts["step"] == 6
    assert names(copy) == ["4", "6"]


READING_DAMAGE = """
import gc, json, pathlib, sys, jax.numpy as jnp
from rlt_jax.checkpoints import manifest, stored_arrays
from rlt_jax.checkpoints.store import open_checkpoints
from rlt_jax.errors import UserError
folder, arrays = pathlib.Path(sys.argv[1]), [jnp.ones((300, 300))] * 20
checkpoints = open_checkpoints(folder, keep=1)
checkpoints.save(1, arrays, {"seed": 0})
checkpoints.wait()
for file in (folder / "1" / "arrays").rglob("d/*"):
    file.write_bytes(b"")
stored_arrays.check_files = lambda folder, manifest: None  # so that Orbax sees the damage
refused = 0
for _ in range(40):
    try:
        checkpoints.restore(arrays, seed=0, max_steps=1)
    except UserError:
        refused += 1
    gc.collect()  # when what the reads left behind would complain
print(refused)
"""


@pytest.mark.slow
def test_a_read_that_fails_leaves_no_traceback(tmp_path):
    """Where several reads fail, asyncio complains of some or none: 58 times in 150 tries."""
    line = [sys.executable, "-c", READING_DAMAGE, str(tmp_path / "checkpoints")]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert done.stdout == "40\n"
    assert "Traceback" not in done.stderr and "never retrieved" not in done.stderr


def test_a_file_in_the_folders_place_is_refused(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(UserError, match=r"expected a folder for checkpoints, but .*checkpoints is a file"):
        open_checkpoints(tmp_path / "checkpoints", keep=1)


# Which stay.


@pytest.mark.parametrize(
    ("metric", "values", "kept"),
    [
        ("eval/reward", {1: -3.0, 2: -1.0, 3: -2.0, 4: -2.5}, [2, 4]),
        ("eval/reward", {1: -1.0, 2: -1.0, 3: -2.0}, [2, 3]),
        ("eval/reward", {1: -3.0, 2: -1.0, 3: 0.0}, [3]),
        ("eval/loss", {1: 3.0, 2: 1.0, 3: 2.0, 4: 2.5}, [2, 4]),
        ("eval/loss", {1: 1.0, 2: float("nan"), 3: None, 4: float("-inf")}, [1, 4]),
        ("eval/loss", {1: None, 2: None}, [2]),
    ],
)
def test_the_best_is_kept_beside_the_newest(tmp_path, metric, values, kept):
    steps = {step: ({"w": jnp.ones(3)}, value) for step, value in values.items()}
    write(tmp_path, steps, keep=1, keep_best=metric)
    assert checkpoint_steps(tmp_path) == kept


def test_the_best_is_known_to_a_resumed_run_unless_it_asks_for_another_metric(tmp_path):
    first = {step: ({"w": jnp.ones(3)}, value) for step, value in ((1, 5.0), (2, 1.0))}
    write(tmp_path, first, keep=1, keep_best="eval/reward")
    write(tmp_path, {3: ({"w": jnp.ones(3)}, 2.0)}, keep=1, keep_best="eval/reward")
    assert checkpoint_steps(tmp_path) == [1, 3]
    write(tmp_path, {4: ({"w": jnp.ones(3)}, 2.0)}, keep=1, keep_best="eval/match_rate")
    assert checkpoint_steps(tmp_path) == [4]


def test_a_metric_that_is_not_reported_is_refused():
    check_metric(None, {})
    check_metric("eval/loss", {"eval/loss": 1.0})
    with pytest.raises(UserError) as refusal:
        check_metric("eval/rewards", {"eval/reward": 1.0, "eval/kl": 0.0, "seconds/step": 1.0})
    assert str(refusal.value) == (
        "checkpoint.keep_best=eval/rewards: no metric of the evaluation: expected one of eval/kl, eval/reward"
    )


def test_a_process_killed_while_it_deletes_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    write(tmp_path, {1: {"w": jnp.ones(3)}})

    def killed(*args, **options):
        raise SystemExit

    monkeypatch.setattr(checkpoint.shutil, "rmtree", killed)
    with pytest.raises(SystemExit):
        open_checkpoints(tmp_path, keep=1)._delete(tmp_path / "1")
    monkeypatch.undo()
    assert checkpoint_steps(tmp_path) == [] and len(names(tmp_path)) == 1
    write(tmp_path, {2: {"w": jnp.ones(3)}})
    assert names(tmp_path) == ["2"]


# Processes that end, disks that are full, memory.

ENDLESS = """
import pathlib, sys, jax, jax.numpy as jnp
from rlt_jax.checkpoints.store import open_checkpoints
checkpoints = open_checkpoints(pathlib.Path(sys.argv[1]), keep=2)
arrays = [jnp.full((1000, 1000), i, "float32") for i in range(8)]
for step in range(1, 10_000):
    arrays[0] = jnp.full((1000, 1000), step, "float32")
    checkpoints.save(step, arrays, {"seed": 1})
    checkpoints.wait()
    print(step, flush=True)
"""


@pytest.mark.slow
def test_whatever_a_killed_process_was_doing_the_last_whole_one_serves(tmp_path):
    like = [jnp.zeros((1000, 1000))] * 8
    rng = np.random.default_rng(0)
    for _ in range(4):
        with subprocess.Popen([sys.executable, "-c", ENDLESS, str(tmp_path)], stdout=-1, text=True) as process:
            for _ in range(3):
                done = int(process.stdout.readline())
            time.sleep(rng.uniform(0, 0.2))
            process.kill()
        assert process.returncode == -signal.SIGKILL
        arrays, facts, set_aside = restore(tmp_path, like, max_steps=10_000)
        assert facts["step"] >= done and set_aside == []
        assert float(arrays[0].min()) == float(arrays[0].max()) == facts["step"]
        for step in checkpoint_steps(tmp_path):
            shutil.rmtree(tmp_path / str(step))  # the next one starts over


FULL_DISK = """
import gc, os, pathlib, signal, sys, jax.numpy as jnp
from rlt_jax.errors import UserError
from rlt_jax.checkpoints.store import open_checkpoints
before = [signal.getsignal(number) for number in range(1, 32)]
folder = pathlib.Path(sys.argv[1])
checkpoints = open_checkpoints(folder, keep=2)
arrays = [jnp.full((200, 200), i, "float32") for i in range(12)]  # 1.9 of 3 MB
for step in (5, 6, 7):
    checkpoints.save(step, arrays, {"seed": 1})
    try:
        checkpoints.wait()
    except UserError as error:
        print(error)
    gc.collect()
print(os.listdir(folder), before == [signal.getsignal(number) for number in range(1, 32)])
"""


def test_a_full_disk_is_one_message_and_leaves_the_last_checkpoint(tmp_path):
    mount = "mount -t tmpfs -o size=3m tmpfs"
    if subprocess.run(["unshare", "-rm", "sh", "-c", f"{mount} {tmp_path}"], capture_output=True).returncode:
        pytest.skip("needs a small file system of its own (unshare, mount)")
    line = f"{mount} {tmp_path} && exec {sys.executable} -c '{FULL_DISK}' {tmp_path}"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", line], capture_output=True, text=True)
    assert done.stderr == ""
    expected = [
        f"no space left for {tmp_path} (No space left on device): the checkpoint of step {step} is not written, the "
        "one of step 5 is whole: make room and repeat the command"
        for step in (6, 7)
    ]
    assert done.stdout.splitlines() == [*expected, "['5'] True"]


def test_a_folder_that_vanished_is_not_made_again(tmp_path):
    checkpoints = open_checkpoints(tmp_path / "run" / "checkpoints", keep=2)
    shutil.rmtree(tmp_path / "run")
    checkpoints.save(2, {"w": jnp.ones(3)}, {"seed": 1})
    with pytest.raises(UserError) as refusal:
        checkpoints.wait()
    assert str(refusal.value) == (
        f"{tmp_path}/run/checkpoints cannot be written (No such file or directory): the checkpoint of step 2 is not "
        "written, there is none before it: make it writable and repeat the command"
    )
    assert names(tmp_path) == []
    checkpoints.wait()  # said once


MEMORY_OF_SAVING = """
import pathlib, sys, threading, jax, psutil
from rlt_jax.checkpoints import store as checkpoint
from rlt_jax.checkpoints import stored_arrays
stored_arrays.PART_GB = 0.1
arrays = [jax.random.normal(jax.random.key(i), (1024, 1024, 16)) for i in range(16)]  # 64 MiB each
checkpoints = checkpoint.open_checkpoints(pathlib.Path(sys.argv[1]), keep=1)
jax.block_until_ready(arrays)
process, ended, peak = psutil.Process(), threading.Event(), [0]
def watch():
    while not ended.wait(0.002):
        peak[0] = max(peak[0], process.memory_info().rss)
before = process.memory_info().rss
threading.Thread(target=watch).start()
checkpoints.save(1, arrays, {"seed": 0})
checkpoints.wait()
ended.set()
print((peak[0] - before) / sum(leaf.nbytes for leaf in arrays))
"""


@pytest.mark.slow
def test_saving_takes_little_memory_beside_the_arrays(tmp_path):
    """A run whose optimizer fills the host has no room for copies of it: 80 % of the arrays without the limits."""
    line = [sys.executable, "-c", MEMORY_OF_SAVING, str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.1
    assert done.stderr == ""
