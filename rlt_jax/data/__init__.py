"""Data sets to prompts, spans and supervised examples: the way from text to token ids and back."""

from rlt_jax.data.copy_rate import copy_rate
from rlt_jax.data.encoding import encode, encode_batch, encode_with_offsets, ids_to_bytes
from rlt_jax.data.explained import ExplainedRow, explained_score_row, load_explained_rows
from rlt_jax.data.layout import (
    STUDENT_PROMPT,
    TEACHER_PROMPT,
    Layout,
    end_of_turn,
    padded_thought,
    student_chat_text,
    student_header_text,
    student_prefix_text,
    student_sft_text,
    teacher_prompt_text,
    teacher_sft_text,
)
from rlt_jax.data.order import chunked_order, questions_of_step
from rlt_jax.data.prompt_file import read_prompt_file
from rlt_jax.data.prompts import BuiltPrompts, build_prompts
from rlt_jax.data.rows import LoadedRows, describe_skipped, load_rows
from rlt_jax.data.sft_text import BuiltSftExamples, SftExample, build_sft_examples, sft_example
from rlt_jax.data.spans import explanation_to_completion, score_row_from_ids, score_row_from_text
from rlt_jax.data.tags import BESPOKE, R1, TagFormat, Tags, tags_of
from rlt_jax.data.tokenizer import check_same_tokenizer, eos_ids, load_tokenizer

__all__ = [
    "BESPOKE",
    "R1",
    "STUDENT_PROMPT",
    "TEACHER_PROMPT",
    "BuiltPrompts",
    "BuiltSftExamples",
    "ExplainedRow",
    "Layout",
    "LoadedRows",
    "SftExample",
    "TagFormat",
    "Tags",
    "build_prompts",
    "build_sft_examples",
    "check_same_tokenizer",
    "chunked_order",
    "copy_rate",
    "describe_skipped",
    "encode",
    "encode_batch",
    "encode_with_offsets",
    "end_of_turn",
    "eos_ids",
    "explained_score_row",
    "explanation_to_completion",
    "ids_to_bytes",
    "load_explained_rows",
    "load_rows",
    "load_tokenizer",
    "padded_thought",
    "questions_of_step",
    "read_prompt_file",
    "score_row_from_ids",
    "score_row_from_text",
    "sft_example",
    "student_chat_text",
    "student_header_text",
    "student_prefix_text",
    "student_sft_text",
    "tags_of",
    "teacher_prompt_text",
    "teacher_sft_text",
]
