"""How much GPU and host memory each owner holds in each phase of a step, by arithmetic: no device.

    peak = max over phases of  Σ owners resident in that phase

Two tables, `_GPU_OWNERS` and `_HOST_OWNERS`, list which owners are resident when; `_gpu_sizes` and `_host_sizes` give
their sizes. What follows from shapes is exact (parameters, gradients, optimizer state, key-value cache) or a formula
(activations); everything else is a constant below, with its source. Sizes are in bytes; a GB is 1e9 bytes.

The compiler decides how large a program's temporaries are. Their formulas were fitted to one model (Qwen2.5-7B,
bfloat16, cuDNN's attention, JAX 0.11); `make_ledger` takes the figures of programs compiled for the GPU instead.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from rlt_jax.batching import bucket_length
from rlt_jax.device.pinned import GIB, host_bytes, layers_of_a_part, pool_limit_gib
from rlt_jax.models.attention import sum_bytes
from rlt_jax.planner.shapes import ModelShape, Pass, RunShape
from rlt_jax.segments import limits_of, summed_tokens
from rlt_jax.types import Dtype

# Constants. "Measured": read by NVML on one H100 80 GB (CUDA 13, JAX 0.11.2, vLLM 0.26.0), 2026-11-25; see
# docs/benchmarks.md. Ledgers mark the estimates as such.

TRAINER_CONTEXT = 1.2e9
"""CUDA context, loaded kernels and library workspaces of the trainer's process. Measured: 1.19 to 1.28 GB on top of
the weights, gradients and temporaries of a 7B model; 1.37 on an H200."""
VLLM_ASLEEP = 1.5e9
"""What a vLLM process holds while it sleeps (level 2): context, CUDA graphs, workspaces. Measured: 1.2 GB in the phases
of a whole step, 1.5 as vLLM reports it; 1.70 to 1.92 on an H200."""
VLLM_WORKSPACE = 1.0e9
"""Context, CUDA graphs and library workspaces that vLLM takes out of its share. With it the formula gives a 7B engine
with 46.75 GB room for 501,777 tokens; measured: 498,128."""
VLLM_PREFILL_TOKENS = 16384
"""Prompt tokens that vLLM computes together; their activations come out of its share. Its default on GPUs of 70 GiB and
more; on an A100 and on smaller GPUs it is half as much, and the cache larger."""
PREFILL_TOKENS = 32768
"""Prompt tokens that the native sampler computes together: the default of `NativeSampler`."""
POOL_GROWTH = 3
"""Below its limit, the pool of pinned memory takes at most this many times what is in use: a buffer that did not fit
gets a region twice as large as all before it. Near its limit, as with a 7B model, the pool takes the limit."""
TRAINER_PROCESS = 4.0e9
"""The trainer's host memory apart from pinned memory: libraries, JAX, tokenizer, data. Estimate: it and VLLM_PROCESSES
are 7.8 GB together in a run that took 88.3 GB of the host with a pool of 80.5 GB."""
VLLM_PROCESSES = 6.0e9
"""Host memory of vLLM's two processes. Estimated like TRAINER_PROCESS."""
CHECKPOINT_COPY = 4.0e9
"""Host memory for the arrays that are being written to a checkpoint at one time (`checkpoints.stored_arrays.PART_GB`).
Estimate."""
EXPORT_SHARD = 5.0e9
"""Host memory for one shard of the exported model: the default of `models.save_model`."""

# Activations of one layer that exist at the same time: how many of each width (inner, D, H·hd, KH·hd) for each token.
# Backward: fitted to peaks of 64.2 GB (3 rows of 12,288 tokens) and 62.3 GB (1 row of 32,768), a row a sequence. Flat
# sequences take no more but for what attention sums: 70.0, 72.0 and 72.8 GB with 36,864, 43,008 and 55,296 tokens (one
# H100, cuDNN, 2026-11-28) are matched to -1.9, +0.2 and +3.3 %.
_BACKWARD_WIDTHS = (5, 4, 2, 4)
# Forward: fitted to 21.0 GB for scoring 3 rows of 12,288 tokens (one H100, 2026-11-25), matched to 0.1 %.
_FORWARD_WIDTHS = (2, 3, 1, 2)  # gate, up; input, normalised, sum; queries (reused for the output); keys, values
# The second call's output, of what rows share. Fitted to 21.1, 21.8 and 23.3 GB for scoring flat sequences of 36,864,
# 43,008 and 55,296 tokens (one H100, cuDNN, 2026-11-28), matched to 0.5 %.
_FLAT_FORWARD_WIDTHS = (2, 3, 2, 2)

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
"""Phase of the ledger -> phase of a step, as the trainer times and monitors it. The others lie outside the steps."""


@dataclass(frozen=True)
class Entry:
    """What one owner holds in one phase of the ledger."""

    owner: str
    size: float  # bytes
    source: Source


@dataclass(frozen=True)
class PhaseMemory:
    """Everything resident in one phase."""

    name: PhaseName
    gpu: tuple[Entry, ...]
    host: tuple[Entry, ...]

    @property
    def gpu_bytes(self) -> float:
        """GPU memory, all owners together."""
        return sum(entry.size for entry in self.gpu)

    @property
    def host_bytes(self) -> float:
        """Host memory, all owners together."""
        return sum(entry.size for entry in self.host)


@dataclass(frozen=True)
class Ledger:
    """A run's memory plan: its phases, in the order of a step; those that the run does not have are left out."""

    shape: ModelShape
    run: RunShape
    phases: tuple[PhaseMemory, ...]

    def phase(self, name: PhaseName) -> PhaseMemory:
        """The phase with this name."""
        return next(phase for phase in self.phases if phase.name == name)

    @property
    def gpu_peak(self) -> PhaseMemory:
        """The phase that needs the most GPU memory."""
        return max(self.phases, key=lambda phase: phase.gpu_bytes)

    @property
    def host_peak(self) -> PhaseMemory:
        """The phase that needs the most host memory."""
        return max(self.phases, key=lambda phase: phase.host_bytes)

    @property
    def pinned_bytes(self) -> int:
        """Pinned host memory in use throughout; `device.pinned.pool_limit_gib` turns it into the pool's limit."""
        return pinned_bytes(self.shape, self.run)

    @property
    def checkpoint_bytes(self) -> int:
        """Size of a checkpoint on disk, uncompressed: weights, reference (if any) and optimizer state."""
        return checkpoint_bytes(self.shape, self.run)

    def step_peaks(self) -> dict[str, float]:
        """Peak GPU bytes in each phase of a step, to compare with `device.monitor.PeakMonitor`."""
        peaks: dict[str, float] = {}
        for phase in self.phases:
            if phase.name in STEP_PHASES:
                name = STEP_PHASES[phase.name]
                peaks[name] = max(peaks.get(name, 0.0), phase.gpu_bytes)
        return peaks


# Which owners are resident when. Owners of size 0 drop out: those of the native sampler with vLLM, and vice versa.

_GPU_ALWAYS = ("trainer's context", "teacher", "optimizer state", "student", "reference")

_GPU_OWNERS: dict[PhaseName, tuple[str, ...]] = {
    "load": ("vLLM asleep", "frozen model on its way"),
    "generate": ("vLLM awake", "key-value cache", "decoding", "one array of the teacher"),
    "score teacher": ("vLLM asleep", "visiting reference as teacher", "teacher's forward pass"),
    "score student": ("vLLM asleep", "visiting student", "student's forward pass"),
    "score reference": ("vLLM asleep", "visiting reference", "reference's forward pass"),
    "update": (
        "vLLM asleep",
        "gradients",
        "activations",
        "saved attention",
        "saved MLP",
        "backward pass",
        "attention's sums",
    ),
    "optimizer": ("vLLM asleep", "gradients", "optimizer state in flight", "float32 masters"),
    "move reference": ("vLLM asleep", "visiting reference"),
    # At its end: the staging buffer is smaller than the cache, and freed before it exists.
    "sync": ("vLLM awake", "one array of the teacher", "some layers of the teacher"),
    "save": ("vLLM asleep",),
}

_TEACHER_ON_HOST: tuple[PhaseName, ...] = ("generate", "sync")
"""Where the teacher is not on the GPU with `memory.policy` host."""

_HOST_ALWAYS = (
    "trainer's process",
    "vLLM's processes",
    "pinned optimizer state",
    "pinned student",
    "pinned reference",
    "pinned teacher",
    "slack of the pinned pool",
)

_HOST_OWNERS: dict[PhaseName, tuple[str, ...]] = {
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
    "update": ("activations", "saved attention", "saved MLP", "backward pass", "attention's sums"),
}
"""Phase -> the owners that the temporaries of its compiled program replace."""


def make_ledger(shape: ModelShape, run: RunShape, compiled: Mapping[PhaseName, float] | None = None) -> Ledger:
    """Compute the ledger of a run.

    Args:
      shape: of the teacher, and so of the reference.
      compiled: phase -> bytes of temporaries of its program as compiled for the GPU, to replace the formulas'. Those of
        "update" include the layers' inputs and all saved activations.
    """
    gpu_sizes, host_sizes = _gpu_sizes(shape, run), _host_sizes(shape, run)
    phases = []
    for name in _GPU_OWNERS:
        if not _has_phase(run, name):
            continue
        gpu = [_entry(owner, gpu_sizes) for owner in (*_GPU_ALWAYS, *_GPU_OWNERS[name])]
        if run.policy_on_host and name in _TEACHER_ON_HOST:
            gpu = [entry for entry in gpu if entry.owner != "teacher"]
        if compiled is not None and name in compiled:
            gpu = [entry for entry in gpu if entry.owner not in _TEMPORARIES[name]]
            gpu.append(Entry("temporaries of the program", compiled[name], "compiled"))
        host = [_entry(owner, host_sizes) for owner in (*_HOST_ALWAYS, *_HOST_OWNERS[name])]
        phases.append(PhaseMemory(name, *(tuple(entry for entry in side if entry.size) for side in (gpu, host))))
    return Ledger(shape, run, tuple(phases))


def _has_phase(run: RunShape, name: PhaseName) -> bool:
    match name:
        case "score teacher":
            return run.reads_teacher
        case "score student":
            return run.reads_student
        case "score reference":
            return run.kl_term
        case "move reference":
            return run.has_reference
        case _:
            return True


def forward_bytes(shape: ModelShape, run: RunShape, of: Pass) -> float:
    """Temporaries of a forward pass that returns log-probs: one layer's or a chunk of logits, whichever is larger."""
    bytes_each, count = run.weight_bytes, of.tokens
    widths = _FLAT_FORWARD_WIDTHS if of.is_flat else _FORWARD_WIDTHS
    layer = bytes_each * (shape.layer_parameters + count * _numbers_per_token(shape, widths))
    head = 4 * min(run.logprob_chunk, count) * shape.vocab + 2 * bytes_each * count * shape.hidden
    return max(layer + 2 * _scores_bytes(shape, of), head)


def backward_bytes(shape: ModelShape, run: RunShape, of: Pass) -> float:
    """Temporaries of a backward pass, on top of what its forward pass saved: one layer's or the head's, if larger.

    One layer: a copy of its weights and their gradient, its activations and their gradients. Head: a chunk of logits
    and their gradient, the hidden states and theirs, and the head's float32 gradient before it is added to the sum (not
    there where the compiler adds in place, which it does not on a CPU).
    """
    bytes_each, count = run.weight_bytes, of.tokens
    layer = bytes_each * (2 * shape.layer_parameters + count * _numbers_per_token(shape, _BACKWARD_WIDTHS))
    head = (4 + bytes_each) * min(run.logprob_chunk, count) * shape.vocab
    head += 2 * bytes_each * count * shape.hidden + 4 * shape.embedding_parameters
    return max(layer + 3 * _scores_bytes(shape, of), head)


def sums_bytes(shape: ModelShape, run: RunShape, of: Pass) -> int:
    """What the gradient of a flat sequence's attention sums in float32, where the kernel does (`segments.limits_of`).

    Worst case: as many segments as there may be, each as long as the longest row may be.
    """
    each = sum_bytes(of.attention, shape.queries)
    limits = limits_of(run.completions, of.tokens, min(run.teacher_tokens, of.tokens), sum_bytes=each)
    return each * summed_tokens(limits, of.tokens)


def _scores_bytes(shape: ModelShape, of: Pass) -> int:
    """All scores of attention, float32, where no kernel spares them."""
    return 4 * shape.heads * of.tokens * of.length if of.attention == "masked" else 0


def state_in_flight_bytes(shape: ModelShape, run: RunShape) -> float:
    """On the GPU while the optimizer state streams through it: the state of 2 shards, weights and gradient of one."""
    state = host_bytes(1, run.moments, master_in_weights=run.weight_bytes == 4)
    return shape.layer_parameters * (2 * state + run.weight_bytes + 4)


def state_bytes(shape: ModelShape, run: RunShape) -> int:
    """The optimizer state, on the GPU or on the host."""
    moments: Dtype = run.moments if run.optimizer_on_host else "float32"
    return host_bytes(shape.parameters, moments, master_in_weights=run.weight_bytes == 4)


def pinned_bytes(shape: ModelShape, run: RunShape) -> int:
    """Pinned host memory in use throughout: whichever of optimizer state, student, reference and policy live there.

    The policy's is there while its weights are on the GPU, too: a save may read it, and then it waits for the next.
    """
    state = state_bytes(shape, run) if run.optimizer_on_host else 0
    state += run.weight_bytes * shape.parameters if run.policy_on_host else 0
    student, reference = _frozen_bytes(shape, run)
    return state + (student + reference if run.frozen_on_host else 0)


def largest_array_bytes(shape: ModelShape, run: RunShape) -> int:
    """The largest array of the parameters: a matrix of all layers, or the embedding. One visits the GPU at a time."""
    widest = max(shape.inner, shape.queries)
    return run.weight_bytes * max(shape.layers * shape.hidden * widest, shape.embedding_parameters)


def part_bytes(shape: ModelShape, run: RunShape) -> int:
    """The layers that visit the GPU together where a sync is verified without the whole teacher there."""
    layer = run.weight_bytes * shape.layer_parameters
    return layers_of_a_part(layer, shape.layers) * layer


def checkpoint_bytes(shape: ModelShape, run: RunShape) -> int:
    """Size of a checkpoint on disk, uncompressed: weights, reference (if any) and optimizer state."""
    return (1 + run.has_reference) * run.weight_bytes * shape.parameters + state_bytes(shape, run)


def _frozen_bytes(shape: ModelShape, run: RunShape) -> tuple[int, int]:
    """Weights of the student and of the reference; 0 where nothing reads one."""
    student = run.weight_bytes * run.student.parameters if run.reads_student else 0
    return student, run.weight_bytes * shape.parameters if run.has_reference else 0


def vllm_overhead_bytes(shape: ModelShape, run: RunShape) -> float:
    """What a vLLM engine takes out of its share besides weights: workspaces, activations of one batch of prompts."""
    return VLLM_WORKSPACE + run.weight_bytes * VLLM_PREFILL_TOKENS * _numbers_per_token(shape, _FORWARD_WIDTHS)


def vllm_min_bytes(shape: ModelShape, run: RunShape) -> int:
    """The smallest share a vLLM engine can work with: weights, overhead and one whole sequence."""
    sequence = run.sequence_tokens * shape.cache_bytes(run.weight_bytes)
    return math.ceil(run.weight_bytes * shape.parameters + vllm_overhead_bytes(shape, run) + sequence)


def vllm_cache_tokens(shape: ModelShape, run: RunShape) -> int:
    """How many tokens' keys and values fit in a vLLM engine's share of the GPU."""
    room = run.vllm_bytes - run.weight_bytes * shape.parameters - vllm_overhead_bytes(shape, run)
    return max(int(room // shape.cache_bytes(run.weight_bytes)), 0)


def vllm_sequences(shape: ModelShape, run: RunShape) -> tuple[int, int]:
    """How many full-length sequences a vLLM engine's cache holds at once: (each with its own prompt, prompts shared).

    The completions of a question share the cache of their prompt, so each costs completion + prompt / generations.
    """
    tokens = vllm_cache_tokens(shape, run)
    tokens_each = run.completion_tokens + run.prompt_tokens / run.generations
    own, shared = tokens // run.sequence_tokens, int(tokens // tokens_each)
    return min(own, run.completions), min(shared, run.completions)


def vllm_missing_bytes(shape: ModelShape, run: RunShape) -> int:
    """Bytes that a vLLM engine's share lacks for weights and one full-length sequence; 0 if it is large enough."""
    return 0 if run.sampler == "native" else max(vllm_min_bytes(shape, run) - run.vllm_bytes, 0)


def _gpu_sizes(shape: ModelShape, run: RunShape) -> dict[str, tuple[float, Source]]:
    """Owner on the GPU -> (bytes, source of the figure)."""
    size = run.weight_bytes
    weights, (student, reference) = size * shape.parameters, _frozen_bytes(shape, run)
    engine = run.sampler != "native"
    cache, decoding = (0.0, 0.0) if engine else _native_bytes(shape, run)
    teacher_pass = forward_bytes(shape, run, run.score)
    student_pass = forward_bytes(run.student, run, run.score_student)
    return {
        "trainer's context": (TRAINER_CONTEXT, "measured"),
        "teacher": (weights, "exact"),
        "optimizer state": (0 if run.optimizer_on_host else state_bytes(shape, run), "exact"),
        "student": (0 if run.frozen_on_host else student, "exact"),
        "reference": (0 if run.frozen_on_host else reference, "exact"),
        "frozen model on its way": (max(reference, student) if run.frozen_on_host else 0, "exact"),
        "vLLM asleep": (VLLM_ASLEEP * engine, "measured"),
        "vLLM awake": (run.vllm_bytes, "exact"),
        "key-value cache": (cache, "exact"),
        "decoding": (decoding, "formula"),
        "one array of the teacher": (largest_array_bytes(shape, run) if run.policy_on_host else 0, "exact"),
        "some layers of the teacher": (part_bytes(shape, run) if run.policy_on_host else 0, "exact"),
        "teacher's forward pass": (teacher_pass, "formula"),
        "visiting student": (student if run.frozen_on_host else 0, "exact"),
        "student's forward pass": (student_pass, "formula"),
        "visiting reference": (reference if run.frozen_on_host else 0, "exact"),
        "visiting reference as teacher": (reference if run.frozen_on_host and run.reference_teacher else 0, "exact"),
        "reference's forward pass": (teacher_pass, "formula"),
        "gradients": (run.gradient_bytes * shape.parameters, "exact"),
        "activations": (size * shape.layers * run.update.tokens * shape.hidden, "exact"),
        "saved attention": (run.saved_attention * saved_attention_bytes(shape, run), "formula"),
        "saved MLP": (run.saved_mlp * saved_mlp_bytes(shape, run), "exact"),
        "backward pass": (backward_bytes(shape, run, run.update), "formula"),
        "attention's sums": (sums_bytes(shape, run, run.update), "formula"),
        "optimizer state in flight": (state_in_flight_bytes(shape, run) if run.optimizer_on_host else 0, "formula"),
        # What the program takes on a CPU with float32 weights; a leaf's master need not outlive its update.
        "float32 masters": (0 if run.optimizer_on_host else 4 * shape.parameters, "estimate"),
    }


def _host_sizes(shape: ModelShape, run: RunShape) -> dict[str, tuple[float, Source]]:
    """Owner on the host -> (bytes, source of the figure)."""
    size = run.weight_bytes
    weights, (student, reference) = size * shape.parameters, _frozen_bytes(shape, run)
    pinned = pinned_bytes(shape, run)
    slack = min(pool_limit_gib(pinned) * GIB, POOL_GROWTH * pinned) - pinned
    return {
        "trainer's process": (TRAINER_PROCESS, "estimate"),
        "vLLM's processes": (VLLM_PROCESSES if run.sampler == "vllm" else 0, "estimate"),
        "pinned optimizer state": (state_bytes(shape, run) if run.optimizer_on_host else 0, "exact"),
        "pinned student": (student if run.frozen_on_host else 0, "exact"),
        "pinned reference": (reference if run.frozen_on_host else 0, "exact"),
        "pinned teacher": (weights if run.policy_on_host else 0, "exact"),
        "slack of the pinned pool": (slack, "formula"),
        "tensor on its way": (2 * size * shape.embedding_parameters, "formula"),  # as stored and in the run's dtype
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
    """The native sampler's key-value cache, with the shorter one it grows from; what decoding needs on top."""
    batch, bytes_each = min(run.native_batch, run.completions), run.weight_bytes
    cache = batch * bucket_length(run.teacher_tokens) * shape.cache_bytes(bytes_each)
    token_bytes = bytes_each * _numbers_per_token(shape, _FORWARD_WIDTHS)
    prefill = bytes_each * shape.layer_parameters + max(PREFILL_TOKENS, run.prompt_tokens) * token_bytes
    step = 3 * 4 * batch * shape.vocab + 2 * cache / shape.layers  # logits, and one layer's keys and values
    return 1.5 * cache, max(min(prefill, batch * run.prompt_tokens * token_bytes), step)


def _numbers_per_token(shape: ModelShape, counts: tuple[int, int, int, int]) -> int:
    """Numbers per token, given how many activations there are of each width."""
    return sum(n * width for n, width in zip(counts, (shape.inner, shape.hidden, shape.queries, shape.keys)))


def saved_attention_bytes(shape: ModelShape, run: RunShape) -> float:
    """Saved for one layer: queries, keys, values, output and the softmax sums (all probabilities without a kernel)."""
    softmax = 4 * shape.heads * (run.update.length if run.update.attention == "masked" else 1)
    return run.update.tokens * (run.weight_bytes * 2 * (shape.queries + shape.keys) + softmax)


def saved_mlp_bytes(shape: ModelShape, run: RunShape) -> float:
    """Saved for one layer: gate and up projections."""
    return 2 * run.weight_bytes * run.update.tokens * shape.inner
