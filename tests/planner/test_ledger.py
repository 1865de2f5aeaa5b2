"""The ledger against measured peaks, against parameter trees, and what follows from it."""

from dataclasses import replace

import numpy as np
import pytest

from rlt_jax.device.pinned import pool_limit_gib
from rlt_jax.planner.capacity import SAVED_RESERVE, fits_gpu, largest_update, longest_sequence, saved_layers
from rlt_jax.planner.ledger import (
    TRAINER_CONTEXT,
    VLLM_ASLEEP,
    make_ledger,
    pinned_bytes,
    sums_bytes,
    vllm_cache_tokens,
    vllm_min_bytes,
    vllm_missing_bytes,
    vllm_sequences,
)
from rlt_jax.planner.shapes import ModelShape, Pass, RunShape, pass_of
from rlt_jax.sampling.weights import STAGING_BYTES
from rlt_jax.segments import SUMS_BYTES, limits_of, micro_batches, part_of, summed_tokens
from rlt_jax.types import GB

QWEN_7B = ModelShape(
    vocab=152064,
    hidden=3584,
    inner=18944,
    layers=28,
    heads=28,
    kv_heads=4,
    head_dim=128,
    tied=False,
    qkv_bias=True,
    qk_norm=False,
)
PARAMETERS = 7_615_616_512

MONO85 = RunShape(
    student=QWEN_7B,
    weight_bytes=2,
    gradient_bytes=4,
    moments="float32",
    optimizer_on_host=True,
    frozen_on_host=True,
    update=Pass("cudnn", 1, 43_008),  # a prompt and 6 completions
    score=Pass("cudnn", 1, 55_296),  # 8
    score_student=Pass("cudnn", 1, 55_296),
    teacher_tokens=12288,
    student_tokens=12288 + 256,
    prompt_tokens=6144,
    completion_tokens=6144,
    logprob_chunk=1024,
    saved_attention=0,
    saved_mlp=0,
    completions=96,
    generations=24,
    sampler="vllm",
    vllm_bytes=46_750_000_000,
    native_batch=32,
)


def rows(count: int, tokens: int) -> Pass:
    """Rows, one a sequence."""
    return Pass("rows", count, tokens)


ROWS = {"update": rows(3, 12288), "score": rows(3, 12288), "score_student": rows(3, 16384)}
"""What mono85's passes are where attention takes no segments, and were before it did."""
ALONE = replace(MONO85, sampler="native", vllm_bytes=0)  # no engine on the GPU


def gb(phase: str, **changes) -> float:
    """The GPU in a phase of mono85, GB."""
    return make_ledger(QWEN_7B, replace(MONO85, **changes)).phase(phase).gpu_bytes / GB


def test_parameters_of_7b():
    assert QWEN_7B.parameters == PARAMETERS
    assert QWEN_7B.cache_bytes(2) == 2 * 28 * 4 * 128 * 2 == 57_344


MEASURED = [  # NVML peaks of one H200, 2026-11-23, GB; the first two of them the formulas were fitted to
    ({}, 64.2),
    ({"update": rows(1, 32768)}, 62.3),
    ({"update": rows(1, 16384)}, 55.3),
    ({"update": rows(1, 12288)}, 54.7),
    ({"update": rows(1, 12288), "saved_mlp": 20}, 73.0),
    ({"update": rows(1, 12288), "saved_mlp": 28}, 80.4),
    ({"update": rows(1, 12288), "saved_mlp": 28, "gradient_bytes": 2}, 65.2),
]


@pytest.mark.parametrize(("changes", "measured"), MEASURED)
def test_update_is_within_3_percent_of_what_was_measured(changes, measured):
    assert gb("update", sampler="native", **ROWS | changes) == pytest.approx(measured, rel=0.03)


# One H100 80 GB, 2026-11-28, NVML, GB: 24 completions of 6144 tokens over a prompt of 6144, log-probs of the
# completions, no student, reference, optimizer or engine on the GPU, nothing saved.

FLAT = [  # tokens of a pass: (completions in it, segments, groups, bound), update, score
    (36_864, (24, 3, 9216), 70.0, 21.1),
    (43_008, (24, 3, 10_752), 72.0, 21.8),
    (55_296, (16, 2, 6912), 72.8, 23.3),
]


@pytest.mark.parametrize(("tokens", "shape", "update", "score"), FLAT)
def test_flat_passes_are_within_4_percent_of_what_an_h100_took(tokens, shape, update, score):
    """The update without the plan's worst case of sums, with those of the layouts that were measured."""
    flat = Pass("cudnn", 1, tokens)
    segments, groups, bound = shape
    sums = 4 * QWEN_7B.queries * (segments * bound + groups * tokens)
    run = replace(ALONE, update=flat, score=flat)
    planned = make_ledger(QWEN_7B, run).phase("update").gpu_bytes - sums_bytes(QWEN_7B, run, flat) + sums
    assert planned / GB == pytest.approx(update, rel=0.04)
    assert gb("score teacher", sampler="native", score=flat) == pytest.approx(score, rel=0.01)


def test_rows_on_the_same_gpu():
    assert gb("update", sampler="native", update=rows(2, 12288)) == pytest.approx(59.0, rel=0.01)
    assert gb("score teacher", sampler="native", score=rows(2, 12288)) == pytest.approx(19.5, rel=0.01)


# One H100 80 GB, 2026-11-25 (docs/benchmarks.md), NVML, GB.

ALONE_ON_H100 = [  # update of 12,288 tokens a sequence: (micro-batch, saved attention, saved MLP), measured
    ((3, 0, 0), 64.4),
    ((1, 28, 0), 59.1),
    ((1, 28, 14), 71.6),
    ((2, 28, 2), 72.8),
]


@pytest.mark.parametrize(("sizes", "measured"), ALONE_ON_H100)
def test_update_is_within_2_percent_of_what_an_h100_took(sizes, measured):
    batch, attention, mlp = sizes
    planned = gb("update", sampler="native", update=rows(batch, 12288), saved_attention=attention, saved_mlp=mlp)
    assert planned == pytest.approx(measured, rel=0.02)


def test_scoring_and_the_optimizer_alone_on_an_h100():
    assert gb("score teacher", sampler="native", score=rows(3, 12288)) == pytest.approx(21.0, rel=0.01)
    assert gb("optimizer", sampler="native") == pytest.approx(53.1, rel=0.01)


# Rows, one a sequence.
LONG = ROWS | {"saved_attention": 18, "score_student": rows(3, 12288), "moments": "bfloat16"}  # 6144 + 6144 tokens
SHORT = dict.fromkeys(("update", "score", "score_student"), rows(3, 1024))  # 512 + 512
SHORT |= {"saved_attention": 28, "saved_mlp": 28, "moments": "bfloat16"}
PAPER = dict.fromkeys(("update", "score", "score_student"), rows(1, 32768))  # 16384 + 16384
PAPER |= {"prompt_tokens": 16384, "completion_tokens": 16384, "saved_attention": 23}


@pytest.mark.parametrize(
    ("changes", "measured"),
    [
        (LONG, {"generate": 62.48, "score": 37.38, "update": 76.29, "sync": 62.10}),
        (SHORT, {"generate": 62.78, "score": 34.05, "update": 58.45, "sync": 63.27}),
        (PAPER, {"generate": 64.08, "score": 36.92, "update": 75.83, "sync": 62.11}),
    ],
)
def test_every_phase_of_whole_steps_on_an_h100_is_within_4_percent(changes, measured):
    peaks = make_ledger(QWEN_7B, replace(MONO85, **changes)).step_peaks()
    assert {name: size / GB for name, size in peaks.items()} == pytest.approx(measured, rel=0.04)


def test_room_for_keys_and_values_is_within_1_percent_of_what_vllm_found():
    assert vllm_cache_tokens(QWEN_7B, MONO85) == pytest.approx(498_128, rel=0.01)


def owners(phase: str, run: RunShape = MONO85) -> set[str]:
    return {entry.owner for entry in make_ledger(QWEN_7B, run).phase(phase).gpu}


def test_owners_on_the_gpu_by_phase():
    always = {"trainer's context", "teacher"}
    assert owners("generate") == always | {"vLLM awake"}
    assert owners("score teacher") == always | {"vLLM asleep", "teacher's forward pass"}
    assert owners("score student") == always | {"vLLM asleep", "visiting student", "student's forward pass"}
    assert owners("score reference") == always | {"vLLM asleep", "visiting reference", "reference's forward pass"}
    assert owners("update") == always | {"vLLM asleep", "gradients", "activations", "backward pass", "attention's sums"}
    assert owners("optimizer") == always | {"vLLM asleep", "gradients", "optimizer state in flight"}
    assert owners("sync") == always | {"vLLM awake"}
    saving = replace(MONO85, saved_attention=1, saved_mlp=1)
    assert owners("update", saving) - owners("update") == {"saved attention", "saved MLP"}


def test_what_stays_on_the_gpu_is_there_in_every_phase():
    on_device = replace(ALONE, optimizer_on_host=False, frozen_on_host=False)
    for phase in make_ledger(QWEN_7B, on_device).phases:
        sizes = {entry.owner: entry.size for entry in phase.gpu}
        assert sizes["optimizer state"] == 10 * PARAMETERS  # low halves 2, two moments of 4
        assert sizes["student"] == sizes["reference"] == 2 * PARAMETERS
        assert not any(name.startswith("visiting") for name in sizes)
    assert pinned_bytes(QWEN_7B, on_device) == 0


def test_a_policy_on_the_host_is_on_the_gpu_where_the_engine_sleeps():
    """While the engine is awake, parts of it visit: to tell its weights from others, and to verify a sync."""
    run = replace(MONO85, policy_on_host=True)
    parts = {"generate": {"one array of the teacher"}, "save": set()}
    parts["sync"] = parts["generate"] | {"some layers of the teacher"}
    for phase in make_ledger(QWEN_7B, run).phases:
        expected = owners(phase.name) - {"teacher"} | parts[phase.name] if phase.name in ("generate", "sync") else None
        assert {entry.owner for entry in phase.gpu} == (owners(phase.name) if expected is None else expected)
    sizes = {entry.owner: entry.size for entry in make_ledger(QWEN_7B, run).phase("sync").gpu}
    assert sizes["one array of the teacher"] == 2 * 28 * 3584 * 18944  # up, gate or down of all layers
    assert sizes["some layers of the teacher"] == 2 * 7 * QWEN_7B.layer_parameters
    assert gb("sync") - gb("sync", policy_on_host=True) == pytest.approx(15.23 - 3.80 - 3.26, abs=0.01)
    assert pinned_bytes(QWEN_7B, run) == pinned_bytes(QWEN_7B, MONO85) + 2 * PARAMETERS
    pool = [entry for entry in make_ledger(QWEN_7B, run).phase("update").host if "pinned" in entry.owner]
    assert sum(entry.size for entry in pool) == pool_limit_gib(pinned_bytes(QWEN_7B, run)) * 2**30


def test_a_model_of_another_size_may_be_the_student():
    small = replace(QWEN_7B, layers=7)
    score = make_ledger(QWEN_7B, replace(MONO85, student=small)).phase("score student")
    sizes = {entry.owner: entry.size for entry in score.gpu}
    assert sizes["visiting student"] == 2 * small.parameters < 2 * PARAMETERS


def test_host_of_mono85():
    """76.2 GB of optimizer state and 30.5 of frozen models are pinned, under a limit that leaves 5 GiB."""
    plan = make_ledger(QWEN_7B, MONO85)
    assert plan.pinned_bytes == 10 * PARAMETERS + 2 * 2 * PARAMETERS
    pool = [entry for entry in plan.phase("update").host if "pinned" in entry.owner]
    assert sum(entry.size for entry in pool) == pool_limit_gib(plan.pinned_bytes) * 2**30
    halved = make_ledger(QWEN_7B, replace(MONO85, moments="bfloat16"))
    assert halved.pinned_bytes == 6 * PARAMETERS + 4 * PARAMETERS
    assert plan.host_peak.name == "save"


def test_the_pool_of_a_small_model_does_not_take_5_gib():
    small = replace(QWEN_7B, layers=1, hidden=64, inner=64, vocab=128)
    plan = make_ledger(small, replace(MONO85, student=small))
    pool = sum(entry.size for entry in plan.phase("update").host if "pinned" in entry.owner)
    assert plan.pinned_bytes <= pool <= 3 * plan.pinned_bytes < 30e6


def test_checkpoint_holds_weights_reference_and_state():
    assert make_ledger(QWEN_7B, MONO85).checkpoint_bytes == 14 * PARAMETERS
    assert make_ledger(QWEN_7B, replace(MONO85, moments="bfloat16")).checkpoint_bytes == 10 * PARAMETERS
    full = replace(MONO85, weight_bytes=4)
    assert make_ledger(QWEN_7B, full).checkpoint_bytes == 16 * PARAMETERS  # no low halves


def test_step_peaks_go_by_the_trainer_s_phases():
    plan = make_ledger(QWEN_7B, MONO85)
    peaks = plan.step_peaks()
    assert list(peaks) == ["generate", "score", "update", "sync"]
    assert peaks["score"] == plan.phase("score student").gpu_bytes
    assert peaks["update"] == plan.phase("update").gpu_bytes == plan.gpu_peak.gpu_bytes


def test_compiled_temporaries_replace_the_formulas():
    saving = replace(MONO85, saved_attention=4)
    plan = make_ledger(QWEN_7B, saving, {"update": 20e9})
    update = plan.phase("update")
    assert {entry.owner for entry in update.gpu if entry.source != "compiled"} == (
        {"trainer's context", "teacher", "vLLM asleep", "gradients"}
    )
    rest = TRAINER_CONTEXT + 2 * PARAMETERS + VLLM_ASLEEP + 4 * PARAMETERS
    assert update.gpu_bytes == pytest.approx(rest + 20e9)
    assert plan.phase("score teacher") == make_ledger(QWEN_7B, saving).phase("score teacher")


def test_the_staging_buffer_is_smaller_than_the_cache_that_follows_it():
    """Why `sync` does not count it: it is freed before the engine takes the cache's memory back."""
    assert vllm_cache_tokens(QWEN_7B, MONO85) * QWEN_7B.cache_bytes(2) > STAGING_BYTES


@pytest.mark.parametrize("attention", ["cudnn", "flash-attn3", "rows"])
@pytest.mark.parametrize("planned", [50e9, 66.1e9, 70e9, 77e9, 90e9, 200e9])
def test_saved_layers_are_the_most_that_fits_attention_first(planned, attention):
    update = pass_of(attention, 36_864, 12_288)
    run = replace(MONO85, update=update)
    attention, mlp = saved_layers(QWEN_7B, run, planned, update.sequences, update.length)

    def size(attention: int, mlp: int) -> float:
        return gb("update", update=update, saved_attention=attention, saved_mlp=mlp) * GB

    assert 0 <= attention <= 28 and 0 <= mlp <= 28
    assert mlp == 0 or attention == 28
    room = planned - SAVED_RESERVE
    if attention or mlp:
        assert size(attention, mlp) <= room
    if attention < 28:
        assert size(attention + 1, 0) > room
    elif mlp < 28:
        assert size(28, mlp + 1) > room


def test_saved_layers_of_other_micro_batches():
    """What a run saves of one half full is not what it saves of a whole one."""
    assert saved_layers(QWEN_7B, MONO85, 77e9, 1, 43_008) == (2, 0)
    assert saved_layers(QWEN_7B, MONO85, 77e9, 1, 21_504) == (28, 1)
    assert saved_layers(QWEN_7B, replace(MONO85, **ROWS), 77e9, 3, 12288) == (18, 0)
    assert saved_layers(QWEN_7B, replace(MONO85, **ROWS), 77e9, 3, 6144) == (28, 7)
    assert saved_layers(QWEN_7B, replace(MONO85, saved_attention=9, saved_mlp=9), 77e9, 1, 43_008) == (2, 0)
    assert saved_layers(QWEN_7B, MONO85, 0.0, 1, 43_008) == (0, 0)


def test_saved_layers_that_are_decided_already():
    run = replace(MONO85, **ROWS)
    decided = saved_layers(QWEN_7B, run, 77e9, 3, 12288, saved_mlp=2)
    assert decided[1] == 2 and 0 < decided[0] < 18
    assert saved_layers(QWEN_7B, run, 77e9, 3, 12288, saved_attention=0) == (0, 3)
    assert saved_layers(QWEN_7B, run, 0.0, 3, 12288, saved_attention=99, saved_mlp=5) == (28, 5)


@pytest.mark.parametrize("attention", ["cudnn", "flash-attn3", "rows"])
def test_longest_sequence_is_the_last_that_fits(attention):
    def at(tokens: int) -> RunShape:
        row = pass_of(attention, tokens, tokens)
        return replace(
            MONO85,
            update=row,
            score=row,
            score_student=row,
            prompt_tokens=tokens // 2,
            completion_tokens=tokens - tokens // 2,
            teacher_tokens=tokens,
            student_tokens=tokens,
        )

    longest = longest_sequence(QWEN_7B, at(1024), 77e9)
    assert fits_gpu(make_ledger(QWEN_7B, at(longest)), 77e9)
    assert not fits_gpu(make_ledger(QWEN_7B, at(longest + 1)), 77e9)
    # Segments as long as the sequence cost cuDNN's flat attention most; the others are padded to 1024 or to buckets.
    assert longest == {"cudnn": 38_912, "flash-attn3": 62_464, "rows": 49_152}[attention]
    assert longest_sequence(QWEN_7B, at(1024), 60e9) == 0  # the engine's share and the teacher alone take more


def test_longest_sequence_is_bound_by_the_engine_s_cache():
    run = replace(MONO85, vllm_bytes=vllm_min_bytes(QWEN_7B, MONO85))
    assert longest_sequence(QWEN_7B, run, 1e15) == run.sequence_tokens


def test_largest_update_is_the_last_that_fits():
    largest = largest_update(QWEN_7B, MONO85, 77e9)
    assert largest == 52_224  # more than a quarter of it has room for the longest row: its sums are those of quarters
    assert gb("update", update=Pass("cudnn", 1, largest)) <= 77 < gb("update", update=Pass("cudnn", 1, largest + 1024))
    assert largest_update(QWEN_7B, replace(MONO85, **ROWS), 77e9) == 4 * 12288  # a power of two of them
    assert largest_update(QWEN_7B, MONO85, 50e9) == 0


def test_what_a_pass_is():
    """Flat: a multiple of 1024, at least the longest row. Else buckets: as many as fit, a power of two."""
    assert pass_of("cudnn", 36_000, 12_288) == Pass("cudnn", 1, 36_864)
    assert pass_of("flash-attn3", 3 * 12_544, 12_544) == Pass("flash-attn3", 1, 37_888)
    assert pass_of("cudnn", 1000, 12_544) == Pass("cudnn", 1, 13_312)
    assert pass_of("rows", 3 * 12_288, 12_544) == Pass("rows", 2, 16_384)
    assert pass_of("rows", 1000, 12_544) == Pass("rows", 1, 16_384)
    assert pass_of("masked", 3 * 12_288, 12_288) == Pass("masked", 1, 24_576)  # rows with one prompt in one sequence
    assert pass_of("masked", 32 * 576, 576) == Pass("masked", 8, 1536)
    for made in (pass_of("masked", 18_432, 576), pass_of("rows", 50_000, 576), pass_of("cudnn", 50_000, 576)):
        assert made.of(made.tokens, 576) == made


@pytest.mark.parametrize("attention", ["cudnn", "flash-attn3", "rows", "masked"])
def test_no_micro_batch_computes_more_than_the_planned_pass(attention):
    """Rows of any lengths up to the longest, in groups that share a prompt."""
    rng = np.random.default_rng(0)
    for tokens in (1024, 3000, 9000):
        ids = []
        for _ in range(4):
            prompt = rng.integers(0, 9, int(rng.integers(20, 300)), np.int32)
            for size in rng.integers(1, 300, 8):
                ids.append(np.concatenate([prompt, rng.integers(0, 9, int(size), np.int32)]))
        planned = pass_of(attention, tokens, 600)
        limits = limits_of(len(ids), tokens, max(map(len, ids)), sum_bytes=4 * 28 * 128)
        laid = "flat" if planned.is_flat else attention
        for batch in micro_batches(ids, tokens=tokens, arrangement=laid, limits=limits):
            assert batch.computed <= planned.tokens
            assert batch.num_sequences * batch.length**2 <= planned.sequences * planned.length**2


# Limits of flat sequences, and what cuDNN's attention sums.


@pytest.mark.parametrize("longest", [300, 2000, 12_288, 40_000])
@pytest.mark.parametrize("tokens", [1024, 8192, 43_008, 100_000])
@pytest.mark.parametrize("count", [1, 8, 96, 1024])
def test_limits_keep_the_sums_in_their_bytes(count, tokens, longest):
    """But for the least that there may be of segments and groups."""
    each = 4 * QWEN_7B.queries
    limits = limits_of(count, tokens, longest, sum_bytes=each)
    whole = max(tokens, longest)
    bound = part_of(-(-whole // 1024) * 1024, longest)
    assert bound >= longest
    assert 16 <= limits.segments <= 128 and limits.segments % 8 == 0
    assert limits.segments == 16 or limits.segments * bound * each <= SUMS_BYTES
    assert 2 <= limits.groups <= 8 and (limits.groups == 2 or limits.groups * whole * each <= SUMS_BYTES)
    free = limits_of(count, tokens, longest)
    assert free.segments >= limits.segments and free.groups >= limits.groups


def test_sums_of_mono85():
    """16 segments that a half of the sequence bounds, where a row may have 12,288 tokens, and 3 groups of the whole."""
    limits = limits_of(96, 43_008, 12_288, sum_bytes=4 * 3584)
    assert limits[:2] == (16, 3) and part_of(43_008, 12_288) == 21_504
    assert sums_bytes(QWEN_7B, MONO85, MONO85.update) == 4 * 3584 * (16 * 21_504 + 3 * 43_008)
    for other in ("flash-attn3", "rows", "masked"):
        assert sums_bytes(QWEN_7B, MONO85, Pass(other, 1, 43_008)) == 0


def test_no_segment_is_longer_than_planned_padding_included():
    """Many short rows fill up the segments, not the sequence: what is left is cut, as its length bounds all."""
    rng = np.random.default_rng(1)
    ids = [rng.integers(0, 9, size, np.int32) for size in (*[40] * 60, *[700] * 3, 1500)]
    limits = limits_of(len(ids), 8192, 1500, sum_bytes=4 * QWEN_7B.queries)
    for batch in micro_batches(ids, tokens=8192, arrangement="flat", limits=limits):
        layout = batch.layout([len(row) for row in ids])
        assert layout.longest <= part_of(batch.length, min(1500, batch.length))
        spans = np.asarray(layout.spans)
        assert spans[:, 1].max() <= layout.longest and len(spans) == limits.segments_at(layout.longest, batch.length)
        assert spans[:, 1].sum() == batch.length  # every token is in a segment, without gaps
        assert (np.cumsum(spans[:, 1])[:-1] == spans[1:, 0]).all()
        assert len(spans) * layout.longest + len(layout.groups) * batch.length <= summed_tokens(limits, batch.length)


def test_what_an_engine_s_share_holds():
    """What is left of it is its cache; the sequences of a question share their prompt's part."""
    tokens = vllm_cache_tokens(QWEN_7B, MONO85)
    more = vllm_cache_tokens(QWEN_7B, replace(MONO85, vllm_bytes=MONO85.vllm_bytes + 57_344 * 1000))
    assert more == tokens + 1000
    own, shared = vllm_sequences(QWEN_7B, MONO85)
    assert own == tokens // 12288
    assert shared == int(tokens / (6144 + 6144 / 24))
    assert vllm_sequences(QWEN_7B, replace(MONO85, vllm_bytes=10**12)) == (96, 96)


def test_an_engine_needs_room_for_one_sequence():
    least = vllm_min_bytes(QWEN_7B, MONO85)
    assert vllm_missing_bytes(QWEN_7B, replace(MONO85, vllm_bytes=least)) == 0
    assert vllm_missing_bytes(QWEN_7B, replace(MONO85, vllm_bytes=least - 57_344)) == 57_344
    assert vllm_missing_bytes(QWEN_7B, ALONE) == 0
    assert vllm_cache_tokens(QWEN_7B, replace(MONO85, vllm_bytes=least)) == MONO85.sequence_tokens


def test_without_a_fused_kernel_all_scores_exist():
    """float32, or heads that the kernel does not take: B·H·T² of them."""
    scores = 3 * 28 * 12288**2 * 4
    masked = Pass("masked", 3, 12288)
    update, score = (gb(phase, **{name: masked}) for phase, name in (("update", "update"), ("score teacher", "score")))
    assert (update - gb("update", **ROWS)) * GB == pytest.approx(3 * scores)
    assert (score - gb("score teacher", **ROWS)) * GB == pytest.approx(2 * scores)


def test_the_native_sampler_s_cache():
    entries = {entry.owner: entry.size for entry in make_ledger(QWEN_7B, ALONE).phase("generate").gpu}
    assert entries["key-value cache"] == 1.5 * 32 * 12288 * 57_344
    assert "vLLM awake" not in entries


# what nothing reads


def all_owners(plan, side="gpu") -> set[str]:
    return {entry.owner for phase in plan.phases for entry in getattr(phase, side)}


@pytest.mark.parametrize("on_host", [False, True])
def test_without_a_kl_term_the_plan_is_smaller_by_the_reference(on_host):
    with_one = make_ledger(QWEN_7B, replace(MONO85, frozen_on_host=on_host))
    plan = make_ledger(QWEN_7B, replace(MONO85, frozen_on_host=on_host, kl_term=False))
    assert [phase.name for phase in plan.phases] == [
        phase.name for phase in with_one.phases if phase.name not in ("score reference", "move reference")
    ]
    assert not any("reference" in owner for owner in all_owners(plan) | all_owners(plan, "host"))
    assert with_one.checkpoint_bytes - plan.checkpoint_bytes == 2 * PARAMETERS
    assert with_one.pinned_bytes - plan.pinned_bytes == 2 * PARAMETERS * on_host
    for phase in plan.phases:
        before = with_one.phase(phase.name)
        assert before.gpu_bytes - phase.gpu_bytes == pytest.approx(0 if on_host else 2 * PARAMETERS)
    pool = {entry.owner: entry.size for entry in plan.phase("update").host}
    assert ("pinned student" in pool) == on_host and "pinned reference" not in pool


def test_models_that_the_reward_does_not_read_are_neither_run_nor_kept():
    student_only = make_ledger(QWEN_7B, replace(MONO85, reads_teacher=False))
    assert {phase.name for phase in student_only.phases} >= {"score student", "score reference"}
    assert "teacher's forward pass" not in all_owners(student_only) and "teacher" in all_owners(student_only)
    texts = make_ledger(QWEN_7B, replace(MONO85, reads_teacher=False, reads_student=False, kl_term=False))
    assert not any(phase.name.startswith("score") for phase in texts.phases) and "score" not in texts.step_peaks()
    assert not any(
        "student" in owner or "reference" in owner for owner in all_owners(texts) | all_owners(texts, "host")
    )
    assert make_ledger(QWEN_7B, MONO85).pinned_bytes - texts.pinned_bytes == 4 * PARAMETERS


def test_a_reference_in_the_teachers_place_visits_the_gpu_to_score():
    run = replace(MONO85, kl_term=False, reference_teacher=True)
    plan, usual = make_ledger(QWEN_7B, run), make_ledger(QWEN_7B, MONO85)
    more = plan.phase("score teacher").gpu_bytes - usual.phase("score teacher").gpu_bytes
    assert more == pytest.approx(2 * PARAMETERS)
    assert {phase.name for phase in usual.phases} - {phase.name for phase in plan.phases} == {"score reference"}
    assert plan.checkpoint_bytes == usual.checkpoint_bytes
    assert not replace(run, reads_teacher=False).has_reference
