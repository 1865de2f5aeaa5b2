"""Log-probs of ragged rows against transformers, and the spans that the reward reads."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2ForCausalLM

import rlt_jax
from rlt_jax.batching import sequence_batches
from rlt_jax.models import load_model
from rlt_jax.rewards.logprobs import gather_logprobs, row_logprobs
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
    ("temperature", "batch_size", "chunk"),
    [(1.0, 3, 1024), (0.7, 3, 16), (0.7, 16, 1024)],  # 3 leaves a last batch of one; 16 is more than there are
)
def test_ragged_rows_equal_transformers(teacher, rows, oracle, temperature, batch_size, chunk):
    logps = row_logprobs(*teacher, rows, temperature=temperature, batch_size=batch_size, chunk=chunk)
    for ours, theirs in zip(logps, oracle(temperature), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
        assert ours[0] == 0.0 and ours.dtype == np.float32


def test_results_come_in_the_order_given(teacher, rows, oracle):
    order = [3, 6, 0, 5, 1, 2, 4]
    logps = row_logprobs(*teacher, [rows[i] for i in order], temperature=1.0, batch_size=3, chunk=1024)
    expected = oracle(1.0)
    for i, ours in zip(order, logps, strict=True):
        np.testing.assert_allclose(ours, expected[i], atol=1e-4)


@pytest.mark.parametrize("packed_length", [None, 96])
def test_no_rows_give_no_logprobs(teacher, packed_length):
    assert row_logprobs(*teacher, [], temperature=1.0, batch_size=3, chunk=1024, packed_length=packed_length) == []


@pytest.mark.slow
@pytest.mark.parametrize("model", ["golden/teacher", "golden/student", "tiny/teacher", "tiny/student"])
def test_rows_that_share_sequences_have_the_logprobs_of_single_ones(golden, rows, model):
    """Seven rows, of 222 tokens in all, in three sequences of 96."""
    where, who = model.split("/")
    folder = golden if where == "golden" else TINY
    opened = load_model(folder / who, dtype="float32")
    rows = [row % opened[0].config.vocab_size for row in rows]
    assert [batch.num_sequences for batch in sequence_batches(LENGTHS, 2, packed_length=96)] == [2, 2]
    logprobs = partial(row_logprobs, *opened, rows, temperature=0.7, batch_size=2, chunk=64)
    for packed, single in zip(logprobs(packed_length=96), logprobs(), strict=True):
        np.testing.assert_allclose(packed, single, atol=1e-5, rtol=1e-6)
        assert packed[0] == 0.0 and packed.dtype == np.float32 and len(packed) == len(single)


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
