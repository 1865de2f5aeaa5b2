"""The command line, in-process: defaults, flags, files, help, and every kind of mistake."""

import dataclasses
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Literal

import pytest
import yaml

from rlt_jax.configs import PRESETS, command_again, config_yaml, parse_command, parse_train_args, save_config
from rlt_jax.errors import UserError


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")  # so that messages stand on one line


@pytest.mark.parametrize(
    ("given", "resume", "again"),
    [
        (["--resume", "never", "--seed", "1"], "never", "--seed 1 --resume auto"),
        (["--seed", "1", "--resume=never"], "never", "--seed 1 --resume auto"),
        (["--config", "a run/config.yaml"], "never", "--config 'a run/config.yaml' --resume auto"),
        (["--resume", "must"], "must", "--resume must"),
        (["--teacher", "never"], "auto", "--teacher never"),
    ],
)
def test_the_command_that_resumes_is_the_one_that_was_given(given, resume, again, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/rlt_jax/train.py"])
    assert command_again("train", given, resume=resume) == f"python -m rlt_jax.train {again}"
    monkeypatch.setattr("sys.argv", ["/bin/rlt-train"])
    assert command_again("train", given, resume=resume) == f"rlt-train {again}"


def test_tiny_is_the_default():
    assert parse_train_args([]) == (PRESETS["tiny"], "run")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_gives_the_defaults(name):
    assert parse_train_args(["--preset", name]) == (PRESETS[name], "run")
    assert parse_train_args([f"--preset={name}", "--print-config"]) == (PRESETS[name], "print-config")


def test_flags_replace_single_values():
    config, _ = parse_train_args(["--preset", "mono85", "--max-steps", "300", "--logging-steps", "2"])
    assert config == replace(PRESETS["mono85"], max_steps=300, logging_steps=2)


def test_flag_names_of_the_original():
    argv = "--train-batch-size 12 --num-generations 6 --max-prompt-length 100 --max-completion-length 50"
    argv += " --vllm-gpu-memory-utilization 0.3 --per-device-train-batch-size 2 --generation-aggregation-steps 7"
    config, _ = parse_train_args(argv.split())
    assert (config.train_batch_size, config.num_generations, config.max_prompt_length) == (12, 6, 100)
    assert (config.max_completion_length, config.vllm_gpu_memory_utilization) == (50, 0.3)
    assert (config.per_device_train_batch_size, config.generation_aggregation_steps) == (2, 7)


def test_section_flags():
    argv = "--loss.beta 0.1 --loss.saved-mlp 2 --data.truncate-prompts --sampler.kind native --log.no-tensorboard"
    argv += " --reward.kl-penalty-reward-coeff 2 --reward.reduction-kl median --reward.normalize-log-prob exp"
    argv += " --reward.clip-kl None --data.eval-rows 8 --planned_gb 3.5 --resume must"
    config, _ = parse_train_args(argv.split())
    assert (config.loss.beta, config.loss.saved_mlp, config.data.truncate_prompts) == (0.1, 2, True)
    assert (config.sampler.kind, config.log.tensorboard) == ("native", False)
    assert (config.reward.kl_penalty_reward_coeff, config.reward.reduction_kl) == ((2.0,), ("median",))
    assert (config.reward.normalize_log_prob, config.reward.clip_kl) == ("exp", None)
    assert (config.data.eval_rows, config.planned_gb, config.resume) == (8, 3.5, "must")


def test_a_saved_run_runs_again_with_changes(tmp_path):
    saved = replace(PRESETS["mono96"], seed=7, learning_rate=3e-6)
    save_config(saved, tmp_path / "config.yaml")
    assert parse_train_args(["--config", str(tmp_path / "config.yaml")]) == (saved, "run")
    config, _ = parse_train_args([f"--config={tmp_path / 'config.yaml'}", "--seed", "8"])
    assert config == replace(saved, seed=8)


def test_printed_configuration_is_one_that_can_be_read(tmp_path):
    config, action = parse_train_args(["--preset", "mono85", "--seed", "3", "--print-config"])
    assert action == "print-config"
    (tmp_path / "printed.yaml").write_text(config_yaml(config))
    assert parse_train_args(["--config", str(tmp_path / "printed.yaml")])[0] == config


REFUSED_BY_CHECK = [
    (
        "--num-generations 24 --train-batch-size 100",
        "num_generations=24 does not divide train_batch_size=100: "
        "use --train-batch-size 96 or 120, or --num-generations 20",
    ),
    ("--budget-gb -5", "budget_gb=-5: expected a positive number of GB, or None"),
    ("--sampler.kind vllm-server", "sampler.kind=vllm-server without sampler.url: give the server's address"),
    ("--temperature nan", "temperature=nan: expected a finite number"),
    ("--reward.answer-log-prob-coeff 1 2 3", "reward.answer_log_prob_coeff has 3 weights"),
    ("--reward.reduction-kl", "reward.reduction_kl is empty"),
    (
        "--preset mono58",
        "preset=mono58: no such preset: did you mean mono85? "
        "use one of tiny, mono_basic, mono85, mono85_fallback, mono96, paper",
    ),
    ("--preset=huge --help", "preset=huge: no such preset: use one of tiny, mono_basic"),
    ("--config /no/such.yaml", "cannot read the configuration file /no/such.yaml (No such file or directory)"),
    ("--preset tiny --config a.yaml", "--preset tiny and --config a.yaml: give only one"),
]


@pytest.mark.parametrize(("argv", "message"), REFUSED_BY_CHECK)
def test_refused_values(argv, message):
    with pytest.raises(UserError) as refusal:
        parse_train_args(argv.split())
    assert str(refusal.value).startswith(message)


REFUSED_BY_TYRO = [
    ("--train-batchsize 3", ["Unrecognized options: --train-batchsize", "Perhaps you meant", "--train-batch-size INT"]),
    ("--beta 0.1", ["Unrecognized options: --beta", "--loss.beta FLOAT"]),
    ("--max-steps many", ["Error parsing --max-steps", "'many'", "--max-steps INT"]),
    ("--max-steps 3.5", ["Error parsing --max-steps", "'3.5'", "--max-steps INT"]),
    ("--learning-rate fast", ["Error parsing --learning-rate", "'fast'", "--learning-rate FLOAT"]),
    ("--reward.answer-log-prob-coeff a b", ["Error parsing --reward.answer-log-prob-coeff", "[FLOAT [FLOAT ...]]"]),
    ("--reward.reduction-kl mean avg", ["invalid choice 'avg'", "'first_quartile'"]),
    ("--dtype float16", ["invalid choice 'float16'", "('auto', 'bfloat16', 'float32')"]),
    ("--resume yes", ["invalid choice 'yes'", "('auto', 'never', 'must')"]),
    ("--data.on-bad-row ignore", ["invalid choice 'ignore'", "('skip', 'stop')"]),
    ("--budget-gb lots", ["--budget-gb", "'lots'"]),
    ("--max-steps", ["Missing value for argument '--max-steps'"]),
    ("--preset", ["Missing value for argument '--preset'"]),
    ("--config", ["Missing value for argument '--config'"]),
    ("--log.wandb False", ["Unrecognized options: False"]),
    ("stray", ["Unrecognized options: stray"]),
]


@pytest.mark.parametrize(("argv", "words"), REFUSED_BY_TYRO)
def test_refused_spelling_and_types(argv, words, capsys):
    with pytest.raises(SystemExit) as end:
        parse_train_args(argv.split())
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert [word for word in words if word not in said] == []
    assert "Traceback" not in said


def flags_of(config) -> list[str]:
    """Every field's flag, from the configuration's own values."""
    flags = []
    for name, value in dataclasses.asdict(config).items():
        names = [f"{name}.{part}" for part in value] if isinstance(value, dict) else [name]
        flags += ["--" + flag.replace("_", "-") for flag in names]
    return flags


def test_help_explains_every_field_and_lists_the_presets(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")  # one column of flags
    with pytest.raises(SystemExit) as end:
        parse_train_args(["--preset", "mono85", "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    flags = flags_of(PRESETS["mono85"])
    assert len(flags) > 60
    assert [flag for flag in [*flags, "--config", "--print-config"] if f" {flag}" not in text] == []
    assert [name for name in PRESETS if f"  {name}: " not in text] == []
    text = " ".join(text.replace("│", " ").split())
    assert (
        "Completions drawn and scored together, a multiple of num_generations. A gradient step uses them all, unless "
        "num_minibatches splits them. (default: 96)"
    ) in text
    assert (
        "Weight of the KL to the reference in the loss, per nat. 0: no KL term, and no reference, unless it scores in "
        "the teacher's place (reward.use_reference_teacher_model). (default: 0.04)"
    ) in text
    assert text.count("(default: ") == len(flags) + 3  # one explanation each


@dataclass(frozen=True, kw_only=True)
class Errand:
    """A command of another kind."""

    source: str
    """Where from."""
    count: int = 3
    """How many."""
    way: Literal["fast", "slow"] = "fast"
    """How."""


def errand(*argv: str) -> tuple[Errand, str]:
    return parse_command(Errand, argv, command="errand", description="Run an errand.")


def test_other_commands_share_the_front(tmp_path, capsys):
    assert errand("--source", "a", "--count", "5") == (Errand(source="a", count=5), "run")
    (tmp_path / "e.yaml").write_text("source: b\nway: slow\n")
    config = errand("--config", str(tmp_path / "e.yaml"), "--count", "1", "--print-config")
    assert config == (Errand(source="b", count=1, way="slow"), "print-config")
    assert yaml.safe_load(config_yaml(config[0])) == {"source": "b", "count": 1, "way": "slow"}

    with pytest.raises(SystemExit) as end:
        errand("--count", "5")
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "Missing from python -m rlt_jax.errand" in said
    assert "--source STR" in said

    with pytest.raises(SystemExit) as end:
        errand("--help")
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert "Run an errand." in said
    assert "Where from. (required)" in said

    (tmp_path / "e.yaml").write_text("sorce: b\n")
    with pytest.raises(UserError, match=r"sorce: no such field: did you mean source\?"):
        errand("--config", str(tmp_path / "e.yaml"))


def test_configurations_are_quick_to_import():
    """`--help` must not wait for JAX or transformers."""
    code = "import sys, rlt_jax.configs; "
    code += "print(sorted({*sys.modules} & {'jax', 'flax', 'torch', 'transformers', 'datasets'}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_user_error_ends_with_code_2_and_no_traceback():
    code = (
        "import sys; from rlt_jax.configs import parse_train_args as p; from rlt_jax.errors import run_command as r; "
    )
    code += "r(lambda: p(sys.argv[1:]))"
    argv = [sys.executable, "-c", code, "--num-generations", "24", "--train-batch-size", "100"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: num_generations=24 does not divide train_batch_size=100: "
        "use --train-batch-size 96 or 120, or --num-generations 20\n"
    )
