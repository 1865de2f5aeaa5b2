"""AdamW streamed from host memory: the numbers of `update.make_apply` bit for bit, in memory taken once."""

import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlt_jax.checkpoints.store import open_checkpoints
from rlt_jax.device.jax_setup import CompileCounter
from rlt_jax.device.monitor import gpu_memory_reader
from rlt_jax.device.pinned import host_bytes
from rlt_jax.learner.host_adamw import cut_shards, host_state_shapes, init_host_state, make_host_apply
from rlt_jax.learner.optimizer import make_apply, make_optimizer
from rlt_jax.learner.state import init_state, join_master
from rlt_jax.learner.step import zero_gradients
from rlt_jax.models import ModelConfig, build_model

SHAPES = {  # a layer has 449 parameters; embedding and head are cut into 18 rows each
    "embed_tokens": {"weight": (54, 24)},
    "layers": {"proj": {"weight": (3, 17, 24), "bias": (3, 17)}, "norm": {"weight": (3, 24)}},
    "lm_head": {"weight": (54, 24)},
    "norm": {"weight": (24,)},
}
SMALL = {"layers": {"proj": {"weight": (2, 17, 24), "bias": (2, 17)}}, "norm": {"weight": (24,)}}

ADAMW = {"adam_beta1": 0.9, "adam_beta2": 0.99, "adam_epsilon": 1e-8, "weight_decay": 0.1, "max_grad_norm": 1.0}


def weights(dtype, shapes=SMALL):
    rng = np.random.default_rng(0)
    leaf = lambda shape: jnp.asarray(rng.normal(scale=0.02, size=shape), dtype)  # noqa: E731
    return jax.tree.map(leaf, shapes, is_leaf=lambda node: isinstance(node, tuple))


def step_gradients(params, seed):
    """Gradients of one step; their norm is above 1 in two steps of three."""
    rng = np.random.default_rng(seed)
    scale = 0.3 if seed % 3 else 1e-3
    return jax.tree.map(lambda p: jnp.asarray(scale * rng.normal(size=p.shape), jnp.float32), params)


def optimizers(options=ADAMW, **schedule):
    """(optimizer of make_apply, apply of the streamed one) with the same settings."""
    schedule = {"learning_rate": 1e-3, "max_steps": 25, "lr_scheduler": "cosine", "warmup_ratio": 0.2} | schedule
    optimizer, rate = make_optimizer(**options, **schedule)
    return optimizer, make_host_apply(rate, **options)


def whole(params, state, field):
    """A field of the streamed state as leaves of the parameters' shapes."""
    leaves = [np.zeros(leaf.shape, getattr(state.shards[0], field).dtype) for leaf in jax.tree.leaves(params)]
    for shard, of_shard in zip(cut_shards(params), state.shards, strict=True):
        flat = np.asarray(getattr(of_shard, field))
        for i in shard.leaves:
            rows = leaves[i][shard.start : shard.start + shard.rows]
            rows[...], flat = flat[: rows.size].reshape(rows.shape), flat[rows.size :]
        assert flat.size == 0
    return leaves


def assert_same_bits(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def assert_steps_are_bit_equal(shapes, dtype, changed, schedule, *, steps=25):
    """Norms of all steps, and weights and state after them."""
    options = ADAMW | changed
    optimizer, host_apply = optimizers(options, **schedule)
    apply, ours = make_apply(optimizer), weights(dtype, shapes)
    state, our_state = init_state(weights(dtype, shapes), optimizer), init_host_state(ours)
    norms = []
    for seed in range(steps):
        gradients = step_gradients(ours, seed)
        state, norm = apply(state, gradients)
        ours, our_state, our_norm = host_apply(ours, our_state, gradients)
        norms.append(float(norm))
        assert float(our_norm) == norms[-1]
        assert int(our_state.num_updates) == seed + 1
    clipped = sum(norm > options["max_grad_norm"] for norm in norms)
    assert clipped == (0 if "max_grad_norm" in changed else steps - len(range(0, steps, 3)))
    adam = state.opt_state[1][0]
    assert_same_bits(ours, state.params)
    assert_same_bits(whole(ours, our_state, "mu"), adam.mu)
    assert_same_bits(whole(ours, our_state, "nu"), adam.nu)
    if dtype == "bfloat16":
        assert_same_bits(whole(ours, our_state, "low"), state.low)
    for leaf, start in zip(jax.tree.leaves(ours), jax.tree.leaves(weights(dtype, shapes))):
        assert distance(leaf, start) > 1e-3  # equal bits of what never moved would say little


@pytest.mark.parametrize(
    ("dtype", "changed", "schedule"),
    [
        ("bfloat16", {}, {}),
        ("bfloat16", {"max_grad_norm": 1e9, "weight_decay": 0.0}, {"lr_scheduler": "linear", "warmup_ratio": 0.0}),
        ("float32", {"weight_decay": 0.0}, {"lr_scheduler": "constant"}),
        ("float32", {"max_grad_norm": 1e9}, {}),
    ],
    ids=["bf16-clip-decay-cosine", "bf16-linear", "fp32-clip-constant", "fp32-decay-cosine"],
)
def test_25_steps_are_bit_equal_to_make_apply(dtype, changed, schedule):
    if jax.default_backend() != "cpu":
        pytest.skip("equal bits are promised on a CPU")
    assert_steps_are_bit_equal(SHAPES, dtype, changed, schedule)


ODD_SHAPES = {
    "one leaf": {"w": (9, 5)},
    "no layers": {"w": (3, 5, 7), "b": (3,)},
    "short rows": {"embed": (11, 3), "layers": {"w": (3, 5, 3), "b": (3, 2)}, "norm": (3,)},
}


@pytest.mark.slow
def test_steps_of_odd_shapes_are_bit_equal_without_fused_multiply_adds():
    """Which of them a compiler makes where loops are short depends on more than the arithmetic."""
    program = "from test_host_adamw import ODD_SHAPES, assert_steps_are_bit_equal as check\n"
    program += "for shapes in ODD_SHAPES.values():\n    check(shapes, 'bfloat16', {}, {}, steps=20)\n"
    environment = os.environ | {"XLA_FLAGS": "--xla_cpu_max_isa=AVX", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parent, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(gpu_memory_reader() is None, reason="there is no GPU")
def test_steps_on_a_gpu_equal_make_apply_but_for_rounding():
    optimizer, host_apply = optimizers()
    apply, ours = make_apply(optimizer), weights("bfloat16", SHAPES)
    state, our_state = init_state(weights("bfloat16", SHAPES), optimizer), init_host_state(ours)
    for seed in range(25):
        gradients = step_gradients(ours, seed)
        state, norm = apply(state, gradients)
        ours, our_state, our_norm = host_apply(ours, our_state, gradients)
        assert float(our_norm) == pytest.approx(float(norm), rel=1e-6)
    masters = [join_master(high, low) for high, low in zip(jax.tree.leaves(ours), whole(ours, our_state, "low"))]
    expected = jax.tree.map(join_master, state.params, state.low)
    assert distance(masters, expected) < 1e-5 * distance(expected, weights("bfloat16", SHAPES))


def test_masters_move_at_a_rate_where_bf16_weights_do_not():
    """50 steps at 1e-6: the masters go where float32 training goes, plain bf16 AdamW stays."""
    optimizer, host_apply = optimizers(learning_rate=1e-6, max_steps=50, lr_scheduler="constant", warmup_ratio=0.0)
    start = jax.tree.map(lambda p: np.asarray(p, np.float32), weights("bfloat16"))
    ours, exact, stuck = weights("bfloat16"), jax.tree.map(jnp.asarray, start), weights("bfloat16")
    our_state, exact_state, stuck_state = init_host_state(ours), init_host_state(exact), optimizer.init(stuck)

    @jax.jit
    def plain_step(params, state, gradients):
        updates, state = optimizer.update(jax.tree.map(lambda g: g.astype(jnp.bfloat16), gradients), state, params)
        return optax.apply_updates(params, updates), state

    for seed in range(50):
        gradients = step_gradients(ours, seed)
        ours, our_state, _ = host_apply(ours, our_state, gradients)
        exact, exact_state, _ = host_apply(exact, exact_state, gradients)
        stuck, stuck_state = plain_step(stuck, stuck_state, gradients)
    masters = [join_master(high, low) for high, low in zip(jax.tree.leaves(ours), whole(ours, our_state, "low"))]
    moved = distance(masters, start)
    assert moved > 1e-6
    assert distance(masters, exact) <= 1e-3 * moved
    changed = [(np.asarray(a) != b).ravel() for a, b in zip(jax.tree.leaves(stuck), jax.tree.leaves(start))]
    assert np.concatenate(changed).mean() < 0.03  # those near 0, where bf16 is fine enough


def distance(a, b):
    """Root mean square difference of two trees."""
    differences = [
        np.ravel(np.asarray(x, np.float32) - np.asarray(y, np.float32))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b))
    ]
    return float(np.sqrt(np.mean(np.concatenate(differences) ** 2)))


def test_bf16_moments_stay_within_a_hundredth_of_fp32_ones():
    """Over 50 steps, of the way that the weights went."""
    _, host_apply = optimizers(max_steps=50)
    runs = {}
    for moments in ("float32", "bfloat16"):
        params = weights("float32")
        state = init_host_state(params, moments=moments)
        for seed in range(50):
            params, state, _ = host_apply(params, state, step_gradients(params, seed))
        assert {shard.mu.dtype.name for shard in state.shards} == {moments}
        assert {shard.nu.dtype.name for shard in state.shards} == {moments}
        runs[moments] = params
    way = distance(runs["float32"], weights("float32"))
    assert 0 < distance(runs["float32"], runs["bfloat16"]) < 0.01 * way


def test_bf16_moments_are_rounded_to_nearest():
    """One step from nothing: mu = 0.1 g and nu = 0.01 g² of the clipped gradient, to the nearest bf16."""
    _, host_apply = optimizers(ADAMW | {"max_grad_norm": 1e9})
    params = weights("bfloat16")
    gradients = step_gradients(params, 1)
    expected = [np.asarray(g) for g in jax.tree.leaves(gradients)]
    params, state, _ = host_apply(params, init_host_state(params, moments="bfloat16"), gradients)
    for ours, g in zip(whole(params, state, "mu"), expected):
        np.testing.assert_array_equal(ours, (np.float32(1 - 0.9) * g).astype(jnp.bfloat16))
    for ours, g in zip(whole(params, state, "nu"), expected):
        np.testing.assert_array_equal(ours, (np.float32(1 - 0.99) * (g * g)).astype(jnp.bfloat16))


def test_host_buffers_are_taken_once_and_what_is_given_is_consumed():
    _, host_apply = optimizers()
    params = weights("bfloat16")
    state, gradients = init_host_state(params), step_gradients(params, 0)
    kept = jax.tree.map(jnp.copy, gradients)
    places = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((params, state.shards))]
    for _ in range(3):
        new_params, new_state, _ = host_apply(params, state, gradients)
        given = jax.tree.leaves((params, state.shards))
        assert all(leaf.is_deleted() for leaf in given) and len(given) == 3 + 3 * 3
        params, state = new_params, new_state
        assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.shards)} == {"pinned_host"}
        assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves((params, state.num_updates))} == {"device"}
        assert [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((params, state.shards))] == places
    assert_same_bits(gradients, kept)


def test_programs_compile_in_the_first_step_alone():
    _, host_apply = optimizers()
    params = weights("bfloat16")
    state = init_host_state(params)
    params, state, _ = host_apply(params, state, step_gradients(params, 0))
    gradients = step_gradients(params, 1)
    counter = CompileCounter()
    for _ in range(2):
        params, state, _ = host_apply(params, state, gradients)
    jax.block_until_ready(state)
    assert counter.count == 0


@pytest.mark.parametrize("moments", ["float32", "bfloat16"])
def test_a_restored_run_resumes_bit_for_bit(tmp_path, moments):
    def steps(params, state, seeds):
        for seed in seeds:
            params, state, _ = host_apply(params, state, step_gradients(params, seed))
        return params, state

    _, host_apply = optimizers()
    params = weights("bfloat16")
    arrays = steps(params, init_host_state(params, moments=moments), range(3))
    checkpoints = open_checkpoints(tmp_path, keep=1)
    checkpoints.save(3, arrays, {"seed": 0})
    checkpoints.wait()
    straight = steps(*arrays, range(3, 6))

    like = weights("bfloat16")
    like = like, host_state_shapes(like, moments=moments)
    (params, state), *_ = checkpoints.restore(like, seed=0, max_steps=6)
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.shards)} == {"pinned_host"}
    assert_same_bits(steps(params, state, range(3, 6)), straight)


def coverage(params):
    """How often each parameter occurs in the shards, by leaf."""
    counts = [np.zeros(leaf.shape, int) for leaf in jax.tree.leaves(params)]
    for shard in cut_shards(params):
        for i in shard.leaves:
            assert shard.start + shard.rows <= counts[i].shape[0]
            counts[i][shard.start : shard.start + shard.rows] += 1
    return counts


sizes = st.integers(1, 9)
row = st.lists(sizes, max_size=2).map(tuple)


@settings(max_examples=100, deadline=None)
@given(
    layers=st.integers(1, 5),
    stacked=st.lists(row, min_size=1, max_size=5),
    others=st.lists(st.tuples(st.integers(1, 60), sizes) | st.tuples(sizes), max_size=4),
)
def test_shards_hold_every_parameter_once_and_none_is_larger_than_a_layer(layers, stacked, others):
    leaf = lambda shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)  # noqa: E731
    params = {f"other{i}": leaf(shape) for i, shape in enumerate(others)}
    params["layers"] = {str(i): leaf((layers, *shape)) for i, shape in enumerate(stacked)}
    assert all((count == 1).all() for count in coverage(params))
    layer = sum(math.prod(shape) for shape in stacked)
    state = host_state_shapes(params)
    for shard, of_shard in zip(cut_shards(params), state.shards, strict=True):
        largest_row = max(math.prod(jax.tree.leaves(params)[i].shape[1:]) for i in shard.leaves)
        assert of_shard.mu.shape[0] <= max(layer, largest_row)  # a row is not cut


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("model_type", "num_leaves"), [("qwen2", 12), ("qwen3", 11)])  # biases, or head norms
def test_shards_of_a_model(tied, model_type, num_leaves):
    config = ModelConfig(
        model_type=model_type,
        vocab_size=1003,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=tied,
    )
    params = build_model(config).shapes("bfloat16")
    assert all((count == 1).all() for count in coverage(params))
    layer = [leaf.shape for leaf in jax.tree.leaves(params["layers"])]
    assert len(layer) == num_leaves
    shards = cut_shards(params)
    assert [shard.start for shard in shards[:3]] == [0, 1, 2] and len(shards[0].leaves) == len(layer)
    tables = math.ceil(1003 / (sum(math.prod(shape[1:]) for shape in layer) // 24))
    assert len(shards) == 3 + 1 + tables * (1 if tied else 2)
    num_parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    for moments in ("float32", "bfloat16"):
        state = host_state_shapes(params, moments=moments)
        num_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.shards))
        assert num_bytes == host_bytes(num_parameters, moments)


def test_accumulators_of_the_trainer_are_taken_as_they_are():
    """No gradient, no decay: nothing moves, and the norm is 0."""
    _, host_apply = optimizers(ADAMW | {"weight_decay": 0.0})
    params = weights("bfloat16")
    new, _, norm = host_apply(params, init_host_state(params), zero_gradients(params))
    assert float(norm) == 0
    assert_same_bits(new, weights("bfloat16"))


def test_mixed_types_are_refused():
    params = weights("bfloat16")
    params["norm"]["weight"] = params["norm"]["weight"].astype(jnp.float32)
    with pytest.raises(ValueError, match=r"^parameters of bfloat16 and float32: expected all bfloat16 or all float32$"):
        init_host_state(params)


def test_gradients_of_another_model_are_refused():
    _, host_apply = optimizers()
    params = weights("bfloat16")
    gradients = zero_gradients(params) | {"norm": {"weight": jnp.zeros(8)}}
    with pytest.raises(AssertionError, match="shape"):
        host_apply(params, init_host_state(params), gradients)
