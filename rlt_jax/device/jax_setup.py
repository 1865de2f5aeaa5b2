"""Set JAX up before it starts (device, memory, compilation cache), and count the programs it compiles."""

import importlib.util
import os
import pkgutil
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.monitoring
from jax._src import xla_bridge  # the one way to ask whether JAX has started without starting it

from rlt_jax.device.monitor import gpu_memory_reader
from rlt_jax.device.pinned import LIMIT_VARIABLE, pool_limit_gib
from rlt_jax.errors import UserError


def computes_on() -> Literal["cpu", "gpu"]:
    """What JAX computes on; gpu: any accelerator.

    With an NVIDIA GPU in the machine JAX is not started to find out, because its memory must be set up before.
    """
    if xla_bridge.backends_are_initialized() or gpu_memory_reader() is None:
        return "cpu" if jax.default_backend() == "cpu" else "gpu"
    return "gpu" if _cuda_is_allowed() and _has_cuda_plugin() else "cpu"


def _cuda_is_allowed() -> bool:
    """Whether JAX_PLATFORMS, whose first entry JAX computes on, leaves the GPU to it."""
    config: Any = jax.config  # its type does not list its options
    first = (config.jax_platforms or "cuda").split(",")[0].strip()
    return first in ("cuda", "gpu")


def _has_cuda_plugin() -> bool:
    """Whether JAX is installed with what it needs to compute on an NVIDIA GPU."""
    spec = importlib.util.find_spec("jax_plugins")
    places = None if spec is None else spec.submodule_search_locations
    return any(module.name.startswith("xla_cuda") for module in pkgutil.iter_modules(places or []))


def share_gpu_memory() -> None:
    """Let JAX return freed memory to the driver, where other processes on the GPU can use it. Call before JAX starts.

    JAX's default pool would take three quarters of the GPU at once, and would never give any of it back.

    Raises:
      UserError: the environment says otherwise, or JAX has started with other settings.
    """
    _set_before_jax({"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_PYTHON_CLIENT_ALLOCATOR": "platform"})


def limit_pinned_memory(num_bytes: int) -> None:
    """Let JAX's pool of pinned host memory hold `num_bytes`, and take little more than that. Call before JAX starts.

    Raises:
      UserError: JAX has started with too small a pool, or the environment asks for one.
    """
    limit = pool_limit_gib(num_bytes)
    current = os.environ.get(LIMIT_VARIABLE)
    if current is not None and current.isdigit() and int(current) >= limit:
        return
    _set_before_jax({LIMIT_VARIABLE: str(limit)})


def _set_before_jax(variables: dict[str, str]) -> None:
    for name, value in variables.items():
        current = os.environ.get(name)
        if current is not None and current.lower() != value:
            raise UserError(f"{name}={current} in the environment: this run needs {name}={value}: unset it or set that")
        if current is None and xla_bridge.backends_are_initialized():
            raise UserError(
                f"JAX has started without {name}={value}, which this run needs: set it in the environment, or call "
                "rlt_jax before anything else that computes with JAX"
            )
        os.environ[name] = value


def prepare_memory(*, shared: bool, pinned_bytes: int) -> None:
    """Set up JAX's memory for a run on a GPU, before JAX starts.

    JAX then takes what it needs instead of three quarters of the GPU. Where other processes use the GPU in turn, freed
    memory goes back to the driver; the pool of pinned memory is just large enough.

    Args:
      shared: other processes use the GPU in turn.
      pinned_bytes: what the run keeps in pinned host memory.
    Raises:
      UserError: as in `share_gpu_memory` and `limit_pinned_memory`.
    """
    if gpu_memory_reader() is None:
        return
    if shared or pinned_bytes:
        share_gpu_memory()
    else:  # take memory as needed, so that NVML's peaks are the run's own and other processes can use the rest
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if pinned_bytes:
        limit_pinned_memory(pinned_bytes)


def use_compilation_cache() -> None:
    """Keep compiled programs between runs, in JAX_COMPILATION_CACHE_DIR or ~/.cache/rlt_jax/xla."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "rlt_jax" / "xla"))
    # Cache all programs: the many small ones take as long together as a large one.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


class Compiled(NamedTuple):
    """Programs that JAX compiled, or fetched from the compilation cache, and how long that took."""

    programs: int
    seconds: float  # of XLA, or of the cache; tracing not counted


class CompileCounter:
    """Count what JAX has compiled since this counter was made."""

    def __init__(self) -> None:
        self._first = _listener().compiled

    @property
    def compiled(self) -> Compiled:
        """All since this counter was made."""
        return self.since(Compiled(0, 0.0))

    @property
    def count(self) -> int:
        """The programs."""
        return self.compiled.programs

    def since(self, before: Compiled) -> Compiled:
        """What came after `compiled` was `before`."""
        now = _listener().compiled
        return Compiled(
            now.programs - self._first.programs - before.programs, now.seconds - self._first.seconds - before.seconds
        )


class _Listener:
    """All programs since the first counter was made. There is one: JAX keeps its listeners for good."""

    compiled = Compiled(0, 0.0)

    def listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            programs, seconds = self.compiled
            self.compiled = Compiled(programs + 1, seconds + duration_secs)


@cache
def _listener() -> _Listener:
    listener = _Listener()
    jax.monitoring.register_event_duration_secs_listener(listener.listen)
    return listener
