"""Who holds how much of the card and of the host in each phase of a step, as arithmetic: no device, no JAX.

    peak = max over phases of  Σ owners resident in it

Two tables, `_CARD` and `_HOST`, say who is resident when; `_card_sizes` and `_host_sizes` say how large each is. What
follows from shapes is exact (parameters, accumulators, optimizer state, key-value cache) or a formula (activations);
what does not is a constant below, with where it comes from. Sizes are bytes, a GB is 1e9 of them.

The temporaries of a program are the part that a compiler decides. Their formulas were fitted to one model (Qwen2.5-7B,
bfloat16, cuDNN attention, JAX 0.11); a program compiled for the card knows its own, which `make_ledger` takes instead.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from rlt_jax.memory.pinned import Moments, host_bytes, pool_limit_gib

GB = 1e9  # bytes
_GIB = 2**30

# Constants. "Measured" are NVML readings on one H100 80 GB (CUDA 13, JAX 0.11.2, vLLM 0.26.0), 2026-11-25, in
# docs/benchmarks.md; an estimate is marked so in every ledger that holds it.

TRAINER_CONTEXT = 1.2e9
"""CUDA context, loaded kernels and library workspaces of the trainer's process. Measured: 1.19 to 1.28 GB beside the
weights, accumulators and temporaries of a 7B model; 1.37 on an H200."""
VLLM_ASLEEP = 1.5e9
"""What a vLLM process keeps while it sleeps (level 2): context, CUDA graphs, workspaces. Measured: 1.2 GB in the phases
of a whole step, 1.5 by vLLM's own account; 1.70 to 1.92 on an H200."""
KEPT_RESERVE = 0.5e9
"""Left free of the planned memory by `kept_layers`: about what the formulas of the update were wrong by."""
VLLM_WORKSPACE = 1.0e9
"""Context, CUDA graphs and library workspaces that vLLM takes off its share. With it the formula gives a 7B engine on
46.75 GB room for 501,777 tokens; measured: 498,128."""
VLLM_PREFILL_TOKENS = 16384
"""Prompt tokens vLLM computes together, whose activations it takes off its share. Its default on cards of 70 GiB and
more; on an A100 and on smaller ones it is half as much, and the cache larger."""
PREFILL_TOKENS = 32768
"""Prompt tokens the native sampler computes together: its default."""
POOL_GROWTH = 3
"""Most that the pool of pinned memory takes from the system, times what is in use, below its limit: a region twice as
large as all before it, for a buffer that did not fit. Near its limit, as with a 7B model, it takes the limit."""
TRAINER_PROCESS = 4.0e9
"""Host memory of the trainer beside pinned memory: libraries, JAX, tokenizer, data. Estimate: it and VLLM_PROCESSES are
7.8 GB together in a run that took 88.3 GB of the host with a pool of 80.5 GB."""
VLLM_PROCESSES = 6.0e9
"""Host memory of vLLM's two processes. Estimate, as TRAINER_PROCESS."""
CHECKPOINT_COPY = 4.0e9
"""Host memory for arrays on their way into a checkpoint: as many as are written at one time. Estimate."""
EXPORT_SHARD = 5.0e9
"""Host memory for one shard of the exported model: `models.save_model`'s default."""

# Activations of one layer that exist together, as numbers a token of each of its widths (inner, D, H·hd, KH·hd).
# Backward: fitted to peaks of 64.2 GB (batch 3, 12,288 tokens) and 62.3 GB (1, 32,768).
_BACKWARD_WIDTHS = (5, 4, 2, 4)
# Forward: fitted to 21.0 GB of scoring 3 sequences of 12,288 tokens (one H100, 2026-11-25), which it gives to 0.1 %.
_FORWARD_WIDTHS = (2, 3, 1, 2)  # gate, up; input, normalised, sum; queries, overwritten by the output; keys, values

Source = Literal["exact", "formula", "measured", "estimate", "compiled"]
SamplerKind = Literal["native", "vllm", "vllm-server"]
PhaseName = Literal[
    "load",
    "generate",
    "score teacher",
    "score student",
    "score reference",
    "update",
    "optimizer",
    "move reference",
    "sync",
    "save",
]
STEP_PHASES: dict[PhaseName, str] = {
    "generate": "generate",
    "score teacher": "score",
    "score student": "score",
    "score reference": "score",
    "update": "update",
    "optimizer": "update",
    "move reference": "update",
    "sync": "sync",
}
"""Phase of the ledger -> phase of a step, as the trainer times and watches it. The others lie outside the steps."""


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
    accumulator_bytes: int  # of a gradient sum: 2 or 4
    moments: Moments  # type of AdamW's moments; on the card they are float32
    optimizer_on_host: bool
    frozen_on_host: bool  # student and reference
    micro_batch: int  # sequences of a forward and backward pass
    score_batch: int  # sequences of a forward pass
    teacher_tokens: int  # of a sequence that teacher and reference read, padded
    student_tokens: int  # of a sequence that the student reads, padded
    prompt_tokens: int  # of the teacher's prompt, not padded
    completion_tokens: int  # of a completion, not padded
    logprob_chunk: int  # tokens whose logits exist at one time
    kept_attention: int  # layers
    kept_mlp: int  # layers
    completions: int  # of a step
    generations: int  # completions of a prompt
    sampler: SamplerKind
    vllm_bytes: int  # the engine's share of the card while it is awake; 0 with the native sampler
    native_batch: int  # sequences that the native sampler decodes together
    fused_attention: bool  # else all B·H·T² scores exist

    @property
    def sequence_tokens(self) -> int:
        """Tokens of a prompt and its completion, not padded."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Entry:
    """What one owner holds in one phase."""

    owner: str
    size: float  # bytes
    source: Source


@dataclass(frozen=True)
class Phase:
    """Everything that is resident in one phase."""

    name: PhaseName
    card: tuple[Entry, ...]
    host: tuple[Entry, ...]

    @property
    def card_bytes(self) -> float:
        """All of it on the card."""
        return sum(entry.size for entry in self.card)

    @property
    def host_bytes(self) -> float:
        """All of it on the host."""
        return sum(entry.size for entry in self.host)


@dataclass(frozen=True)
class Ledger:
    """The plan of a run's memory: its phases, in the order of a step."""

    shape: ModelShape
    run: RunShape
    phases: tuple[Phase, ...]

    def phase(self, name: PhaseName) -> Phase:
        """The phase of that name."""
        return next(phase for phase in self.phases if phase.name == name)

    @property
    def card_peak(self) -> Phase:
        """The phase that needs most of the card."""
        return max(self.phases, key=lambda phase: phase.card_bytes)

    @property
    def host_peak(self) -> Phase:
        """The phase that needs most of the host."""
        return max(self.phases, key=lambda phase: phase.host_bytes)

    @property
    def pinned_bytes(self) -> int:
        """Pinned host memory in use throughout; `pinned.pool_limit_gib` of it is the pool's limit."""
        return pinned_bytes(self.shape, self.run)

    @property
    def checkpoint_bytes(self) -> int:
        """Of one checkpoint on disk, uncompressed: weights and reference, optimizer state."""
        return checkpoint_bytes(self.shape, self.run)

    def step_peaks(self) -> dict[str, float]:
        """Most bytes of the card in each phase of a step, to compare with what a monitor reads."""
        peaks: dict[str, float] = {}
        for phase in self.phases:
            if phase.name in STEP_PHASES:
                name = STEP_PHASES[phase.name]
                peaks[name] = max(peaks.get(name, 0.0), phase.card_bytes)
        return peaks


# Who is resident when. Owners of size 0 drop out: the native sampler's with vLLM, and the other way round.

_CARD_ALWAYS = ("trainer's context", "teacher", "optimizer state", "student", "reference")

_CARD: dict[PhaseName, tuple[str, ...]] = {
    "load": ("vLLM asleep", "frozen model on its way"),
    "generate": ("vLLM awake", "key-value cache", "decoding"),
    "score teacher": ("vLLM asleep", "teacher's forward pass"),
    "score student": ("vLLM asleep", "visiting student", "student's forward pass"),
    "score reference": ("vLLM asleep", "visiting reference", "reference's forward pass"),
    "update": ("vLLM asleep", "accumulators", "layer inputs", "kept attention", "kept MLP", "backward pass"),
    "optimizer": ("vLLM asleep", "accumulators", "optimizer state in flight", "float32 masters"),
    "move reference": ("vLLM asleep", "visiting reference"),
    "sync": ("vLLM awake",),  # at its end; the staging buffer is gone before the cache is there, and smaller
    "save": ("vLLM asleep",),
}

_HOST_ALWAYS = (
    "trainer's process",
    "vLLM's processes",
    "pinned optimizer state",
    "pinned student",
    "pinned reference",
    "slack of the pinned pool",
)

_HOST: dict[PhaseName, tuple[str, ...]] = {
    "load": ("tensor on its way",),
    "generate": (),
    "score teacher": (),
    "score student": (),
    "score reference": (),
    "update": (),
    "optimizer": (),
    "move reference": (),
    "sync": ("weights for the server",),
    "save": ("copies for a checkpoint or export",),
}

_TEMPORARIES: dict[PhaseName, tuple[str, ...]] = {
    "score teacher": ("teacher's forward pass",),
    "score student": ("student's forward pass",),
    "score reference": ("reference's forward pass",),
    "update": ("layer inputs", "kept attention", "kept MLP", "backward pass"),
}
"""Phase -> the owners that its compiled program's temporaries are, all together."""


def make_ledger(shape: ModelShape, run: RunShape, compiled: Mapping[PhaseName, float] | None = None) -> Ledger:
    """The ledger of a run.

    Args:
      shape: of the teacher; the reference has the same.
      compiled: phase -> bytes of temporaries of its program as compiled for the card, in place of the formulas'. For
        "update" they hold the layers' inputs and all that is kept.
    """
    card_sizes, host_sizes = _card_sizes(shape, run), _host_sizes(shape, run)
    phases = []
    for name in _CARD:
        card = [_entry(owner, card_sizes) for owner in (*_CARD_ALWAYS, *_CARD[name])]
        if compiled is not None and name in compiled:
            card = [entry for entry in card if entry.owner not in _TEMPORARIES[name]]
            card.append(Entry("temporaries of the program", compiled[name], "compiled"))
        host = [_entry(owner, host_sizes) for owner in (*_HOST_ALWAYS, *_HOST[name])]
        phases.append(Phase(name, *(tuple(entry for entry in side if entry.size) for side in (card, host))))
    return Ledger(shape, run, tuple(phases))


def kept_layers(
    shape: ModelShape,
    run: RunShape,
    planned_bytes: float,
    batch: int,
    tokens: int,
    *,
    kept_attention: int | None = None,
    kept_mlp: int | None = None,
) -> tuple[int, int]:
    """(kept_attention, kept_mlp): of how many last layers a micro-batch may keep them.

    The most that fits; attention first, which saves more time for each byte. What `run` itself keeps does not count.

    Args:
      planned_bytes: most of the card that the update may take.
      batch, tokens: of the micro-batch, padded.
      kept_attention, kept_mlp: layers that are decided already, and kept whether they fit or not; None: to be found.
    """
    decided = [None if count is None else min(count, shape.layers) for count in (kept_attention, kept_mlp)]
    plain = replace(run, micro_batch=batch, teacher_tokens=tokens, kept_attention=0, kept_mlp=0)
    sizes = _kept_attention_bytes(shape, plain), _kept_mlp_bytes(shape, plain)
    room = planned_bytes - KEPT_RESERVE - make_ledger(shape, plain).phase("update").card_bytes
    room -= sum(size * (count or 0) for size, count in zip(sizes, decided))
    counts = []
    for size, count in zip(sizes, decided):
        if count is None:
            count = min(max(int(room // size), 0), shape.layers)
            room -= count * size
        counts.append(count)
    return counts[0], counts[1]


def longest_sequence(shape: ModelShape, run: RunShape, card_bytes: float, *, extra_tokens: int = 0) -> int:
    """Most tokens of a prompt and its completion with which the run fits on the card, nothing being kept.

    Padding is not counted: a trainer that pads to buckets can use the largest bucket that is not longer. 0: none fits.

    Args:
      extra_tokens: of the student's sequence beyond the teacher's.
    """

    def fits(tokens: int) -> bool:
        at = replace(
            run,
            teacher_tokens=tokens,
            student_tokens=tokens + extra_tokens,
            prompt_tokens=tokens // 2,
            completion_tokens=tokens - tokens // 2,
            kept_attention=0,
            kept_mlp=0,
        )
        return fits_card(make_ledger(shape, at), card_bytes)

    return _most(fits)


def largest_micro_batch(shape: ModelShape, run: RunShape, card_bytes: float) -> int:
    """Most sequences of a micro-batch with which the run fits on the card, nothing being kept; 0: not even one."""

    def fits(batch: int) -> bool:
        return fits_card(make_ledger(shape, replace(run, micro_batch=batch, kept_attention=0, kept_mlp=0)), card_bytes)

    return _most(fits)


def fits_card(plan: Ledger, card_bytes: float) -> bool:
    """Whether no phase needs more of the card, and a vLLM engine's share holds at least one whole sequence."""
    return plan.card_peak.card_bytes <= card_bytes and vllm_has_room(plan.shape, plan.run)


def forward_bytes(shape: ModelShape, run: RunShape, *, batch: int, tokens: int) -> float:
    """Temporaries of a forward pass that returns log-probs: the larger of one layer's and one chunk of logits."""
    size, count = run.weight_bytes, batch * tokens
    layer = size * (shape.layer_parameters + count * _widths(shape, _FORWARD_WIDTHS))
    head = 4 * min(run.logprob_chunk, count) * shape.vocab + 2 * size * count * shape.hidden
    return max(layer + (0 if run.fused_attention else 2 * 4 * batch * shape.heads * tokens**2), head)


def backward_bytes(shape: ModelShape, run: RunShape, *, batch: int, tokens: int) -> float:
    """Temporaries of a backward pass beside what its forward pass left: the larger of one layer's and the head's.

    One layer: a copy of its weights, its gradient, its activations and theirs. Head: a chunk of logits and their
    gradient, the hidden states and theirs, and the head's gradient, float32, before it is added (where the compiler
    adds in place it is not there; it does not on a CPU).
    """
    size, count = run.weight_bytes, batch * tokens
    layer = size * (2 * shape.layer_parameters + count * _widths(shape, _BACKWARD_WIDTHS))
    head = (4 + size) * min(run.logprob_chunk, count) * shape.vocab
    head += 2 * size * count * shape.hidden + 4 * shape.embedding_parameters
    return max(layer + (0 if run.fused_attention else 3 * 4 * batch * shape.heads * tokens**2), head)


def state_in_flight_bytes(shape: ModelShape, run: RunShape) -> float:
    """On the card while the optimizer's state streams through it: that of 2 pieces; of one, weights and gradient."""
    state = host_bytes(1, run.moments, master_in_weights=run.weight_bytes == 4)
    return shape.layer_parameters * (2 * state + run.weight_bytes + 4)


def state_bytes(shape: ModelShape, run: RunShape) -> int:
    """The optimizer's state, wherever it is."""
    moments: Moments = run.moments if run.optimizer_on_host else "float32"
    return host_bytes(shape.parameters, moments, master_in_weights=run.weight_bytes == 4)


def pinned_bytes(shape: ModelShape, run: RunShape) -> int:
    """Pinned host memory in use throughout: optimizer state, student and reference, as far as they live there."""
    state = state_bytes(shape, run) if run.optimizer_on_host else 0
    frozen = run.weight_bytes * (run.student.parameters + shape.parameters) if run.frozen_on_host else 0
    return state + frozen


def checkpoint_bytes(shape: ModelShape, run: RunShape) -> int:
    """Of one checkpoint, uncompressed: weights and reference, optimizer state."""
    return 2 * run.weight_bytes * shape.parameters + state_bytes(shape, run)


def vllm_overhead_bytes(shape: ModelShape, run: RunShape) -> float:
    """What a vLLM engine takes off its share beside weights: workspaces, activations of a batch of prompt tokens."""
    return VLLM_WORKSPACE + run.weight_bytes * VLLM_PREFILL_TOKENS * _widths(shape, _FORWARD_WIDTHS)


def vllm_least_bytes(shape: ModelShape, run: RunShape) -> int:
    """The smallest share that a vLLM engine can work with: weights, overhead and one whole sequence."""
    sequence = run.sequence_tokens * shape.cache_bytes(run.weight_bytes)
    return math.ceil(run.weight_bytes * shape.parameters + vllm_overhead_bytes(shape, run) + sequence)


def vllm_cache_tokens(shape: ModelShape, run: RunShape) -> int:
    """Tokens whose keys and values a vLLM engine can hold in its share of the card."""
    room = run.vllm_bytes - run.weight_bytes * shape.parameters - vllm_overhead_bytes(shape, run)
    return max(int(room // shape.cache_bytes(run.weight_bytes)), 0)


def vllm_sequences(shape: ModelShape, run: RunShape) -> tuple[int, int]:
    """Sequences of full length that fit in a vLLM engine's cache together: (each with its own prompt, prompts shared).

    The completions of a question share the cache of their prompt, so each costs completion + prompt / generations.
    """
    tokens = vllm_cache_tokens(shape, run)
    shared = run.completion_tokens + run.prompt_tokens / run.generations
    own, together = tokens // run.sequence_tokens, int(tokens // shared)
    return min(own, run.completions), min(together, run.completions)


def vllm_has_room(shape: ModelShape, run: RunShape) -> bool:
    """Whether a vLLM engine's cache holds one sequence of full length; true without an engine."""
    return run.sampler == "native" or vllm_cache_tokens(shape, run) >= run.sequence_tokens


def _card_sizes(shape: ModelShape, run: RunShape) -> dict[str, tuple[float, Source]]:
    """Owner on the card -> (bytes, where the figure comes from)."""
    size = run.weight_bytes
    weights, student = size * shape.parameters, size * run.student.parameters
    engine = run.sampler != "native"
    tokens = run.micro_batch * run.teacher_tokens
    cache, decoding = (0.0, 0.0) if engine else _native_bytes(shape, run)
    score = run.score_batch
    teacher_pass = forward_bytes(shape, run, batch=score, tokens=run.teacher_tokens)
    student_pass = forward_bytes(run.student, run, batch=score, tokens=run.student_tokens)
    return {
        "trainer's context": (TRAINER_CONTEXT, "measured"),
        "teacher": (weights, "exact"),
        "optimizer state": (0 if run.optimizer_on_host else state_bytes(shape, run), "exact"),
        "student": (0 if run.frozen_on_host else student, "exact"),
        "reference": (0 if run.frozen_on_host else weights, "exact"),
        "frozen model on its way": (max(weights, student) if run.frozen_on_host else 0, "exact"),
        "vLLM asleep": (VLLM_ASLEEP * engine, "measured"),
        "vLLM awake": (run.vllm_bytes, "exact"),
        "key-value cache": (cache, "exact"),
        "decoding": (decoding, "formula"),
        "teacher's forward pass": (teacher_pass, "formula"),
        "visiting student": (student if run.frozen_on_host else 0, "exact"),
        "student's forward pass": (student_pass, "formula"),
        "visiting reference": (weights if run.frozen_on_host else 0, "exact"),
        "reference's forward pass": (teacher_pass, "formula"),
        "accumulators": (run.accumulator_bytes * shape.parameters, "exact"),
        "layer inputs": (size * shape.layers * tokens * shape.hidden, "exact"),
        "kept attention": (run.kept_attention * _kept_attention_bytes(shape, run), "formula"),
        "kept MLP": (run.kept_mlp * _kept_mlp_bytes(shape, run), "exact"),
        "backward pass": (backward_bytes(shape, run, batch=run.micro_batch, tokens=run.teacher_tokens), "formula"),
        "optimizer state in flight": (state_in_flight_bytes(shape, run) if run.optimizer_on_host else 0, "formula"),
        # What a CPU's program takes with float32 weights; a leaf's master need not outlive its update.
        "float32 masters": (0 if run.optimizer_on_host else 4 * shape.parameters, "estimate"),
    }


def _host_sizes(shape: ModelShape, run: RunShape) -> dict[str, tuple[float, Source]]:
    """Owner on the host -> (bytes, where the figure comes from)."""
    size = run.weight_bytes
    weights, pinned = size * shape.parameters, pinned_bytes(shape, run)
    slack = min(pool_limit_gib(pinned) * _GIB, POOL_GROWTH * pinned) - pinned
    return {
        "trainer's process": (TRAINER_PROCESS, "estimate"),
        "vLLM's processes": (VLLM_PROCESSES if run.sampler == "vllm" else 0, "estimate"),
        "pinned optimizer state": (state_bytes(shape, run) if run.optimizer_on_host else 0, "exact"),
        "pinned student": (size * run.student.parameters if run.frozen_on_host else 0, "exact"),
        "pinned reference": (weights if run.frozen_on_host else 0, "exact"),
        "slack of the pinned pool": (slack, "formula"),
        "tensor on its way": (2 * size * shape.embedding_parameters, "formula"),  # as stored, and in the run's type
        "weights for the server": (2 * weights if run.sampler == "vllm-server" else 0, "formula"),  # arrays and file
        "copies for a checkpoint or export": (
            max(min(CHECKPOINT_COPY, checkpoint_bytes(shape, run)), min(EXPORT_SHARD, weights)),
            "estimate",
        ),
    }


def _entry(owner: str, sizes: Mapping[str, tuple[float, Source]]) -> Entry:
    size, source = sizes[owner]
    return Entry(owner, float(size), source)


def _native_bytes(shape: ModelShape, run: RunShape) -> tuple[float, float]:
    """The native sampler's key-value cache, with the shorter one beside it while it grows; what decoding needs more."""
    rows, size = min(run.native_batch, run.completions), run.weight_bytes
    cache = rows * run.teacher_tokens * shape.cache_bytes(size)
    prompts = max(PREFILL_TOKENS, run.prompt_tokens)
    prefill = size * (shape.layer_parameters + prompts * _widths(shape, _FORWARD_WIDTHS))
    step = 3 * 4 * rows * shape.vocab + 2 * cache / shape.layers  # logits, and one layer's keys and values
    return 1.5 * cache, max(min(prefill, size * rows * run.prompt_tokens * _widths(shape, _FORWARD_WIDTHS)), step)


def _widths(shape: ModelShape, counts: tuple[int, int, int, int]) -> int:
    """Numbers a token: so many of each width of a layer."""
    return sum(n * width for n, width in zip(counts, (shape.inner, shape.hidden, shape.queries, shape.keys)))


def _kept_attention_bytes(shape: ModelShape, run: RunShape) -> float:
    """Of one layer: queries, keys, values and output, and the softmax sums, or all probabilities without a kernel."""
    tokens = run.micro_batch * run.teacher_tokens
    rows = 4 * shape.heads * (1 if run.fused_attention else run.teacher_tokens)
    return tokens * (run.weight_bytes * 2 * (shape.queries + shape.keys) + rows)


def _kept_mlp_bytes(shape: ModelShape, run: RunShape) -> float:
    """Of one layer: gate and up projections."""
    return 2 * run.weight_bytes * run.micro_batch * run.teacher_tokens * shape.inner


def _most(fits: Callable[[int], bool]) -> int:
    """The largest number for which `fits`, which holds up to some number and not beyond; 0 if not even for 1."""
    if not fits(1):
        return 0
    low, high = 1, 2
    while fits(high) and high < 2**40:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
