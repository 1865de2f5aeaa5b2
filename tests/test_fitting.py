"""Too little memory: a pass is done again with less, the run remembers, and says what to do when nothing is left."""

import json

import jax
import jax.numpy as jnp
import pytest

from rlt_jax.errors import UserError
from rlt_jax.fitting import FILE, Fitted, Sizes, explaining_out_of_memory
from rlt_jax.memory.card import Card

CONFIGURED = Sizes(generate=8, score=5, update=3)


def allocate(num_bytes: int) -> jax.Array:
    """A real allocation, which fails as a card's does when it is larger than any memory."""
    return jax.block_until_ready(jnp.zeros(num_bytes, jnp.uint8))


def needing(phase: str, most: int, tried: list[Sizes]):
    """A call that fits with at most so many sequences of a phase, without kept layers."""

    def call(sizes: Sizes) -> Sizes:
        tried.append(sizes)
        too_much = getattr(sizes, phase) > most or (phase == "update" and sizes.keep)
        allocate(2**60 if too_much else 2**10)
        return sizes

    return call


@pytest.fixture
def fitted(tmp_path):
    return Fitted(CONFIGURED, tmp_path, exhausted=lambda: "the plan\ntake mono85_fallback")


def test_what_fits_is_done_once_and_nothing_is_remembered(fitted, tmp_path):
    tried: list[Sizes] = []
    assert fitted.run("score", needing("score", 5, tried)) == CONFIGURED
    assert tried == [CONFIGURED] and not (tmp_path / FILE).exists()


def test_fewer_sequences_until_it_fits(fitted, logged):
    tried: list[Sizes] = []
    assert fitted.run("score", needing("score", 2, tried)).score == 2
    assert [sizes.score for sizes in tried] == [5, 3, 2]
    assert fitted.sizes == Sizes(generate=8, score=2, update=3)  # other phases stay as they are
    assert any("score 5 -> 3 sequences" in message for message in logged.messages)


def test_the_update_gives_up_kept_layers_before_sequences(fitted):
    tried: list[Sizes] = []
    fitted.run("update", needing("update", 1, tried))
    assert [(sizes.update, sizes.keep) for sizes in tried] == [(3, True), (3, False), (2, False), (1, False)]


def test_a_continued_run_starts_with_what_fitted(fitted, tmp_path, logged):
    fitted.run("update", needing("update", 2, []))
    again = Fitted(CONFIGURED, tmp_path, exhausted=str)
    assert again.sizes == Sizes(generate=8, score=5, update=2, keep=False)
    assert any("delete the file to try those of the configuration" in message for message in logged.messages)
    smaller = Fitted(Sizes(generate=8, score=1, update=1), tmp_path, exhausted=str)
    assert smaller.sizes == Sizes(generate=8, score=1, update=1, keep=False)  # a lower configuration counts too


def test_nothing_left_to_lower_ends_with_the_plan(fitted):
    tried: list[Sizes] = []
    with pytest.raises(UserError) as refusal:
        fitted.run("score", needing("score", 0, tried))
    assert [sizes.score for sizes in tried] == [5, 3, 2, 1]
    message = str(refusal.value)
    assert message.startswith("the card's memory is too small: score does not fit with one sequence at a time either")
    assert message.endswith("the plan\ntake mono85_fallback")


AUTOTUNING = (  # as JAX 0.11 said it on an H100 whose memory another process held
    "NOT_FOUND: Failed to get configs for: 5 out of 43 instructions. See logs for all failures. Example failure: \n"
    "Failures (7):\nEXECUTION FAILED: INTERNAL: [0] There was an error before calling cuModuleGetFunction (2): "
    "cudaErrorMemoryAllocation : out of memory"
)
CUDNN = "INTERNAL: Failed to initialize DNN support for CuDnnThunk [executable_name='jit_sequence_logprobs']"
CUBLAS = "INTERNAL: Failed to initialize BLASLT support [executable_name='jit__decode']"


def with_free(num_bytes: float) -> Card:
    return Card("H100", 1, total_bytes=85_000_000_000, used_bytes=round(85e9 - num_bytes), driver="580", cuda=(13, 0))


def failing(message: str):
    def call(sizes: Sizes) -> Sizes:
        if sizes.score > 3:
            raise jax.errors.JaxRuntimeError(message)
        return sizes

    return call


@pytest.mark.parametrize("message", [AUTOTUNING, CUDNN, CUBLAS])
def test_what_a_full_card_makes_of_kernels_and_handles_counts_too(fitted, message, monkeypatch):
    monkeypatch.setattr("rlt_jax.fitting.read_card", lambda: with_free(0.3e9))
    assert fitted.run("score", failing(message)).score == 3


@pytest.mark.parametrize("card", [None, with_free(60e9)])
@pytest.mark.parametrize("message", [CUDNN, CUBLAS])
def test_a_library_that_fails_beside_free_memory_is_broken(fitted, message, card, monkeypatch, tmp_path):
    monkeypatch.setattr("rlt_jax.fitting.read_card", lambda: card)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Failed to initialize"):
        fitted.run("score", failing(message))
    assert not (tmp_path / FILE).exists()


def test_the_line_that_speaks_of_memory_is_shown(fitted, logged):
    fitted.run("score", failing(AUTOTUNING))
    (warning,) = logged.messages
    assert "cudaErrorMemoryAllocation : out of memory); going on with less" in warning and "NOT_FOUND" not in warning


def test_other_errors_of_jax_are_bugs(fitted, tmp_path):
    def broken(sizes: Sizes) -> None:
        raise jax.errors.JaxRuntimeError("INTERNAL: an illegal memory access was encountered")

    with pytest.raises(jax.errors.JaxRuntimeError, match="illegal"):
        fitted.run("score", broken)
    assert not (tmp_path / FILE).exists()


def test_other_errors_are_not_caught(fitted):
    def broken(sizes: Sizes) -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        fitted.run("update", broken)


def test_a_failed_call_leaves_its_arrays_to_be_freed(fitted):
    """The error must be gone, with all that its frames hold, before the call is made again."""
    others = jax.live_arrays()  # held, so that none of other tests' is freed meanwhile
    alive = []

    def call(sizes: Sizes) -> int:
        before = len(jax.live_arrays())
        array = jnp.zeros(1000 + sizes.score)
        alive.append(before)
        if sizes.score > 2:
            allocate(2**60)
        return array.size

    assert fitted.run("score", call) == 1002
    assert alive == [len(others)] * 3


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"generate": 1})])
def test_a_damaged_file_is_refused_by_name(tmp_path, content):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(UserError, match=r"fitted\.json: expected the sizes that a run remembered.*delete the file"):
        Fitted(CONFIGURED, tmp_path, exhausted=str)


def test_where_nothing_can_be_lowered_the_plan_explains():
    with pytest.raises(UserError) as refusal, explaining_out_of_memory(lambda: "the plan"):
        allocate(2**60)
    assert str(refusal.value).startswith("the card's memory is too small (RESOURCE_EXHAUSTED")
    assert str(refusal.value).endswith("\nthe plan")
    with pytest.raises(ZeroDivisionError), explaining_out_of_memory(str):
        1 / 0  # noqa: B018
