"""The README.md of a trained model's folder."""

import dataclasses

import huggingface_hub

from rlt_jax.data.model_card import model_card
from tests.data.test_model_record import STUDENT, TEACHER

TEACHER = dataclasses.replace(TEACHER, chat="<s>{system}</s>\n<q>{question}</q>\n<a>{answer}</a>\n")


def test_the_front_matter_is_what_the_hub_reads():
    data = huggingface_hub.ModelCard(model_card(TEACHER)).data
    assert data.library_name == "transformers" and data.base_model == "Qwen/Qwen2.5-0.5B"
    assert data.tags == ["rlt_jax", "rlt-teacher"]
    local = dataclasses.replace(TEACHER, training=TEACHER.training[1:])
    assert huggingface_hub.ModelCard(model_card(local)).data.base_model is None  # a local folder is nothing to the hub


def test_how_a_teacher_is_asked():
    card = model_card(TEACHER)
    chat = """
    <s>Explain "it": <explanation>
    like this, näive.</s>
    <q>QUESTION</q>
    <a><solution>SOLUTION</solution>

    <explanation>

    EXPLANATION

    </explanation></a>
"""
    assert chat in card
    assert "It ends with `</s>` or `<end>`." in card and "rlt_jax.generate --teacher FOLDER" in card
    assert "1. supervised fine-tuning (`rlt_jax.sft`) of `Qwen/Qwen2.5-0.5B`: 30 steps on `rows.jsonl`" in card
    assert "2. GRPO on the reward of RLT (`rlt_jax.train`) of `runs/warm/final`, with the student `student`: 40" in card


def test_how_a_student_is_asked():
    gap = "    </think>\n\n    <solution>SOLUTION</solution></s>\n"
    card = model_card(STUDENT)
    assert "    <s>SYSTEM PROMPT|QUESTION|<think>\n\n    THOUGHT\n\n" + gap in card
    assert "those it was trained on differ" in card and "rlt_jax.evaluate --model FOLDER" in card
    literal = dataclasses.replace(STUDENT, prompt="Solve {it}.", student_gap="as-row")
    assert "<s>Solve {it}.|QUESTION|" in model_card(literal)
    assert "</think><solution>SOLUTION</solution></s>" in model_card(literal)
