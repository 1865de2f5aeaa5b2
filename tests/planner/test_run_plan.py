"""From a configuration and its models to what fits, without a device."""

import json
from dataclasses import replace

import jax
import pytest

from rlt_jax.configs import PRESETS, LossConfig, MemoryConfig, SamplerConfig
from rlt_jax.errors import UserError
from rlt_jax.models import ModelConfig, build_model, read_config
from rlt_jax.models.config import known_config
from rlt_jax.models.rope import Yarn
from rlt_jax.planner.advice import suggest
from rlt_jax.planner.ledger import largest_array_bytes
from rlt_jax.planner.run_plan import (
    at_batch_sizes,
    find_model,
    largest_update_tokens,
    ledger_lines,
    longest_context,
    model_config_of,
    model_shape,
    plan,
    planned_bytes,
    run_shape,
    shortfalls,
    vllm_line,
)
from rlt_jax.planner.shapes import Pass
from rlt_jax.types import GB

MONO85, MONO_BASIC = PRESETS["mono85"], PRESETS["mono_basic"]
QWEN_7B = known_config("Qwen/Qwen2.5-7B-Instruct")
assert QWEN_7B is not None
SEVEN = {"teacher": QWEN_7B, "student": QWEN_7B}

SHAPES = {
    "qwen2": ModelConfig("qwen2", 97, 64, 96, 3, 4, 2, 16),
    "qwen2, tied": ModelConfig("qwen2", 97, 56, 80, 2, 7, 1, 8, tie_word_embeddings=True),
    "qwen3": ModelConfig("qwen3", 97, 48, 80, 3, 4, 2, 32),
    "qwen3, biased and tied": ModelConfig(
        "qwen3", 97, 48, 80, 2, 4, 4, 16, tie_word_embeddings=True, attention_bias=True
    ),
    "llama": ModelConfig("llama", 97, 48, 80, 2, 4, 2, 12),
    "llama, biased and tied": ModelConfig(
        "llama", 97, 48, 80, 2, 4, 4, 16, tie_word_embeddings=True, attention_bias=True
    ),
    "7b": QWEN_7B,
}


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_are_those_of_the_parameter_tree(name):
    shapes = build_model(SHAPES[name]).shapes("bfloat16")
    shape = model_shape(SHAPES[name])
    assert shape.parameters == sum(leaf.size for leaf in jax.tree.leaves(shapes))
    of_layers = sum(leaf.size for leaf in jax.tree.leaves(shapes["layers"]))
    assert shape.layer_parameters * shape.layers == of_layers


def test_architecture_from_a_folder(golden):
    assert find_model(str(golden / "teacher")) == (read_config(golden / "teacher"), "its folder")


def test_architecture_from_the_hub_s_cache(golden, tmp_path, monkeypatch):
    """The real file goes before the table."""
    snapshot = tmp_path / "models--Qwen--Qwen2.5-7B-Instruct" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    (snapshot / "config.json").write_text((golden / "teacher" / "config.json").read_text())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    assert find_model("Qwen/Qwen2.5-7B-Instruct") == (read_config(golden / "teacher"), "the hub's cache")


def test_architecture_of_a_known_model():
    assert find_model("Qwen/Qwen2.5-7B-Instruct") == (QWEN_7B, "known")


def test_an_unknown_model_is_asked_for_by_name():
    """The tests' hub is offline."""
    with pytest.raises(UserError, match=r"there is no nobody/nothing-7B here and HF_HUB_OFFLINE is set, .* its cache"):
        model_config_of("nobody/nothing-7B")


@pytest.mark.parametrize("path", ["./runs/none", "/no/such/folder", "a/b/c"])
def test_a_path_that_is_not_there(path):
    with pytest.raises(UserError, match="does not exist"):
        model_config_of(path)


def test_an_unsupported_architecture(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UserError, match="expected model_type llama"):
        model_config_of(str(tmp_path))


def test_passes_are_worst_cases():
    run = run_shape(MONO85, QWEN_7B, QWEN_7B)
    assert run.update == Pass("cudnn", 1, 43_008) == Pass("cudnn", 1, 6144 + 6 * 6144)
    assert run.score == run.score_student == Pass("cudnn", 1, 55_296)
    assert (run.teacher_tokens, run.student_tokens, run.sequence_tokens) == (12288, 12288 + 256, 12288)
    yarn = replace(QWEN_7B, max_position_embeddings=4096, rope_scaling=Yarn(4.0, 4096, 1.0))  # 16384 positions
    assert run_shape(MONO85, yarn, QWEN_7B) == run
    short = replace(QWEN_7B, max_position_embeddings=4096)  # a model made for less
    assert run_shape(MONO85, short, short).teacher_tokens == 4096


def test_a_pass_has_at_least_one_longest_row():
    """The student's may be longer than the teacher's."""
    run = run_shape(replace(MONO85, update_tokens=1, score_tokens=1), QWEN_7B, QWEN_7B)
    assert (run.update.tokens, run.score.tokens, run.score_student.tokens) == (12288, 12288, 13312)


def test_without_tokens_the_rows_of_a_pass_count():
    run = run_shape(replace(MONO85, update_tokens=None, score_tokens=None), QWEN_7B, QWEN_7B)
    assert (run.update.tokens, run.score.tokens, run.score_student.tokens) == (36864, 36864, 36864)


def test_attention_follows_the_gpu():
    """Segments from Hopper on; a row a sequence before; masks where no kernel takes the type or the heads."""

    def passes(config=MONO85, model=QWEN_7B, **named) -> tuple[Pass, Pass]:
        run = run_shape(config, model, QWEN_7B, **named)
        return run.update, run.score_student

    assert passes()[0].attention == passes(capability=(10, 0))[0].attention == "cudnn"
    assert passes(capability=(8, 0)) == (Pass("rows", 2, 12288), Pass("rows", 2, 16384))
    assert passes(replace(MONO85, dtype="float32"), capability=(9, 0))[0].attention == "masked"
    update, student = passes(model=replace(QWEN_7B, head_dim=256))
    assert (update.attention, student.attention) == ("masked", "cudnn")


def test_types_and_places():
    run = run_shape(replace(MONO85, dtype="float32", memory=MemoryConfig()), QWEN_7B, QWEN_7B)
    assert (run.weight_bytes, run.gradient_bytes, run.update.attention) == (4, 4, "masked")
    assert (run.optimizer_on_host, run.frozen_on_host) == (False, False)
    memory = MemoryConfig(optimizer="host", frozen="host", moments="bfloat16", gradients="bfloat16")
    run = run_shape(replace(MONO85, memory=memory), QWEN_7B, QWEN_7B)
    assert (run.weight_bytes, run.gradient_bytes, run.moments, run.update.attention) == (2, 2, "bfloat16", "cudnn")
    assert (run.optimizer_on_host, run.frozen_on_host) == (True, True)


def test_what_is_read_follows_from_loss_and_reward():
    def read(config, **named) -> tuple[bool, ...]:
        run = run_shape(config, QWEN_7B, QWEN_7B, **named)
        return run.reads_teacher, run.reads_student, run.kl_term, run.has_reference

    no_kl = replace(MONO85, loss=replace(MONO85.loss, beta=0.0))
    surprisal = replace(MONO85, reward=replace(MONO85.reward, include_teacher_think_entropy=False))
    assert read(MONO85) == (True, True, True, True)
    assert read(no_kl) == (True, True, False, False)
    assert read(surprisal) == (False, True, True, True)
    assert read(no_kl, reads={"student"}) == (False, True, False, False)
    assert read(no_kl, reads=()) == (False, False, False, False)
    from_reference = replace(no_kl, reward=replace(MONO85.reward, use_reference_teacher_model=True))
    assert read(from_reference) == (True, True, False, True)
    assert read(from_reference, reads={"student"}) == (False, True, False, False)


def test_vllm_s_share_is_of_the_budget_else_of_the_gpu():
    assert run_shape(MONO85, QWEN_7B, QWEN_7B, gpu_bytes=1e12).vllm_bytes == 46_750_000_000
    free = replace(MONO85, budget_gb=None, planned_gb=None)
    assert run_shape(free, QWEN_7B, QWEN_7B, gpu_bytes=100e9).vllm_bytes == 55_000_000_000
    unknown = plan(free, **SEVEN)
    assert shortfalls(unknown, gpu_bytes=None, host_bytes=None) == []  # the least that it can work with
    assert run_shape(replace(MONO85, sampler=SamplerConfig()), QWEN_7B, QWEN_7B).vllm_bytes == 0


def test_saved_layers_follow_the_plan():
    saved = {
        planned: (run.saved_attention, run.saved_mlp)
        for planned in (None, 60.0, 70.0, 77.0, 85.0)
        for run in [run_shape(replace(MONO85, planned_gb=planned), QWEN_7B, QWEN_7B)]
    }
    assert saved == {None: (0, 0), 60.0: (0, 0), 70.0: (0, 0), 77.0: (2, 0), 85.0: (13, 0)}
    run = run_shape(replace(MONO85, loss=LossConfig(saved_attention=3, saved_mlp=99)), QWEN_7B, QWEN_7B)
    assert (run.saved_attention, run.saved_mlp) == (3, 28)


@pytest.mark.parametrize("name", ["mono_basic", "mono85", "mono85_fallback", "mono96"])
def test_presets_that_fit_their_gpus(name):
    config = PRESETS[name]
    host = 143e9 if name == "mono_basic" else 130e9  # its policy is there, too
    assert shortfalls(plan(config), gpu_bytes=planned_bytes(config), host_bytes=host) == []


TOO_LARGE = replace(MONO_BASIC, vllm_gpu_memory_utilization=0.7, memory=PRESETS["mono85"].memory)


def test_what_would_make_a_run_fit():
    """Weights and float32 sums alone are 45.7 GB, weights and the engine's share 43.2."""
    ledger = plan(TOO_LARGE)
    (line,) = shortfalls(ledger, gpu_bytes=planned_bytes(TOO_LARGE), host_bytes=None)
    assert line.startswith(
        "GPU: 40 GB may be used, up to 14.59 GB too little for update 54.59 GB, optimizer 54.45 GB, "
    )
    assert "generate 44.43 GB" in line
    (way,) = suggest(TOO_LARGE, **SEVEN, gpu_bytes=40e9, host_bytes=None)
    assert way.flags == ("--memory.policy host", "--memory.gradients bfloat16")
    assert shortfalls(plan(way.config), gpu_bytes=40e9, host_bytes=None) == []
    assert way.gpu_bytes == plan(way.config).gpu_peak.gpu_bytes <= 40e9


def peak_with(config) -> float:
    return plan(config, **SEVEN).gpu_peak.gpu_bytes


def test_each_value_together_is_the_mildest():
    """One step back of any of them does not fit."""
    (way,) = suggest(TOO_LARGE, **SEVEN, gpu_bytes=40e9, host_bytes=None)
    for name in ("policy", "gradients"):
        other = replace(way.config.memory, **{name: getattr(TOO_LARGE.memory, name)})
        assert peak_with(replace(way.config, memory=other)) > 40e9


def test_a_smaller_share_of_the_engine_comes_after_the_policy_on_the_host():
    """With 0.9 of the GPU for the engine there is no room for the parts of the policy that visit, either."""
    large = replace(MONO_BASIC, vllm_gpu_memory_utilization=0.9)
    ways = [way.flags for way in suggest(large, **SEVEN, gpu_bytes=40e9, host_bytes=None)]
    assert ways == [("--vllm-gpu-memory-utilization 0.75",)]
    native = replace(MONO85, sampler=SamplerConfig(kind="native"), planned_gb=None)
    for way in suggest(native, **SEVEN, gpu_bytes=60e9, host_bytes=None):
        assert "--memory.policy host" not in way.flags


def test_single_flags_that_are_enough_come_in_the_order_of_their_cost():
    tight = replace(MONO85, planned_gb=65.0)
    ways = suggest(tight, **SEVEN, gpu_bytes=65e9, host_bytes=None)
    flags = [way.flags for way in ways]
    assert flags == [("--update-tokens 25600",), ("--memory.gradients bfloat16",)]
    for way in ways:
        assert shortfalls(plan(way.config, **SEVEN), gpu_bytes=65e9, host_bytes=None) == []


def test_a_plan_for_more_than_the_gpu_has_is_lowered_first():
    """Saved activations fill what planned_gb leaves, all 77 GB of them."""
    (way,) = suggest(MONO85, **SEVEN, gpu_bytes=76.2e9, host_bytes=None)
    assert way.flags == ("--planned-gb 76",) and 74e9 < way.gpu_bytes <= 76e9
    ways = suggest(MONO85, **SEVEN, gpu_bytes=70.5e9, host_bytes=None)
    assert ways[0].flags == ("--planned-gb 70", "--update-tokens 33792")
    assert ways[-1].flags == ("--preset mono85_fallback", "--planned-gb 70")


@pytest.mark.parametrize("bound", [62e9, 65e9, 68e9, 72.5e9])
def test_tokens_of_a_pass_are_lowered_no_more_than_needed(bound):
    """In steps of 1024 tokens, and never below one longest row."""
    way = suggest(replace(MONO85, planned_gb=None), **SEVEN, gpu_bytes=bound, host_bytes=None)[0]
    (name, tokens) = way.flags[0].split()
    assert (name, way.config.update_tokens) == ("--update-tokens", int(tokens))
    assert way.config.update_tokens >= 12_288 and way.config.update_tokens % 1024 == 0
    assert peak_with(replace(way.config, update_tokens=way.config.update_tokens + 1024)) > bound


def test_passes_of_scoring_are_lowered_where_scoring_is_too_large():
    large = replace(MONO85, score_tokens=1_000_000)
    ways = [way.flags for way in suggest(large, **SEVEN, gpu_bytes=77e9, host_bytes=None)]
    assert ways[0] == ("--score-tokens 380928",)


def test_lengths_are_shortened_in_steps_of_1024():
    long = replace(MONO85, max_prompt_length=16384, max_completion_length=16384, update_tokens=32768, planned_gb=None)
    ways = [way.flags for way in suggest(long, **SEVEN, gpu_bytes=73e9, host_bytes=None)]
    # The sums of rows that half of the sequence holds are half as large.
    assert ("--max-prompt-length 8192", "--max-completion-length 8192") in ways


def test_saved_layers_that_were_asked_for_are_the_first_to_go():
    config = replace(MONO85, loss=LossConfig(saved_attention=28, saved_mlp=4))
    first = suggest(config, **SEVEN, gpu_bytes=99e9, host_bytes=None)[0]
    assert first.flags == ("--loss.saved-mlp 1",)


@pytest.mark.parametrize("name", SHAPES)
def test_the_largest_array_is_that_of_the_parameter_tree(name):
    run = run_shape(replace(MONO_BASIC, dtype="bfloat16"), SHAPES[name], SHAPES[name])
    arrays = jax.tree.leaves(build_model(SHAPES[name]).shapes("bfloat16"))
    assert largest_array_bytes(model_shape(SHAPES[name]), run) == 2 * max(leaf.size for leaf in arrays)


@pytest.mark.parametrize("owner", ["frozen", "optimizer"])
def test_what_lies_on_the_device_can_go_to_the_host(owner):
    config = replace(MONO85, planned_gb=None, memory=replace(MONO85.memory, **{owner: "device"}))
    first = suggest(config, **SEVEN, gpu_bytes=77e9, host_bytes=None)[0]
    assert first.flags == (f"--memory.{owner} host",)


def test_host_memory_is_lowered_by_the_moments():
    first = suggest(MONO85, **SEVEN, gpu_bytes=77e9, host_bytes=110e9)[0]
    assert first.flags == ("--memory.moments bfloat16",)
    assert first.host_bytes <= 110e9


def test_an_engine_s_share_without_room_for_a_sequence():
    config = replace(MONO85, vllm_gpu_memory_utilization=0.2)  # 17 GB for 15.2 GB of weights
    (line,) = shortfalls(plan(config, **SEVEN), gpu_bytes=77e9, host_bytes=None)
    assert line.startswith("vLLM: its share of 17.00 GB is ") and "one sequence of 12,288 tokens" in line


def test_nothing_is_lowered_where_all_fits_or_nothing_helps():
    assert suggest(MONO85, **SEVEN, gpu_bytes=77e9, host_bytes=130e9) == []
    assert suggest(MONO85, **SEVEN, gpu_bytes=20e9, host_bytes=None) == []


def test_longest_context_is_of_one_row_a_pass():
    ledger = plan(MONO85, **SEVEN)
    longest = longest_context(ledger, 77e9, positions=10**6)
    assert longest == 38_912
    lengths = {"max_prompt_length": longest // 2, "max_completion_length": longest - longest // 2}
    fitting = replace(MONO85, **lengths, update_tokens=1, score_tokens=1)
    positions = replace(QWEN_7B, max_position_embeddings=10**6)
    assert plan(fitting, teacher=positions, student=positions).gpu_peak.gpu_bytes <= 77e9
    assert longest_context(ledger, 77e9, positions=32768) == 32768
    assert longest_context(ledger, 50e9, positions=32768) == 0


def test_largest_update_is_at_most_the_step_s():
    ledger = plan(MONO85, **SEVEN)
    assert largest_update_tokens(ledger, 77e9) == 52_224
    assert largest_update_tokens(ledger, 10e12) == 96 * 12_288


def test_the_plan_with_what_fitted():
    """It is the plan of the run that had asked for those sizes."""
    asked = plan(MONO85, **SEVEN)
    same = {"generate": asked.run.native_batch, "score": 55_296, "update": 43_008, "save_activations": True}
    assert at_batch_sizes(asked, **same) == asked
    smaller = replace(MONO85, score_tokens=27_648, update_tokens=21_504)
    smaller = replace(smaller, loss=LossConfig(saved_attention=0, saved_mlp=0))
    backoff = at_batch_sizes(asked, **same | {"score": 27_648, "update": 21_504, "save_activations": False})
    assert backoff == plan(smaller, **SEVEN)
    assert backoff.step_peaks()["update"] < asked.step_peaks()["update"]


def test_lines_of_a_log():
    lines = ledger_lines(plan(MONO85, **SEVEN))
    assert lines[0].split() == ["phase", "GPU", "host", "on", "the", "GPU,", "GB"]
    update = next(line for line in lines if line.startswith("update"))
    assert update.split()[1:4] == ["76.3", "122.7", "gradients"]
    assert "saved attention 1.42" in update and len(lines) == 11
    assert vllm_line(plan(MONO85, **SEVEN)).startswith("vLLM: 46.8 GB hold the keys and values of 501,777 tokens")
    assert vllm_line(plan(PRESETS["tiny"])) is None


def test_a_run_without_a_budget_has_no_bound():
    assert planned_bytes(PRESETS["tiny"]) is None
    assert planned_bytes(MONO_BASIC) == 40 * GB
    assert planned_bytes(MONO85) == 77 * GB
