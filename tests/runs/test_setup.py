"""What the commands share: rows and prompts, models that fit together, and counting of compilations."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from rlt_jax.configs import PRESETS, DataConfig
from rlt_jax.data import STUDENT_PROMPT, TEACHER_PROMPT
from rlt_jax.device.jax_setup import CompileCounter
from rlt_jax.errors import UserError
from rlt_jax.runs.chat_format import load_chat_format
from rlt_jax.runs.setup import (
    load_checked_model,
    load_prompts,
    load_split_rows,
    room_of,
)

TINY = PRESETS["tiny"]
PROMPT_FILE = str(Path(TINY.teacher).parent / "teacher_prompt.txt")


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def numbered(count, first=0):
    return [{"question": f"What is {i}?", "solution": str(i)} for i in range(first, first + count)]


@pytest.fixture(scope="module")
def chat():
    return load_chat_format(
        TINY.teacher, TINY.student, tags="bespoke", teacher_prompt_file=PROMPT_FILE, student_prompt_file=None
    )


# rows and prompts


def test_held_out_rows_come_from_the_end_and_are_not_trained_on(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", numbered(10))
    split = load_split_rows(DataConfig(path=path, eval_rows=3), evaluates=True)
    assert [row.number for row in split.train] == list(range(7))
    assert [row.number for row in split.held_out] == [7, 8, 9]


@pytest.mark.parametrize(("rows", "held_out"), [(3, 2), (10, 2), (14, 2), (15, 3), (640, 128), (900, 128)])
def test_without_a_number_a_fifth_of_the_rows_is_held_out(tmp_path, rows, held_out):
    data = DataConfig(path=write_rows(tmp_path / "rows.jsonl", numbered(rows)))
    split = load_split_rows(data, evaluates=True)
    assert [row.number for row in split.train + split.held_out] == list(range(rows))
    assert len(split.held_out) == held_out
    assert load_split_rows(data, evaluates=False).held_out == ()


@pytest.mark.parametrize(("rows", "held_out"), [(1, 1), (128, 128), (140, 128)])
def test_without_a_number_all_of_another_file_is_held_out_up_to_128_rows(tmp_path, rows, held_out):
    train, evaluation = (
        write_rows(tmp_path / "a.jsonl", numbered(4)),
        write_rows(tmp_path / "b.jsonl", numbered(rows, 5)),
    )
    split = load_split_rows(DataConfig(path=train, eval_path=evaluation), evaluates=True)
    assert (len(split.train), len(split.held_out)) == (4, held_out)


def test_skipped_rows_are_counted(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [*numbered(4), {"question": "no solution"}])
    assert load_split_rows(DataConfig(path=path), evaluates=False).skipped == 1


def test_held_out_rows_of_another_file_are_its_first(tmp_path):
    train, evaluation = write_rows(tmp_path / "a.jsonl", numbered(4)), write_rows(tmp_path / "b.jsonl", numbered(5, 50))
    split = load_split_rows(DataConfig(path=train, eval_path=evaluation, eval_rows=2), evaluates=True)
    assert len(split.train) == 4 and [row.solution for row in split.held_out] == ["50", "51"]


def test_held_out_split_of_the_same_folder(tmp_path):
    write_rows(tmp_path / "train.jsonl", numbered(4))
    write_rows(tmp_path / "test.jsonl", numbered(2, 90))
    held_out = load_split_rows(DataConfig(path=str(tmp_path), eval_split="test", eval_rows=2), evaluates=True).held_out
    assert [row.solution for row in held_out] == ["90", "91"]


def test_no_held_out_rows_when_none_are_asked_for(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", numbered(3))
    split = load_split_rows(DataConfig(path=path, eval_rows=0), evaluates=False)
    assert len(split.train) == 3 and split.held_out == ()


def test_too_many_held_out_rows_are_refused(tmp_path):
    path, other = write_rows(tmp_path / "a.jsonl", numbered(4)), write_rows(tmp_path / "b.jsonl", numbered(2))
    with pytest.raises(UserError) as refusal:
        load_split_rows(DataConfig(path=path, eval_rows=4), evaluates=True)
    assert str(refusal.value) == (
        f"data.eval_rows=4: expected fewer than the 4 rows of {path}, from which they are taken: lower it, or give "
        "--data.eval-path"
    )
    with pytest.raises(UserError) as refusal:
        load_split_rows(DataConfig(path=other), evaluates=True)
    assert str(refusal.value) == (
        f"data.eval_rows=None: expected fewer than the 2 rows of {other}, from which 2 or more are taken: give more "
        "rows, or give --data.eval-path"
    )
    with pytest.raises(UserError) as refusal:
        load_split_rows(DataConfig(path=path, eval_path=other, eval_rows=3), evaluates=True)
    assert str(refusal.value) == (f"data.eval_rows=3: expected at most the 2 usable rows of {other} (train): lower it")


def long_and_short(tmp_path):
    rows = numbered(6)
    rows[1]["question"] = rows[4]["question"] = "What is " + " + ".join("12345678") + "?"
    path = write_rows(tmp_path / "rows.jsonl", rows)
    return replace(TINY, max_prompt_length=64, data=replace(TINY.data, path=path, eval_path=None, eval_rows=2))


def test_too_long_prompts_are_skipped_with_a_count(tmp_path, chat, logged):
    prompts, held_out = load_prompts(long_and_short(tmp_path), chat)
    assert [prompt.row.number for prompt in prompts] == [0, 2, 3] and [p.row.number for p in held_out] == [5]
    assert "1 training rows skipped: 1 x prompt is too long (row 1)" in logged.messages
    assert "1 held-out rows skipped: 1 x prompt is too long (row 4)" in logged.messages
    (start,) = [line for line in logged.messages if line.startswith("training the teacher")]
    assert f" on 3 rows of {tmp_path}/rows.jsonl (1 skipped), " in start
    assert f"evaluating every 10 steps on 1 row at the end of {tmp_path}/rows.jsonl, which are not trained on" in (
        logged.messages
    )


def test_too_long_prompts_may_be_cut_on_their_left(tmp_path, chat):
    config = long_and_short(tmp_path)
    prompts, _ = load_prompts(replace(config, data=replace(config.data, truncate_prompts=True)), chat)
    assert [prompt.row.number for prompt in prompts] == [0, 1, 2, 3]
    whole, _ = load_prompts(replace(config, max_prompt_length=200), chat)
    assert len(whole[1].teacher_ids) > 64
    assert prompts[1].teacher_ids.tolist() == whole[1].teacher_ids[-64:].tolist()


def test_ten_megabytes_in_a_row_are_read_and_skipped_at_once(tmp_path, chat, logged):
    rows = numbered(3)
    rows[1]["question"] = "What is 1" + "+1" * 5_000_000 + "?"
    config = replace(TINY, data=DataConfig(path=write_rows(tmp_path / "rows.jsonl", rows), eval_rows=0))
    before = time.process_time()
    prompts, _ = load_prompts(config, chat)
    assert time.process_time() - before < 2
    assert [prompt.row.number for prompt in prompts] == [0, 2]
    assert "1 training rows skipped: 1 x prompt is too long (row 1)" in logged.messages


def test_many_rows_show_how_far_they_are(tmp_path, chat, monkeypatch, capsys):
    monkeypatch.setattr("rlt_jax.report.counting.QUIET", 0.0)  # as if the seconds had passed
    monkeypatch.setattr("rlt_jax.report.counting.EVERY", 0.0)
    data = DataConfig(path=write_rows(tmp_path / "rows.jsonl", numbered(2048)), eval_rows=8)
    load_prompts(replace(TINY, data=data), chat)
    assert capsys.readouterr().out.splitlines() == [
        *("reading rows ... 1,024", "reading rows ... 2,048"),
        *("preparing training rows ... 1,024 of 2,040", "preparing training rows ... 2,040 of 2,040"),
        "preparing held-out rows ... 8 of 8",
    ]


# chat format and models


def test_the_chat_format_takes_the_prompts_of_files_and_rows(tmp_path, chat):
    assert chat.teacher_prompt == Path(PROMPT_FILE).read_text().strip()
    assert chat.student_prompt == STUDENT_PROMPT and not chat.student_prompt_overrides_rows
    (tmp_path / "student.txt").write_text("Be brief.\n")
    other = load_chat_format(
        TINY.teacher,
        TINY.teacher,
        tags="r1",
        teacher_prompt_file=None,
        student_prompt_file=str(tmp_path / "student.txt"),
    )
    assert other.teacher_prompt == TEACHER_PROMPT and other.tags.thought_start == "<think>"
    assert other.student_prompt == "Be brief." and other.student_prompt_overrides_rows


def test_teacher_and_student_must_share_their_tokens(golden):
    with pytest.raises(UserError, match="expected teacher and student to share one vocabulary"):
        load_chat_format(
            TINY.teacher, str(golden / "student"), tags="bespoke", teacher_prompt_file=None, student_prompt_file=None
        )


def test_a_model_with_fewer_embeddings_than_tokens_is_refused(golden, chat):
    """The tiny vocabulary fits into the golden student's 1000 rows, but not the other way round."""
    assert load_checked_model(str(golden / "student"), chat.student, dtype="float32")[0].config.vocab_size == 1000
    other = load_chat_format(
        str(golden / "student"),
        str(golden / "student"),
        tags="bespoke",
        teacher_prompt_file=None,
        student_prompt_file=None,
    )
    with pytest.raises(UserError, match=r"expected embeddings for the 1000 tokens of its tokenizer, but config\.json"):
        load_checked_model(TINY.student, other.student, dtype="float32")


def short_model(folder, positions, of=TINY.teacher):
    """A copy of a model that was made for fewer positions."""
    shutil.copytree(of, folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "max_position_embeddings": positions}))
    return str(folder)


def test_rows_that_may_exceed_the_teachers_positions_are_skipped_and_counted(tmp_path, chat, logged):
    student = short_model(tmp_path / "student", 9999, of=TINY.student)
    config = replace(long_and_short(tmp_path), max_prompt_length=1024, student=student)
    lengths = {prompt.row.number: len(prompt.teacher_ids) for prompt in load_prompts(config, chat)[0]}
    longest = max(lengths.values())
    exact = replace(config, max_completion_length=1024 - longest)
    assert len(load_prompts(exact, chat)[0]) == len(lengths)
    logged.clear()
    prompts, _ = load_prompts(replace(config, max_completion_length=1025 - longest), chat)
    assert {prompt.row.number for prompt in prompts} == {row for row, length in lengths.items() if length < longest}
    assert "1 training rows skipped: 1 x prompt and completion exceed the teacher's positions (row 1)" in logged.text
    with pytest.raises(UserError, match=r"none of 4 does: 4 x prompt and completion exceed the teacher's positions"):
        load_prompts(replace(config, max_completion_length=1024), chat)


def test_rows_that_may_exceed_the_students_or_the_references_positions_are_skipped(tmp_path, chat, logged):
    config = replace(long_and_short(tmp_path), max_prompt_length=1024, max_completion_length=64)
    lengths = {
        prompt.row.number: len(prompt.student_prefix_ids) + len(prompt.closing_ids) + 64
        for prompt in load_prompts(config, chat)[0]
    }
    longest = max(lengths.values())
    student = short_model(tmp_path / "student", longest - 1, of=TINY.student)
    prompts, _ = load_prompts(replace(config, student=student), chat)
    assert {prompt.row.number for prompt in prompts} == {row for row, length in lengths.items() if length < longest}
    assert "1 x chat and explanation exceed the student's positions (row 1)" in logged.text
    reference = short_model(tmp_path / "reference", 40)
    assert room_of(replace(config, reference=reference)).teacher == 40
    file = tmp_path / "reference" / "config.json"
    yarn = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 40}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rope_scaling": yarn}))
    assert room_of(replace(config, reference=reference)).teacher == 80  # stretched
    with pytest.raises(UserError, match="exceed the teacher's positions"):
        load_prompts(replace(config, reference=reference), chat)


# compilations


def test_compilations_are_counted_once_for_each_shape():
    @jax.jit
    def double(x):
        return 2 * x

    inputs = [jnp.zeros(n) for n in (3, 5)]
    counter = CompileCounter()
    double(inputs[0])
    assert counter.count == 1
    double(inputs[0])
    assert counter.count == 1
    before, start = counter.compiled, time.perf_counter()
    double(inputs[1])
    assert counter.count == 2
    programs, seconds = counter.since(before)
    assert programs == 1 and 0 < seconds < time.perf_counter() - start
    assert counter.compiled.seconds == before.seconds + seconds > 0
    assert CompileCounter().compiled == (0, 0.0)
