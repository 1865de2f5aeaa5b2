"""The layer-by-layer gradient against `jax.grad` of the plain model, and the memory it takes."""

from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlt_jax.batching import pad_rows
from rlt_jax.learner.backward import make_layerwise_accumulate
from rlt_jax.learner.objective import SftBatch
from rlt_jax.losses import policy_loss, sft_loss
from rlt_jax.models import Model, ModelConfig, Params, build_model, init_model
from rlt_jax.segments import MicroBatch, Tree

pytestmark = pytest.mark.quick_compile

VOCAB, LAYERS, LENGTH = 97, 3, 24
CONFIGS = {
    "qwen2": ModelConfig("qwen2", VOCAB, 64, 96, LAYERS, 4, 2, 16, tie_word_embeddings=False),
    "qwen2.5": ModelConfig("qwen2", VOCAB, 56, 80, LAYERS, 7, 1, 8, tie_word_embeddings=True),
    "qwen3": ModelConfig("qwen3", VOCAB, 48, 80, LAYERS, 4, 2, 32, tie_word_embeddings=False),
    "qwen3-biased": ModelConfig(
        "qwen3", VOCAB, 48, 80, LAYERS, 4, 4, 16, tie_word_embeddings=True, attention_bias=True
    ),
}
SAVED = {
    "mlp of some": {"saved_mlp": 2},
    "more attention than mlp": {"saved_mlp": 1, "saved_attention": 2},
    "more mlp than attention": {"saved_mlp": LAYERS, "saved_attention": 1},
}


@cache
def make_model(name: str, dtype: str = "float32") -> tuple[Model, Params]:
    """Random weights of which no bias is 0 and no norm is 1, so that no term goes unseen."""
    model, rng = build_model(CONFIGS[name]), np.random.default_rng(0)

    def draw(path: jax.tree_util.KeyPath, shape: jax.ShapeDtypeStruct) -> jax.Array:
        middle = 1 if "norm" in jax.tree_util.keystr(path) else 0
        return jnp.asarray(rng.normal(middle, 0.15, shape.shape), dtype)

    return model, jax.tree.map_with_path(draw, model.shapes(dtype))


class GrpoBatch(NamedTuple):
    """What a GRPO loss reads of a micro-batch whose sequences are rows, by position."""

    ids: np.ndarray  # i32[B, T]
    mask: np.ndarray  # bool[B, T]
    ref_logps: np.ndarray  # f32[B, T]
    sampler_logps: np.ndarray  # f32[B, T]; not read
    advantages: np.ndarray  # f32[B]
    layout: None = None


def make_batch(seed: int = 0, rows: int = 3) -> GrpoBatch:
    """Rows of several lengths, each a prompt and a completion; poison wherever the mask says not to look."""
    rng = np.random.default_rng(seed)
    lengths, prompts = rng.integers(LENGTH // 2, LENGTH, rows), rng.integers(1, LENGTH // 3, rows)
    lengths[0], prompts[0] = LENGTH, 0  # position 0 on the mask has no context: its log-prob is 0
    column = np.arange(LENGTH)
    mask = (column >= prompts[:, None]) & (column < lengths[:, None])
    poison = partial(np.where, mask)
    return GrpoBatch(
        ids=rng.integers(0, VOCAB, (rows, LENGTH), dtype=np.int32),
        mask=mask,
        ref_logps=poison(rng.normal(-4, 1, mask.shape), np.inf).astype(np.float32),
        sampler_logps=poison(rng.normal(-4, 1, mask.shape), np.nan).astype(np.float32),
        advantages=rng.normal(size=rows).astype(np.float32),
    )


def full_batch(ids: np.ndarray) -> SftBatch:
    """Every token on the mask."""
    return SftBatch(ids=ids, mask=ids >= 0)


def grpo(logps, batch):
    old = jax.lax.stop_gradient(logps)
    loss, aux = policy_loss(logps, old, batch.ref_logps, batch.advantages, batch.mask, epsilon_low=None, beta=0.04)
    return loss, {"loss": loss, "kl": aux["kl"], "logps": logps}


def sft(logps, batch):
    loss = sft_loss(logps, batch.mask)
    return loss, {"loss": loss, "logps": logps}


layerwise = cache(make_layerwise_accumulate)  # tests with the same arguments share a program


def dense_logps(model, params, ids, temperature):
    """Log-probs f32[B, T] from all logits at once, 0 at position 0."""
    logps = jax.nn.log_softmax(model.unembed(params, model.hidden(params, ids)) / temperature)
    taken = jnp.take_along_axis(logps[:, :-1], ids[:, 1:, None], axis=-1)[..., 0]
    return jnp.pad(taken, ((0, 0), (1, 0)))


@partial(jax.jit, static_argnums=(0, 1, 4))
def dense_gradient(model, loss_of_logps, params, batch, temperature):
    def loss_fn(params):
        return loss_of_logps(dense_logps(model, params, jnp.asarray(batch.ids), temperature), batch)

    return jax.grad(loss_fn, has_aux=True)(params)


def zeros(params: Params) -> Params:
    return jax.tree.map(lambda p: jnp.asarray(np.zeros(p.shape, np.float32)), params)


def assert_close(found: Params, expected: Params, *, rtol: float = 1e-5):
    """Largest difference of every array within rtol of its largest value."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected)):
        assert a.dtype == jnp.float32
        scale = np.abs(b).max()
        assert scale > 0 and np.abs(np.asarray(a) - b).max() <= rtol * scale, jax.tree_util.keystr(path)


@pytest.mark.parametrize(
    ("name", "loss", "temperature"),
    [
        ("qwen3", grpo, 0.7),
        *(pytest.param(name, grpo, 0.7, marks=pytest.mark.slow) for name in CONFIGS if name != "qwen3"),
        ("qwen2", sft, 1.0),
    ],
)
def test_gradients_equal_those_of_the_plain_model(name, loss, temperature):
    model, params = make_model(name)
    batch = make_batch()
    accumulate = layerwise(model, loss, temperature=temperature, chunk=7)
    found, aux = accumulate(params, zeros(params), batch, 1.0)
    expected, expected_aux = dense_gradient(model, loss, params, batch, temperature)
    assert_close(found, expected)
    logps, expected_logps = aux.pop("logps"), expected_aux.pop("logps")
    np.testing.assert_allclose(logps, np.where(batch.mask, expected_logps, 0.0), atol=1e-5)
    assert aux.keys() == expected_aux.keys()
    for key, value in expected_aux.items():
        assert float(aux[key]) == pytest.approx(float(value), rel=1e-5)


def entropy_bonus(read, batch):
    logps, entropies = read
    loss, aux = grpo(logps, batch)
    weights = jnp.where(batch.mask, 0.1 + 0.02 * jnp.arange(LENGTH), 0.0)
    return loss - jnp.sum(weights * entropies), aux | {"entropies": entropies}


def dense_entropies(model, params, ids, temperature):
    """Entropies f32[B, T] of the distributions that the tokens are of, 0 at position 0."""
    logps = jax.nn.log_softmax(model.unembed(params, model.hidden(params, ids)) / temperature)
    return jnp.pad(-jnp.sum(jnp.exp(logps) * logps, axis=-1)[:, :-1], ((0, 0), (1, 0)))


@pytest.mark.parametrize("name", ["qwen2", "qwen2.5"])
def test_the_gradient_of_entropies_equals_that_of_the_plain_model(name):
    model, params = make_model(name)
    batch = make_batch()
    accumulate = layerwise(model, entropy_bonus, temperature=0.7, chunk=16, entropies=True)
    found, aux = accumulate(params, zeros(params), batch, 1.0)

    def dense(params):
        ids = jnp.asarray(batch.ids)
        read = dense_logps(model, params, ids, 0.7), dense_entropies(model, params, ids, 0.7)
        return entropy_bonus(read, batch)

    expected, dense_aux = jax.jit(jax.grad(dense, has_aux=True))(params)
    assert_close(found, expected)
    on = batch.mask & (np.arange(LENGTH) > 0)
    np.testing.assert_allclose(aux["entropies"][on], dense_aux["entropies"][on], rtol=1e-5)
    assert np.asarray(aux["entropies"])[on].min() > 1


@pytest.mark.slow
@pytest.mark.parametrize("saved", SAVED)
def test_saved_activations_change_no_gradient(saved):
    model, params = make_model("qwen3")
    batch = make_batch()
    accumulate = layerwise(model, grpo, temperature=0.7, chunk=7, **SAVED[saved])
    found, _ = accumulate(params, zeros(params), batch, 1.0)
    assert_close(found, dense_gradient(model, grpo, params, batch, 0.7)[0])


@pytest.mark.parametrize("chunk", [1, 1000])
def test_the_chunk_changes_no_gradient(chunk):
    model, params = make_model("qwen2.5")
    batch = make_batch()
    accumulate = layerwise(model, grpo, temperature=0.7, chunk=chunk)
    found, _ = accumulate(params, zeros(params), batch, 1.0)
    assert_close(found, dense_gradient(model, grpo, params, batch, 0.7)[0])


def test_micro_batches_add_up_in_donated_accumulators():
    """start + 0.25 g_1 + 3 g_2, from one compiled program, and the old accumulators are gone."""
    model, params = make_model("qwen2.5")
    first, second = make_batch(0), make_batch(1)
    accumulate = layerwise(model, grpo, temperature=0.7, chunk=7)
    start = jax.tree.map(lambda p: 0.01 * jax.random.normal(jax.random.key(2), p.shape), params)
    expected = jax.tree.map(
        lambda a, g1, g2: np.asarray(a + 0.25 * g1 + 3 * g2),
        start,
        dense_gradient(model, grpo, params, first, 0.7)[0],
        dense_gradient(model, grpo, params, second, 0.7)[0],
    )
    after_one, _ = accumulate(params, start, first, 0.25)
    after_two, _ = accumulate(params, after_one, second, 3.0)
    assert_close(after_two, expected)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((start, after_one)))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))
    assert accumulate._cache_size() == 1


PACKS = ((11, 8, 4), (13, 1, 9))  # tokens of the rows in two sequences


def packed_rows() -> tuple[SftBatch, SftBatch]:
    """Six rows in two sequences (and one that fills up), and in six. The mask holds first tokens too."""
    rng, lengths = np.random.default_rng(5), sum(PACKS, ())
    ids = [rng.integers(0, VOCAB, length, dtype=np.int32) for length in lengths]
    trained = [(rng.random(length) < 0.6) | (np.arange(length) == 0) for length in lengths]
    trees = [Tree([i], 0, length) for i, length in enumerate(lengths)]
    lie = MicroBatch([trees[:3], trees[3:]], 3, LENGTH, "masked")
    mask = np.zeros((3, LENGTH), bool)
    for i, places in lie.places(lengths).items():
        mask.reshape(-1)[places] = trained[i]
    packed = SftBatch(lie.ids(ids), mask, lie.layout(lengths))
    return packed, SftBatch(pad_rows(ids, LENGTH, num_rows=6), pad_rows(trained, LENGTH, num_rows=6))


def is_row() -> np.ndarray:
    """bool[3, T]: tokens of the rows of `packed_rows`, by length."""
    return np.arange(LENGTH) < np.array([*map(sum, PACKS), 0])[:, None]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "saved"), [*((name, {}) for name in CONFIGS), *(("qwen3", SAVED[saved]) for saved in SAVED)]
)
def test_the_gradient_of_packed_rows_is_that_of_single_ones(name, saved):
    model, params = make_model(name)
    packed, single = packed_rows()
    found, aux = layerwise(model, sft, temperature=1.0, chunk=7, **saved)(params, zeros(params), packed, 1.0)
    expected, expected_aux = dense_gradient(model, sft, params, single, 1.0)
    assert_close(found, expected)
    assert float(aux["loss"]) == pytest.approx(float(expected_aux["loss"]), rel=1e-5)
    expected_logps = np.where(single.mask, expected_aux["logps"], 0.0)
    assert single.mask[:, 0].all() and not expected_logps[:, 0].any()  # no context, whoever stands before it
    in_order = [row[:length] for row, length in zip(expected_logps, sum(PACKS, ()))]
    np.testing.assert_allclose(aux["logps"][is_row()], np.concatenate(in_order), atol=1e-5)


def test_other_tokens_in_a_neighbour_change_no_bit_of_a_gradient():
    """The loss reads the second row of each sequence; the others, and the padding, hold other tokens."""
    model, params = make_model("qwen3")
    packed, _ = packed_rows()
    mine = np.isin(packed.layout.segment, [2, 6])  # the third is followed by padding, a segment too
    batch = packed._replace(mask=mine)
    accumulate = layerwise(model, sft, temperature=1.0, chunk=7)
    clean, clean_aux = accumulate(params, zeros(params), batch, 1.0)
    poisoned = batch._replace(ids=np.where(mine, batch.ids, VOCAB - 1 - batch.ids))
    dirty, dirty_aux = accumulate(params, zeros(params), poisoned, 1.0)
    np.testing.assert_array_equal(dirty_aux["logps"], clean_aux["logps"])
    assert float(clean_aux["loss"]) > 0
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)


def test_a_batch_without_a_layout_has_the_program_of_a_batch_that_knows_none():
    class Plain(NamedTuple):
        ids: np.ndarray
        mask: np.ndarray

    model, params = make_model("qwen2.5")
    packed, _ = packed_rows()
    accumulate = layerwise(model, sft, temperature=1.0, chunk=7, **SAVED["mlp of some"])
    program = {
        name: accumulate.lower(params, zeros(params), batch, 1.0).as_text()
        for name, batch in (
            ("plain", Plain(packed.ids, packed.mask)),
            ("none", packed._replace(layout=None)),
            ("packed", packed),
        )
    }
    assert program["none"] == program["plain"]
    assert program["packed"] != program["none"]


def test_what_stands_in_pads_changes_nothing():
    model, params = make_model("qwen2.5")
    batch = make_batch()
    behind = np.arange(LENGTH) > LENGTH - 1 - batch.mask[:, ::-1].argmax(1)[:, None]
    accumulate = layerwise(model, grpo, temperature=0.7, chunk=7)
    found, _ = accumulate(params, zeros(params), batch, 1.0)
    other, _ = accumulate(params, zeros(params), batch._replace(ids=np.where(behind, 3, batch.ids)), 1.0)
    assert behind.any()
    assert_close(other, found, rtol=1e-6)


def test_a_batch_with_nothing_on_its_mask_adds_nothing():
    model, params = make_model("qwen2.5")
    batch = make_batch()._replace(mask=np.zeros((3, LENGTH), bool))
    accumulate = layerwise(model, grpo, temperature=0.7, chunk=7)
    found, aux = accumulate(params, jax.tree.map(jnp.ones_like, params), batch, 1.0)
    assert float(aux["loss"]) == 0
    assert all((np.asarray(leaf) == 1).all() for leaf in jax.tree.leaves(found))


@pytest.mark.slow
def test_bfloat16_gradients_are_as_exact_as_those_of_jax_grad():
    """Rounding to 8 bits puts both 3 % from float32, single arrays 2 to 7 %, by ways of their own."""
    model, params = make_model("qwen2.5", "bfloat16")
    accumulate = layerwise(model, grpo, temperature=0.7, chunk=7, **SAVED["mlp of some"])
    ours, theirs = [], []
    for seed in range(3):
        batch = make_batch(seed)
        found, _ = accumulate(params, zeros(params), batch, 1.0)
        other, _ = dense_gradient(model, grpo, params, batch, 0.7)
        exact, _ = dense_gradient(model, grpo, jax.tree.map(lambda p: p.astype(jnp.float32), params), batch, 0.7)
        for (path, leaf), want in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(exact)):
            assert leaf.dtype == jnp.float32
            assert distance(leaf, want) < 0.08, jax.tree_util.keystr(path)
        ours.append(distance(flat(found), flat(exact)))
        theirs.append(distance(flat(other), flat(exact)))
    assert sum(ours) < 1.15 * sum(theirs)


def flat(tree: Params) -> np.ndarray:
    return np.concatenate([np.asarray(leaf, np.float32).ravel() for leaf in jax.tree.leaves(tree)])


def distance(found: jax.Array, expected: jax.Array) -> float:
    """Norm of the difference over the norm of what is expected."""
    found, expected = np.asarray(found, np.float32), np.asarray(expected, np.float32)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


WIDE = ModelConfig("qwen2", 512, 128, 512, 16, 4, 2, 32, tie_word_embeddings=True)  # parameters outweigh activations
TOKENS = 16


@cache
def compiled(dtype: str = "float32", **saved) -> jax.stages.Compiled:
    """The program for one row of TOKENS tokens of the WIDE model."""
    model = build_model(WIDE)
    batch = full_batch(np.zeros((1, TOKENS), np.int32))
    accumulate = layerwise(model, sft, temperature=1.0, chunk=8, **saved)
    return accumulate.lower(model.shapes(dtype), model.shapes("float32"), batch, 1.0).compile()


def gradient_bytes() -> tuple[int, int]:
    """Of the WIDE model's whole tree, and of one layer."""
    shapes = build_model(WIDE).shapes("float32")
    tree, layers = (sum(4 * leaf.size for leaf in jax.tree.leaves(part)) for part in (shapes, shapes["layers"]))
    return tree, layers // WIDE.num_hidden_layers


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "saved"),
    [("float32", {}), ("float32", {"saved_mlp": 5, "saved_attention": 9}), ("bfloat16", {})],
    ids=["float32", "more saved", "bfloat16"],
)
@pytest.mark.quick_compile(False)  # the memory of the program that a user runs
def test_no_second_gradient_exists(dtype, saved):
    """The accumulators are reused for the result, and what comes on top is a few of the sixteen layers' size."""
    memory = compiled(dtype, **saved).memory_analysis()
    tree, layer = gradient_bytes()
    assert memory.alias_size_in_bytes >= tree
    # A CPU has no product of bfloat16: XLA keeps a float32 copy of all weights there.
    weights = 0 if dtype == "float32" else tree
    assert tree > 16 * layer and memory.temp_size_in_bytes - weights < 4 * layer


def test_kept_projections_take_their_memory_and_save_their_flops():
    """2 · inner numbers a token and layer; the two products that made them (XLA counts a loop's body once)."""
    plain, saved = compiled(), compiled(saved_mlp=16)
    more = saved.memory_analysis().temp_size_in_bytes - plain.memory_analysis().temp_size_in_bytes
    assert more == pytest.approx(16 * TOKENS * 2 * WIDE.intermediate_size * 4, rel=0.1)
    products = 2 * (2 * TOKENS * WIDE.hidden_size * WIDE.intermediate_size)
    assert plain.cost_analysis()["flops"] - saved.cost_analysis()["flops"] == pytest.approx(products, rel=0.01)


def test_kept_attention_is_not_computed_again():
    """Saved: the three projections and the products with keys and values."""
    saved = compiled().cost_analysis()["flops"] - compiled(saved_attention=16).cost_analysis()["flops"]
    projections = 2 * TOKENS * WIDE.hidden_size * (4 + 2 + 2) * WIDE.head_dim
    attention = 2 * (2 * TOKENS * TOKENS * 4 * WIDE.head_dim)
    assert projections + attention <= saved <= 1.1 * (projections + attention)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0: expected a number > 0"),
        ({"chunk": 0}, "chunk=0: expected a number of tokens >= 1"),
        ({"saved_mlp": 4}, "saved_mlp=4: expected 0 to 3, the model's layers"),
        ({"saved_attention": -1}, "saved_attention=-1: expected 0 to 3, the model's layers"),
    ],
)
def test_arguments_out_of_range_are_refused(changed, message):
    model, _ = make_model("qwen2")
    with pytest.raises(ValueError) as error:
        make_layerwise_accumulate(model, sft, **{"temperature": 1.0, "chunk": 8} | changed)
    assert str(error.value) == message


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")
def test_flash_attention_is_saved_once_on_a_gpu():
    """The same gradient, and its output, which both its own backward pass and the next product read, held once."""
    heads, keys, size, layers, rows, length = 8, 2, 64, 8, 2, 1024
    config = ModelConfig("qwen2", 512, 256, 512, layers, heads, keys, size)
    model, params = init_model(config, 0, dtype="bfloat16")
    batch = full_batch(np.random.default_rng(0).integers(0, 512, (rows, length), np.int32))
    gradients, temporary = [], []
    for saved in (0, layers):
        accumulate = layerwise(model, sft, temperature=1.0, chunk=256, saved_attention=saved)
        program = accumulate.lower(params, zeros(params), batch, 1.0).compile()
        assert "cudnn" in program.as_text()
        temporary.append(program.memory_analysis().temp_size_in_bytes)
        gradients.append(accumulate(params, zeros(params), batch, 1.0)[0])
    assert all(distance(a, b) < 0.02 for a, b in zip(*map(jax.tree.leaves, gradients)))
    one = layers * rows * length * size * 2  # bytes of one head of all layers
    assert temporary[1] - temporary[0] < (2.5 * heads + 2 * keys) * one


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")
def test_packed_rows_on_a_gpu():
    """Flash attention under a mask: the gradient of single rows, and a mask that no layer keeps a copy of."""
    heads, keys, size, layers, length = 8, 2, 64, 8, 1024
    config = ModelConfig("qwen2", 512, 256, 512, layers, heads, keys, size)
    model, params = init_model(config, 0, dtype="bfloat16")
    ids = np.random.default_rng(0).integers(0, 512, (4, length // 2), np.int32)
    single = SftBatch(ids, np.ones(ids.shape, bool))
    trees = [Tree([i], 0, length // 2) for i in range(4)]
    layout = MicroBatch([trees[:2], trees[2:]], 2, length, "masked").layout([length // 2] * 4)
    packed = SftBatch(ids.reshape(2, length), np.ones((2, length), bool), layout)
    expected, _ = layerwise(model, sft, temperature=1.0, chunk=256)(params, zeros(params), single, 1.0)
    temporary = []
    for saved in (0, layers):
        accumulate = layerwise(model, sft, temperature=1.0, chunk=256, saved_attention=saved)
        program = accumulate.lower(params, zeros(params), packed, 1.0).compile()
        assert "fmhaScaleBiasSoftmaxBackward" in program.as_text()
        temporary.append(program.memory_analysis().temp_size_in_bytes)
        found, _ = accumulate(params, zeros(params), packed, 1.0)
        assert distance(flat(found), flat(expected)) < 0.02
    one = layers * 2 * length * size * 2  # bytes of one head of all layers
    assert temporary[1] - temporary[0] < (2.5 * heads + 2 * keys) * one
