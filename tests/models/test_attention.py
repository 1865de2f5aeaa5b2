"""Attention of segments: who sees whom, gradients of shared layouts, and the kernels' private interfaces."""

import inspect
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from rlt_jax.configs import LossConfig
from rlt_jax.learner.backward import make_layerwise_accumulate
from rlt_jax.learner.objective import policy_objective
from rlt_jax.learner.step import LossRows, grpo_batches, sum_gradients
from rlt_jax.models import ModelConfig, attention, init_model
from rlt_jax.models.attention import attend, segment_bias, tokens_before
from rlt_jax.segments import Layout, Limits, MicroBatch, Tree, common_prefixes, micro_batches

pytestmark = pytest.mark.quick_compile

LENGTH, LONGEST = 256, 64  # tokens of a sequence that holds all rows, and of each of the rows


def on_device(layout: Layout) -> Layout:
    return jax.tree.map(jnp.asarray, layout)


def together(rows: list[np.ndarray], arrangement: str = "masked") -> MicroBatch:
    """All rows in one sequence, what they share once."""
    lengths = [len(row) for row in rows]
    trees = [
        Tree(group.rows, group.shared, group.shared + sum(lengths[row] - group.shared for row in group.rows))
        for group in common_prefixes(rows)
    ]
    return MicroBatch([trees], 1, LENGTH, arrangement, Limits(16, 8))


def alone(row: int, length: int) -> MicroBatch:
    return MicroBatch([[Tree([row], 0, length)]], 1, LONGEST, "rows")


@st.composite
def groups_of_rows(draw) -> tuple[list[np.ndarray], list[int]]:
    """Rows of up to 3 questions, and their completions' lengths: some empty, some the same, one row alone.

    Of two different tokens, completions of a group begin alike by chance; these tokens are shared too.
    """
    rng, vocab = np.random.default_rng(draw(st.integers(0, 10**6))), draw(st.sampled_from([2, 97]))
    rows, lengths = [], []
    for prompt_length in draw(st.lists(st.integers(1, 34), min_size=1, max_size=3)):
        prompt = rng.integers(0, 97, prompt_length)
        for length in draw(st.lists(st.integers(0, 24), min_size=1, max_size=3)):
            rows.append(np.append(prompt, rng.integers(0, vocab, length)).astype(np.int32))
            lengths.append(length)
    if len(rows) < 8 and draw(st.booleans()):
        rows.append(rows[0].copy())
        lengths.append(lengths[0])
    order = rng.permutation(len(rows))[:8]
    rows, lengths = [rows[i] for i in order], [lengths[i] for i in order]
    while sum(map(len, rows)) > LENGTH:
        rows.pop()
        lengths.pop()
    return rows, lengths


# who sees whom


@settings(deadline=None, max_examples=50)
@given(groups_of_rows(), st.sampled_from(["masked", "flat"]))
def test_each_token_sees_its_row_up_to_itself_and_nothing_else(drawn, arrangement):
    rows, _ = drawn
    batch = together(rows, arrangement)
    lengths = [len(row) for row in rows]
    layout = batch.layout(lengths)
    bias = np.asarray(segment_bias(on_device(layout), jnp.dtype("float32")))[0, 0]
    sees = (bias == 0) & np.tri(LENGTH, dtype=bool)  # causal masking comes on top
    assert (bias[bias != 0] <= -(2.0**40)).all()
    expected = np.zeros((LENGTH, LENGTH), bool)
    for places in batch.places(lengths).values():
        for t, place in enumerate(places):
            expected[place, places[: t + 1]] = True
    real = expected.any(1)
    np.testing.assert_array_equal(sees[real], expected[real])
    assert not sees[~real][:, real].any() and sees[~real].any(1).all()  # padding sees some of itself: no row is empty


@settings(deadline=None, max_examples=50)
@given(groups_of_rows())
def test_the_token_before_is_the_one_in_the_row(drawn):
    rows, _ = drawn
    lengths = [len(row) for row in rows]
    batch = together(rows)
    before, known = tokens_before(jnp.asarray(batch.ids(rows)), on_device(batch.layout(lengths)))
    known = np.asarray(known).reshape(-1)
    for places in batch.places(lengths).values():
        assert not known[places[0]] and known[places[1:]].all()
        np.testing.assert_array_equal(np.asarray(before)[places[1:]], places[:-1])


def test_without_a_layout_the_token_before_is_the_one_to_the_left():
    before, known = tokens_before(jnp.zeros((2, 3), jnp.int32), None)
    assert before.tolist() == [0, 0, 1, 3, 3, 4]
    assert known.tolist() == [[False, True, True]] * 2


def test_masked_scores_are_exactly_nothing_in_16_bits_too():
    """float16 has no -2^41: half of its least number, so that a score added to it is still one."""
    layout = on_device(together([np.arange(20, dtype=np.int32), np.arange(50, 70, dtype=np.int32)]).layout([20, 20]))
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        bias = segment_bias(layout, jnp.dtype(dtype))
        assert bias.dtype == dtype and np.isfinite(np.asarray(bias, np.float32)).all()
        assert float(jax.nn.softmax(bias[0, 0, 25].astype(jnp.float32))[:20].sum()) == 0


# gradients of a step


@cache
def a_model():
    """Two layers, with norms of queries and keys."""
    config = ModelConfig("qwen3", 97, 32, 48, 2, 4, 2, 16, initializer_range=0.2)
    return init_model(config, 0, dtype="float32")


@cache
def accumulate_of(beta: float):
    """Compiles once for each shape."""
    return make_layerwise_accumulate(a_model()[0], policy_objective(LossConfig(beta=beta)), temperature=0.7, chunk=32)


def gradients_of(rows, lengths, advantages, batches):
    rng = np.random.default_rng(0)
    ref = [rng.normal(-4, 1, n).astype(np.float32) for n in lengths]
    sampled = [rng.normal(-4, 1, n).astype(np.float32) for n in lengths]
    loss_rows = LossRows(sampled, np.asarray(advantages, np.float32), ref)
    step = grpo_batches(rows, loss_rows, batches=batches, longest=24)
    return sum_gradients(accumulate_of(0.04), a_model()[1], step)


def assert_alike(found, expected, *, rtol: float = 1e-5):
    for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        assert np.abs(a - b).max() <= rtol * np.abs(b).max(), jax.tree_util.keystr(path)


@settings(deadline=None, max_examples=25)
@given(groups_of_rows())
def test_gradients_of_shared_layouts_are_those_of_rows_one_by_one(drawn):
    rows, lengths = drawn
    for n in range(5 - len(rows)):  # 5 to 8 rows, which are 8 places in a micro-batch: one program
        rows.append(np.append(rows[0][: len(rows[0]) - lengths[0]], [n]).astype(np.int32))
        lengths.append(1)
    advantages = np.random.default_rng(len(rows)).normal(size=len(rows))
    found, losses = gradients_of(rows, lengths, advantages, [together(rows)])
    one_by_one = [alone(i, len(row)) for i, row in enumerate(rows)]
    expected, expected_losses = gradients_of(rows, lengths, advantages, one_by_one)
    assert_alike(found, expected)
    assert losses.keys() == expected_losses.keys()
    means = ("loss", "kl", "entropy", "sampler_logp_diff_max", "importance_ratio_max")  # of rows, or maxima
    for name in means:
        np.testing.assert_allclose(losses[name], expected_losses[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("tokens", [64, 5000])
@pytest.mark.parametrize("arrangement", ["rows", "masked", "flat"])
def test_gradients_of_a_step_do_not_depend_on_how_it_is_cut(arrangement, tokens, monkeypatch):
    monkeypatch.setattr("rlt_jax.segments.SIZE_STEP", 64)
    rng = np.random.default_rng(3)
    rows, lengths = [], []
    for prompt_length in (17, 40, 22):
        prompt = rng.integers(0, 97, prompt_length)
        for length in (24, 3, 0, 11):
            rows.append(np.append(prompt, rng.integers(0, 97, length)).astype(np.int32))
            lengths.append(length)
    advantages = rng.normal(size=len(rows))
    lie = micro_batches(rows, tokens=tokens, arrangement=arrangement, limits=Limits(16, 4))
    found, _ = gradients_of(rows, lengths, advantages, lie)
    expected, _ = gradients_of(rows, lengths, advantages, [alone(i, len(row)) for i, row in enumerate(rows)])
    assert_alike(found, expected)


PROMPT = np.arange(40, 60, dtype=np.int32)


def test_a_token_of_two_rows_has_the_advantages_of_both():
    """One row twice, with opposite advantages, on-policy and without a KL term: nothing is left."""
    row = np.append(PROMPT, [1, 2, 3, 4]).astype(np.int32)
    other = np.append(PROMPT, [1, 2, 9, 8]).astype(np.int32)  # two of four tokens are shared with it

    def gradients(rows, advantages, batches):
        nothing = [np.zeros(4, np.float32)] * len(rows)
        step = grpo_batches(rows, LossRows(nothing, np.float32(advantages)), batches=batches, longest=4)
        return sum_gradients(accumulate_of(0.0), a_model()[1], step)[0]

    rows = [row, row.copy()]
    batch = together(rows)
    assert batch.distinct == len(row)
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(gradients(rows, [1.0, 1.0], [batch])))
    left = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(gradients(rows, [1.0, -1.0], [batch])))
    assert left <= 1e-6 * largest
    rows = [row, other]
    batch = together(rows)
    assert batch.distinct == len(row) + 2
    expected = gradients(rows, [0.7, -2.0], [alone(0, 24), alone(1, 24)])
    assert_alike(gradients(rows, [0.7, -2.0], [batch]), expected)


def test_the_last_token_of_a_prompt_predicts_the_first_of_each_completion():
    """Completions of one token: the gradient is that of sum_i A_i log p(token_i | prompt), by `jax.grad`."""
    model, params = a_model()
    first, advantages = np.array([5, 7, 11, 5]), np.array([1.0, -0.5, 2.0, 0.25], np.float32)
    rows = [np.append(PROMPT, [token]).astype(np.int32) for token in first]
    batch = together(rows)
    # The two with the same token save as much in one group with the others as in one of their own.
    assert len(batch.sequences[0]) == 1 and batch.distinct == len(PROMPT) + 4
    nothing = [np.zeros(1, np.float32)] * 4
    step = grpo_batches(rows, LossRows(nothing, advantages), batches=[batch], longest=1)
    found, _ = sum_gradients(accumulate_of(0.0), params, step)

    def loss(params):
        logps = jax.nn.log_softmax(model.logits(params, PROMPT[None])[0, -1] / 0.7)
        return -(advantages * logps[first]).mean()

    assert_alike(found, jax.grad(loss)(params))


# flat sequences: what is made of the kernels' results, with a slow cuDNN of our own


class SlowCudnn:
    """cuDNN's attention over segments, as its primitives are bound: nan is what it does not write."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def bind(self, q, k, v, bias, q_sizes, k_sizes, q_offsets, k_offsets, table_k, table_v, *more, **options):
        """The offsets are numbers of elements, and go across the shape [parts, bound] of queries and keys."""
        shapes, bound = [x.shape for x in (q, k, v)], q.shape[1]
        q, k, v = (np.asarray(x, np.float64).reshape(-1, *x.shape[2:]) for x in (q, k, v))
        heads, shared = q.shape[1], q.shape[1] // k.shape[1]
        count = q_sizes.size
        first_q = np.asarray(q_offsets).reshape(-1)[:count] // (q.shape[1] * q.shape[2])
        first_k = np.asarray(k_offsets).reshape(-1)[:count] // (k.shape[1] * k.shape[2])
        q_sizes, k_sizes = np.asarray(q_sizes).reshape(-1), np.asarray(k_sizes).reshape(-1)
        assert max(q_sizes.max(), k_sizes.max()) <= bound
        causal = options["mask_type"] == cudnn.MaskType.PADDING_CAUSAL
        out, sums = np.full(q.shape, np.nan), np.full((count, heads, bound), np.nan)
        d_q, d_k, d_v = (np.full(x.shape, np.nan) for x in (q, k, v))
        for number in range(count):
            at = slice(first_q[number], first_q[number] + q_sizes[number])
            seen = slice(first_k[number], first_k[number] + k_sizes[number])
            if at.start == at.stop or seen.start == seen.stop:
                continue
            keys, values = (np.repeat(x[seen], shared, axis=1) for x in (k, v))
            scores = np.einsum("qhd,khd->hqk", q[at], keys) * options["scale"]
            if causal:
                scores = np.where(np.tri(*scores.shape[1:], dtype=bool), scores, -np.inf)
            if self.kind == "forward":
                total = np.log(np.exp(scores - scores.max(-1, keepdims=True)).sum(-1)) + scores.max(-1)
                out[at] = np.einsum("hqk,khd->qhd", np.exp(scores - total[..., None]), values)
                sums[number, :, : q_sizes[number]] = total
                continue
            total, attended, d_out = more
            total = np.asarray(total, np.float64)[number, :, : q_sizes[number]]
            attended, d_out = (np.asarray(x, np.float64).reshape(q.shape)[at] for x in (attended, d_out))
            probs = np.exp(scores - total[..., None])
            d_probs = np.einsum("qhd,khd->hqk", d_out, values) - (d_out * attended).sum(-1).T[..., None]
            d_scores = probs * d_probs * options["scale"]
            d_q[at] = np.einsum("hqk,khd->qhd", d_scores, keys)
            by_head = d_q.shape[1] // shared, shared
            for into, part in (
                (d_k, np.einsum("hqk,qhd->khd", d_scores, q[at])),
                (d_v, np.einsum("hqk,qhd->khd", probs, d_out)),
            ):
                into[seen] = part.reshape(len(part), *by_head, -1).sum(2)
        if self.kind == "forward":
            return jnp.asarray(out.reshape(shapes[0]), jnp.float32), jnp.asarray(sums, jnp.float32)
        return [jnp.asarray(x.reshape(shape), jnp.float32) for x, shape in zip((d_q, d_k, d_v), shapes)]


def draw_arrays(seed: int, length: int, heads: int, keys: int, size: int, dtype) -> list[jax.Array]:
    """Queries, keys, values, and the gradient of what is attended."""
    rng = np.random.default_rng(seed)
    shapes = [(1, length, count, size) for count in (heads, keys, keys, heads)]
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def masked_attention(q, k, v, d_out, layout: Layout) -> list[jax.Array]:
    """What is attended and the gradients, in float32 by a mask."""
    arrays = [x.astype(jnp.float32) for x in (q, k, v)]
    bias = segment_bias(layout, jnp.dtype("float32"))
    attended, pull_back = jax.vjp(lambda *qkv: attend(*qkv, layout=layout, bias=bias, causal=True), *arrays)
    return [attended, *pull_back(d_out.astype(jnp.float32))]


@settings(deadline=None, max_examples=20)
@given(groups_of_rows(), st.integers(0, 100))
def test_two_calls_of_a_kernel_are_attention_under_the_mask(drawn, seed):
    """Whatever stands where the kernel writes nothing, the result is that of the mask, and finite, padding included."""
    rows, _ = drawn
    layout = on_device(together(rows, "flat").layout([len(row) for row in rows]))
    q, k, v, d_out = draw_arrays(seed, LENGTH, 4, 2, 8, jnp.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cudnn, "_dot_product_attention_fwd_p", SlowCudnn("forward"))
        patch.setattr(cudnn, "_dot_product_attention_bwd_p", SlowCudnn("backward"))
        attended, residuals = attention._flat_forward("cudnn", q, k, v, layout)
        *gradients, none = attention._flat_backward("cudnn", residuals, d_out)
    assert none is None
    for found, expected in zip([attended, *gradients], masked_attention(q, k, v, d_out, layout), strict=True):
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found, expected, atol=2e-5)


# JAX's private interface

ARGUMENTS = ("query", "key", "value", "bias", "q_seqlen", "kv_seqlen", "q_offsets", "kv_offsets")
ARGUMENTS += ("page_table_k", "page_table_v")
OPTIONS = {"scale", "seed", "dropout_rate", "variadic_args", "mask_type", "layout", "sliding_window_length"}
MOVED = (
    f"JAX {jax.__version__} changed its private interface to cuDNN's attention (jax._src.cudnn."
    "fused_attention_stablehlo), which rlt_jax/models/attention.py calls for flat sequences: {}. Bring "
    "_cudnn_arguments, _cudnn_forward and _cudnn_backward in line with it, run this file with -m gpu on a Hopper GPU, "
    "and then change this test."
)


@pytest.mark.parametrize(
    ("name", "more", "options"),
    [
        ("fwd", (), OPTIONS | {"is_training"}),
        ("bwd", ("activation", "fwd_output", "grad_output"), OPTIONS),
    ],
)
def test_jax_takes_the_arguments_that_are_passed(name, more, options):
    for part in (f"_dot_product_attention_{name}_p", f"_dot_product_attention_{name}_abstract"):
        assert hasattr(cudnn, part), MOVED.format(f"there is no {part}")
    parameters = inspect.signature(getattr(cudnn, f"_dot_product_attention_{name}_abstract")).parameters.values()
    positional = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
    named = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert positional == ARGUMENTS + more, MOVED.format(f"its {name} takes {positional}")
    assert named == options, MOVED.format(f"the options of its {name} are {sorted(named)}")


def test_jax_has_the_masks_and_the_order_of_axes_that_are_asked_for():
    masks = {mask.name: mask.value for mask in cudnn.MaskType}
    assert {"PADDING", "PADDING_CAUSAL"} <= masks.keys(), MOVED.format(f"its masks are {masks}")
    axes = {order.name: order.value for order in cudnn.AttentionLayout}
    assert "BTNH" in axes, MOVED.format(f"its orders of axes are {axes}")


@pytest.mark.parametrize("prefix", [False, True])
def test_jax_returns_the_shapes_that_are_expected(prefix):
    """By its own rules for shapes, without a GPU: of the output, one sum a segment, head and place, and gradients."""
    rows = [np.append(PROMPT, [token] * 5).astype(np.int32) for token in (1, 2, 3)]
    layout = on_device(together(rows, "flat").layout([25] * 3))
    assert layout.longest == LENGTH  # padding is the longest segment
    q, k, v, d_out = draw_arrays(0, LENGTH, 4, 2, 64, jnp.bfloat16)
    total = jnp.zeros((LENGTH, 4), jnp.float32)
    try:
        attended, sums = jax.eval_shape(partial(attention._cudnn_forward, prefix=prefix), q, k, v, layout)
        gradients = jax.eval_shape(partial(attention._cudnn_backward, prefix=prefix), q, k, v, layout, q, total, d_out)
    except Exception as error:
        raise AssertionError(MOVED.format(f"binding its primitives failed: {error}")) from error
    shapes = [(x.shape, x.dtype) for x in (attended, sums, *gradients)]
    expected = [(q.shape, q.dtype), ((LENGTH, 4), jnp.float32), *((x.shape, x.dtype) for x in (q, k, v))]
    assert shapes == expected, MOVED.format(f"it returns {shapes}")


# on a GPU


def layouts_of_a_gpu() -> dict[str, tuple[MicroBatch, list[int]]]:
    """Flat sequences of 1024 tokens: their trees (lengths of each one's rows, tokens shared)."""
    groups = {
        "two groups, a row alone, padding": [([300, 180, 121], 100), ([90], 0), ([200, 230, 160], 150)],
        "a prompt of one token": [([200, 1, 3, 130], 1), ([300, 299, 100], 99)],
        "empty completions": [([128, 200, 128], 128), ([64, 64], 64), ([300, 257], 256)],
        "one row alone": [([700], 0)],
        "rows alone, no padding": [([256], 0), ([512], 0), ([1], 0), ([255], 0)],
        "many short completions": [([400 + n for n in range(1, 25)], 400)],
        "one group, no padding": [([524, 624, 676], 400)],
    }
    batches = {}
    for name, trees in groups.items():
        lengths: list[int] = []
        lying = []
        for own, shared in trees:
            rows = list(range(len(lengths), len(lengths) + len(own)))
            lengths += own
            lying.append(Tree(rows, shared, shared + sum(length - shared for length in own)))
        batches[name] = MicroBatch([lying], 1, 1024, "flat", Limits(32, 4)), lengths
    return batches


LAYOUTS = layouts_of_a_gpu()


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_of_the_tests_on_a_gpu_hold_their_tokens(name):
    batch, lengths = LAYOUTS[name]
    assert batch.distinct <= batch.length == 1024
    assert ("no padding" in name) == (batch.distinct == 1024)
    layout = batch.layout(lengths)
    assert layout.spans[:, 1].sum() == 1024 and len(layout.spans) == 32 and len(layout.groups) == 4


def distance(found: jax.Array, expected: jax.Array) -> float:
    found, expected = np.asarray(found, np.float32), np.asarray(expected, np.float32)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("heads", [4, 28])
@pytest.mark.parametrize(("kernel", "size"), [("cudnn", 64), ("cudnn", 128), ("flash-attn3", 128)])
def test_fused_kernels_equal_attention_under_the_mask(kernel, size, heads, name, monkeypatch):
    """bf16 against float32 of the same numbers: output and gradients within the rounding of 8 bits, finite all over."""
    if not attention.is_flat(jnp.dtype(jnp.bfloat16), size):
        pytest.skip("needs a Hopper GPU or a newer one")
    if kernel == "cudnn":
        monkeypatch.setattr(attention, "flash_attn3", lambda: None)
    elif attention.attention_here("bfloat16", size) != kernel:
        pytest.skip("needs flash-attn3-jax and a Hopper GPU")
    batch, lengths = LAYOUTS[name]
    layout = on_device(batch.layout(lengths))
    q, k, v, d_out = draw_arrays(heads, batch.length, heads, 4, size, jnp.bfloat16)

    @jax.jit
    def fused(q, k, v, d_out, layout):
        attended, pull_back = jax.vjp(lambda *qkv: attend(*qkv, layout=layout, causal=True), q, k, v)
        return attended, *pull_back(d_out)

    assert attention.kernel_name("bfloat16", size) == kernel
    found = fused(q, k, v, d_out, layout)
    expected = masked_attention(q, k, v, d_out, layout)
    for what, ours, theirs in zip(("output", "queries", "keys", "values"), found, expected, strict=True):
        assert ours.dtype == jnp.bfloat16 and np.isfinite(np.asarray(ours, np.float32)).all(), what
        assert distance(ours, theirs) <= 5e-3, what


@pytest.mark.parametrize(
    ("capability", "dtype", "size", "name", "lies"),
    [
        ((9, 0), "bfloat16", 64, "cudnn", "flat"),
        ((10, 0), "float16", 128, "cudnn", "flat"),
        ((8, 0), "bfloat16", 128, "cudnn (one row a sequence)", "rows"),
        ((9, 0), "float32", 128, "xla", "masked"),
        ((9, 0), "bfloat16", 256, "xla", "masked"),
        (None, "bfloat16", 128, "xla", "masked"),  # a CPU
    ],
)
def test_the_device_and_the_weights_decide_how_rows_lie(monkeypatch, capability, dtype, size, name, lies):
    monkeypatch.setattr(attention.jax, "default_backend", lambda: "cpu" if capability is None else "gpu")
    monkeypatch.setattr(attention, "_capability", lambda: capability)
    assert attention.kernel_name(dtype, size) == name
    assert attention.arrangement(dtype, size) == lies
    assert attention.is_flat(dtype, size) == (lies == "flat")
