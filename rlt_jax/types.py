"""Frozen records that flow through a run: Prompt -> Request -> Completion -> ScoreRow -> RewardLogprobs -> TrainBatch.

Ragged data (token ids of one row) are numpy arrays on the host; padded batches go to the device.
Positions index tokens, not logits: the log-prob of the token at position t comes from the logits at t - 1.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

Array = Any  # numpy on the host, jax on the device

GB = 1e9  # bytes

Dtype = Literal["bfloat16", "float32"]  # of weights, activations, gradient sums, moments
StoredDtype = Literal["auto", "bfloat16", "float32"]  # the same; auto: as stored
RunDtype = Literal["auto", "bfloat16", "float32"]  # the same; auto: float32 on a CPU, bfloat16 elsewhere
SamplerKind = Literal["native", "vllm", "vllm-server"]
TagFormat = Literal["bespoke", "r1"]  # `<|begin_of_NAME|>` ... `<|end_of_NAME|>`, or `<NAME>` ... `</NAME>`
ScoringModel = Literal["student", "teacher"]  # whose log-probs a reward may read
# Over the segments of one flat sequence, by either kernel; cuDNN's, a row a sequence; by masks, with all B·H·T² scores.
Attention = Literal["cudnn", "flash-attn3", "rows", "masked"]
StudentTokens = Literal["ids", "text"]  # the student reads the teacher's token ids, or its text in tokens of its own
Reduction = Literal["mean", "sum", "min", "max", "median", "first_quartile", "last_quartile"]  # of a span's tokens
PolicyKind = Literal["grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo", "gmpo"]  # of policy loss
AdvantageScale = Literal["group", "batch", "none"]  # whose standard deviation divides an advantage
AdvantageBaseline = Literal["mean", "leave_one_out"]  # of its group, that an advantage is measured from
RewardAggregation = Literal["sum_then_normalize", "normalize_then_sum"]  # of reward components
ImportanceCorrection = Literal["none", "token", "sequence", "sequence_mean"]  # of sampler and policy
OutsideBounds = Literal["truncate", "mask"]  # what becomes of an importance weight outside its bounds
RatioLevel = Literal["token", "sequence"]  # whose probability a policy ratio compares
Likelihood = Literal["logp", "logp_per_token", "prob", "prob_per_token"]  # of a solution under the student
Normalization = Literal["exp", "exp_norm"]  # of a token's value x: exp(x), or 1 - exp(-x)


class WrittenFloat(float):
    """A number of a JSON file with its digits as they were written: a float alone keeps 17 of them."""

    text: str

    def __new__(cls, text: str) -> "WrittenFloat":
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __reduce__(self) -> tuple[type["WrittenFloat"], tuple[str]]:
        return type(self), (self.text,)


@dataclass(frozen=True, slots=True)
class Row:
    """One usable row of a data set, its texts exactly as they appear between their tags."""

    number: int  # row number in the data set, from 0
    question: str
    solution: str  # never empty after stripping
    reasoning_trace: str | None  # None: the row has no trace (fine for RL, refused by supervised fine-tuning)
    system: str | None  # the row's own student prompt; None: use the chat format's


@dataclass(frozen=True)
class Prompt:
    """A row formatted for the teacher, tokenised once."""

    row: Row
    teacher_text: str  # ends right after the explanation's start tag and two newlines
    teacher_ids: np.ndarray  # i32[P] token ids of teacher_text
    student_text: str  # student chat up to and including the thought's start tag and two newlines
    student_prefix_ids: np.ndarray  # i32[S] its token ids, by the student's tokenizer
    closing_ids: np.ndarray  # i32[C] what follows the thought in the student's chat, by the student's tokenizer
    closing_solution: np.ndarray  # i32[M'] positions of the solution in closing_ids, never empty
    solution_ids: np.ndarray  # i32[M] the solution's text alone, tokenised (for the copy rate)


@dataclass(frozen=True)
class SamplingParams:
    """How to sample completions. top_k 0, top_p 1 and min_p 0 disable each; temperature 0 is greedy."""

    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    @property
    def filtered(self) -> bool:
        """Whether tokens are sampled from a part of the distribution: a filter is on, and sampling is not greedy."""
        return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1 or self.min_p > 0)


@dataclass(frozen=True)
class Request:
    """One prompt to continue, once per seed."""

    prompt_ids: np.ndarray  # i32[P]
    seeds: tuple[int, ...]  # one completion per seed; the same seed gives the same completion whatever the batch


@dataclass(frozen=True)
class Completion:
    """The completion sampled for one (prompt, seed).

    Its log-probs are those of softmax(logits / temperature) over the model's whole vocabulary, before any filter, so
    that they compare with the trainer's; of a greedy completion they are at temperature 1. With a filter on they are
    NaN where the sampler cannot know them, as with vLLM, which reports them after its filters.
    """

    token_ids: np.ndarray  # i32[N], including the EOS token if there was one
    logps: np.ndarray  # f32[N] nats
    finished: bool  # True: ended by EOS; False: cut off at max_tokens
    weight_version: int  # of the weights that it was sampled from


@dataclass(frozen=True)
class ScoreRow:
    """One explanation as the teacher wrote it and as the student reads it, with the positions of thought and solution.

    The two thought arrays have equal length and point at the same token ids in the two sequences.
    """

    teacher_ids: np.ndarray  # i32[T]
    teacher_thought: np.ndarray  # i32[K] positions in teacher_ids
    student_ids: np.ndarray  # i32[S]
    student_thought: np.ndarray  # i32[K] positions in student_ids
    solution: np.ndarray  # i32[M] positions in student_ids
    matched: bool  # the explanation's tags were closed
    explanation: str  # the thought's text, for reports
    copy_rate: float  # share of thought tokens inside a run of >= 8 tokens that also occurs in the solution
    repeat_rate: float  # the same for runs that occurred earlier in the thought itself


class _SpanLogprobs(NamedTuple):
    solution_logps: np.ndarray | None  # f32[B, M] student
    solution_mask: np.ndarray  # bool[B, M]
    student_thought_logps: np.ndarray | None  # f32[B, K]
    teacher_thought_logps: np.ndarray | None  # f32[B, K]
    thought_mask: np.ndarray  # bool[B, K]
    matched: np.ndarray  # bool[B]


class RewardLogprobs(_SpanLogprobs):
    """Log-probs of the spans that the reward reads, right-padded, nats.

    Those of a model that the reward function does not read (`rewards.rlt.reads`) do not exist: to ask for them raises
    a ValueError.
    """

    __slots__ = ()

    @property
    def solution_logps(self) -> np.ndarray:  # type: ignore[override]
        """The student's, f32[B, M]."""
        return _read(self[0], "solution_logps", "student")

    @property
    def student_thought_logps(self) -> np.ndarray:  # type: ignore[override]
        """The student's, f32[B, K]."""
        return _read(self[2], "student_thought_logps", "student")

    @property
    def teacher_thought_logps(self) -> np.ndarray:  # type: ignore[override]
        """The teacher's, f32[B, K]."""
        return _read(self[3], "teacher_thought_logps", "teacher")


def _read(logps: np.ndarray | None, name: str, model: ScoringModel) -> np.ndarray:
    if logps is None:
        raise ValueError(
            f"{name}: the {model}'s log-probs were not computed, because the reward function is declared not to read "
            f'them: add "{model}" to its @reads(...)'
        )
    return logps


class TrainBatch(NamedTuple):
    """One micro-batch of the GRPO update: its tokens as they lie, and its R completions of up to C tokens."""

    ids: Array  # i32[B, T] token ids
    mask: Array  # bool[B, T] True on tokens of completions
    layout: Any  # segments.Layout, or None: a sequence is one row
    places: Array  # i32[R, C] flattened position b·T + t of each completion's tokens; arbitrary off the row mask
    row_mask: Array  # bool[R, C] True on the tokens of each completion, up to and including EOS
    ref_logps: Array | None  # f32[R, C] nats, of the tokens; 0 off the row mask; None: no KL term
    sampler_logps: Array  # f32[R, C] nats, as in Completion; 0 off the row mask
    advantages: Array  # f32[R]
    old_logps: Array | None = None  # f32[R, C] nats, by the policy before the first step on the draw; None: on-policy
    keep: Array | None = None  # bool[R, C] tokens that the policy term counts, by their entropy; None: all
    totals: Any = None  # losses.Totals of the whole gradient step; None: those of this micro-batch
