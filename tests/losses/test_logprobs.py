"""Log-probs: golden numbers of the original, and the chunked form against the dense one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from rlt_jax.losses import linear_token_logprobs, targets_of, token_logprobs, wanted_logprobs


def draw(seed, *shape, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def draw_labels(seed, *shape, vocab):
    return jnp.asarray(np.random.default_rng(seed).integers(vocab, size=shape), jnp.int32)


def dense(hidden, head, labels, temperature=1.0):
    logits = jnp.einsum("...d,vd->...v", hidden.astype(jnp.float32), head.astype(jnp.float32))
    return token_logprobs(logits, labels, temperature=temperature)


def all_equations(jaxpr):
    """Every equation of a jaxpr, of its loops and calls too."""
    for equation in jaxpr.eqns:
        yield equation
        for parameter in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from all_equations(inner)


def largest_array(function, *arguments):
    """Elements of the largest array that a function computes."""
    equations = all_equations(jax.make_jaxpr(function)(*arguments).jaxpr)
    return max(int(np.prod(variable.aval.shape)) for equation in equations for variable in equation.outvars)


@pytest.mark.parametrize("case", ["rand0", "rand1", "rand2"])
def test_golden_random_logits(golden, case):
    z = np.load(golden / "grpo_cases.npz")
    prompt = int(z[f"{case}/prompt_len"])
    logps = token_logprobs(
        z[f"{case}/logits"][:, prompt - 1 : -1],
        z[f"{case}/input_ids"][:, prompt:],
        temperature=z[f"{case}/temperature"],
    )
    np.testing.assert_allclose(logps, z[f"{case}/per_token_logps"], atol=1e-5)


def test_golden_teacher_logits(golden):
    z = np.load(golden / "grpo_cases.npz")
    mask = z["batch/completion_mask"].astype(bool)
    logits = z["batch/teacher_logits"][:, z["batch/prompt_ids"].shape[1] - 1 : -1]
    logps = token_logprobs(logits, z["batch/completion_ids"], temperature=float(z["batch/temperature"]))
    np.testing.assert_allclose(np.asarray(logps)[mask], z["batch/per_token_logps"][mask], atol=1e-4)


def test_golden_bf16_logits_are_computed_in_float32(golden):
    # Departure: the original returns bf16, so its numbers are ours only within a bf16 rounding (2^-8 of the value).
    z = np.load(golden / "grpo_cases.npz")
    logits, index = jnp.asarray(z["bf16/logits_as_f32"], jnp.bfloat16), z["bf16/index"]
    logps = token_logprobs(logits, index)
    assert logps.dtype == jnp.float32
    np.testing.assert_allclose(logps, z["bf16/selective_log_softmax_as_f32"], rtol=2**-8)
    np.testing.assert_allclose(logps, token_logprobs(z["bf16/logits_as_f32"], index), rtol=1e-6)


@pytest.mark.parametrize("chunk", [1, 4, 7, 1024])  # 14 tokens: one by one, not dividing, dividing, one piece
def test_chunked_equals_dense(chunk):
    hidden, head, labels = draw(0, 2, 7, 8), draw(1, 19, 8), draw_labels(2, 2, 7, vocab=19)
    weights = draw(3, 2, 7)

    def chunked(h, w):
        return linear_token_logprobs(h, w, labels, temperature=0.7, chunk=chunk)

    def value_and_gradients(function):
        logps, pull_back = jax.vjp(function, hidden, head)
        return logps, *pull_back(weights)

    ours = jax.jit(value_and_gradients, static_argnums=0)(chunked)
    theirs = jax.jit(value_and_gradients, static_argnums=0)(lambda h, w: dense(h, w, labels, 0.7))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_chunked_takes_any_leading_shape():
    hidden, head, labels = draw(0, 3, 4), draw(1, 5, 4), draw_labels(2, 3, vocab=5)
    flat = linear_token_logprobs(hidden, head, labels, chunk=2)
    assert flat.shape == (3,)
    np.testing.assert_allclose(flat, linear_token_logprobs(hidden[None], head, labels[None], chunk=2)[0], atol=1e-6)
    assert linear_token_logprobs(hidden[:0], head, labels[:0]).shape == (0,)


def test_chunked_bf16_accumulates_in_float32():
    tokens, vocab = 512, 11
    hidden, head = draw(0, 1, tokens, 16, dtype=jnp.bfloat16), draw(1, vocab, 16, dtype=jnp.bfloat16)
    labels = draw_labels(2, 1, tokens, vocab=vocab)
    logps = linear_token_logprobs(hidden, head, labels, chunk=64)
    assert logps.dtype == jnp.float32
    np.testing.assert_allclose(logps, dense(hidden, head, labels), atol=1e-5)  # a bf16 logit is off by 0.01 here

    def gradients(function, *arguments):
        return jax.jit(jax.grad(lambda h, w: jnp.sum(function(h, w, labels)), argnums=(0, 1)))(*arguments)

    ours = gradients(partial(linear_token_logprobs, chunk=1), hidden, head)
    theirs = gradients(dense, hidden.astype(jnp.float32), head.astype(jnp.float32))
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == jnp.bfloat16
        # 512 pieces summed in bf16 would be off by several per cent
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.006 * float(jnp.abs(b).max()))


def test_chunked_bf16_products_take_bf16_and_give_float32():
    # A CPU multiplies bf16 in float32 anyway: only the program shows what an accelerator would do.
    hidden, head = draw(0, 1, 6, 4, dtype=jnp.bfloat16), draw(1, 5, 4, dtype=jnp.bfloat16)
    labels = draw_labels(2, 1, 6, vocab=5)
    grad = jax.grad(lambda h, w: jnp.sum(linear_token_logprobs(h, w, labels, chunk=2)), argnums=(0, 1))
    equations = all_equations(jax.make_jaxpr(grad)(hidden, head).jaxpr)
    products = [equation for equation in equations if equation.primitive.name == "dot_general"]
    assert len(products) == 4  # logits, logits again, two gradients
    for product in products:
        assert [x.aval.dtype for x in product.invars] == [jnp.bfloat16, jnp.bfloat16]
        assert product.outvars[0].aval.dtype == jnp.float32


def test_chunked_never_holds_all_logits():
    batch, length, vocab, width, chunk = 2, 24, 50, 4, 8
    hidden, head = draw(0, batch, length, width), draw(1, vocab, width)
    labels = draw_labels(2, batch, length, vocab=vocab)

    def loss(h, w):
        return jnp.sum(linear_token_logprobs(h, w, labels, chunk=chunk))

    def dense_loss(h, w):
        return jnp.sum(dense(h, w, labels))

    for function in (loss, jax.grad(loss, argnums=(0, 1))):
        assert largest_array(function, hidden, head) == chunk * vocab
    assert largest_array(jax.grad(dense_loss), hidden, head) == batch * length * vocab  # which would be seen


def test_chunked_compiles_into_chunk_sized_memory():
    tokens, vocab, width, chunk = 4096, 4096, 8, 64
    shapes = jax.ShapeDtypeStruct((1, tokens, width), jnp.float32), jax.ShapeDtypeStruct((vocab, width), jnp.float32)
    labels = jnp.zeros((1, tokens), jnp.int32)

    def loss(h, w):
        return jnp.sum(linear_token_logprobs(h, w, labels, chunk=chunk))

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * chunk * vocab * 4  # all logits would be 64 chunks


def test_chunked_gradients_numerically():
    hidden, head, labels = draw(0, 1, 5, 3), draw(1, 6, 3), draw_labels(2, 1, 5, vocab=6)
    with jax.enable_x64(True):
        check_grads(
            jax.jit(lambda h, w: linear_token_logprobs(h, w, labels, temperature=0.7, chunk=2)),
            (hidden.astype(jnp.float64), head.astype(jnp.float64)),
            order=1,
            modes=["rev"],
            rtol=1e-6,
            atol=1e-6,
        )


# wanted tokens alone

BEFORE = np.array([0, 0, 1, 1, 3, 4, 4, 6, 8, 8])  # two rows: 0 1 2 and 0 1 3 4 5, 0 1 3 4 6 7; and 8 9


def test_targets_by_hand():
    wanted = np.isin(np.arange(10), [2, 3, 5, 6, 9])
    targets = targets_of(jnp.arange(10) + 50, jnp.asarray(BEFORE), jnp.asarray(wanted), chunk=3)
    assert targets.places.tolist() == [[2, 3, 5], [6, 9, 10], [10, 10, 10], [10, 10, 10]]
    assert int(targets.num_chunks) == 2
    assert targets.ids.tolist() == list(range(50, 60)) and targets.before.tolist() == BEFORE.tolist()


@pytest.mark.parametrize(("count", "chunk", "chunks"), [(0, 3, 0), (10, 3, 4), (10, 10, 1), (10, 1000, 1), (1, 1, 1)])
def test_as_few_chunks_as_hold_the_targets(count, chunk, chunks):
    wanted = jnp.arange(10) < count
    targets = targets_of(jnp.zeros(10, jnp.int32), jnp.asarray(BEFORE), wanted, chunk=chunk)
    assert int(targets.num_chunks) == chunks
    assert targets.places.shape[1] == min(chunk, 10)
    assert sorted(targets.places.ravel().tolist())[:count] == list(range(count))


@pytest.mark.parametrize("chunk", [1, 3, 4, 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_wanted_log_probs_are_those_of_the_state_before(chunk, temperature):
    """One hidden state may predict several tokens: those at 2 and 3 both follow the one at 1."""
    hidden, head, ids = draw(0, 10, 8), draw(1, 19, 8), draw_labels(2, 10, vocab=19)
    wanted = np.isin(np.arange(10), [1, 2, 3, 6, 9])
    targets = targets_of(ids, jnp.asarray(BEFORE), jnp.asarray(wanted), chunk=chunk)
    logps, normalisers = jax.jit(wanted_logprobs)(hidden, head, targets, temperature=temperature)
    expected = dense(hidden[BEFORE], head, ids, temperature)
    assert logps.dtype == jnp.float32
    np.testing.assert_allclose(logps, np.where(wanted, expected, 0), atol=1e-5)
    places = targets.places.reshape(-1)[: wanted.sum()]
    sums = jax.nn.logsumexp(hidden[BEFORE] @ head.T / temperature, axis=-1)
    np.testing.assert_allclose(normalisers.reshape(-1)[: wanted.sum()], sums[places], atol=1e-5)


def test_states_of_tokens_that_are_not_wanted_are_never_read():
    """Not even those that are not finite; and they cost nothing: one chunk of logits exists at a time."""
    hidden, head, ids = draw(0, 10, 8), draw(1, 19, 8), draw_labels(2, 10, vocab=19)
    wanted = np.isin(np.arange(10), [2, 3, 9])
    targets = targets_of(ids, jnp.asarray(BEFORE), jnp.asarray(wanted), chunk=3)
    read = np.isin(np.arange(10), BEFORE[wanted])
    clean, _ = wanted_logprobs(hidden, head, targets, temperature=1.0)
    poisoned = jnp.where(read[:, None], hidden, jnp.nan)
    np.testing.assert_array_equal(wanted_logprobs(poisoned, head, targets, temperature=1.0)[0], clean)
    assert largest_array(partial(wanted_logprobs, temperature=1.0), hidden, head, targets) == 3 * 19


def test_misuse_is_refused():
    hidden, head, labels = draw(0, 1, 5, 3), draw(1, 6, 3), draw_labels(2, 1, 5, vocab=6)
    with pytest.raises(ValueError, match=r"chunk=0: expected a number of tokens >= 1"):
        linear_token_logprobs(hidden, head, labels, chunk=0)
    with pytest.raises(AssertionError):
        linear_token_logprobs(hidden, head, labels[:, 1:])
    with pytest.raises(AssertionError):
        token_logprobs(hidden, labels[:, 1:])
