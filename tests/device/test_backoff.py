"""Out of memory: a phase is retried with less, the run records it, and gives advice when nothing is left to lower."""

import json

import jax
import jax.numpy as jnp
import pytest

from rlt_jax.device.backoff import FILE, BatchSizes, MemoryBackoff, explain_out_of_memory
from rlt_jax.device.gpu import Gpu
from rlt_jax.errors import UserError

CONFIGURED = BatchSizes(generate=8, score=5, update=3)


def allocate(num_bytes: int) -> jax.Array:
    """A real allocation, which fails as a GPU's does when it is larger than any memory."""
    return jax.block_until_ready(jnp.zeros(num_bytes, jnp.uint8))


def needing(phase: str, most: int, tried: list[BatchSizes]):
    """A call that fits with at most so much in a pass of a phase, without saved activations."""

    def call(sizes: BatchSizes) -> BatchSizes:
        tried.append(sizes)
        too_much = getattr(sizes, phase) > most or (phase == "update" and sizes.save_activations)
        allocate(2**60 if too_much else 2**10)
        return sizes

    return call


@pytest.fixture
def backoff(tmp_path):
    return MemoryBackoff(CONFIGURED, tmp_path, exhausted=lambda: "the plan\ntake mono85_fallback")


def test_what_fits_is_done_once_and_nothing_is_recorded(backoff, tmp_path):
    tried: list[BatchSizes] = []
    assert backoff.run("score", needing("score", 5, tried)) == CONFIGURED
    assert tried == [CONFIGURED] and not (tmp_path / FILE).exists()


def test_fewer_tokens_until_it_fits(backoff, logged):
    tried: list[BatchSizes] = []
    assert backoff.run("score", needing("score", 2, tried)).score == 2
    assert [sizes.score for sizes in tried] == [5, 3, 2]
    assert backoff.sizes == BatchSizes(generate=8, score=2, update=3)  # other phases stay as they are
    assert any("score 5 -> 3 tokens" in message for message in logged.messages)


def test_a_pass_of_the_sampler_is_counted_in_sequences(backoff, logged):
    assert backoff.run("generate", needing("generate", 2, [])).generate == 2
    assert any("generate 8 -> 4 sequences" in message for message in logged.messages)
    assert any("generate 4 -> 2 sequences" in message for message in logged.messages)


@pytest.mark.parametrize(("least", "sizes"), [(300, [5000, 2500, 1250, 625, 313, 300]), (4000, [5000, 4000])])
def test_a_pass_gets_no_smaller_than_its_longest_row(tmp_path, least, sizes):
    """With less, micro-batches would be the same, and retrying them would change nothing."""
    backoff = MemoryBackoff(BatchSizes(generate=8, score=5000, update=5000), tmp_path, exhausted=lambda: "the plan")
    tried: list[BatchSizes] = []
    with pytest.raises(UserError, match="score does not fit even with one sequence at a time"):
        backoff.run("score", needing("score", 0, tried), least=least)
    assert [size.score for size in tried] == sizes
    assert backoff.sizes.score == json.loads((tmp_path / FILE).read_text())["score"] == least


def test_fewer_tokens_than_the_longest_row_are_not_lowered(tmp_path):
    backoff = MemoryBackoff(BatchSizes(generate=8, score=100, update=100), tmp_path, exhausted=lambda: "the plan")
    tried: list[BatchSizes] = []
    with pytest.raises(UserError, match="the GPU's memory is too small: update does not fit"):
        backoff.run("update", needing("update", 0, tried), least=300)
    assert [(size.update, size.save_activations) for size in tried] == [(100, True), (100, False)]


def test_the_update_gives_up_saved_activations_before_tokens(backoff):
    tried: list[BatchSizes] = []
    backoff.run("update", needing("update", 1, tried))
    assert [(sizes.update, sizes.save_activations) for sizes in tried] == [
        (3, True),
        (3, False),
        (2, False),
        (1, False),
    ]


def test_a_resumed_run_starts_with_what_fitted(backoff, tmp_path, logged):
    backoff.run("update", needing("update", 2, []))
    again = MemoryBackoff(CONFIGURED, tmp_path, exhausted=str)
    assert again.sizes == BatchSizes(generate=8, score=5, update=2, save_activations=False)
    assert any("delete the file to try the configured ones" in message for message in logged.messages)
    smaller = MemoryBackoff(BatchSizes(generate=8, score=1, update=1), tmp_path, exhausted=str)
    assert smaller.sizes == BatchSizes(
        generate=8, score=1, update=1, save_activations=False
    )  # a lower configuration counts too


def test_nothing_left_to_lower_ends_with_the_plan(backoff):
    tried: list[BatchSizes] = []
    with pytest.raises(UserError) as refusal:
        backoff.run("score", needing("score", 0, tried))
    assert [sizes.score for sizes in tried] == [5, 3, 2, 1]
    message = str(refusal.value)
    assert message.startswith("the GPU's memory is too small: score does not fit even with one sequence at a time")
    assert message.endswith("the plan\ntake mono85_fallback")


AUTOTUNING = (  # as JAX 0.11 said it on an H100 whose memory another process held
    "NOT_FOUND: Failed to get configs for: 5 out of 43 instructions. See logs for all failures. Example failure: \n"
    "Failures (7):\nEXECUTION FAILED: INTERNAL: [0] There was an error before calling cuModuleGetFunction (2): "
    "cudaErrorMemoryAllocation : out of memory"
)
CUDNN = "INTERNAL: Failed to initialize DNN support for CuDnnThunk [executable_name='jit_sequence_logprobs']"
CUBLAS = "INTERNAL: Failed to initialize BLASLT support [executable_name='jit__decode']"


def with_free(num_bytes: float) -> Gpu:
    return Gpu(
        "H100",
        1,
        total_bytes=85_000_000_000,
        used_bytes=round(85e9 - num_bytes),
        driver="580",
        cuda=(13, 0),
        capability=(9, 0),
    )


def failing(message: str):
    def call(sizes: BatchSizes) -> BatchSizes:
        if sizes.score > 3:
            raise jax.errors.JaxRuntimeError(message)
        return sizes

    return call


@pytest.mark.parametrize("message", [AUTOTUNING, CUDNN, CUBLAS])
def test_what_a_full_gpu_makes_of_kernels_and_handles_counts_too(backoff, message, monkeypatch):
    monkeypatch.setattr("rlt_jax.device.backoff.read_gpu", lambda: with_free(0.3e9))
    assert backoff.run("score", failing(message)).score == 3


@pytest.mark.parametrize("gpu", [None, with_free(60e9)])
@pytest.mark.parametrize("message", [CUDNN, CUBLAS])
def test_a_library_that_fails_with_free_memory_is_broken(backoff, message, gpu, monkeypatch, tmp_path):
    monkeypatch.setattr("rlt_jax.device.backoff.read_gpu", lambda: gpu)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Failed to initialize"):
        backoff.run("score", failing(message))
    assert not (tmp_path / FILE).exists()


def test_the_line_that_speaks_of_memory_is_shown(backoff, logged):
    backoff.run("score", failing(AUTOTUNING))
    (warning,) = logged.messages
    assert "cudaErrorMemoryAllocation : out of memory); retrying with score 5 -> 3 tokens" in warning
    assert "NOT_FOUND" not in warning


def test_other_errors_of_jax_are_bugs(backoff, tmp_path):
    def broken(sizes: BatchSizes) -> None:
        raise jax.errors.JaxRuntimeError("INTERNAL: an illegal memory access was encountered")

    with pytest.raises(jax.errors.JaxRuntimeError, match="illegal"):
        backoff.run("score", broken)
    assert not (tmp_path / FILE).exists()


def test_other_errors_are_not_caught(backoff):
    def broken(sizes: BatchSizes) -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        backoff.run("update", broken)


def test_a_failed_call_leaves_its_arrays_to_be_freed(backoff):
    """The error must be gone, with all that its frames hold, before the call is made again."""
    others = jax.live_arrays()  # held, so that none of other tests' is freed meanwhile
    alive = []

    def call(sizes: BatchSizes) -> int:
        before = len(jax.live_arrays())
        array = jnp.zeros(1000 + sizes.score)
        alive.append(before)
        if sizes.score > 2:
            allocate(2**60)
        return array.size

    assert backoff.run("score", call) == 1002
    assert alive == [len(others)] * 3


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"generate": 1})])
def test_a_damaged_file_is_refused_by_name(tmp_path, content):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(
        UserError, match=r"backoff\.json: expected the batch sizes that a run recorded.*delete the file"
    ):
        MemoryBackoff(CONFIGURED, tmp_path, exhausted=str)


def test_where_nothing_can_be_lowered_the_plan_explains():
    with pytest.raises(UserError) as refusal, explain_out_of_memory(lambda: "the plan"):
        allocate(2**60)
    assert str(refusal.value).startswith("the GPU's memory is too small (RESOURCE_EXHAUSTED")
    assert str(refusal.value).endswith("\nthe plan")
    with pytest.raises(ZeroDivisionError), explain_out_of_memory(str):
        1 / 0  # noqa: B018


@pytest.mark.parametrize(
    "text", ["", "\0", "[1]", "{}", '{"generate": "many", "score": 1, "update": 1}', "[" * 100_000, "\xff"]
)
def test_a_damaged_record_is_refused_with_words(tmp_path, text):
    (tmp_path / "backoff.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"backoff.json: expected the batch sizes that a run recorded, .* delete"):
        MemoryBackoff(BatchSizes(8, 8, 8), tmp_path, exhausted=lambda: "")
