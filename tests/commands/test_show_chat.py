"""`--show-chat` on the command line: it prints and ends, and writes nothing."""

import pytest

PLAN = ("--preset", "tiny")


@pytest.mark.parametrize("name", ["plan", "train"])
def test_the_chats_of_a_run_are_printed_instead_of_running(command, name, tmp_path):
    out = () if name == "plan" else ("--output-dir", tmp_path / "run")
    printed = command(name, *PLAN, *out, "--show-chat")
    assert printed.startswith("teacher (") and "\nstudent (" in printed
    assert "  > 2 tokens, solution: the log-prob of these tokens is rewarded\n    > 57\n" in printed
    assert printed.endswith("a completion ends at: 420 '<|im_end|>'\n")
    assert not (tmp_path / "run").exists()


def test_what_fine_tuning_trains_is_printed(command, tiny, tmp_path):
    flags = ("--model", tiny / "student", "--target", "student", "--data.path", tiny / "train.jsonl")
    printed = command("sft", *flags, "--output-dir", tmp_path / "run", "--show-chat")
    assert "tokens, trained: the loss is over these tokens\n    > <|begin_of_thought|>\n" in printed
    assert not (tmp_path / "run").exists()
