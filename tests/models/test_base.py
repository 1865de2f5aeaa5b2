"""The model against transformers, the golden logits, and itself taken apart."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from rlt_jax.models import ModelConfig, build_model, init_model, load_model, named_tensors
from rlt_jax.segments import Layout, MicroBatch, Tree
from tests.models.conftest import CONFIGS, SCALED_NAMES, oracle_logits, oracle_model

pytestmark = pytest.mark.quick_compile

LENGTHS = np.array([21, 1, 13, 8])
ARCHITECTURES = tuple(CONFIGS)


def padded_batch(side: str, *, vocab: int = 97, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random rows of LENGTHS tokens, padded with random tokens: i32[B, T] ids, bool[B, T] mask."""
    rng = np.random.default_rng(seed)
    width = LENGTHS.max()
    ids = rng.integers(0, vocab, (len(LENGTHS), width), dtype=np.int32)
    mask = np.arange(width) < LENGTHS[:, None]
    return ids, mask[:, ::-1] if side == "left" else mask


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_equal_transformers(checkpoint, name, side):
    folder = checkpoint(name)
    ids, mask = padded_batch(side)
    expected = oracle_logits(oracle_model(folder), ids, mask)
    model, params = load_model(folder)
    logits = np.asarray(model.logits(params, ids, mask))
    assert logits.dtype == np.float32 and np.isfinite(logits).all()
    assert expected[mask].std() > 0.3  # a comparison of zeros would prove nothing
    assert np.abs(logits - expected)[mask].max() <= 1e-4


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", SCALED_NAMES)
def test_logits_equal_transformers_beyond_the_original_context(checkpoint, name, side):
    """Rows of up to 120 tokens, of 32 positions before stretching."""
    folder, lengths = checkpoint(name), np.array([120, 77])
    ids = np.random.default_rng(1).integers(0, 97, (2, 120)).astype(np.int32)
    mask = np.arange(120) < lengths[:, None]
    mask = mask[:, ::-1] if side == "left" else mask
    expected = oracle_logits(oracle_model(folder), ids, mask)
    model, params = load_model(folder)
    assert model.config.max_positions == 128
    assert np.abs(np.asarray(model.logits(params, ids, mask)) - expected)[mask].max() <= 1e-4
    plain = ModelConfig(**{**vars(model.config), "rope_scaling": None})  # stretching is seen in the numbers
    assert np.abs(np.asarray(build_model(plain).logits(params, ids, mask)) - expected)[mask].max() > 0.1


@pytest.mark.parametrize("name", SCALED_NAMES)
def test_cache_and_packed_rows_beyond_the_original_context(checkpoint, name):
    model, params = load_model(checkpoint(name))
    ids = np.random.default_rng(2).integers(0, 97, (1, 120)).astype(np.int32)
    full = np.asarray(model.logits(params, ids))
    cache = model.init_cache(params, 1, 120)
    hidden, cache = model.prefill(params, ids[:, :100], cache)
    np.testing.assert_allclose(model.unembed(params, hidden), full[:, :100], atol=1e-4)
    for position in range(100, 120):
        logits, cache = model.decode(params, ids[:, position], np.array([position]), cache)
        np.testing.assert_allclose(logits, full[:, position], atol=1e-4)
    rows = [ids[0], ids[0, :50]]
    packed = MicroBatch([[Tree([0], 0, 120), Tree([1], 0, 50)]], 1, 170, "masked")
    logits = packed_logits(model, params, packed.ids(rows), packed.layout([120, 50]))
    np.testing.assert_allclose(logits, np.concatenate([full[0], full[0, :50]]), atol=1e-4)


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3"])
def test_right_padded_rows_need_no_mask(checkpoint, name):
    model, params = load_model(checkpoint(name))
    ids, mask = padded_batch("right")
    np.testing.assert_allclose(
        np.asarray(model.logits(params, ids, None))[mask], np.asarray(model.logits(params, ids, mask))[mask], atol=1e-5
    )


@pytest.mark.parametrize("who", ["teacher", "student"])
def test_logits_equal_golden(golden, who):
    cases = np.load(golden / "grpo_cases.npz")
    ids = np.concatenate([cases["batch/prompt_ids"], cases["batch/completion_ids"]], axis=1)
    mask = np.concatenate([cases["batch/prompt_mask"], cases["batch/completion_mask"]], axis=1)
    model, params = load_model(golden / who)
    logits = np.asarray(model.logits(params, ids, mask))
    assert np.abs(logits - cases[f"batch/{who}_logits"])[mask > 0].max() <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2", "qwen2.5", "qwen3"])
def test_bfloat16_is_as_close_to_float32_as_transformers(checkpoint, name):
    folder = checkpoint(name)
    ids, mask = padded_batch("left")
    exact = oracle_logits(oracle_model(folder), ids, mask)[mask]
    theirs = oracle_logits(oracle_model(folder, torch.bfloat16), ids, mask)[mask]
    model, params = load_model(folder, dtype="bfloat16")
    ours = np.asarray(model.logits(params, ids, mask))[mask]
    assert np.abs(ours - exact).mean() <= 1.2 * np.abs(theirs - exact).mean()
    assert np.abs(ours - theirs).mean() <= 0.02 * exact.std()
    assert model.hidden(params, ids).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "name", ["qwen3", *(pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES if name != "qwen3")]
)
def test_gradients_equal_torch(checkpoint, name):
    folder = checkpoint(name)
    ids, mask = padded_batch("left")
    scored = mask[:, 1:] & mask[:, :-1]
    oracle = oracle_model(folder)
    logps = oracle(torch.tensor(ids), attention_mask=torch.tensor(mask.astype(np.int64))).logits.log_softmax(-1)
    labels = torch.tensor(ids[:, 1:].astype(np.int64))[..., None]
    logps[:, :-1].gather(-1, labels)[..., 0][torch.tensor(scored)].mean().backward()
    model, params = load_model(folder)

    def mean_logp(params):
        logps = jax.nn.log_softmax(model.logits(params, ids, mask)[:, :-1])
        taken = jnp.take_along_axis(logps, ids[:, 1:, None], axis=-1)[..., 0]
        return jnp.where(scored, taken, 0.0).sum() / scored.sum()

    gradient = dict(named_tensors(model, jax.grad(mean_logp)(params)))
    expected = {key: parameter.grad.numpy() for key, parameter in oracle.named_parameters()}
    assert gradient.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(gradient[key], value, rtol=1e-3, atol=1e-5 * np.abs(value).max() + 1e-8, err_msg=key)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_never_seen(golden, side):
    model, params = load_model(golden / "student")
    ids, mask = padded_batch(side, vocab=1000)
    mask[1] = False  # a row of nothing but padding
    poisoned = np.where(mask, ids, 999 - ids)

    @jax.jit
    @jax.grad
    def gradient(params, ids):
        return jnp.where(mask[..., None], jnp.sin(model.logits(params, ids, mask)), 0.0).sum()

    clean = np.asarray(model.logits(params, ids, mask))
    dirty = np.asarray(model.logits(params, poisoned, mask))
    assert np.isfinite(dirty).all()
    np.testing.assert_array_equal(dirty[mask], clean[mask])
    for before, after in zip(jax.tree.leaves(gradient(params, ids)), jax.tree.leaves(gradient(params, poisoned))):
        assert np.isfinite(after).all()
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6 * np.abs(before).max())


def packed_sequence(*, vocab: int = 97) -> tuple[np.ndarray, Layout, list[slice]]:
    """The rows of `padded_batch` and padding in one sequence: i32[1, T] ids, their layout, where each row stands."""
    ids, _ = padded_batch("right", vocab=vocab)
    tail = 5
    trees = [Tree([i], 0, int(length)) for i, length in enumerate(LENGTHS)]
    batch = MicroBatch([trees], 1, int(LENGTHS.sum()) + tail, "masked")
    joined = batch.ids([row[:length] for row, length in zip(ids, LENGTHS)])
    joined[0, -tail:] = ids[0, :tail]
    ends = np.cumsum(LENGTHS)
    places = [slice(end - length, end) for end, length in zip(ends, LENGTHS)]
    return joined, batch.layout(LENGTHS.tolist()), places


def packed_logits(model, params, ids, layout) -> np.ndarray:
    """f32[T, V] of one sequence."""
    return np.asarray(model.unembed(params, model.hidden(params, ids, layout=layout)))[0]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rows_in_one_sequence_equal_transformers_on_each_alone(checkpoint, name):
    folder = checkpoint(name)
    rows, _ = padded_batch("right")
    oracle = oracle_model(folder)
    ids, layout, places = packed_sequence()
    logits = packed_logits(*load_model(folder), ids, layout)
    assert np.isfinite(logits).all()  # of padding too
    for row, length, place in zip(rows, LENGTHS, places):
        alone = row[None, :length]
        expected = oracle_logits(oracle, alone, np.ones_like(alone))[0]
        np.testing.assert_array_equal(ids[0, place], alone[0])
        assert np.abs(logits[place] - expected).max() <= 1e-4


def test_neighbours_in_a_sequence_are_never_seen(golden):
    """Other tokens in every other segment, and in the padding, change no bit of a row's logits or gradients."""
    model, params = load_model(golden / "student")
    ids, layout, places = packed_sequence(vocab=1000)

    context = model.context(params, ids, layout=layout)

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def gradient(embedded, mine):
        x, _ = jax.lax.scan(lambda x, layer: (model.layer(layer, x, context), None), embedded, params["layers"])
        logits = model.unembed(params, model.final_norm(params, x))
        return jnp.where(mine[..., None], jnp.sin(logits), 0.0).sum(), logits

    for number, place in enumerate(places, start=1):
        mine = layout.segment == number
        poisoned = np.where(mine, ids, 999 - ids)
        (d_clean, clean), (d_dirty, dirty) = (
            [np.asarray(array)[0] for array in gradient(model.embed(params, tokens), mine)]
            for tokens in (ids, poisoned)
        )
        np.testing.assert_array_equal(dirty[place], clean[place])
        np.testing.assert_array_equal(d_dirty[place], d_clean[place])
        assert np.abs(d_clean[place]).max() > 0
        assert not np.delete(d_clean, place, axis=0).any()  # nothing flows to a neighbour


def test_positions_begin_anew_in_each_segment(golden):
    """Results do not tell: RoPE is relative. Far from position 0 they would be rounded more."""
    model, params = load_model(golden / "teacher")
    ids, layout, places = packed_sequence(vocab=1000)
    packed, plain = model.context(params, ids, layout=layout), model.context(params, ids)
    for place, length in zip(places, LENGTHS):
        np.testing.assert_array_equal(packed.cos[0, place], plain.cos[0, :length])
        np.testing.assert_array_equal(packed.sin[0, place], plain.sin[0, :length])


def test_one_segment_is_a_plain_row(golden):
    model, params = load_model(golden / "teacher")
    ids, _ = padded_batch("right", vocab=1000)
    length = ids.shape[1]
    layout = MicroBatch([[Tree([i], 0, length)] for i in range(len(ids))], len(ids), length, "masked").layout(
        [length] * len(ids)
    )
    plain = model.hidden(params, ids)
    np.testing.assert_allclose(model.hidden(params, ids, layout=layout), plain, atol=1e-5)


def test_a_mask_and_a_layout_exclude_each_other(golden):
    model, params = load_model(golden / "teacher")
    ids, layout, _ = packed_sequence(vocab=1000)
    with pytest.raises(ValueError, match="attention_mask and layout: expected one of them"):
        model.hidden(params, ids, attention_mask=ids, layout=layout)


def test_a_layout_of_another_shape_is_refused(golden):
    model, params = load_model(golden / "teacher")
    ids, layout, _ = packed_sequence(vocab=1000)
    with pytest.raises(AssertionError, match="shape"):
        model.hidden(params, ids[:, 1:], layout=layout)


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3", "llama"])
def test_decoding_step_by_step_equals_one_forward(checkpoint, name):
    model, params = load_model(checkpoint(name))
    ids, _ = padded_batch("right")
    prompts = np.array([6, 1, 4, 3])
    full = np.asarray(model.logits(params, ids))
    junk = np.where(
        np.arange(6) < prompts[:, None], ids[:, :6], 96
    )  # what stands behind a prompt's end must not matter
    cache = model.init_cache(params, len(ids), ids.shape[1])
    hidden, cache = model.prefill(params, junk, cache)
    logits = np.asarray(model.unembed(params, hidden))
    for row, length in enumerate(prompts):
        np.testing.assert_allclose(logits[row, :length], full[row, :length], atol=1e-4)
    for step in range(12):
        positions = prompts + step  # every row at a place of its own
        tokens = ids[np.arange(len(ids)), positions]
        step_logits, cache = model.decode(params, tokens, positions, cache)
        assert step_logits.dtype == jnp.float32
        np.testing.assert_allclose(step_logits, full[np.arange(len(ids)), positions], atol=1e-4)


def test_a_position_beyond_the_cache_is_written_nowhere(golden):
    model, params = load_model(golden / "teacher")
    cache = model.init_cache(params, 2, 4)
    _, cache = model.prefill(params, np.array([[1, 2, 3, 4], [5, 6, 7, 8]]), cache)
    _, after = model.decode(params, np.array([9, 9]), np.array([4, 2]), cache)
    np.testing.assert_array_equal(after.keys[:, 0], cache.keys[:, 0])
    np.testing.assert_array_equal(after.keys[:, 1, [0, 1, 3]], cache.keys[:, 1, [0, 1, 3]])
    assert (np.asarray(after.keys[:, 1, 2]) != np.asarray(cache.keys[:, 1, 2])).any()


def test_a_prompt_longer_than_the_cache_is_refused(golden):
    model, params = load_model(golden / "teacher")
    with pytest.raises(AssertionError, match="dimension"):
        model.prefill(params, np.zeros((1, 5), np.int32), model.init_cache(params, 1, 4))


def test_layers_one_by_one_equal_the_scan(golden):
    model, params = load_model(golden / "student")
    ids, mask = padded_batch("left", vocab=1000)
    x = model.embed(params, ids)
    context = model.context(params, ids, mask)
    layer = jax.jit(model.layer)
    for index in range(model.config.num_hidden_layers):
        x = layer(jax.tree.map(lambda leaf, index=index: leaf[index], params["layers"]), x, context)
    x = model.final_norm({"norm": params["norm"]}, x)
    np.testing.assert_allclose(x, model.hidden(params, ids, attention_mask=mask), atol=2e-5)


def test_float32_products_are_true_float32_forwards_and_backwards(golden):
    model, params = load_model(golden / "teacher")
    ids = np.zeros((1, 4), np.int32)
    lowered = jax.jit(jax.grad(lambda params: model.logits(params, ids).sum())).lower(params).as_text()
    products = [line for line in lowered.splitlines() if "stablehlo.dot_general" in line]
    assert len(products) >= 28  # seven projections, two of attention and the head, each with two transposes
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)


def test_a_model_is_a_static_argument_that_compiles_once(golden):
    traces = []

    @partial(jax.jit, static_argnums=0)
    def forward(model, params, ids):
        traces.append(model)
        return model.hidden(params, ids).sum()

    first, params = load_model(golden / "teacher")
    second, _ = load_model(golden / "teacher")
    ids = np.zeros((1, 3), np.int32)
    forward(first, params, ids)
    forward(second, params, ids)
    assert first == second and hash(first) == hash(second) and first is not second
    assert traces == [first]


def test_fresh_weights_are_drawn_as_transformers_draws_them():
    dtype = "bfloat16"
    config = ModelConfig("qwen2", 500, 64, 128, 3, 4, 2, 16, initializer_range=0.05)
    model, params = init_model(config, 7, dtype=dtype)
    _, same = init_model(config, 7, dtype=dtype)
    _, other = init_model(config, 8, dtype=dtype)
    for name, tensor in named_tensors(model, params):
        tensor = np.asarray(tensor, np.float32)
        if "norm" in name:
            assert (tensor == 1).all(), name
        elif name.endswith("bias"):
            assert (tensor == 0).all(), name
        else:
            assert abs(tensor.std() - 0.05) < 0.05 * 0.05 and abs(tensor.mean()) < 0.005, name
    layers = np.asarray(params["layers"]["mlp"]["up_proj"]["weight"], np.float32)
    assert np.abs(layers[0] - layers[1]).mean() > 0.02  # layers do not share a draw
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(params))
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), params, same))
    assert not jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), params, other))


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")
def test_flash_attention_equals_masked_attention_on_a_gpu():
    config = ModelConfig("qwen2", 500, 256, 512, 2, 4, 2, 64, initializer_range=0.05)
    model, params = init_model(config, 0, dtype="bfloat16")
    ids, mask = padded_batch("right", vocab=500)
    flash = np.asarray(model.logits(params, ids))[mask]
    masked = np.asarray(model.logits(params, ids, mask))[mask]
    assert "cudnn" in jax.jit(model.logits).lower(params, ids).as_text()
    assert np.abs(flash - masked).mean() <= 0.02 * masked.std()


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")
def test_flash_attention_keeps_packed_rows_apart_on_a_gpu():
    config = ModelConfig("qwen2", 500, 256, 512, 2, 4, 2, 64, initializer_range=0.05)
    model, params = init_model(config, 0, dtype="bfloat16")
    rows, mask = padded_batch("right", vocab=500)
    ids, layout, places = packed_sequence(vocab=500)
    assert ids.shape[1] % 2 == 0
    alone = np.asarray(model.logits(params, rows))
    assert "cudnn" in jax.jit(model.hidden).lower(params, ids, layout=layout).as_text()
    packed = packed_logits(model, params, ids, layout)
    for row, length, place in zip(alone, LENGTHS, places):
        assert np.abs(packed[place] - row[:length]).mean() <= 0.02 * alone[mask].std()
    for number, place in enumerate(places, start=1):
        poisoned = np.where(layout.segment == number, ids, 499 - ids)
        np.testing.assert_array_equal(packed_logits(model, params, poisoned, layout)[place], packed[place])
