"""The update against the original's gradients, and its own laws: micro-batches, exact masters, one compilation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlt_jax.configs import LossConfig
from rlt_jax.learner.backward import make_layerwise_accumulate
from rlt_jax.learner.objective import policy_objective, sft_objective
from rlt_jax.learner.optimizer import make_apply, make_optimizer
from rlt_jax.learner.state import init_state, join_master, split_master
from rlt_jax.learner.step import LossRows, grpo_batches, sft_batches, sum_gradients
from rlt_jax.models import load_model, named_tensors
from rlt_jax.segments import Limits, MicroBatch, Tree, micro_batches

pytestmark = pytest.mark.quick_compile


@pytest.fixture(scope="module")
def policy(golden):
    return load_model(golden / "teacher", dtype="float32")


@pytest.fixture(scope="module")
def cases(golden):
    return np.load(golden / "grpo_cases.npz")


def golden_rows(cases):
    """The golden batch as ragged rows (the original's prompts are left-padded; its loss counts the same tokens)."""
    prompts = [ids[mask.astype(bool)] for ids, mask in zip(cases["batch/prompt_ids"], cases["batch/prompt_mask"])]
    lengths = cases["batch/completion_mask"].sum(1)
    completions = [ids[:n] for ids, n in zip(cases["batch/completion_ids"], lengths)]
    ids = [np.concatenate(pair).astype(np.int32) for pair in zip(prompts, completions)]
    ref = [
        np.concatenate([np.zeros(len(prompt), np.float32), logps[:n]])
        for prompt, logps, n in zip(prompts, cases["batch/ref_per_token_logps"], lengths)
    ]
    return ids, lengths.tolist(), ref


LIMITS = Limits(16, 8)  # of flat sequences, for as few rows as here


def laid_out(rows, *, tokens: int, arrangement: str) -> list[MicroBatch]:
    return micro_batches(rows, tokens=tokens, arrangement=arrangement, limits=LIMITS)


def loss_rows(lengths, ref, advantages):
    """Completions at the ends of rows f32[T_i]; log-probs of a sampler for tests that do not read them."""
    ref_logps = [row[len(row) - n :] for row, n in zip(ref, lengths)]
    return LossRows([np.zeros(n, np.float32) for n in lengths], advantages, ref_logps)


def options(**changed):
    return {
        "learning_rate": 1e-3,
        "max_steps": 10,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "lr_scheduler": "constant",
        "warmup_ratio": 0.0,
    } | changed


@pytest.mark.parametrize(
    ("arrangement", "tokens", "shared", "shapes"),
    [
        ("rows", 128, 0, [(4, 32)]),
        ("rows", 96, 0, [(2, 32), (2, 32)]),
        ("rows", 32, 0, [(1, 32)] * 4),
        ("masked", 96, 0, [(2, 32), (2, 32)]),
        ("masked", 200, 4, [(1, 48), (1, 32), (1, 32)]),
        ("flat", 200, 0, [(1, 32)] * 3),
        ("flat", 64, 4, [(1, 64), (1, 32)]),
    ],
)
def test_gradients_of_a_step_equal_the_originals(
    policy, cases, golden, monkeypatch, arrangement, tokens, shared, shapes
):
    """Two of the prompts begin with the same four tokens, usually too few to be shared."""
    monkeypatch.setattr("rlt_jax.segments.SIZE_STEP", 64)
    if shared:
        monkeypatch.setattr("rlt_jax.segments.MIN_SHARED", shared)
    model, params = policy
    ids, lengths, ref = golden_rows(cases)
    objective = policy_objective(LossConfig(beta=float(cases["batch/beta"])))
    temperature = float(cases["batch/temperature"])
    accumulate = make_layerwise_accumulate(model, objective, temperature=temperature, chunk=16)
    lie = laid_out(ids, tokens=tokens, arrangement=arrangement)
    assert max(tree.shared for batch in lie for trees in batch.sequences for tree in trees) == shared
    advantages, longest = cases["batch/advantages"], max(lengths)
    batches = list(grpo_batches(ids, loss_rows(lengths, ref, advantages), batches=lie, longest=longest))
    assert [batch.ids.shape for batch, _ in batches] == shapes
    gradients, aux = sum_gradients(accumulate, params, batches)
    assert float(aux["loss"]) == pytest.approx(float(cases["batch/loss"]), abs=1e-5)
    assert float(aux["kl"]) == pytest.approx(float(cases["batch/mean_kl"]), rel=1e-3)
    expected = np.load(golden / "policy_grad.npz")
    assert float(optax.global_norm(gradients)) == pytest.approx(float(expected["global_grad_norm"]), rel=1e-3)
    for name, gradient in named_tensors(model, gradients):
        want = expected[f"grad/{name}"]
        np.testing.assert_allclose(gradient, want, rtol=1e-3, atol=1e-5 * np.abs(want).max(), err_msg=name)


def test_master_splits_and_joins_exactly():
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    special = np.array([0.0, -0.0, 1e-45, -3e38, np.float32(1) + np.float32(2**-23)], np.float32)
    master = jnp.asarray(np.concatenate([values, special]))
    high, low = split_master(master)
    assert high.dtype == jnp.bfloat16 and low.dtype == jnp.uint16
    assert np.array_equal(np.asarray(join_master(high, low)).view(np.uint32), np.asarray(master).view(np.uint32))


def test_bf16_weights_are_the_nearest_to_their_masters():
    """Truncated ones would all lose up to an ulp at the first update, far more than the update itself."""
    start = np.random.default_rng(0).normal(scale=0.02, size=10_000).astype(jnp.bfloat16)
    master = jnp.asarray(start.astype(np.float32) * (1 - 1e-5))  # every weight a little smaller
    high, _ = split_master(master)
    np.testing.assert_array_equal(np.asarray(high), start)
    random = jnp.asarray(np.random.default_rng(1).normal(size=10_000).astype(np.float32))
    np.testing.assert_array_equal(np.asarray(split_master(random)[0]), np.asarray(random.astype(jnp.bfloat16)))


@pytest.mark.quick_compile(False)  # bits of two programs are compared
def test_bf16_weights_move_as_fp32_training_does():
    """50 steps at lr 1e-6: the masters equal plain fp32 AdamW bit for bit, plain bf16 AdamW does not move at all."""
    rng = np.random.default_rng(1)
    start = {"w": jnp.asarray(rng.normal(scale=0.02, size=(64, 64)), jnp.bfloat16)}
    optimizer, _ = make_optimizer(**options(learning_rate=1e-6, max_steps=50))
    apply, apply_fp32 = make_apply(optimizer), make_apply(optimizer)
    state = init_state(jax.tree.map(jnp.copy, start), optimizer)
    plain = init_state(jax.tree.map(lambda p: p.astype(jnp.float32), start), optimizer)
    stuck, stuck_state = start["w"], optimizer.init(start)
    for _ in range(50):
        gradient = rng.normal(size=(64, 64)).astype(np.float32)
        state, _ = apply(state, {"w": jnp.asarray(gradient)})
        plain, _ = apply_fp32(plain, {"w": jnp.asarray(gradient)})
        updates, stuck_state = optimizer.update({"w": jnp.asarray(gradient, jnp.bfloat16)}, stuck_state, {"w": stuck})
        stuck = optax.apply_updates({"w": stuck}, updates)["w"]
    master = np.asarray(join_master(state.params["w"], state.low["w"]))
    np.testing.assert_array_equal(master, np.asarray(plain.params["w"]))
    moved = np.abs(master - np.asarray(start["w"], np.float32)).mean()
    assert moved > 1e-6
    assert np.abs(np.asarray(stuck, np.float32) - np.asarray(start["w"], np.float32)).mean() < 0.05 * moved


def test_gradient_is_clipped_to_the_global_norm_before_adamw():
    """With eps far above the gradient AdamW is linear in it, so the clip shows in the step."""
    optimizer, _ = make_optimizer(**options(learning_rate=1.0, adam_epsilon=1e6, max_grad_norm=1.0))
    state = init_state({"w": jnp.zeros(4)}, optimizer)
    state, norm = make_apply(optimizer)(state, {"w": jnp.full(4, 10.0)})
    assert float(norm) == pytest.approx(20.0)
    np.testing.assert_allclose(state.params["w"], np.full(4, -0.5e-6), rtol=1e-4)


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        ("constant", [1 / 3, 2 / 3, 1.0, 1.0, 1.0]),
        ("linear", [1 / 3, 2 / 3, 1.0, 1 - 4 / 8, 0.0]),
        ("cosine", [1 / 3, 2 / 3, 1.0, 0.5, 0.0]),
    ],
)
def test_learning_rate_warms_up_then_follows_its_schedule(scheduler, expected):
    _, rate = make_optimizer(**options(learning_rate=1.0, warmup_ratio=0.2, lr_scheduler=scheduler))
    np.testing.assert_allclose([float(rate(step)) for step in (0, 1, 2, 6, 10)], expected, atol=1e-6)


BY_ROW = ("places", "row_mask", "ref_logps", "sampler_logps")  # fields of a TrainBatch [R, C]


@pytest.mark.parametrize("arrangement", ["rows", "masked"])
def test_filling_rows_and_pads_change_nothing(policy, cases, arrangement):
    """Whatever stands in pads and in the rows that only fill a micro-batch, the gradient stays the same and finite."""
    model, params = policy
    ids, lengths, ref = golden_rows(cases)
    accumulate = make_layerwise_accumulate(model, policy_objective(LossConfig(beta=0.04)), temperature=0.7, chunk=16)
    advantages = np.array([1.0, -1.0], np.float32)
    ids, lengths, ref = ids[:2], lengths[:2], ref[:2]
    trees = [Tree([0], 0, len(ids[0])), Tree([1], 0, len(ids[1]))]
    sequences = [[tree] for tree in trees] if arrangement == "rows" else [trees]
    lie = MicroBatch(sequences, 3, 64, arrangement)
    ((batch, weight),) = grpo_batches(ids, loss_rows(lengths, ref, advantages), batches=[lie], longest=20)
    # As a step with a micro-batch of four rows would pad this one.
    batch = batch._replace(**{name: np.pad(getattr(batch, name), ((0, 2), (0, 0))) for name in BY_ROW})
    batch = batch._replace(advantages=np.pad(batch.advantages, (0, 2)))
    real = np.zeros(batch.ids.size, bool)
    real[np.concatenate(list(lie.places([len(row) for row in ids]).values()))] = True
    on = batch.row_mask
    assert not on[2:].any() and on[:2].sum(1).tolist() == lengths
    poisoned = batch._replace(
        ids=np.where(real.reshape(batch.ids.shape), batch.ids, 7),
        places=np.where(on, batch.places, np.flatnonzero(real)[-1]).astype(np.int32),  # of a token that counts
        ref_logps=np.where(on, batch.ref_logps, np.inf).astype(np.float32),
        advantages=np.where(on.any(1), batch.advantages, 1e9).astype(np.float32),
        sampler_logps=np.where(on, batch.sampler_logps, np.nan).astype(np.float32),
    )
    clean, _ = sum_gradients(accumulate, params, [(batch, weight)])
    dirty, _ = sum_gradients(accumulate, params, [(poisoned, weight)])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), clean, dirty)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(dirty))


def test_supervised_micro_batches_sum_to_the_mean_over_all_tokens(policy):
    model, params = policy
    rng = np.random.default_rng(2)
    examples = [(rng.integers(0, 900, n).astype(np.int32), np.arange(n) >= n // 2) for n in (9, 30, 14, 21, 5)]
    accumulate = make_layerwise_accumulate(model, sft_objective, temperature=1.0, chunk=32)
    ids = [row for row, _ in examples]

    together = [MicroBatch([[Tree([i], 0, len(row))] for i, row in enumerate(ids)], 5, 32, "rows")]
    apart = laid_out(ids, tokens=2 * 32, arrangement="rows")
    assert [len(batch.rows) for batch in apart] == [2, 2, 1]
    whole, aux = sum_gradients(accumulate, params, sft_batches(examples, batches=together))
    parts, parts_aux = sum_gradients(accumulate, params, sft_batches(examples, batches=apart))
    assert float(aux["loss"]) == pytest.approx(float(parts_aux["loss"]), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), whole, parts)


@pytest.mark.slow
@pytest.mark.parametrize("saved", [{}, {"saved_mlp": 2, "saved_attention": 1}])
@pytest.mark.parametrize(
    ("lengths", "packed_length", "shapes"),
    [
        ((9, 30, 14, 21, 5, 10), 32, [(1, 32)] * 3),
        ((9, 30, 14, 21, 5, 10, 31, 29, 28, 27), 32, [(4, 32), (4, 32)]),  # seven sequences, and one that fills up
        ((30, 17, 18, 28), 64, [(2, 48)]),
    ],
)
def test_a_packed_step_is_the_step_of_single_rows(policy, lengths, packed_length, shapes, saved):
    model, params = policy
    rng = np.random.default_rng(2)
    examples = [(rng.integers(0, 900, n).astype(np.int32), np.arange(n) >= n // 3) for n in lengths]
    ids = [row for row, _ in examples]
    accumulate = make_layerwise_accumulate(model, sft_objective, temperature=1.0, chunk=32, **saved)
    lie = micro_batches(ids, tokens=128, arrangement="masked", packed_length=packed_length)
    packed = list(sft_batches(examples, batches=lie))
    assert [batch.ids.shape for batch, _ in packed] == shapes
    assert sum(batch.mask.sum() for batch, _ in packed) == sum(trained.sum() for _, trained in examples)
    assert sum(weight for _, weight in packed) == pytest.approx(1)
    single = sft_batches(examples, batches=laid_out(ids, tokens=2 * 32, arrangement="rows"))
    expected, expected_aux = sum_gradients(accumulate, params, single)
    found, aux = sum_gradients(accumulate, params, packed)
    assert float(aux["loss"]) == pytest.approx(float(expected_aux["loss"]), rel=1e-6)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


@pytest.mark.parametrize("arrangement", ["masked", "flat"])
def test_a_token_of_several_examples_counts_for_each_that_trains_it(policy, arrangement):
    """Two examples with 20 first tokens in common, the second of which trains some of them; the third trains all."""
    model, params = policy
    rng = np.random.default_rng(4)
    first = rng.integers(0, 900, 20).astype(np.int32)
    ids = [np.concatenate([first, rng.integers(0, 900, n).astype(np.int32)]) for n in (9, 4, 0)]
    examples = [(row, np.arange(len(row)) >= start) for row, start in zip(ids, (20, 15, 0))]
    accumulate = make_layerwise_accumulate(model, sft_objective, temperature=1.0, chunk=32)

    def step(arrangement):
        lie = laid_out(ids, tokens=96, arrangement=arrangement)
        batches = list(sft_batches(examples, batches=lie))
        assert sum(weight for _, weight in batches) == pytest.approx(1)
        return lie, batches, *sum_gradients(accumulate, params, batches)

    (lie,), ((batch, _),), found, aux = step(arrangement)
    assert lie.distinct == 20 + 9 + 4
    assert np.unique_counts(batch.mask[batch.mask > 0]).counts.tolist() == [15 + 9 + 4, 5]  # once, and twice
    _, _, expected, expected_aux = step("rows")
    # The first token of a row is trained as well, and has no log-prob: it counts in the mean alike.
    assert float(aux["loss"]) == pytest.approx(float(expected_aux["loss"]), rel=1e-6)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


def test_a_bucket_compiles_once(policy, cases):
    model, params = policy
    ids, lengths, ref = golden_rows(cases)
    accumulate = make_layerwise_accumulate(model, policy_objective(LossConfig(beta=0.04)), temperature=0.7, chunk=16)
    lie = laid_out(ids, tokens=2 * 32, arrangement="rows")
    assert len(lie) == 2
    for _ in range(3):
        advantages, longest = cases["batch/advantages"], max(lengths)
        batches = grpo_batches(ids, loss_rows(lengths, ref, advantages), batches=lie, longest=longest)
        sum_gradients(accumulate, params, batches)
    assert accumulate._cache_size() == 1


def test_flat_sequences_of_one_size_compile_once_whatever_lies_in_them(policy):
    """Groups, rows alone, padding: the layout is data, as long as the longest segment stays in the same part."""
    model, params = policy
    rng = np.random.default_rng(5)
    accumulate = make_layerwise_accumulate(model, policy_objective(LossConfig(beta=0.04)), temperature=0.7, chunk=16)
    shapes = set()
    for _ in range(4):
        prompts = [rng.integers(0, 900, n).astype(np.int32) for n in rng.integers(20, 30, 2)]
        lengths = rng.integers(1, 30, 4).tolist()
        ids = [np.append(prompts[i % 2], rng.integers(0, 900, n)).astype(np.int32) for i, n in enumerate(lengths)]
        ref = [np.zeros(len(row), np.float32) for row in ids]
        lie = laid_out(ids, tokens=1024, arrangement="flat")
        advantages = rng.normal(size=4).astype(np.float32)
        batches = list(grpo_batches(ids, loss_rows(lengths, ref, advantages), batches=lie, longest=32))
        shapes |= {(batch.ids.shape, batch.layout.longest) for batch, _ in batches}
        sum_gradients(accumulate, params, batches)
    assert accumulate._cache_size() == len(shapes) == 1
