"""Tags, prompts and gap of a command: as given, else as the models' folders say, else the defaults."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import rlt_jax
from rlt_jax.configs import (
    PRESETS,
    DataConfig,
    EvaluateConfig,
    GenerateConfig,
    QuestionsConfig,
    RowsConfig,
    ScoreConfig,
    SftConfig,
)
from rlt_jax.data import BESPOKE, R1, STUDENT_PROMPT, TEACHER_PROMPT, ChatSources
from rlt_jax.errors import UserError
from rlt_jax.runs.chat_format import chat_format_of
from rlt_jax.runs.contradictions import warn_of_row_prompts

TINY = Path(rlt_jax.__file__).parent / "assets" / "tiny"
T_PROMPT, S_PROMPT = "You see a question and its result. Explain", "Think about the steps, then give the result."


@pytest.fixture
def model(tmp_path):
    """model("a", role="student", ...): a copy of the tiny teacher whose record has these values; role None: no record.

    The two tiny models have one tokenizer, so a copy of either may stand for any model here.
    """

    def make(name: str, role: str | None = "teacher", **changes: object) -> str:
        files = shutil.ignore_patterns("*.safetensors")
        folder = shutil.copytree(TINY / "teacher", tmp_path / name, ignore=files)
        record = folder / "rlt_jax.json"
        if role is None:
            record.unlink()
        else:
            values = json.loads((TINY / role / "rlt_jax.json").read_text())
            record.write_text(json.dumps(values | changes))
        return str(folder)

    return make


def generate(teacher: str, student: str | None = None, **data: object) -> GenerateConfig:
    return GenerateConfig(teacher=teacher, student=student, data=RowsConfig(path="x", **data), out="y")


def refusal(config) -> str:
    with pytest.raises(UserError) as refused:
        chat_format_of(config)
    return str(refused.value)


def test_what_the_folders_say_is_the_default(model):
    teacher, student = model("t", tags="r1", prompt="Explain {explanation_start}."), model("s", "student", tags="r1")
    chat = chat_format_of(generate(teacher, student))
    assert chat.tags == R1
    assert (chat.teacher_prompt, chat.student_prompt) == ("Explain {explanation_start}.", S_PROMPT)
    assert not chat.student_prompt_overrides_rows  # a row's own comes first
    assert chat.sources == ChatSources(
        tags=f"{teacher}/rlt_jax.json",
        teacher_prompt=f"{teacher}/rlt_jax.json",
        student_prompt=f"rows, else {student}/rlt_jax.json",
        student_gap=f"{student}/rlt_jax.json",
    )


def test_without_records_the_defaults(model):
    chat = chat_format_of(generate(model("t", None), model("s", None)))
    assert (chat.tags, chat.teacher_prompt, chat.student_prompt) == (BESPOKE, TEACHER_PROMPT, STUDENT_PROMPT)
    assert chat.sources == ChatSources(student_prompt="rows, else default")
    assert chat.student_sft_gap is None


def test_the_tags_of_the_student_where_the_teacher_has_none(model):
    assert chat_format_of(generate(model("t", None), model("s", "student", tags="r1"))).tags == R1


def test_a_prompt_of_several_rows_is_no_default(model):
    student = model("s", "student", prompt=None)
    assert chat_format_of(generate(model("t"), student)).student_prompt == STUDENT_PROMPT


def test_what_says_the_same_is_no_contradiction(model, tmp_path):
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Explain <|begin_of_explanation|>.\n")
    teacher = model("t", prompt="Explain {explanation_start}.")
    chat = chat_format_of(generate(teacher, tags="bespoke", teacher_prompt_file=str(prompt)))
    assert chat.teacher_prompt == "Explain <|begin_of_explanation|>."
    assert chat.sources.tags == "--data.tags" and chat.sources.teacher_prompt == str(prompt)


def test_other_tags(model):
    teacher = model("t")
    message = refusal(generate(teacher, tags="r1"))
    assert message.splitlines() == [
        f"--data.tags r1, but --teacher {teacher} was trained with tags bespoke ({teacher}/rlt_jax.json): leave out "
        "--data.tags (or give None), or give a model that was trained with r1",
        "or go on all the same with --data.on-contradiction warn",
    ]


def test_a_contradiction_that_is_only_logged(model, logged):
    teacher = model("t")
    chat = chat_format_of(generate(teacher, tags="r1", on_contradiction="warn"))
    assert chat.tags == R1
    (record,) = logged.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        f"--data.tags r1, but --teacher {teacher} was trained with tags bespoke ({teacher}/rlt_jax.json) "
        "(--data.on-contradiction warn)"
    )


def test_models_of_different_tags(model):
    teacher, student = model("t"), model("s", "student", tags="r1")
    message = refusal(generate(teacher, student))
    assert f"the tags are bespoke ({teacher}/rlt_jax.json), but --student {student} was trained with tags r1" in message
    unsettled = refusal(generate(teacher, student, on_contradiction="warn"))
    assert (
        "the models were trained with different tags" in unsettled and "say which to use with --data.tags" in unsettled
    )
    assert chat_format_of(generate(teacher, student, on_contradiction="warn", tags="r1")).tags == R1
    assert "--teacher" in refusal(generate(teacher, student, tags="r1"))  # and it is not settled by one flag


def test_other_prompts(model, tmp_path):
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("You see a question and its result. Say why.")
    teacher, student = model("t"), model("s", "student")
    message = refusal(generate(teacher, student, teacher_prompt_file=str(prompt), student_prompt_file=str(prompt)))
    first, second, last = message.splitlines()
    assert first.startswith("the teacher's prompt is ...") and f"(--data.teacher-prompt-file {prompt})" in first
    assert "Say why." in first and "Explain the steps" in first and f"({teacher}/rlt_jax.json)" in first
    assert second.startswith("the student's prompt is 'You see") and f"'{S_PROMPT}'" in second
    assert "leave out --data.student-prompt-file (or give None)" in second
    assert last == "or go on all the same with --data.on-contradiction warn"


def test_roles(model):
    teacher, student = model("t"), model("s", "student")
    message = refusal(generate(student, teacher))
    assert message.startswith(f"--teacher {student} was trained as a student and --student {teacher} as a teacher (")
    assert f"are they swapped? give --teacher {teacher} --student {student}" in message
    assert f"--teacher {student} was trained as a student" in refusal(generate(student))
    assert f"--student {teacher} was trained as a teacher" in refusal(generate(teacher, teacher))
    config = ScoreConfig(teacher=student, student=student, data="x", out="y")
    assert refusal(config).endswith("or go on all the same with --on-contradiction warn")
    chat = chat_format_of(replace(config, on_contradiction="warn"))
    assert chat.teacher_prompt == TEACHER_PROMPT  # not the student's


def test_rows_that_the_student_was_not_trained_with(model, logged):
    chat = chat_format_of(generate(model("t"), model("s", "student")))
    warn_of_row_prompts(chat, [S_PROMPT, None])
    warn_of_row_prompts(chat_format_of(generate(model("u"), model("v", None))), ["Other."])  # not known
    warn_of_row_prompts(replace(chat, student_prompt_overrides_rows=True), ["Other."])
    assert not logged.records
    warn_of_row_prompts(chat, [S_PROMPT, None, "Other."])
    assert (
        "1 of the first 2 system prompts of rows are not what the student was trained with ('Other.'; " in logged.text
    )


def test_a_changed_chat_template(model):
    teacher = model("t")
    template = Path(teacher) / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_end|>", " <|im_end|>"))
    message = refusal(generate(teacher))
    assert f"the chat template of --teacher {teacher} writes ..." in message and "{system} <|im_end|>" in message
    assert f"restore the chat template in {teacher}" in message
    chat_format_of(generate(teacher, on_contradiction="warn"))


def test_the_reference_is_asked_what_the_teacher_is(model):
    teacher, other = model("t"), model("o", prompt="Another prompt.")
    data = replace(PRESETS["tiny"].data, teacher_prompt_file=None)
    config = replace(PRESETS["tiny"], teacher=teacher, reference=other, data=data)
    message = refusal(config)
    assert f"({teacher}/rlt_jax.json), but --reference {other} was trained with 'Another prompt.'" in message
    chat_format_of(replace(config, reference=teacher))


def test_evaluation(model, tmp_path, logged):
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Other.")
    student, teacher = model("s", "student", tags="r1"), model("t")
    config = EvaluateConfig(model=student, data=QuestionsConfig(path="x"), out="y")
    chat = chat_format_of(config)
    assert (chat.tags, chat.student_prompt) == (R1, S_PROMPT)
    assert "--tags bespoke, but --model" in refusal(replace(config, tags="bespoke"))
    assert "leave out --system-prompt-file" in refusal(replace(config, system_prompt_file=str(prompt)))
    chat_format_of(replace(config, prompt="chat", system_prompt_file=str(prompt)))  # no prompt that it was trained with
    assert not logged.records
    chat_format_of(replace(config, model=teacher))
    assert f"--model {teacher} was trained as a teacher" in logged.text  # a teacher may be tested


def test_fine_tuning_may_teach_another_format(model, logged):
    student = model("s", "student")
    same = SftConfig(target="student", model=student, output_dir="x", data=DataConfig(path="x"))
    assert chat_format_of(same).student_sft_gap == "\n\n"
    assert not logged.records
    other = replace(same, student_gap="as-row", data=replace(same.data, tags="r1"))
    chat = chat_format_of(other)
    assert chat.student_sft_gap is None and chat.tags == R1
    assert "--data.tags r1, but --model" in logged.text and "--student-gap as-row, but --model" in logged.text
    assert "(fine-tuning teaches it anew)" in logged.text
    logged.clear()
    chat = chat_format_of(replace(same, target="teacher"))
    assert f"--model {student} was trained as a student" in logged.text
    assert chat.teacher_prompt == TEACHER_PROMPT
