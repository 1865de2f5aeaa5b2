"""Studies: which runs a file stands for, and that no mistake in it passes."""

from dataclasses import replace
from pathlib import Path

import pytest

from rlt_jax.configs import PRESETS, AblateConfig, DataConfig, save_config
from rlt_jax.configs.resume import changed_fields
from rlt_jax.errors import UserError
from rlt_jax.studies.ablation_runs import study_runs

TINY = PRESETS["tiny"]


@pytest.fixture
def study(tmp_path):
    """study(text, **options): the runs of a study file with this text."""

    def runs(text: str, **options):
        path = tmp_path / "study.yaml"
        path.write_text(text)
        return study_runs(AblateConfig(study=str(path), output_dir="runs/study", **options))

    return runs


def test_arms_by_seeds(study):
    runs = study(
        "base: {preset: tiny, max_steps: 7, seed: 5, output_dir: elsewhere, resume: must}\n"
        "arms:\n  paper: {}\n  no-kl: {reward: {kl_penalty_reward_coeff: [0]}}\nseeds: [1, 3]\n"
    )
    assert list(runs) == ["paper", "no-kl"]
    assert runs["paper"] == {
        seed: replace(TINY, max_steps=7, seed=seed, output_dir=f"runs/study/paper/seed-{seed}") for seed in (1, 3)
    }
    assert runs["no-kl"][3] == replace(
        runs["paper"][3],
        output_dir="runs/study/no-kl/seed-3",
        reward=replace(TINY.reward, kl_penalty_reward_coeff=(0.0,)),
    )


def test_a_grid_is_combined_with_every_arm(study):
    runs = study(
        "arms:\n  a: {}\n  b: {reward: {use_schulman_kl_estimation: true}}\n"
        "grid:\n  loss.beta: [0, 0.04]\n  reward.kl_penalty_reward_coeff: [[3, 0.03], [0]]\nseeds: [1]\n"
    )
    assert list(runs)[:4] == [
        "a+loss.beta=0+reward.kl_penalty_reward_coeff=3,0.03",
        "a+loss.beta=0+reward.kl_penalty_reward_coeff=0",
        "a+loss.beta=0.04+reward.kl_penalty_reward_coeff=3,0.03",
        "a+loss.beta=0.04+reward.kl_penalty_reward_coeff=0",
    ]
    assert len(runs) == 8
    last = runs["b+loss.beta=0.04+reward.kl_penalty_reward_coeff=0"][1]
    assert (last.loss.beta, last.reward.kl_penalty_reward_coeff) == (0.04, (0.0,))
    assert last.reward.use_schulman_kl_estimation and last.reward.reduction_kl == ("mean", "max")


def test_a_grid_alone_over_models_gives_names_that_are_one_folder_each(study):
    runs = study("base: {preset: tiny}\ngrid: {student: [Qwen/Qwen2.5-7B, /models/my student]}\nseeds: [1]\n")
    assert list(runs) == ["base+student=Qwen-Qwen2.5-7B", "base+student=-models-my-student"]
    assert [run[1].student for run in runs.values()] == ["Qwen/Qwen2.5-7B", "/models/my student"]


def test_another_base_takes_the_place_of_the_studys(study, tmp_path):
    """Such as the config.yaml of a run: its seed, folder and resume do not count."""
    save_config(replace(TINY, max_steps=9, learning_rate=0.5, resume="never"), tmp_path / "base.yaml")
    runs = study(
        "base: {preset: mono85, temperature: 0.1}\narms: {a: {}}\nseeds: [2]", base=str(tmp_path / "base.yaml")
    )
    expected = replace(TINY, max_steps=9, learning_rate=0.5, seed=2, output_dir="runs/study/a/seed-2")
    assert runs == {"a": {2: expected}}


OTHER_ROWS = {
    "the base": ("base: {data: {path: a}}\narms: {x: {}}\nseeds: [1]", DataConfig(path="a")),
    "an arm": ("arms: {x: {data: {path: a}}}\nseeds: [1]", DataConfig(path="a")),
    "the grid": ("arms: {x: {}}\ngrid: {data.path: [a]}\nseeds: [1]", DataConfig(path="a")),
    "an arm, beside what the base itself says": (
        "base: {data: {path: a, eval_path: e, eval_rows: 9}}\narms: {x: {data: {path: b}}}\nseeds: [1]",
        DataConfig(path="b", eval_path="e", eval_rows=9),
    ),
    "an arm on the base's path, which is the preset's": (
        "base: {data: {eval_rows: 9}}\narms: {x: {data: {tags: r1}}}\nseeds: [1]",
        replace(TINY.data, eval_rows=9, tags="r1"),
    ),
}


@pytest.mark.parametrize(("text", "data"), OTHER_ROWS.values(), ids=OTHER_ROWS.keys())
def test_other_rows_take_nothing_of_the_preset_s(study, text, data):
    ((by_seed),) = study(text).values()
    assert by_seed[1].data == data


def test_an_arm_on_other_rows_than_a_run_s_config_yaml(study, tmp_path):
    """It holds all fields; what it says of its preset's rows does not count, its own held-out rows do."""
    save_config(TINY, tmp_path / "base.yaml")
    text = "arms: {x: {data: {path: a}}}\nseeds: [1]"
    assert study(text, base=str(tmp_path / "base.yaml"))["x"][1].data == DataConfig(path="a")
    save_config(replace(TINY, data=DataConfig(path="b", eval_path="e")), tmp_path / "base.yaml")
    assert study(text, base=str(tmp_path / "base.yaml"))["x"][1].data == DataConfig(path="a", eval_path="e")


def test_untouched_values_follow_in_an_arm(study):
    runs = study("arms: {x: {train_batch_size: 16}, y: {}}\nseeds: [1]")
    assert [run[1].per_device_train_batch_size for run in runs.values()] == [16, 32]


def test_models_of_one_s_own_need_a_preset_in_the_base(study):
    with pytest.raises(UserError, match=r"arm x: teacher=M without a preset: expected a line `preset: NAME` \(of a st"):
        study("arms: {x: {teacher: M}}\nseeds: [1]")


def test_the_papers_study():
    runs = study_runs(AblateConfig(study="paper", output_dir="out"))
    paper = runs["paper"][1]
    assert paper == replace(TINY, seed=1, output_dir="out/paper/seed-1")
    changes = {arm: set(changed_fields(of_arm[1], paper)) - {"output_dir"} for arm, of_arm in runs.items()}
    assert changes == {
        "paper": set(),
        "no-kl": {"reward.kl_penalty_reward_coeff"},
        "no-min-max": {
            *("reward.answer_log_prob_coeff", "reward.kl_penalty_reward_coeff"),
            *("reward.reduction_log_prob", "reward.reduction_kl"),
        },
        "kl-k3": {"reward.use_schulman_kl_estimation"},
        "surprisal": {"reward.include_teacher_think_entropy"},
        "student-temperature-1": {"reward.unbias_student_log_probs_temp"},
        "fixed-reference": {"ref.sync_ref_model"},
    }
    assert all(list(of_arm) == [1, 2, 3] for of_arm in runs.values())


GOOD = "arms: {a: {}}\nseeds: [1]\n"
REFUSED = {
    "nothing": ("seeds: [1]", {}, "neither arms nor grid: give the settings to compare"),
    "no seeds": ("arms: {a: {}}", {}, "seeds: missing: give it a value"),
    "empty seeds": ("arms: {a: {}}\nseeds: []", {}, "seeds is empty: give one or more values"),
    "a seed twice": ("arms: {a: {}}\nseeds: [1, 2, 1]", {}, "seeds holds a value twice"),
    "a seed below 0": ("arms: {a: {}}\nseeds: [-1]", {}, "arm a: seed=-1: expected a whole number from 0"),
    "no such key": (GOOD + "gird: {}", {}, "gird: no such field: did you mean grid?"),
    "no such field": (
        "arms: {a: {loss: {bata: 0}}}\nseeds: [1]",
        {},
        "arm a: loss.bata: no such field: did you mean loss.beta?",
    ),
    "no such field in the grid": ("grid: {loss.bata: [0]}\nseeds: [1]", {}, "arm base+loss.bata=0: loss.bata: no such"),
    "no such field in the base": (GOOD + "base: {preset: tiny, lr: 1}", {}, "base: lr: no such field"),
    "no such preset": (GOOD + "base: {preset: huge}", {}, "base: preset=huge: no such preset"),
    "a wrong type": ("grid: {loss.beta: [high]}\nseeds: [1]", {}, "loss.beta='high': expected a number"),
    "a value that makes no sense": (
        "grid: {loss.beta: [0, -1]}\nseeds: [1, 2]",
        {},
        "arm base+loss.beta=-1: loss.beta=-1: expected 0",
    ),
    "a section in the grid": ("grid: {loss: [{beta: 1}]}\nseeds: [1]", {}, "grid.loss holds a section: name a single"),
    "an empty grid": ("grid: {loss.beta: []}\nseeds: [1]", {}, "grid.loss.beta is empty"),
    "a field set twice": (
        "arms: {a: {loss: {beta: 1}}}\ngrid: {loss.beta: [0]}\nseeds: [1]",
        {},
        "arms.a sets loss.beta, which the grid sets too: leave it out of one of them",
    ),
    "a seed in an arm": ("arms: {a: {seed: 3}}\nseeds: [1]", {}, "arms.a sets seed, which the study sets"),
    "a folder in the grid": ("grid: {output_dir: [x]}\nseeds: [1]", {}, "grid sets output_dir, which the study sets"),
    "one folder twice": (
        "base: {preset: tiny}\ngrid: {student: [a/b, a b]}\nseeds: [1]",
        {},
        "two arms get the folder base+student=a-b:",
    ),
    "an arm that is no folder": ("arms: {a/b: {}}\nseeds: [1]", {}, "'a/b' cannot be a folder's name"),
    "an arm without settings": ("arms: {a: }\nseeds: [1]", {}, "arms.a=None: expected a section (lines `key:"),
    "no held-out rows": (
        GOOD + "base: {preset: paper}",
        {},
        "arm a: eval_steps=0, data.eval_rows=0: arms are compared on held-out rows: "
        "set eval_steps in the base, and data.eval_rows to their number or None",
    ),
    "no such arm": (GOOD, {"only": ("b",)}, "--only b is not in the study: choose from a"),
    "no such seed": (GOOD, {"seeds": (1, 4)}, "--seeds 4 is not in the study: choose from 1"),
    "an asked seed twice": (GOOD, {"seeds": (1, 1, 1)}, "--seeds: 1 is given twice"),
    "no such base": (
        GOOD,
        {"base": "/no/such.yaml"},
        "--base /no/such.yaml: expected a YAML file, or one of the package's: legs",
    ),
    "a field of another section": (
        "arms: {a: {beta: 0}}\nseeds: [1]",
        {},
        "arm a: beta: no such field: did you mean loss.beta?",
    ),
    "mistakes in several arms": (
        "arms: {a: {loss: {bata: 0}}, b: {num_generations: 7}}\nseeds: [1]",
        {},
        "arm a: loss.bata: no such field: did you mean loss.beta?\n",
    ),
    "mistakes in several arms, the later ones too": (
        "arms: {a: {loss: {bata: 0}}, b: {num_generations: 7}}\nseeds: [1]",
        {},
        "arm b: num_generations=7 does not divide train_batch_size=64",
    ),
    "equal arms": ("arms: {a: {}, b: {}}\nseeds: [1]", {}, "arms a and b are the same run: leave one of them out"),
    "equal arms in two ways of writing": (
        "arms: {a: {loss.beta: 0}, b: {loss: {beta: 0.0}}}\nseeds: [1]",
        {},
        "arms a and b are the same run",
    ),
    "an arm that changes nothing": (
        "base: {preset: tiny, loss: {beta: 0.1}}\narms: {a: {loss.beta: 0.1, temperature: 0.7}}\nseeds: [1]",
        {},
        "base has loss.beta=0.1, temperature=0.7 already: leave the arm out, or write `a: {}` for the arm to compare",
    ),
    "an arm that changes nothing, beside a grid": (
        "arms: {a: {loss.beta: 0.04}}\ngrid: {temperature: [0.5, 1]}\nseeds: [1]",
        {},
        "arm a changes nothing, as ",
    ),
    "a field in two ways": (
        "arms: {a: {loss.beta: 0, loss: {beta: 1}}}\nseeds: [1]",
        {},
        "arms.a sets loss.beta in two ways: give it once",
    ),
    "a section and a field of it": (
        "arms: {a: {loss.beta: 0, loss: 1}}\nseeds: [1]",
        {},
        "arms.a sets loss and a field of it: give loss as a section, or single fields",
    ),
    "no value, as Python has it": (
        "arms: {a: {reference: None}}\nseeds: [1]",
        {},
        "arms.a sets reference to the text 'None': write null for no value",
    ),
    "a field with a dot in the base": (
        GOOD + "base: {preset: tiny, loss.beta: 0}",
        {},
        "base: loss.beta: expected a section here: write loss: {beta: ...}",
    ),
    "accepting changes": ("arms: {a: {accept_changes: true}}\nseeds: [1]", {}, "arms.a sets accept_changes, which the"),
    "a difference of nothing": (GOOD, {"difference": 0.0}, "--difference 0: expected a positive number of nats"),
    "a dry run of nothing": (GOOD, {"dry_run": True, "summary_only": True}, "--dry-run and --summary-only: give only"),
    "a field in both grids": (
        "grid: {loss.beta: [0]}\nseeds: [1]",
        {"grid": ("loss.beta=1",)},
        "--grid loss.beta: ",
    ),
    "a type on the command line": (GOOD, {"grid": ("loss.beta=high",)}, "arm a+loss.beta=high: loss.beta='high': exp"),
    "a list that is none": (
        GOOD,
        {"grid": ("reward.reduction_kl=mean,max",)},
        "reward.reduction_kl='mean': expected a list",
    ),
}


@pytest.mark.parametrize(("text", "options", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_mistakes_are_named(study, text, options, message):
    with pytest.raises(UserError) as error:
        study(text, **options)
    assert message in str(error.value)


WITHOUT_STUDY = {
    "neither": ({}, "expected --study NAME, or a grid such as --grid loss.beta=0,0.04 --seeds 1 2 3, came neither: "),
    "no seeds": ({"grid": ("loss.beta=0",)}, "--grid without --study: give the seeds of all arms, such as --seeds 1 2"),
    "a seed twice": ({"grid": ("loss.beta=0",), "seeds": (1, 1)}, "--grid: seeds holds a value twice: give it once"),
}


@pytest.mark.parametrize(("options", "message"), WITHOUT_STUDY.values(), ids=WITHOUT_STUDY.keys())
def test_mistakes_without_a_study_are_named(options, message):
    with pytest.raises(UserError) as error:
        study_runs(AblateConfig(output_dir="out", **options))
    assert str(error.value).startswith(message)


def test_a_grid_of_the_command_line_alone():
    options = ("loss.beta=0,0.04", "reward.normalize-kl=None,exp", "optimizer.lr_scheduler=[constant]")
    runs = study_runs(AblateConfig(output_dir="out", grid=options, seeds=(1, 5)))
    assert list(runs) == [
        f"base+loss.beta={beta}+reward.normalize_kl={norm}+optimizer.lr_scheduler=constant"
        for beta in ("0", "0.04")
        for norm in ("None", "exp")
    ]
    first = next(iter(runs.values()))
    assert list(first) == [1, 5] and (first[5].loss.beta, first[5].reward.normalize_kl) == (0.0, None)


def test_a_grid_of_the_command_line_over_the_arms_of_a_study(study):
    runs = study("arms: {a: {}, b: {loss.beta: 0}}\nseeds: [1]", grid=("reward.use_schulman_kl_estimation=True,False",))
    assert [(run[1].loss.beta, run[1].reward.use_schulman_kl_estimation) for run in runs.values()] == [
        *((0.04, True), (0.04, False)),
        *((0.0, True), (0.0, False)),
    ]


def test_arms_that_are_not_asked_for_may_be_equal(study):
    assert set(study("arms: {a: {}, b: {}, c: {loss.beta: 0}}\nseeds: [1]", only=("a", "c"))) == {"a", "b", "c"}


def test_the_study_of_rewards_changes_rewards_alone():
    runs = study_runs(AblateConfig(study="rewards", output_dir="out"))
    paper = runs["paper"][1]
    assert paper == replace(
        TINY, seed=1, output_dir="out/paper/seed-1", save_steps=0, checkpoint=replace(TINY.checkpoint, export=False)
    )
    assert len(runs) == 8 and all(list(of_arm) == [1, 2, 3] for of_arm in runs.values())
    for arm, of_arm in runs.items():
        changed = changed_fields(of_arm[1], paper)
        assert all(name.startswith("reward.") for name in changed) and bool(changed) == (arm != "paper")


def test_the_study_of_rewards_on_the_base_of_the_lab():
    runs = study_runs(AblateConfig(study="rewards", base="legs", output_dir="out"))
    paper = runs["paper"][2]
    assert (paper.teacher, paper.student) == ("runs/legs/seed-1/warmup/final", "runs/legs/seed-1/reward-student/final")
    assert (paper.data.eval_rows, paper.max_steps, paper.questions_per_draw) == (256, 150, 16)
    assert runs["as-text"][2].reward.student_tokens == "text"


def test_no_such_study():
    with pytest.raises(UserError, match=r"--study papers: expected a YAML file, or one of the package's: advantages, "):
        study_runs(AblateConfig(study="papers", output_dir="out"))


def test_runs_differ_in_the_fields_that_are_named():
    other = replace(TINY, seed=1, loss=replace(TINY.loss, beta=1.0), reward=replace(TINY.reward, reduction_kl=("sum",)))
    assert changed_fields(TINY, other) == ["seed", "loss.beta", "reward.reduction_kl"]
    assert changed_fields(TINY, TINY) == []


def test_shipped_studies_are_found_before_folders(tmp_path, monkeypatch):
    (tmp_path / "paper").mkdir()
    monkeypatch.chdir(tmp_path)
    assert "no-kl" in study_runs(AblateConfig(study="paper", output_dir="out"))
    assert not Path("out").exists()
