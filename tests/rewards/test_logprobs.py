"""Log-probs of ragged rows against transformers, and the spans that the reward reads."""

from functools import cache, partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import Qwen2ForCausalLM

import rlt_jax
from rlt_jax.errors import UserError
from rlt_jax.models import batches_for, load_model
from rlt_jax.rewards.logprobs import batched_logprobs, gather_logprobs, row_logprobs, sequence_logprobs
from rlt_jax.segments import Limits, micro_batches
from rlt_jax.types import ScoreRow

TINY = Path(rlt_jax.__file__).parent / "assets" / "tiny"
LENGTHS = (5, 70, 2, 33, 47, 1, 64)  # three buckets, in no order


@pytest.fixture(scope="module")
def teacher(golden):
    return load_model(golden / "teacher", dtype="float32")


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(3)
    return [rng.integers(0, 990, length).astype(np.int32) for length in LENGTHS]


@pytest.fixture(scope="module")
def oracle(golden, rows):
    """expected(temperature): transformers' log-softmax of each row alone, f32[T_i], 0 at position 0."""
    torch.set_num_threads(1)
    model = Qwen2ForCausalLM.from_pretrained(golden / "teacher", dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        logits = [model(torch.tensor(row[None].astype(np.int64))).logits[0] for row in rows]

    def expected(temperature: float) -> list[np.ndarray]:
        logps = [torch.log_softmax(of_row / temperature, -1).numpy() for of_row in logits]
        return [np.concatenate([[0.0], of_row[np.arange(len(row) - 1), row[1:]]]) for of_row, row in zip(logps, rows)]

    return expected


@pytest.mark.parametrize(
    ("temperature", "tokens", "chunk"),
    [(1.0, 3 * 96, 1024), (0.7, 3 * 96, 16), (0.7, 5000, 1024), (0.7, 1, 1024)],  # 5000 is more than there are
)
def test_ragged_rows_equal_transformers(teacher, rows, oracle, temperature, tokens, chunk):
    logps = row_logprobs(*teacher, rows, temperature=temperature, tokens=tokens, chunk=chunk)
    for ours, theirs in zip(logps, oracle(temperature), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
        assert ours[0] == 0.0 and ours.dtype == np.float32


def test_results_come_in_the_order_given(teacher, rows, oracle):
    order = [3, 6, 0, 5, 1, 2, 4]
    logps = row_logprobs(*teacher, [rows[i] for i in order], temperature=1.0, tokens=3 * 96, chunk=1024)
    expected = oracle(1.0)
    for i, ours in zip(order, logps, strict=True):
        np.testing.assert_allclose(ours, expected[i], atol=1e-4)


@pytest.mark.parametrize("packed_length", [None, 96])
def test_no_rows_give_no_logprobs(teacher, packed_length):
    assert row_logprobs(*teacher, [], temperature=1.0, tokens=3 * 96, chunk=1024, packed_length=packed_length) == []


@pytest.mark.slow
@pytest.mark.parametrize("model", ["golden/teacher", "golden/student", "tiny/teacher", "tiny/student"])
def test_rows_that_share_sequences_have_the_logprobs_of_single_ones(golden, rows, model):
    """Seven rows, of 222 tokens in all, in three sequences of up to 96."""
    where, who = model.split("/")
    folder = golden if where == "golden" else TINY
    opened = load_model(folder / who, dtype="float32")
    rows = [row % opened[0].config.vocab_size for row in rows]
    logprobs = partial(row_logprobs, *opened, rows, temperature=0.7, tokens=2 * 96, chunk=64)
    lie = partial(batches_for, opened[0].config, "float32", rows, tokens=2 * 96)
    seen = [lie(packed_length=96), lie()]
    for packed, single in zip(logprobs(packed_length=96), logprobs(), strict=True):
        np.testing.assert_allclose(packed, single, atol=1e-5, rtol=1e-6)
        assert packed[0] == 0.0 and packed.dtype == np.float32 and len(packed) == len(single)
    assert [[len(trees) for batch in batches for trees in batch.sequences] for batches in seen] == [[2, 4, 1], [1] * 7]
    assert [batch.length for batch in seen[0]] == [96, 96, 64]


# rows with first tokens in common

ARRANGEMENTS = ("rows", "masked", "flat")


def grouped_rows(seed: int = 0) -> list[np.ndarray]:
    """Three prompts with several completions each, one of them empty, one twice; a row that is part of another's."""
    rng = np.random.default_rng(seed)
    rows = []
    for length, completions in ((40, (13, 1, 0, 30)), (17, (20, 5)), (25, (9, 9, 33))):
        prompt = rng.integers(0, 990, length)
        rows += [np.append(prompt, rng.integers(0, 990, n)).astype(np.int32) for n in completions]
    rows += [rows[0].copy(), rows[3][:19].copy(), rng.integers(0, 990, 1).astype(np.int32)]
    return [rows[i] for i in rng.permutation(len(rows))]


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("tokens", [64, 5000])
def test_rows_that_share_tokens_equal_transformers_on_each_alone(golden, teacher, monkeypatch, arrangement, tokens):
    monkeypatch.setattr("rlt_jax.segments.SIZE_STEP", 64)
    rows = grouped_rows()
    batches = micro_batches(rows, tokens=tokens, arrangement=arrangement, limits=Limits(16, 4))
    shared = sum(map(len, rows)) - sum(batch.distinct for batch in batches)
    assert (shared > 0) == (arrangement != "rows")
    logps = batched_logprobs(*teacher, rows, batches, temperature=0.7, chunk=16)
    for row, ours in zip(rows, logps, strict=True):
        expected = oracle_logprobs(golden, row, 0.7)
        assert ours[0] == 0.0 and ours.dtype == np.float32
        np.testing.assert_allclose(ours, expected, atol=1e-4)
    single = [row_logprobs(*teacher, [row], temperature=0.7, tokens=1, chunk=16)[0] for row in rows]
    for ours, alone in zip(logps, single, strict=True):
        np.testing.assert_allclose(ours, alone, atol=1e-5, rtol=1e-5)


@cache
def oracle_model(folder: Path) -> Qwen2ForCausalLM:
    torch.set_num_threads(1)
    return Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def oracle_logprobs(golden: Path, row: np.ndarray, temperature: float) -> np.ndarray:
    """Transformers' log-probs f32[T] of one row."""
    with torch.no_grad():
        logits = oracle_model(golden / "teacher")(torch.tensor(row[None].astype(np.int64))).logits[0]
    logps = torch.log_softmax(logits / temperature, -1).numpy()
    return np.concatenate([[0.0], logps[np.arange(len(row) - 1), row[1:]]])


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_only_what_is_asked_for_is_returned(teacher, arrangement):
    """Also where another row of the group asks for a token that both share."""
    rows = grouped_rows()
    rng = np.random.default_rng(1)
    wanted = [np.sort(rng.choice(len(row), len(row) // 3, replace=False)) for row in rows]
    wanted[0] = np.arange(len(rows[0]))  # all, its first token too, which has no log-prob
    batches = micro_batches(rows, tokens=5000, arrangement=arrangement, limits=Limits(64, 8))
    logprobs = partial(batched_logprobs, *teacher, rows, batches, temperature=0.7, chunk=16)
    for row, everything, found, positions in zip(rows, logprobs(), logprobs(wanted=wanted), wanted, strict=True):
        expected = np.zeros(len(row), np.float32)
        expected[positions] = everything[positions]
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert not np.delete(found, positions).any()


def test_head_and_logits_are_for_the_wanted_tokens_alone(teacher):
    """Of 96 tokens, 5 are wanted: chunks of 4, of which two are computed."""
    model, params = teacher
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 990, (1, 96)), jnp.int32)
    wanted = np.zeros((1, 96), bool)
    wanted[0, [0, 3, 50, 51, 90, 95]] = True  # the first has no log-prob
    logps = np.asarray(sequence_logprobs(model, params, ids, temperature=1.0, chunk=4, wanted=jnp.asarray(wanted)))
    everything = np.asarray(sequence_logprobs(model, params, ids, temperature=1.0, chunk=4))
    assert np.flatnonzero(logps[0]).tolist() == [3, 50, 51, 90, 95]
    np.testing.assert_allclose(logps[wanted], everything[wanted], atol=1e-6)


def test_a_row_beyond_the_models_positions_is_refused(teacher):
    model, params = teacher
    row = np.zeros(model.config.max_positions + 1, np.int32)
    with pytest.raises(UserError, match=f"a sequence of {len(row)} tokens: expected at most the {len(row) - 1} pos"):
        row_logprobs(model, params, [row[:5], row], temperature=1.0, tokens=64, chunk=16)


def score_row(teacher_thought, student_thought, solution, *, matched):
    positions = [np.array(x, np.int32) for x in (teacher_thought, student_thought, solution)]
    ids = np.zeros(50, np.int32)
    return ScoreRow(ids, positions[0], ids, positions[1], positions[2], matched, "", 0.0, 0.0)


def test_spans_are_picked_by_position_and_padded_to_a_bucket():
    rows = [
        score_row([3, 4, 6], [10, 11, 13], [20, 21], matched=True),
        score_row([], [], [5], matched=False),
    ]
    student, teacher = [np.arange(50) * 1.0, np.arange(50) * 2.0], [np.arange(50) + 0.5, np.arange(50) + 0.25]
    spans = gather_logprobs(rows, [x.astype(np.float32) for x in student], [x.astype(np.float32) for x in teacher])
    assert {np.shape(array) for array in spans[:-1]} == {(2, 32)}
    assert spans.student_thought_logps[0, :4].tolist() == [10, 11, 13, 0]
    assert spans.teacher_thought_logps[0, :4].tolist() == [3.5, 4.5, 6.5, 0]
    assert spans.solution_logps[:, :2].tolist() == [[20, 21], [10, 0]]
    assert spans.thought_mask.sum(1).tolist() == [3, 0] and spans.solution_mask.sum(1).tolist() == [2, 1]
    assert spans.matched.tolist() == [True, False]
