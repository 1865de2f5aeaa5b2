"""A step's metrics: traces are measured as the explanations that they would be."""

import numpy as np
import pytest

from rlt_jax.data import (
    ChatFormat,
    build_prompts,
    encode,
    explanation_to_completion,
    load_tokenizer,
    score_row_from_ids,
)
from rlt_jax.rewards.records import rollout_metrics
from rlt_jax.rewards.rlt import Rewards
from rlt_jax.rewards.scorer import Scored
from rlt_jax.types import Completion, Row

SENTENCE = "Twice seven apples make fourteen apples, as doubling a number adds it to itself."


@pytest.fixture(scope="module")
def chat(golden):
    return ChatFormat(load_tokenizer(golden / "teacher"))


def metrics_of(traces, written, chat):
    """The metrics of one completion a row; rows without a trace hold None."""
    rows = [Row(i, f"What is twice {i}?", f"{SENTENCE}\n\n14", trace, None) for i, trace in enumerate(traces)]
    prompts = build_prompts(rows, chat, max_prompt_length=500).prompts
    ids = [encode(chat.tokenizer, explanation_to_completion(text, chat.tags)) for text in written]
    scored = [score_row_from_ids(prompt, one, chat, ()) for prompt, one in zip(prompts, ids, strict=True)]
    completions = [Completion(one, np.zeros(len(one), np.float32), True, 0) for one in ids]
    scored = Scored(prompts, scored, Rewards(np.zeros(len(ids), np.float32), {}))
    return rollout_metrics(scored, completions, chat, num_generations=1)


def test_a_teacher_that_writes_the_trace_has_the_trace_s_copy_rate(chat):
    traces = [f"Seven and seven. {SENTENCE}", f"We look at the question first of all.\n{SENTENCE}"]
    metrics = metrics_of(traces, traces, chat)
    assert 0.3 < metrics["copy_rate"] < 1
    assert metrics["trace_copy_rate"] == metrics["copy_rate"]


def test_rows_whose_trace_no_teacher_could_write_do_not_count(chat):
    traces = [SENTENCE, None, f"one {chat.tags.explanation_end} two", " \n"]
    metrics = metrics_of(traces, [SENTENCE] * 4, chat)
    assert metrics["trace_copy_rate"] == metrics["copy_rate"] > 0.9
