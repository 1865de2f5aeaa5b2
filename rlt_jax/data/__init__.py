"""From data sets to prompts, spans and supervised examples: text to token ids and back."""

from rlt_jax.data.chat_format import (
    STUDENT_PROMPT,
    TEACHER_PROMPT,
    ChatFormat,
    ChatSources,
    padded_thought,
    plain_chat_text,
    student_closing_text,
    student_header_text,
    student_prefix_text,
    student_sft_parts,
    student_system,
    teacher_prompt_text,
    teacher_sft_parts,
)
from rlt_jax.data.columns import Columns, Spelling
from rlt_jax.data.copying import copy_rate, repeat_rate
from rlt_jax.data.distillation import distillation_row
from rlt_jax.data.encoding import encode, encode_batch, encode_with_offsets, ids_to_bytes
from rlt_jax.data.explained import ExplainedRow, explained_score_rows, load_explained_rows, with_prompts
from rlt_jax.data.forged import judged, text_problem
from rlt_jax.data.lazily import Lazily
from rlt_jax.data.lengths import Length, TokenCounter, counter_of
from rlt_jax.data.order import chunked_order, questions_of_step
from rlt_jax.data.prompt_file import read_prompt_file
from rlt_jax.data.prompts import BuiltPrompts, Room, build_prompts, teacher_texts
from rlt_jax.data.questions import Question, load_questions
from rlt_jax.data.rows import LoadedRows, describe_skipped, load_rows
from rlt_jax.data.sft_text import BuiltSftExamples, SftExample, build_sft_examples
from rlt_jax.data.spans import (
    explanation_to_completion,
    score_row_from_ids,
    score_row_from_text,
    score_row_from_trace,
    trace_completion,
)
from rlt_jax.data.tags import BESPOKE, R1, TagFormat, Tags, tags_of
from rlt_jax.data.tokenizer import check_same_tokenizer, eos_ids, known_ids, load_tokenizer
from rlt_jax.data.turns import end_of_turn, template_notes, turns_of

__all__ = [
    "BESPOKE",
    "R1",
    "STUDENT_PROMPT",
    "TEACHER_PROMPT",
    "BuiltPrompts",
    "BuiltSftExamples",
    "ChatFormat",
    "ChatSources",
    "Columns",
    "ExplainedRow",
    "Lazily",
    "Length",
    "LoadedRows",
    "Question",
    "Room",
    "SftExample",
    "Spelling",
    "TagFormat",
    "Tags",
    "TokenCounter",
    "build_prompts",
    "build_sft_examples",
    "check_same_tokenizer",
    "chunked_order",
    "copy_rate",
    "counter_of",
    "describe_skipped",
    "distillation_row",
    "encode",
    "encode_batch",
    "encode_with_offsets",
    "end_of_turn",
    "eos_ids",
    "explained_score_rows",
    "explanation_to_completion",
    "ids_to_bytes",
    "judged",
    "known_ids",
    "load_explained_rows",
    "load_questions",
    "load_rows",
    "load_tokenizer",
    "padded_thought",
    "plain_chat_text",
    "questions_of_step",
    "read_prompt_file",
    "repeat_rate",
    "score_row_from_ids",
    "score_row_from_text",
    "score_row_from_trace",
    "student_closing_text",
    "student_header_text",
    "student_prefix_text",
    "student_sft_parts",
    "student_system",
    "tags_of",
    "teacher_prompt_text",
    "teacher_sft_parts",
    "teacher_texts",
    "template_notes",
    "text_problem",
    "trace_completion",
    "turns_of",
    "with_prompts",
]
