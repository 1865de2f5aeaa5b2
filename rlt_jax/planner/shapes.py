"""The sizes of a model and of a run that decide how much memory the run needs."""

from dataclasses import dataclass
from typing import NamedTuple

from rlt_jax.batching import bucket_length, bucket_within
from rlt_jax.segments import flat_sizes
from rlt_jax.types import Attention, Dtype, SamplerKind


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The sizes of a dense decoder (Qwen, Llama) that decide how much memory it needs."""

    vocab: int
    hidden: int  # D
    inner: int  # of the MLP
    layers: int  # L
    heads: int  # H, of queries
    kv_heads: int  # KH
    head_dim: int  # hd
    tied: bool  # embedding and head are one matrix
    qkv_bias: bool
    qk_norm: bool
    output_bias: bool = False  # of the attention's output projection

    @property
    def queries(self) -> int:
        """Width of a token's queries, H·hd."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of a token's keys, and of its values, KH·hd."""
        return self.kv_heads * self.head_dim

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer."""
        attention = self.hidden * (2 * self.queries + 2 * self.keys)
        biases = (self.queries + 2 * self.keys) * self.qkv_bias + self.hidden * self.output_bias
        norms = 2 * self.hidden + 2 * self.head_dim * self.qk_norm
        return attention + biases + norms + 3 * self.hidden * self.inner

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the token embedding; an untied head has as many again."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """All parameters; tied embeddings count once."""
        embeddings = self.embedding_parameters * (1 if self.tied else 2)
        return self.layers * self.layer_parameters + embeddings + self.hidden

    def cache_bytes(self, weight_bytes: int) -> int:
        """Bytes of the key-value cache per token."""
        return 2 * self.layers * self.keys * weight_bytes


class Pass(NamedTuple):
    """What a forward pass, or a forward and backward pass, computes at one time."""

    attention: Attention  # as `models.attention.planned_kernel` finds
    sequences: int  # B
    length: int  # T, padding included

    @property
    def tokens(self) -> int:
        """Tokens that are computed, B·T."""
        return self.sequences * self.length

    @property
    def is_flat(self) -> bool:
        """Whether it is one sequence of segments."""
        return self.attention in ("cudnn", "flash-attn3")

    def of(self, tokens: int, longest: int) -> "Pass":
        """`pass_of` with the same attention."""
        return pass_of(self.attention, tokens, longest)


def pass_of(attention: Attention, tokens: int, longest: int) -> Pass:
    """The largest pass of micro-batches (`segments.micro_batches`) of at most `tokens` tokens, or one longest row."""
    if attention in ("cudnn", "flash-attn3"):
        return Pass(attention, 1, flat_sizes(max(tokens, longest))[0])
    length = bucket_length(longest)
    if attention == "masked":  # rows that share their prompt are in one sequence, of up to twice the longest row's
        length = min(2 * length, max(length, bucket_within(tokens)))
    return Pass(attention, 1 << (max(tokens // length, 1).bit_length() - 1), length)


@dataclass(frozen=True, kw_only=True)
class RunShape:
    """What the ledger needs to know about a run besides the teacher's shape."""

    student: ModelShape
    weight_bytes: int  # of a weight or activation: 2 or 4
    gradient_bytes: int  # of a gradient sum: 2 or 4
    moments: Dtype  # type of AdamW's moments; on the GPU they are float32
    optimizer_on_host: bool
    frozen_on_host: bool  # student and reference
    policy_on_host: bool = False  # the teacher's weights, while vLLM is awake
    update: Pass  # forward and backward
    score: Pass  # forward, of teacher and reference
    score_student: Pass
    teacher_tokens: int  # of the longest row that teacher and reference read, not padded
    student_tokens: int  # of the longest row that the student reads, not padded
    prompt_tokens: int  # of the teacher's prompt, not padded
    completion_tokens: int  # of a completion, not padded
    logprob_chunk: int  # tokens whose logits exist at one time
    saved_attention: int  # layers whose attention activations are saved
    saved_mlp: int  # layers whose MLP activations are saved
    completions: int  # per step
    generations: int  # completions per prompt
    sampler: SamplerKind
    vllm_bytes: int  # the engine's share of the GPU while it is awake; 0 with the native sampler
    native_batch: int  # sequences that the native sampler decodes together
    reads_teacher: bool = True  # the reward reads the teacher's log-probs
    reads_student: bool = True  # the reward reads the student's; else it is not loaded
    kl_term: bool = True  # of the loss, which reads the reference's log-probs
    reference_teacher: bool = False  # the reward's teacher is the reference

    @property
    def has_reference(self) -> bool:
        """Whether anything reads a reference; else it is not loaded."""
        return self.kl_term or (self.reads_teacher and self.reference_teacher)

    @property
    def sequence_tokens(self) -> int:
        """Tokens of a prompt and its completion, not padded."""
        return self.prompt_tokens + self.completion_tokens
