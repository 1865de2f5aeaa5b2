"""What belongs to the rows goes with them, untouched values follow given ones, and nothing else changes."""

import dataclasses
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from rlt_jax.configs import (
    PRESETS,
    DataConfig,
    EvaluateConfig,
    GenerateConfig,
    RewardConfig,
    SamplerConfig,
    SftConfig,
    TrainConfig,
    check_config,
    check_generate_config,
    check_sft_config,
    load_config,
    parse_command,
    parse_train_args,
    save_config,
)
from rlt_jax.configs.following import for_rows, given_flags, given_keys
from rlt_jax.configs.schema import MemoryConfig
from rlt_jax.errors import UserError

TINY, MONO85 = PRESETS["tiny"], PRESETS["mono85"]


def train(*flags: object) -> TrainConfig:
    return parse_train_args([str(flag) for flag in flags])[0]


def sft(*flags: object) -> SftConfig:
    argv = ["--model", "M", "--data.path", "rows.jsonl", "--output-dir", "out", *map(str, flags)]
    return parse_command(SftConfig, argv, command="sft", description="")[0]


def generate(*flags: object) -> GenerateConfig:
    argv = ["--teacher", "T", "--data.path", "rows.jsonl", "--out", "out.jsonl", *map(str, flags)]
    return parse_command(GenerateConfig, argv, command="generate", description="")[0]


# rows


@pytest.mark.parametrize("name", PRESETS)
def test_another_path_leaves_the_preset_s_data_behind(name):
    config = train("--preset", name, "--data.path", "units.jsonl")
    assert config.data == DataConfig(path="units.jsonl")
    assert replace(config, data=PRESETS[name].data) == PRESETS[name]  # nothing else changed


def test_without_a_preset_as_well_and_the_note_names_what_is_left_out(capsys):
    assert train("--data.path=units.jsonl").data == DataConfig(path="units.jsonl")
    assert capsys.readouterr().err == (
        "note: data.path=units.jsonl: without data.eval_path, data.eval_rows of the preset tiny\n"
    )


def test_what_the_user_gives_with_the_path_counts():
    config = train("--data.path", "a.jsonl", "--data.eval-path", "b.jsonl", "--data.eval_rows=7", "--data.tags", "r1")
    assert config.data == DataConfig(path="a.jsonl", eval_path="b.jsonl", eval_rows=7, tags="r1")


def test_the_same_path_in_another_form_is_no_other(capsys):
    form = os.path.relpath(TINY.data.path)
    assert form != TINY.data.path
    assert train("--data.path", form).data == replace(TINY.data, path=form)
    assert capsys.readouterr().err == ""


def test_a_file_over_a_preset(tmp_path):
    (tmp_path / "run.yaml").write_text("preset: tiny\ndata: {path: a.jsonl, truncate_prompts: true}\n")
    assert load_config(tmp_path / "run.yaml").data == DataConfig(path="a.jsonl", truncate_prompts=True)
    (tmp_path / "run.yaml").write_text("data: {eval_rows: 4}\n")
    assert load_config(tmp_path / "run.yaml").data == replace(TINY.data, eval_rows=4)


def test_a_flag_over_a_file(tmp_path, capsys):
    """Its held-out rows go; how its models were trained, and what fits any rows, stays."""
    (tmp_path / "run.yaml").write_text(
        "preset: mono85\ndata: {path: a, eval_path: b, eval_rows: 5, split: x, tags: r1, teacher_prompt_file: p.txt, "
        "on_bad_row: stop}\n"
    )
    config = train("--config", tmp_path / "run.yaml", "--data.path", "c")
    assert config.data == DataConfig(path="c", tags="r1", teacher_prompt_file="p.txt", on_bad_row="stop")
    assert f"note: data.path=c: without data.split, data.eval_path, data.eval_rows of {tmp_path}/run.yaml" in (
        capsys.readouterr().err
    )


def test_a_flag_over_the_config_yaml_of_a_run_on_the_preset_s_rows(tmp_path):
    """It holds all that the preset says of its own rows."""
    save_config(TINY, tmp_path / "config.yaml")
    assert train("--config", tmp_path / "config.yaml", "--data.path", "c").data == DataConfig(path="c")


def test_a_run_on_other_rows_runs_again_from_its_config_yaml(tmp_path, capsys):
    config = train("--data.path", "a.jsonl", "--train-batch-size", "16", "--teacher", "T", "--preset", "tiny")
    save_config(config, tmp_path / "config.yaml")
    capsys.readouterr()
    assert load_config(tmp_path / "config.yaml") == train("--config", tmp_path / "config.yaml") == config
    assert capsys.readouterr().err == ""


def test_the_help_shows_the_defaults_that_apply(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")  # one column
    for flags, default in (([], "32"), (["--data.path", "a.jsonl"], "None")):
        with pytest.raises(SystemExit):
            train("--preset", "mono85", *flags, "--help")
        shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
        of_flag = re.search(r"--data.eval-rows .*?\(default: (.*?)\)", shown)
        assert of_flag[1] == default


def test_other_commands_keep_to_it(tmp_path):
    (tmp_path / "g.yaml").write_text(
        "teacher: T\nout: o\ndata: {path: a, split: test, tags: r1, teacher_prompt_file: p}\n"
    )
    parsed = parse_command(
        GenerateConfig, ["--config", str(tmp_path / "g.yaml"), "--data.path", "b"], command="generate", description=""
    )
    data = parsed[0].data
    assert (data.path, data.split, data.tags, data.teacher_prompt_file) == ("b", "train", "r1", "p")
    (tmp_path / "e.yaml").write_text("model: M\nout: o\ndata: {path: a, question_column: q}\n")
    argv = ["--config", str(tmp_path / "e.yaml"), "--data.path"]
    for path, column in (("a", "q"), ("./a", "q"), ("b", "question")):
        config, _ = parse_command(EvaluateConfig, [*argv, path], command="evaluate", description="")
        assert config.data.question_column == column


def test_every_field_of_the_section_is_of_the_rows_unless_named():
    """So that a field added later goes with the rows, too."""
    old = DataConfig(**{field.name: f"own {field.name}" for field in dataclasses.fields(DataConfig)})  # type: ignore[arg-type]
    fresh, dropped = for_rows(old, "b")
    kept = {name for name, value in vars(fresh).items() if value == f"own {name}"}
    assert kept == {
        *("on_bad_row", "truncate_prompts", "artificial_epochs"),
        *("tags", "teacher_prompt_file", "student_prompt_file"),
    }
    assert set(dropped) == {field.name for field in dataclasses.fields(DataConfig)} - kept - {"path"}


# presets


@pytest.mark.parametrize("flags", [("--teacher", "M"), ("--student", "M"), ("--teacher", "M", "--student", "M")])
def test_models_of_one_s_own_need_a_preset_by_name(flags):
    with pytest.raises(UserError) as refusal:
        train(*flags)
    first, *lines = str(refusal.value).splitlines()
    assert first.startswith(f"{flags[0][2:]}=M without a preset: expected --preset NAME, as lengths, batches")
    assert [line.split(":")[0].strip() for line in lines[:-1]] == list(PRESETS)
    assert "take mono_basic" in lines[-1]
    assert train("--preset", "tiny", *flags).train_batch_size == 64


def test_in_a_file_as_well(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("teacher: M\n")
    with pytest.raises(UserError, match=r"run.yaml: teacher=M without a preset: expected a line `preset: NAME`"):
        load_config(path)
    path.write_text("seed: 3\n")
    with pytest.raises(UserError, match="student=M without a preset: expected a line `preset: NAME` in the file"):
        train("--config", path, "--student", "M")
    path.write_text("preset: tiny\n")
    assert train("--config", path, "--student", "M").student == "M"


def test_the_package_s_models_in_another_form_need_none():
    assert train("--teacher", os.path.relpath(TINY.teacher)).train_batch_size == 64


# values that follow

FOLLOWED = {
    "a micro-batch": (train, ("--train-batch-size", 16), {"per_device_train_batch_size": 16}),
    "no micro-batch that fits": (train, ("--train-batch-size", 128), {"per_device_train_batch_size": 32}),
    "a plan": (train, ("--preset", "mono85", "--budget-gb", 80), {"planned_gb": 72.5}),
    "no plan without one": (train, ("--preset", "mono_basic", "--budget_gb=24"), {"planned_gb": None}),
    "evaluation": (train, ("--data.eval-rows", 0), {"eval_steps": 0}),
    "held-out rows": (train, ("--preset", "paper", "--eval-steps", 5), {"data.eval_rows": None}),
    "rows of another file": (train, ("--data.eval-path", "e.jsonl"), {"data.eval_rows": None}),
    "moments": (train, ("--memory.moments", "bfloat16"), {"memory.optimizer": "host"}),
    "the policy's place": (train, ("--preset", "mono_basic", "--sampler.kind", "native"), {"memory.policy": "device"}),
    "a supervised micro-batch": (sft, ("--per-device-train-batch-size", 1), {"train_batch_size": None}),
    "packing": (sft, ("--packed-length", 512), {"packing": True}),
    "supervised moments": (sft, ("--memory.moments", "bfloat16"), {"memory.optimizer": "host"}),
    "supervised evaluation": (sft, ("--eval-steps", 5), {"data.eval_rows": None}),
    "redraws": (generate, ("--temperature", 0), {"redraws": 0}),
}


def value_of(config, name: str):
    for part in name.split("."):
        config = getattr(config, part)
    return config


@pytest.mark.parametrize(("command", "flags", "expected"), FOLLOWED.values(), ids=FOLLOWED.keys())
def test_untouched_values_follow(command, flags, expected):
    config = command(*flags)
    assert {name: value_of(config, name) for name in expected} == expected
    {TrainConfig: check_config, SftConfig: check_sft_config, GenerateConfig: check_generate_config}[type(config)](
        config
    )


GIVEN = {
    "a micro-batch": (
        ("--train-batch-size", 16, "--per-device-train-batch-size", 32),
        "per_device_train_batch_size=32 is more than train_batch_size=16",
    ),
    "a micro-batch with the dashes of an underscore": (
        ("--train_batch_size=16", "--per_device_train_batch_size=17"),
        "per_device_train_batch_size=17 is more than train_batch_size=16",
    ),
    "a plan": (
        ("--preset", "mono85", "--budget-gb", 70, "--planned-gb", 77),
        "planned_gb=77 is more than budget_gb=70",
    ),
    "a plan alone": (("--preset", "mono85", "--planned-gb", 90), "planned_gb=90 is more than budget_gb=85"),
    "evaluation": (("--eval-steps", 5, "--data.eval-rows", 0), "eval_steps=5 but data.eval_rows=0"),
    "moments": (
        ("--memory.moments", "bfloat16", "--memory.optimizer", "device"),
        "memory.moments=bfloat16 with memory.optimizer=device",
    ),
    "the policy's place": (
        ("--preset", "mono_basic", "--sampler.kind", "native", "--memory.policy", "host"),
        "memory.policy=host with sampler.kind=native: the native sampler reads the policy's weights on the GPU: add "
        "--sampler.kind vllm, or leave memory.policy at device",
    ),
    "groups": (
        ("--train-batch-size", 20),
        "num_generations=8 does not divide train_batch_size=20: "
        "use --train-batch-size 16 or 24, or --num-generations 5",
    ),
    "a server": (("--sampler.url", "http://127.0.0.1:1"), "sampler.url=http://127.0.0.1:1 with sampler.kind=native"),
}


@pytest.mark.parametrize(("flags", "message"), GIVEN.values(), ids=GIVEN.keys())
def test_given_values_are_refused_and_so_is_what_would_change_the_result(flags, message):
    with pytest.raises(UserError) as refusal:
        train(*flags)
    assert str(refusal.value).startswith(message)


@pytest.mark.parametrize(
    ("command", "flags"),
    [(sft, ("--no-packing", "--packed-length", 512)), (generate, ("--temperature", 0, "--redraws", 1))],
)
def test_given_values_of_other_commands_stay(command, flags):
    config = command(*flags)
    with pytest.raises(UserError, match=r"packed_length=512 without packing|temperature=0 with redraws"):
        (check_sft_config if command is sft else check_generate_config)(config)


def test_keys_of_a_file_are_given(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text("train_batch_size: 16\n")
    assert load_config(path).per_device_train_batch_size == 16
    assert capsys.readouterr().err == f"note: {path}: per_device_train_batch_size=16: follows train_batch_size=16\n"
    path.write_text("train_batch_size: 16\nper_device_train_batch_size: 24\n")
    with pytest.raises(UserError, match="per_device_train_batch_size=24 is more than train_batch_size=16"):
        train("--config", path)


def test_a_file_s_own_values_are_given_and_those_of_its_preset_are_not(tmp_path):
    """A run's config.yaml holds all fields, and the user touched few of them."""
    save_config(TINY, tmp_path / "config.yaml")
    config = train("--config", tmp_path / "config.yaml", "--train-batch-size", 16)
    assert config.per_device_train_batch_size == 16
    save_config(replace(TINY, per_device_train_batch_size=24), tmp_path / "config.yaml")
    with pytest.raises(UserError, match="per_device_train_batch_size=24 is more than train_batch_size=16"):
        train("--config", tmp_path / "config.yaml", "--train-batch-size", 16)


def test_another_sampler_leaves_interpreter_and_server_behind(tmp_path):
    saved = replace(MONO85, sampler=SamplerConfig(kind="vllm", python="/usr/bin/python3"))
    save_config(saved, tmp_path / "a.yaml")
    assert train("--config", tmp_path / "a.yaml", "--sampler.kind", "native").sampler == SamplerConfig(kind="native")
    server = ("--sampler.kind", "vllm-server", "--sampler.url", "http://127.0.0.1:1")
    assert train("--config", tmp_path / "a.yaml", *server).sampler.python is None


def test_moments_go_back_where_the_optimizer_does(tmp_path):
    save_config(replace(MONO85, memory=MemoryConfig(optimizer="host", moments="bfloat16")), tmp_path / "a.yaml")
    with pytest.raises(UserError, match=r"memory.moments=bfloat16 with memory.optimizer=device"):
        train("--config", tmp_path / "a.yaml", "--memory.optimizer", "device")
    assert train("--preset", "mono85", "--memory.optimizer", "device").memory.moments == "float32"


def test_another_reward_function_leaves_options_and_hash_behind(tmp_path, capsys):
    own = RewardConfig(fn="a.py:f", options={"weight": 2}, fn_sha256="0" * 64)
    save_config(replace(TINY, reward=own), tmp_path / "a.yaml")
    config = ("--config", tmp_path / "a.yaml")
    assert train(*config, "--reward.fn", "a.py:f").reward == own
    assert train(*config, "--reward.fn", "b.py:f").reward == RewardConfig(fn="b.py:f")
    assert "note: reward.options={}: follows reward.fn=b.py:f\n" in capsys.readouterr().err
    assert train(*config, "--reward.fn", "None").reward == RewardConfig()
    assert train(*config, "--reward.fn", "b.py:f", "--reward.options", "{weight: 3}").reward.options == {"weight": 3}
    assert train(*config, "--reward.options", "{weight: 3}").reward == replace(own, options={"weight": 3})


def test_names_of_flags_and_keys():
    argv = ["--loss.beta=0.1", "--data.no-truncate-prompts", "--per_device-train-batch_size", "3", "--unknown", "stray"]
    assert given_flags(argv, TrainConfig) == {"loss.beta", "data.truncate_prompts", "per_device_train_batch_size"}
    values = {"seed": 3, "loss": {"beta": 0.04}, "reward": {"reduction_kl": ["mean", "max"]}}
    assert given_keys(values) == {"seed", "loss.beta", "reward.reduction_kl"}
    assert given_keys(values, dataclasses.asdict(TINY)) == {"seed"}


def test_held_out_rows_must_not_be_the_training_rows_in_another_form():
    path = Path("rows.jsonl")
    with pytest.raises(UserError, match=r"data.eval_split=train of rows.jsonl is what is trained on"):
        train("--data.path", path, "--data.eval-path", path.absolute())
