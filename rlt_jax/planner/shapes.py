"""The sizes of a model and of a run that its memory depends on."""

from dataclasses import dataclass
from typing import Literal

from rlt_jax.types import Dtype

SamplerKind = Literal["native", "vllm", "vllm-server"]


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The sizes of a Qwen2, Qwen2.5 or Qwen3 model that its memory depends on."""

    vocab: int
    hidden: int  # D
    inner: int  # of the MLP
    layers: int  # L
    heads: int  # H, of queries
    kv_heads: int  # KH
    head_dim: int  # hd
    tied: bool  # one matrix is embedding and head
    qkv_bias: bool
    qk_norm: bool
    output_bias: bool = False  # of the attention's output projection

    @property
    def queries(self) -> int:
        """Width of the queries of a token, H·hd."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of the keys, and of the values, of a token, KH·hd."""
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
        """Parameters of the token table, and of the head as well unless tied."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """All parameters; tied embeddings count once."""
        embeddings = self.embedding_parameters * (1 if self.tied else 2)
        return self.layers * self.layer_parameters + embeddings + self.hidden

    def cache_bytes(self, weight_bytes: int) -> int:
        """Bytes of the key-value cache for each token of a sequence."""
        return 2 * self.layers * self.keys * weight_bytes


@dataclass(frozen=True, kw_only=True)
class RunShape:
    """What the ledger needs to know of a run beside the teacher's shape. Tokens are those of padded sequences."""

    student: ModelShape
    weight_bytes: int  # of a weight or activation: 2 or 4
    gradient_bytes: int  # of a gradient sum: 2 or 4
    moments: Dtype  # type of AdamW's moments; on the GPU they are float32
    optimizer_on_host: bool
    frozen_on_host: bool  # student and reference
    micro_batch: int  # sequences of a forward and backward pass
    score_batch: int  # sequences of a forward pass
    teacher_tokens: int  # of a sequence that teacher and reference read, padded
    student_tokens: int  # of a sequence that the student reads, padded
    prompt_tokens: int  # of the teacher's prompt, not padded
    completion_tokens: int  # of a completion, not padded
    logprob_chunk: int  # tokens whose logits exist at one time
    saved_attention: int  # layers
    saved_mlp: int  # layers
    completions: int  # of a step
    generations: int  # completions of a prompt
    sampler: SamplerKind
    vllm_bytes: int  # the engine's share of the GPU while it is awake; 0 with the native sampler
    native_batch: int  # sequences that the native sampler decodes together
    fused_attention: bool  # else all B·H·T² scores exist

    @property
    def sequence_tokens(self) -> int:
        """Tokens of a prompt and its completion, not padded."""
        return self.prompt_tokens + self.completion_tokens
