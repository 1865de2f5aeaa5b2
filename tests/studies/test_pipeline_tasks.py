"""Studies of the pipeline: which commands a file stands for, and that no mistake in it passes."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from rlt_jax.configs import PRESETS, EvaluateConfig, RewardConfig, load_study
from rlt_jax.errors import UserError
from rlt_jax.studies.pipeline_tasks import pipeline_tasks
from rlt_jax.studies.study_file import study_path

DOCUMENT = Path(__file__).parents[2] / "docs" / "pipeline.md"
WORK = Path("runs/w")
TEXT = """\
teacher: T
student: S
data: {path: train.jsonl, heldout_path: eval.jsonl, heldout_rows: 16, test_rows: 32}
dtype: float32
max_prompt_length: 96
max_completion_length: 64
reward: {answer_log_prob_coeff: [2]}
warmup: {max_steps: 5, learning_rate: 1e-4}
rlt: {max_steps: 7, loss: {beta: 0.1}}
distil: {max_steps: 9, optimizer: {weight_decay: 0.0}}
evaluate: {samples: 3, answer_kind: text}
"""


@pytest.fixture
def study(tmp_path):
    """study(text): the study of a file with this text."""

    def load(text: str = TEXT):
        (tmp_path / "study.yaml").write_text(text)
        return load_study(tmp_path / "study.yaml")

    return load


def tasks_of(study, seed: int = 3) -> dict:
    return {task.name: task for task in pipeline_tasks(study, WORK, seed=seed)}


def text_with(lines: str) -> str:
    """The study with these lines in place of its own of these names."""
    names = tuple(line.partition(":")[0] + ":" for line in lines.splitlines())
    return "\n".join([*(line for line in TEXT.splitlines() if not line.startswith(names)), lines]) + "\n"


def test_commands_and_what_they_need(study):
    tasks = tasks_of(study())
    assert list(tasks) == [
        *("warmup", "baselines", "rlt", "no-kl", "explain-warmup", "explain-rlt", "student-warmup", "student-rlt"),
        *("evaluate-base", "logp-base", "evaluate-warmup", "logp-warmup", "evaluate-rlt", "logp-rlt"),
    ]
    made = set()
    for task in tasks.values():  # in an order in which each has what it needs
        assert set(task.needs) <= made
        made.add(task.result)
    assert tasks["rlt"].needs == (WORK / "warmup" / "final",)
    assert set(tasks["student-rlt"].needs) == {WORK / "explained" / f"{name}.jsonl" for name in ("warmup", "rlt")}
    assert tasks["student-rlt"].result == WORK / "student-rlt" / "final"


def test_settings_of_the_file_reach_the_commands(study):
    tasks = tasks_of(study())
    warmup, rlt, evaluate = (tasks[name].config for name in ("warmup", "rlt", "evaluate-rlt"))
    assert (warmup.target, warmup.model, warmup.max_steps, warmup.learning_rate) == ("teacher", "T", 5, 1e-4)
    assert (warmup.data.eval_rows, warmup.seed, warmup.dtype) == (16, 3, "float32")
    assert (rlt.teacher, rlt.student, rlt.max_steps) == ("runs/w/warmup/final", "S", 7)
    assert rlt.loss == replace(PRESETS["tiny"].loss, beta=0.1)
    assert rlt.reward == RewardConfig(answer_log_prob_coeff=(2.0,))
    assert isinstance(evaluate, EvaluateConfig) and (evaluate.samples, evaluate.answer_kind) == (3, "text")


def test_the_arm_without_kl_differs_by_that_alone(study):
    tasks = tasks_of(study())
    rlt, no_kl = tasks["rlt"].config, tasks["no-kl"].config
    assert no_kl.reward == replace(rlt.reward, kl_penalty_reward_coeff=(0.0,))
    assert replace(no_kl, reward=rlt.reward, output_dir=rlt.output_dir) == rlt


def test_students_are_compared_on_equal_terms(study):
    tasks = tasks_of(study(TEXT + "students: [warmup, rlt, traces]\nstudent_warmup: {max_steps: 4}\n"))
    first = tasks["student-warmup"].config
    assert (first.target, first.student_gap, first.model, first.max_steps) == ("student", "blank-line", "S", 9)
    assert first.optimizer.weight_decay == 0.0 and first.optimizer.adam_beta2 == 0.95
    for name in ("rlt", "traces"):
        other = tasks[f"student-{name}"].config
        data = replace(first.data, path=f"runs/w/distil/{name}.jsonl")
        assert other == replace(first, output_dir=f"runs/w/student-{name}", data=data)
    explained = [replace(tasks[f"explain-{name}"].config, teacher="", out="") for name in ("warmup", "rlt")]
    assert explained[0] == explained[1]


def test_a_warmed_up_student_is_the_reward_student(study):
    tasks = tasks_of(study(TEXT + "student_warmup: {max_steps: 4}\n"))
    assert (tasks["reward-student"].config.model, tasks["reward-student"].config.max_steps) == ("S", 4)
    for name in ("baselines", "rlt", "no-kl", "explain-rlt"):
        assert tasks[name].config.student == "runs/w/reward-student/final"
        assert WORK / "reward-student" / "final" in tasks[name].needs
    assert tasks["student-rlt"].config.model == tasks["evaluate-base"].config.model == "S"


def test_the_reward_student_may_be_another_than_the_one_that_is_distilled(study):
    tasks = tasks_of(study(TEXT + "reward_student: A\n"))
    assert "reward-student" not in tasks
    for name in ("baselines", "rlt", "no-kl", "explain-rlt"):
        assert tasks[name].config.student == "A"
    assert tasks["student-rlt"].config.model == tasks["evaluate-base"].config.model == "S"


def test_a_student_of_the_arm_without_kl_needs_its_explanations(study):
    assert "explain-no-kl" in tasks_of(study(TEXT + "students: [rlt, no-kl]\n"))


@pytest.mark.parametrize("name", ["tiny", "lab", "lab-legs"])
def test_studies_that_come_with_the_package(name):
    study = load_study(study_path(name, "pipeline"))
    tasks = tasks_of(study)
    assert tasks["student-warmup"].config.max_steps == tasks["student-rlt"].config.max_steps
    assert study.reward == RewardConfig()  # the paper's


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("warmup: {max_stepz: 5}", "warmup: max_stepz: no such field: did you mean max_steps?"),
        ("rlt: {teacher: X}", "rlt.teacher: the pipeline sets it, or the study for all sections: leave it out"),
        ("rlt: {num_generations: 7}", "rlt: num_generations=7 does not divide train_batch_size=64"),
        ("rlt: {preset: big}", "rlt: preset=big: no such preset"),
        ("student_warmup: {max_steps: 0}", "student_warmup: max_steps=0: expected a positive whole number"),
        ("distil: {train_batch_size: 0}", "distil: train_batch_size=0: expected a positive whole number"),
        ("explain: {temperature: 0, redraws: 1}", "explain: temperature=0 with redraws: "),
        ("evaluate: {sampler: {top_p: 2}}", "evaluate: sampler.top_p=2: "),
        ("sampler: {top_p: 2}", "sampler.top_p=2: "),
        ("evaluate: {samples: 0}", "evaluate: samples=0: expected a positive whole number"),
        ("samples: 0", "samples=0: expected a positive whole number"),
        ("students: [rlt, rlt]", "students: rlt, rlt: one is named twice"),
        (
            "reward_student: A\nstudent_warmup: {max_steps: 4}",
            "reward_student and student_warmup: give only one of them, as student_warmup makes the reward student from "
            "`student`",
        ),
        ("token_tolerance: 2", "token_tolerance=2: expected a share from 0 to 1"),
        ("temperature: 0", "temperature=0: expected a number above 0"),
        ("data: {path: a, answer: 'is (', heldout_rows: 1}", "data.answer='is (': not a regular expression"),
        ("data: {path: a, answer: 'is', heldout_rows: 1}", "data.answer='is': expected one group"),
        ("data: {path: a, heldout_rows: 1}", "data.heldout_rows=1: expected 2 or more"),
        ("data: {path: a, heldout_subset: b}", "data.heldout_subset=b without data.heldout_path: give that, or leave"),
        ("students: [me]", "students.0='me': expected 'warmup', 'rlt', 'no-kl' or 'traces'"),
    ],
)
def test_mistakes(study, line, message):
    with pytest.raises(UserError) as error:
        tasks_of(study(text_with(line)))
    assert message in str(error.value)


def test_a_mistake_in_a_setting_of_many_commands_is_one_line_that_names_the_study_s_field(study):
    with pytest.raises(UserError) as error:
        tasks_of(study(text_with("max_prompt_length: -3\nscore_batch_size: 0")))
    assert sorted(str(error.value).splitlines()) == [
        "max_prompt_length=-3: expected a positive whole number",
        "score_batch_size=0: expected a positive whole number",
    ]


def test_the_documents_example_is_a_study(study):
    text = DOCUMENT.read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(teacher: .*?)```", text, flags=re.DOTALL)
    tasks = tasks_of(study(example))
    assert tasks["rlt"].config.train_batch_size == PRESETS["mono_basic"].train_batch_size
    assert re.findall(study(example).data.answer, r"So it is \boxed{\frac{1}{2}}") == [r"\frac{1}{2}"]
