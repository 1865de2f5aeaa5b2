"""The runs that are disturbed: small ones of the package's own models, in which every phase occurs several times."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import rlt_jax

TINY = Path(rlt_jax.__file__).parent / "assets" / "tiny"

SEED = int(os.environ.get("RLT_FAULTS_SEED", "0"))


def size(name: str, default: int) -> int:
    """How often to do something: the variable RLT_FAULTS_NAME, or the full size."""
    return int(os.environ.get(f"RLT_FAULTS_{name}", default))


@dataclass(frozen=True)
class Scene:
    """A command with its flags, whose run folder is still to be named."""

    name: str
    command: str
    flags: Sequence[object]
    phases: Sequence[str]  # in which a signal may come, in the order of a run
    shown: str = "reward"  # metric of every step

    def line(self, folder: Path) -> list[object]:
        return [*self.flags, "--output-dir", folder]


PHASES = ("start-up", "draw", "score", "update", "sync", "save", "export")

_TRAIN = (
    *("--preset", "tiny", "--train-batch-size", 8, "--num-generations", 4, "--per-device-train-batch-size", 4),
    *("--score-batch-size", 8, "--max-completion-length", 16, "--learning-rate", 1e-3, "--data.eval-rows", 8),
    *("--max-steps", 6, "--save-steps", 2, "--eval-steps", 3, "--ref.ref-model-sync-steps", 2),
    *("--log.sample-probability", 1, "--log.no-progress"),
)

TRAIN = Scene("train", "train", _TRAIN, PHASES)

HOST = Scene(
    "bfloat16 host", "train", (*_TRAIN, "--dtype", "bfloat16", "--memory.optimizer", "host"), PHASES
)  # the low halves of the masters and the moments are part of the state

VLLM = Scene(
    "vllm",
    "train",
    (*_TRAIN, "--sampler.kind", "vllm", "--loss.importance-correction", "token"),
    PHASES,
)

SFT = Scene(
    "sft",
    "sft",
    (
        *("--model", TINY / "teacher", "--data.path", TINY / "train.jsonl", "--data.eval-path", TINY / "eval.jsonl"),
        *("--data.eval-rows", 8, "--data.teacher-prompt-file", TINY / "teacher_prompt.txt", "--target", "teacher"),
        *("--max-length", 256, "--train-batch-size", 8, "--per-device-train-batch-size", 8, "--learning-rate", 1e-3),
        *("--max-steps", 6, "--save-steps", 2, "--eval-steps", 3, "--check-texts", 2, "--dtype", "float32"),
        *("--log.no-progress",),
    ),
    ("start-up", "update", "save", "export"),
    shown="loss",
)
