"""The native sampler against transformers' greedy text and the model's own log-probs, and its promises one by one."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rlt_jax.errors import UserError
from rlt_jax.models import ModelConfig, init_model, load_model
from rlt_jax.sampling import native
from rlt_jax.sampling.native import NativeSampler
from rlt_jax.types import Request, SamplingParams

# Compiling takes the time here: most tests have 6 rows, prompts of up to 48 tokens and two EOS ids, so that they share
# their programs.
UNREACHABLE = (10**6, 10**6 + 1)  # no model samples these: completions run to max_tokens
SMALL = ModelConfig("qwen2", 300, 64, 96, 2, 2, 1, 32, tie_word_embeddings=True, initializer_range=0.1)
TWO_PROMPTS = (20, 45)
PARAMS = SamplingParams(max_tokens=20, temperature=0.7)


@pytest.fixture(scope="module")
def teacher(golden):
    return load_model(golden / "teacher", dtype="float32")


@pytest.fixture(scope="module")
def small():
    return init_model(SMALL, 0, dtype="float32")


def prompts(lengths, *, vocab=300, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocab, length).astype(np.int32) for length in lengths]


def requests_of(lengths=TWO_PROMPTS, seeds=(0, 1, 2), **options):
    return [Request(prompt, tuple(seeds)) for prompt in prompts(lengths, **options)]


def tokens_of(results):
    return [[completion.token_ids.tolist() for completion in completions] for completions in results]


def test_greedy_text_is_that_of_transformers(teacher, golden):
    model, params = teacher
    requests = requests_of([1, 3, 17, 33, 40], seeds=(5,), vocab=model.config.vocab_size)
    sampler = NativeSampler(model, params, eos_ids=UNREACHABLE, segment=32)
    ours = sampler.generate(requests, SamplingParams(max_tokens=40, temperature=0.0))
    oracle = AutoModelForCausalLM.from_pretrained(golden / "teacher", dtype=torch.float32).eval()
    for request, (completion,) in zip(requests, ours, strict=True):
        prompt = torch.tensor(request.prompt_ids[None], dtype=torch.long)
        out = oracle.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=40, eos_token_id=None
        )
        assert completion.token_ids.tolist() == out[0, len(request.prompt_ids) :].tolist()
        assert not completion.finished


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_log_probs_are_the_models_own(small, temperature):
    model, params = small
    requests = requests_of()
    results = NativeSampler(model, params, eos_ids=UNREACHABLE).generate(
        requests, replace(PARAMS, temperature=temperature)
    )
    for request, completions in zip(requests, results, strict=True):
        for completion in completions:
            expected = model_logps(model, params, request.prompt_ids, completion, temperature)
            np.testing.assert_allclose(completion.logps, expected, atol=1e-4)


def model_logps(model, params, prompt, completion, temperature):
    """f32[N] log-probs of a completion by `Model.logits`, over the whole vocabulary."""
    ids = np.concatenate([prompt, completion.token_ids])
    padded = np.pad(ids, (0, 65 - len(ids)))[None]  # one shape for all
    logits = model.logits(params, padded, np.arange(65)[None] < len(ids))[0]
    at = np.arange(len(prompt), len(ids))
    return jax.nn.log_softmax(logits / (temperature or 1.0), axis=-1)[at - 1, ids[at]]


def test_filtered_log_probs_are_those_of_the_whole_distribution(small):
    """The trainer knows no filter. (They once were of the filtered distribution: 0 here, where one token is left.)"""
    sampler = NativeSampler(*small, eos_ids=UNREACHABLE)
    filtered = sampler.generate(requests_of(), replace(PARAMS, top_k=1))
    greedy = sampler.generate(requests_of(), replace(PARAMS, temperature=0.0))
    assert tokens_of(filtered) == tokens_of(greedy)
    for request, completions in zip(requests_of(), filtered, strict=True):
        for completion in completions:
            expected = model_logps(*small, request.prompt_ids, completion, PARAMS.temperature)
            np.testing.assert_allclose(completion.logps, expected, atol=1e-4)
            assert (completion.logps < -0.01).all()


PADDING = 12  # rows of the embedding that no tokenizer uses
FILTERED = [{"temperature": 0.0}, {"temperature": 1.0}, {"top_k": 9}, {"top_p": 0.8}, {"min_p": 0.1}]
FILTERED += [{"top_k": 40, "top_p": 0.9, "min_p": 0.01}]


@pytest.fixture(scope="module")
def padded(small):
    """The small model, whose last ids have the largest logits: their rows are those of others, three times as long."""
    _, params = small
    model = init_model(replace(SMALL, vocab_size=300 + PADDING), 0, dtype="float32")[0]
    table = params["embed_tokens"]["weight"]
    table = jnp.concatenate([table, 3 * table[100 : 100 + PADDING]])
    return model, {**params, "embed_tokens": {"weight": table}}


@pytest.mark.parametrize("changes", FILTERED, ids=str)
def test_ids_beyond_the_tokenizer_are_never_sampled(padded, changes):
    model, params = padded
    settings = replace(PARAMS, **changes)
    free = NativeSampler(model, params, eos_ids=UNREACHABLE).generate(requests_of(), settings)
    assert any(max(ids) >= 300 for completions in tokens_of(free) for ids in completions)
    bound = NativeSampler(model, params, eos_ids=UNREACHABLE, token_ids=np.arange(300))
    for request, completions in zip(requests_of(), bound.generate(requests_of(), settings), strict=True):
        for completion in completions:
            assert completion.token_ids.max() < 300
            expected = model_logps(model, params, request.prompt_ids, completion, settings.temperature)
            np.testing.assert_allclose(completion.logps, expected, atol=1e-4)


def test_an_end_token_beyond_the_tokenizer_can_still_be_sampled(padded):
    model, params = padded
    sampler = NativeSampler(model, params, eos_ids=(300, 301, 10**6), token_ids=np.arange(0, 300, 2))
    results = sampler.generate(requests_of(seeds=range(6)), PARAMS)
    ends = [completion.token_ids[-1] for completions in results for completion in completions if completion.finished]
    assert ends and set(ends) <= {300, 301}
    for completions in results:
        for completion in completions:
            inside = completion.token_ids[:-1] if completion.finished else completion.token_ids
            assert (inside < 300).all() and (inside % 2 == 0).all()  # gaps are left out like padding


def test_a_tokenizer_that_knows_every_id_changes_no_bit_and_no_program(small):
    model, params = small
    plain = NativeSampler(model, params, eos_ids=UNREACHABLE)
    for changes in FILTERED:
        settings = replace(PARAMS, **changes)
        before = plain.generate(requests_of(), settings)
        programs = native._decode._cache_size()
        known = NativeSampler(model, params, eos_ids=UNREACHABLE, token_ids=np.arange(320))
        after = known.generate(requests_of(), settings)
        assert native._decode._cache_size() == programs
        for ours, theirs in zip(before, after, strict=True):
            for one, other in zip(ours, theirs, strict=True):
                assert one.token_ids.tolist() == other.token_ids.tolist()
                assert one.logps.tobytes() == other.logps.tobytes()


def test_excluding_other_ids_recompiles_nothing(padded):
    sizes = []
    for count in (300, 200, 100):
        sampler = NativeSampler(*padded, eos_ids=UNREACHABLE, token_ids=np.arange(count))
        sampler.generate(requests_of(), PARAMS)
        sizes.append(native._decode._cache_size())
    assert len(set(sizes)) == 1


def test_a_completion_does_not_depend_on_its_neighbours(small):
    model, params = small
    requests = requests_of([20, 20, 45, 4])
    whole = NativeSampler(model, params, eos_ids=(1, 2)).generate(requests, PARAMS)
    together = tokens_of(whole)
    assert len({tuple(ids) for completions in together for ids in completions}) == 12

    backwards = NativeSampler(model, params, eos_ids=(2, 1, 2)).generate(requests[::-1], PARAMS)
    assert tokens_of(backwards) == together[::-1]
    split = NativeSampler(model, params, eos_ids=(1, 2), max_batch=6, prefill_tokens=48)
    assert tokens_of(split.generate(requests, PARAMS)) == together
    pair = [replace(requests[2], seeds=(2, 0, 1)), requests[0]]
    alone = NativeSampler(model, params, eos_ids=(1, 2)).generate(pair, PARAMS)
    assert tokens_of(alone) == [[together[2][2], together[2][0], together[2][1]], together[0]]
    for ours, theirs in zip(whole[0], alone[1], strict=True):
        np.testing.assert_allclose(ours.logps, theirs.logps, atol=1e-5)


def test_equal_prompts_share_a_prefill_and_seeds_use_all_their_bits(small):
    model, params = small
    prompt, other = prompts([45, 40])
    seeds = (1, 1, 2**32 + 1, -1)
    results = NativeSampler(model, params, eos_ids=UNREACHABLE).generate(
        [Request(prompt, seeds), Request(prompt.copy(), (1,)), Request(other, (1,))], PARAMS
    )
    first, again, *others = tokens_of(results)[0]
    assert first == again == tokens_of(results)[1][0]
    assert len({tuple(ids) for ids in [first, *others, tokens_of(results)[2][0]]}) == 4


@pytest.mark.slow
def test_completions_end_at_the_first_eos_token(small):
    """Many rows that end at many lengths, so that rows are dropped and caches lengthened on the way."""
    model, params = small
    requests = requests_of([5, 12, 30, 31], seeds=range(8))
    settings = SamplingParams(max_tokens=24)
    endless = NativeSampler(model, params, eos_ids=UNREACHABLE).generate(requests, settings)
    eos_ids = tuple(range(100, 140))
    repacked = native._repack._cache_size()
    results = NativeSampler(model, params, eos_ids=eos_ids, segment=8).generate(requests, settings)
    assert native._repack._cache_size() == repacked + 2  # longer; longer and fewer
    finished = 0
    for completions, full in zip(results, endless, strict=True):
        for completion, longer in zip(completions, full, strict=True):
            ends = np.flatnonzero(np.isin(longer.token_ids, eos_ids))
            length = ends[0] + 1 if len(ends) else 24
            assert completion.token_ids.tolist() == longer.token_ids[:length].tolist()
            assert completion.finished == bool(len(ends))
            assert completion.token_ids.dtype == np.int32
            assert completion.logps.dtype == np.float32
            np.testing.assert_allclose(completion.logps, longer.logps[:length], atol=1e-5)
            finished += completion.finished
    assert 24 < finished < 32  # rows were dropped while others ran, and some were cut off


@pytest.mark.parametrize(("width", "live", "shrunk"), [(32, 32, 32), (32, 9, 32), (32, 8, 8), (32, 1, 8), (256, 3, 16)])
def test_rows_are_dropped_when_a_quarter_is_left(width, live, shrunk):
    assert native._shrink(width, live) == shrunk


def test_nothing_recompiles(small):
    model, params = small
    sampler = NativeSampler(model, params, eos_ids=UNREACHABLE, segment=16)
    sampler.generate(requests_of(), replace(PARAMS, top_p=0.9))

    def sizes():
        return [program._cache_size() for program in (native._prefill, native._decode, native._repack)]

    before = sizes()
    for seed, changes in enumerate([{"temperature": 1.3}, {"top_p": 0.5}, {"top_k": 7, "min_p": 0.1}]):
        requests = requests_of([8 + seed, 37 + seed], seeds=(seed, seed + 10, seed + 20), seed=seed)
        sampler.generate(requests, replace(PARAMS, **{"top_p": 0.9, **changes}))
        sampler.set_weights(jax.tree.map(lambda leaf: leaf * 1.01, params), seed)
    assert sizes() == before


def test_progress_counts_the_sampled_tokens(small):
    model, params = small
    seen = []
    sampler = NativeSampler(model, params, eos_ids=UNREACHABLE, max_batch=6)
    results = sampler.generate(requests_of([20, 20, 45, 45]), PARAMS, on_progress=seen.append)
    assert seen == [120, 240]
    assert seen[-1] == sum(len(completion.token_ids) for completions in results for completion in completions)


def test_no_requests_and_no_seeds(small):
    sampler = NativeSampler(*small, eos_ids=(1,))
    assert sampler.generate([], PARAMS) == []
    assert sampler.generate([Request(np.array([3], np.int32), ())], PARAMS) == [()]


@pytest.mark.slow
def test_bfloat16_samples_what_its_own_log_probs_say(small):
    model, params = small
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    results = NativeSampler(model, params, eos_ids=UNREACHABLE).generate(requests_of(), PARAMS)
    for completion in results[1]:
        ids = np.concatenate([requests_of()[1].prompt_ids, completion.token_ids])
        logits = model.logits(params, ids[None], np.ones_like(ids)[None])[0]
        logps = jax.nn.log_softmax(logits / 0.7, axis=-1)[np.arange(44, 64), ids[45:]]
        assert abs(completion.logps - logps).mean() < 0.02


def test_new_weights_sample_other_tokens_under_their_version(small):
    model, params = small
    sampler = NativeSampler(model, params, eos_ids=UNREACHABLE, version=3)
    first = sampler.generate(requests_of(), PARAMS)
    sampler.set_weights(init_model(SMALL, 1, dtype="float32")[1], 4)
    second = sampler.generate(requests_of(), PARAMS)
    sampler.set_weights(params, 5)
    third = sampler.generate(requests_of(), PARAMS)
    for results, version in ((first, 3), (second, 4), (third, 5)):
        assert {completion.weight_version for completions in results for completion in completions} == {version}
    assert tokens_of(first) == tokens_of(third) != tokens_of(second)


def test_misshaped_weights_are_named_and_the_old_ones_stay(small):
    model, params = small
    sampler = NativeSampler(model, params, eos_ids=UNREACHABLE, version=1)
    with pytest.raises(ValueError) as error:
        sampler.set_weights({**params, "norm": {"weight": params["norm"]["weight"][1:]}}, 2)
    assert str(error.value) == "weights that differ from the sampler's in name, shape or dtype: ['norm']['weight']"
    assert sampler.generate(requests_of(), PARAMS)[0][0].weight_version == 1


def test_weights_are_held_not_copied(small):
    model, params = small
    own = jax.tree.map(jnp.copy, params)
    sampler = NativeSampler(model, own, eos_ids=UNREACHABLE)
    own["norm"]["weight"].delete()  # what donating it to an update does
    with pytest.raises(RuntimeError, match="donated to an update: call set_weights with the new ones"):
        sampler.generate(requests_of(), PARAMS)
    sampler.set_weights(params, 1)
    assert sampler.generate(requests_of(), PARAMS)[0][0].weight_version == 1


def test_asleep_it_refuses_to_generate_and_awake_it_wants_weights(small):
    model, params = small
    sampler = NativeSampler(model, params, eos_ids=UNREACHABLE)
    sampler.sleep()
    sampler.sleep()
    with pytest.raises(RuntimeError, match="the sampler is asleep: call wake and set_weights before generate"):
        sampler.generate(requests_of(), PARAMS)
    with pytest.raises(RuntimeError, match="the sampler is asleep: call wake before set_weights"):
        sampler.set_weights(params, 1)
    sampler.wake()
    sampler.wake()
    with pytest.raises(RuntimeError, match="no weights since it woke: call set_weights before generate"):
        sampler.generate(requests_of(), PARAMS)
    sampler.set_weights(params, 1)
    assert sampler.generate(requests_of(), PARAMS)[0][0].weight_version == 1


def test_closed_it_refuses_everything_but_a_second_close(small):
    model, params = small
    sampler = NativeSampler(model, params, eos_ids=UNREACHABLE)
    sampler.close()
    sampler.close()
    for call in (
        lambda: sampler.generate([], PARAMS),
        lambda: sampler.set_weights(params, 1),
        sampler.sleep,
        sampler.wake,
    ):
        with pytest.raises(RuntimeError, match="the sampler is closed: make a new one"):
            call()


def test_bad_requests_are_refused_before_anything_runs(small):
    model, params = small
    sampler = NativeSampler(model, params, eos_ids=(1,), max_positions=64)
    with pytest.raises(UserError, match="max_tokens=0: expected at least 1 token"):
        sampler.generate(requests_of([4]), SamplingParams(max_tokens=0))
    with pytest.raises(UserError, match="request 1 has a prompt of 45 tokens, with max_tokens=20 that is 65"):
        sampler.generate(requests_of([4, 45]), PARAMS)
    with pytest.raises(UserError, match=r"that is 32769, but the model has 32768 positions"):
        NativeSampler(model, params, eos_ids=(1,)).generate(requests_of(), SamplingParams(max_tokens=32769 - 45))
    with pytest.raises(UserError, match="request 0 has token id 300, but the model knows 0 to 299"):
        sampler.generate([Request(np.array([300], np.int32), (0,))], PARAMS)


def test_a_sampler_without_an_end_or_a_batch_is_refused(small):
    with pytest.raises(ValueError, match="eos_ids is empty"):
        NativeSampler(*small, eos_ids=())
    with pytest.raises(ValueError, match="max_batch=0"):
        NativeSampler(*small, eos_ids=(1,), max_batch=0)
