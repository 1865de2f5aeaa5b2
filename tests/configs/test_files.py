"""YAML files: what is saved comes back equal, and nothing wrong is read in silence."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from rlt_jax.configs import PRESETS, DataConfig, OptimizerConfig, config_yaml, load_config, load_settings, save_config
from rlt_jax.errors import UserError


@pytest.mark.parametrize("name", PRESETS)
def test_round_trip_of_every_preset(name, tmp_path):
    save_config(PRESETS[name], tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == PRESETS[name]


def test_round_trip_of_awkward_values(tmp_path):
    tiny = PRESETS["tiny"]
    config = replace(
        tiny,
        teacher="null",
        student='no: # "quoted"\n\nand a second line, é ✓',
        reference="010",
        output_dir="1e5",
        resume="never",
        learning_rate=1e-300,
        budget_gb=1 / 3,
        data=DataConfig(path="~", split="0x1F", eval_path="true", eval_split="2020-01-01"),
        reward=replace(tiny.reward, reduction_kl=("median",), kl_penalty_reward_coeff=(1e-7,), clip_kl=None),
    )
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


def test_what_a_file_leaves_out_comes_from_its_preset(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "preset: mono85\nlearning_rate: 2e-6\ndata: {path: rows.jsonl}\nreward:\n  kl_penalty_reward_coeff: [0]\n"
    )
    base = PRESETS["mono85"]
    assert load_config(path) == replace(
        base,
        learning_rate=2e-6,
        data=DataConfig(path="rows.jsonl"),
        reward=replace(base.reward, kl_penalty_reward_coeff=(0.0,)),
    )
    path.write_text("max_steps: 7\n")
    assert load_config(path) == replace(PRESETS["tiny"], max_steps=7)


def test_scalars_are_those_of_yaml_1_2(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "preset: tiny\nlearning_rate: 1e-5\nteacher: no\nstudent: 2020-01-01\nbudget_gb: 40\nreference: ~\n"
    )
    config = load_config(path)
    assert (config.learning_rate, config.teacher, config.student) == (1e-5, "no", "2020-01-01")
    assert (config.budget_gb, config.reference) == (40.0, None)


REFUSED = [
    ("learning_rat: 1", "{path}: learning_rat: no such field: did you mean learning_rate?"),
    ("data: {paht: x}", "{path}: data.paht: no such field: did you mean data.path?"),
    ("beta: 0", "{path}: beta: no such field: did you mean loss.beta?"),
    ("data: {lr_scheduler: cosine}", "{path}: data.lr_scheduler: no such field: did you mean optimizer.lr_scheduler?"),
    ("reduction_kls: [mean]", "{path}: reduction_kls: no such field: did you mean reward.reduction_kl?"),
    ("loss: {max_stepz: 1}", "{path}: loss.max_stepz: no such field: did you mean max_steps?"),
    ("loss.beta: 0", "{path}: loss.beta: expected a section here: write loss: {{beta: ...}}"),
    ("zzz: 1", "{path}: zzz: no such field: --help lists all fields"),
    ("1: 2", "{path}: 1: no such field: --help lists all fields"),
    ('max_steps: "300"', "{path}: max_steps='300': expected a whole number"),
    ("max_steps: 3.0", "{path}: max_steps=3.0: expected a whole number"),
    ("max_steps: true", "{path}: max_steps=True: expected a whole number"),
    ("max_steps:", "{path}: max_steps=None: expected a whole number"),
    ("learning_rate: 1e-", "{path}: learning_rate='1e-': expected a number"),
    ("teacher: 7", "{path}: teacher=7: expected text"),
    ("data: {truncate_prompts: yes}", "{path}: data.truncate_prompts='yes': expected true or false"),
    ("resume: true", "{path}: resume=True: expected 'auto', 'never' or 'must'"),
    ("data: rows.jsonl", "{path}: data: expected a section (indented lines `key: value`), came 'rows.jsonl'"),
    ("loss:", "{path}: loss: expected a section (indented lines `key: value`), came None"),
    ("reward: {reduction_kl: mean}", "{path}: reward.reduction_kl='mean': expected a list"),
    (
        "reward: {reduction_kl: [mean, foo]}",
        "{path}: reward.reduction_kl.1='foo': expected 'mean', 'sum', 'min', 'max', 'median', "
        "'first_quartile' or 'last_quartile'",
    ),
    (
        "preset: mono86",
        "{path}: preset=mono86: no such preset: did you mean mono96? "
        "use one of tiny, mono_basic, mono85, mono85_fallback, mono96, paper",
    ),
    (
        "preset: [tiny]",
        "{path}: preset=['tiny']: no such preset: did you mean tiny? "
        "use one of tiny, mono_basic, mono85, mono85_fallback, mono96, paper",
    ),
    ("seed: 1\nmax_steps: 3\nseed: 2", "{path}, line 3: not YAML: duplicate key 'seed'"),
    ("a: [1", "{path}, line 1: not YAML: expected ',' or ']', but got '<stream end>'"),
    ("a: &x 1\nb: *x", "{path}, line 2: not YAML: an alias (`*name`): write out the value"),
    (
        "a: !!python/object/apply:os.system [ls]",
        "{path}, line 1: not YAML: could not determine a constructor for the tag "
        "'tag:yaml.org,2002:python/object/apply:os.system'",
    ),
    ("a: !!int x", "{path}: not YAML: invalid literal for int() with base 10: 'x'"),
    ("? [a]\n: 1", "{path}, line 1: not YAML: found unhashable key"),
    ("", "{path}: expected lines `key: value`, found nothing; an example is the config.yaml of a run folder"),
    ("- 1", "{path}: expected lines `key: value`, found a list; an example is the config.yaml of a run folder"),
    ("tiny", "{path}: expected lines `key: value`, found a str; an example is the config.yaml of a run folder"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_refused_files(text, message, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as refusal:
        load_config(path)
    assert str(refusal.value) == message.format(path=path)


@pytest.mark.parametrize("text", ["[" * 1000, "max_steps: " + "1" * 5000, "a: \x00"])
def test_absurd_files_are_refused(text, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"run\.yaml: not YAML: "):
        load_config(path)


def test_all_mistakes_of_a_file_are_reported_at_once(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("max_step: 1\ndata: {eval_rows: x}\nloss: {betta: 2}\n")
    with pytest.raises(UserError) as refusal:
        load_config(path)
    assert str(refusal.value).splitlines() == [
        f"{path}: max_step: no such field: did you mean max_steps?",
        f"{path}: loss.betta: no such field: did you mean loss.beta?",
        f"{path}: data.eval_rows='x': expected a whole number",
    ]


def test_unreadable_and_unwritable_files(tmp_path):
    missing = tmp_path / "no.yaml"
    with pytest.raises(UserError) as refusal:
        load_config(missing)
    assert str(refusal.value) == (
        f"cannot read the configuration file {missing} (No such file or directory): "
        "expected a YAML file, such as the config.yaml of a run folder"
    )
    with pytest.raises(UserError, match="Is a directory"):
        load_config(tmp_path)
    binary = tmp_path / "model.safetensors"
    binary.write_bytes(b"a: \xff")
    with pytest.raises(UserError, match=r"expected YAML text in UTF-8, found another byte at 3$"):
        load_config(binary)
    with pytest.raises(UserError, match=r"cannot write the configuration to .* \(No such file or directory\)"):
        save_config(PRESETS["tiny"], tmp_path / "nowhere" / "config.yaml")


@dataclass(frozen=True, kw_only=True)
class Errand:
    """A command of another kind."""

    source: str
    """Where from."""
    count: int = 3
    """How many."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(adam_beta2=0.95))
    """Section whose defaults are this class's own."""


def test_settings_of_any_class(tmp_path):
    path = tmp_path / "errand.yaml"
    save_config(Errand(source="here", count=4), path)
    assert load_settings(path, Errand) == Errand(source="here", count=4)
    path.write_text("source: here\noptimizer: {adam_beta1: 0.8}\n")
    assert load_settings(path, Errand).optimizer == OptimizerConfig(adam_beta1=0.8, adam_beta2=0.95)
    path.write_text("count: 3\n")
    with pytest.raises(UserError, match=r"errand\.yaml: source: missing: give it a value$"):
        load_settings(path, Errand)


def test_yaml_keeps_the_order_of_the_schema_and_every_field():
    lines = config_yaml(PRESETS["tiny"]).splitlines()
    assert lines[0] == "preset: tiny"
    assert lines[-1] == "  patience: 3"
    start = lines.index("checkpoint:")
    assert lines[start + 1 : start + 5] == ["  keep: 2", "  keep_best: null", "  at_end: true", "  export: true"]
    assert "  reduction_kl: [mean, max]" in lines
    assert f"teacher: {Path(PRESETS['tiny'].teacher)}" in lines
