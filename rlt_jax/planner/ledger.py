"""Who holds how much of the GPU and of the host in each phase of a step, as arithmetic: no device, no JAX.

    peak = max over phases of  Σ owners resident in it

Two tables, `_GPU` and `_HOST`, say who is resident when; `_gpu_sizes` and `_host_sizes` say how large each is. What
follows from shapes is exact (parameters, gradients, optimizer state, key-value cache) or a formula (activations);
what does not is a constant below, with where it comes from. BatchSizes are bytes, a GB is 1e9 of them.

The temporaries of a program are the part that a compiler decides. Their formulas were fitted to one model (Qwen2.5-7B,
bfloat16, cuDNN attention, JAX 0.11); a program compiled for the GPU knows its own, which `make_ledger` takes instead.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from rlt_jax.device.pinned import host_bytes, pool_limit_gib
from rlt_jax.planner.shapes import ModelShape, RunShape
from rlt_jax.types import Dtype

_GIB = 2**30

# Constants. "Measured" are NVML readings on one H100 80 GB (CUDA 13, JAX 0.11.2, vLLM 0.26.0), 2026-11-25, in
# docs/benchmarks.md; an estimate is marked so in every ledger that holds it.

TRAINER_CONTEXT = 1.2e9
"""CUDA context, loaded kernels and library workspaces of the trainer's process. Measured: 1.19 to 1.28 GB beside the
weights, gradients and temporaries of a 7B model; 1.37 on an H200."""
VLLM_ASLEEP = 1.5e9
"""What a vLLM process keeps while it sleeps (level 2): context, CUDA graphs, workspaces. Measured: 1.2 GB in the phases
of a whole step, 1.5 by vLLM's own account; 1.70 to 1.92 on an H200."""
VLLM_WORKSPACE = 1.0e9
"""Context, CUDA graphs and library workspaces that vLLM takes off its share. With it the formula gives a 7B engine on
46.75 GB room for 501,777 tokens; measured: 498,128."""
VLLM_PREFILL_TOKENS = 16384
"""Prompt tokens vLLM computes together, whose activations it takes off its share. Its default on GPUs of 70 GiB and
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
    gpu: tuple[Entry, ...]
    host: tuple[Entry, ...]

    @property
    def gpu_bytes(self) -> float:
        """All of it on the GPU."""
        return sum(entry.size for entry in self.gpu)

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
    def gpu_peak(self) -> Phase:
        """The phase that needs most of the GPU."""
        return max(self.phases, key=lambda phase: phase.gpu_bytes)

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
        """Most bytes of the GPU in each phase of a step, to compare with what a monitor reads."""
        peaks: dict[str, float] = {}
        for phase in self.phases:
            if phase.name in STEP_PHASES:
                name = STEP_PHASES[phase.name]
                peaks[name] = max(peaks.get(name, 0.0), phase.gpu_bytes)
        return peaks


# Who is resident when. Owners of size 0 drop out: the native sampler's with vLLM, and the other way round.

_GPU_ALWAYS = ("trainer's context", "teacher", "optimizer state", "student", "reference")

_GPU: dict[PhaseName, tuple[str, ...]] = {
    "load": ("vLLM asleep", "frozen model on its way"),
    "generate": ("vLLM awake", "key-value cache", "decoding"),
    "score teacher": ("vLLM asleep", "teacher's forward pass"),
    "score student": ("vLLM asleep", "visiting student", "student's forward pass"),
    "score reference": ("vLLM asleep", "visiting reference", "reference's forward pass"),
    "update": ("vLLM asleep", "gradients", "activations", "saved attention", "saved MLP", "backward pass"),
    "optimizer": ("vLLM asleep", "gradients", "optimizer state in flight", "float32 masters"),
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
    "update": ("activations", "saved attention", "saved MLP", "backward pass"),
}
"""Phase -> the owners that its compiled program's temporaries are, all together."""


def make_ledger(shape: ModelShape, run: RunShape, compiled: Mapping[PhaseName, float] | None = None) -> Ledger:
    """The ledger of a run.

    Args:
      shape: of the teacher; the reference has the same.
      compiled: phase -> bytes of temporaries of its program as compiled for the GPU, in place of the formulas'. For
        "update" they hold the layers' inputs and all that is kept.
    """
    card_sizes, host_sizes = _gpu_sizes(shape, run), _host_sizes(shape, run)
    phases = []
    for name in _GPU:
        gpu = [_entry(owner, card_sizes) for owner in (*_GPU_ALWAYS, *_GPU[name])]
        if compiled is not None and name in compiled:
            gpu = [entry for entry in gpu if entry.owner not in _TEMPORARIES[name]]
            gpu.append(Entry("temporaries of the program", compiled[name], "compiled"))
        host = [_entry(owner, host_sizes) for owner in (*_HOST_ALWAYS, *_HOST[name])]
        phases.append(Phase(name, *(tuple(entry for entry in side if entry.size) for side in (gpu, host))))
    return Ledger(shape, run, tuple(phases))


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
    """On the GPU while the optimizer's state streams through it: that of 2 shards; of one, weights and gradient."""
    state = host_bytes(1, run.moments, master_in_weights=run.weight_bytes == 4)
    return shape.layer_parameters * (2 * state + run.weight_bytes + 4)


def state_bytes(shape: ModelShape, run: RunShape) -> int:
    """The optimizer's state, wherever it is."""
    moments: Dtype = run.moments if run.optimizer_on_host else "float32"
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
    """Tokens whose keys and values a vLLM engine can hold in its share of the GPU."""
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


def _gpu_sizes(shape: ModelShape, run: RunShape) -> dict[str, tuple[float, Source]]:
    """Owner on the GPU -> (bytes, where the figure comes from)."""
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
        "gradients": (run.gradient_bytes * shape.parameters, "exact"),
        "activations": (size * shape.layers * tokens * shape.hidden, "exact"),
        "saved attention": (run.saved_attention * saved_attention_bytes(shape, run), "formula"),
        "saved MLP": (run.saved_mlp * saved_mlp_bytes(shape, run), "exact"),
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


def saved_attention_bytes(shape: ModelShape, run: RunShape) -> float:
    """Of one layer: queries, keys, values and output, and the softmax sums, or all probabilities without a kernel."""
    tokens = run.micro_batch * run.teacher_tokens
    rows = 4 * shape.heads * (1 if run.fused_attention else run.teacher_tokens)
    return tokens * (run.weight_bytes * 2 * (shape.queries + shape.keys) + rows)


def saved_mlp_bytes(shape: ModelShape, run: RunShape) -> float:
    """Of one layer: gate and up projections."""
    return 2 * run.weight_bytes * run.micro_batch * run.teacher_tokens * shape.inner
