"""Which part may import which: data flows one way, and nobody imports a command."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import rlt_jax

PACKAGE = Path(rlt_jax.__file__).parent

COMMANDS = {"train", "sft", "score", "plan", "ablate", "generate", "evaluate"}  # may import all; nobody imports them

MAY_IMPORT = {  # part (a subpackage, or a module of rlt_jax) -> other parts
    "errors": set(),
    "launch": set(),
    "types": set(),
    "batching": set(),
    "losses": set(),
    "metrics": set(),
    "accuracy": set(),
    "ranking": set(),
    "memory": set(),
    "configs": {"errors"},
    "models": {"errors"},
    "report": {"errors"},
    "checkpoint": {"errors"},
    "data": {"errors", "types"},
    "answers": {"data"},
    "sampling": {"errors", "types", "batching"},
    "scoring": {"types", "batching", "losses", "models"},
    "rewards": {"types", "configs", "data", "losses", "scoring"},
    "backward": {"types", "models"},
    "placement": set(),
    "fitting": {"errors", "memory"},
    "update": {"types", "batching", "losses", "models", "placement"},
    "host_adamw": {"memory", "models", "placement", "update"},
    "optimizer": {"configs", "host_adamw", "models", "placement", "update"},
    "rollout": {"types", "data", "metrics", "rewards"},
    "evaluation": {"types", "data", "metrics", "report", "rewards", "rollout"},
    "samplers": {"errors", "types", "configs", "models", "sampling", "scoring"},
    "planning": {"errors", "batching", "configs", "memory", "models"},
    "program_sizes": {"types", "backward", "configs", "memory", "models", "scoring", "update"},
    "preflight": {"errors", "configs", "data", "memory", "models", "planning"},
    "run": {
        "errors",
        "types",
        "checkpoint",
        "configs",
        "data",
        "memory",
        "models",
        "placement",
        "planning",
        "report",
    },
}

OUTSIDE = {  # package from outside -> the only places that may import it
    "vllm": {"sampling/vllm_process/rlt_engine.py"},
    "flax": {"models"},
    "optax": {"update", "host_adamw", "optimizer"},
    "orbax": {"checkpoint"},
    "httpx": {"sampling/server.py"},
    "math_verify": {"answers"},
    "torch": {"sampling/vllm_process/rlt_engine.py", "sampling/vllm_process/rlt_worker.py"},
}

NO_JAX = {  # quick to import, host only
    "errors",
    "types",
    "accuracy",
    "answers",
    "batching",
    "configs",
    "data",
    "launch",
    "metrics",
    "memory",
    "ranking",
    "report",
}


def part_of(file: Path) -> str:
    """`losses` for losses/kl.py, `update` for update.py."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(source: str, package: tuple[str, ...]) -> Iterator[str]:
    """Full names of all that a module's source imports, wherever in it; `package` holds the module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{name.name}" for name in node.names)


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports(file):
    part, place = part_of(file), str(file.relative_to(PACKAGE))
    for name in imported(file.read_text(encoding="utf-8"), ("rlt_jax", *Path(place).parts[:-1])):
        top, _, rest = name.partition(".")
        if top in OUTSIDE:
            assert OUTSIDE[top] & {part, place}, f"{place} imports {top}, which belongs in {OUTSIDE[top] or 'no place'}"
        if part in NO_JAX:
            assert top not in ("jax", "jaxlib", "flax"), f"{place} imports {name}, but {part} must do without JAX"
        target = rest.split(".")[0]
        if top != "rlt_jax" or target == part:
            continue
        assert target not in COMMANDS, f"{place} imports the command {target}: move what both need to a library module"
        assert part in COMMANDS or target in MAY_IMPORT[part], f"{place} imports rlt_jax.{target}"


def test_every_part_is_in_the_table():
    assert {part_of(file) for file in FILES} - {"__init__"} == MAY_IMPORT.keys() | COMMANDS


def test_data_flows_one_way():
    """The table has no circle: its parts can be put in an order in which each imports only earlier ones."""
    earlier: set[str] = set()
    while ready := {part for part, others in MAY_IMPORT.items() if part not in earlier and others <= earlier}:
        earlier |= ready
    assert earlier == MAY_IMPORT.keys()


def test_every_form_of_import_is_seen():
    """Or the tests above prove nothing."""
    source = "import jax.numpy as jnp\nfrom rlt_jax import train\nfrom . import kl\nfrom ..types import Row\n"
    source += "def f():\n    from rlt_jax.models.hf import load_model\n"
    assert list(imported(source, ("rlt_jax", "losses"))) == [
        "jax.numpy",
        "rlt_jax.train",
        "rlt_jax.losses.kl",
        "rlt_jax.types.Row",
        "rlt_jax.models.hf.load_model",
    ]
