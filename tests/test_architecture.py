"""The house: which room may import which, without circles, with no file too large to read."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import rlt_jax

PACKAGE = Path(rlt_jax.__file__).parent
REPOSITORY = PACKAGE.parent

DOORS = {"train", "sft", "generate", "score", "evaluate", "plan", "ablate", "pipeline", "replay"}  # nobody imports them

MAY_IMPORT = {  # room (a folder, or a module of the ground) -> the rooms below that it may import, from the ground up
    "secrets": set(),
    "stops": set(),
    "terminal": {"secrets", "stops"},
    "errors": {"secrets", "stops", "terminal"},
    "disk": {"errors"},
    "paths": {"errors"},
    "hub": {"errors", "paths"},
    "finite": {"errors"},
    "types": set(),
    "batching": set(),
    "segments": {"types", "batching"},
    "losses": {"types"},
    "report": {"secrets", "stops", "terminal", "errors", "disk", "types"},
    "configs": {"secrets", "errors", "disk", "paths", "types"},
    "data": {"secrets", "errors", "paths", "hub", "types"},
    "models": {"stops", "errors", "disk", "hub", "finite", "types", "batching", "segments"},
    "device": {"errors", "disk", "types"},
    "learner": {"stops", "finite", "types", "batching", "segments", "losses", "configs", "models", "device"},
    "rewards": {
        *(
            "stops",
            "errors",
            "paths",
            "finite",
            "types",
            "batching",
            "segments",
            "losses",
            "configs",
            "data",
            "models",
            "device",
        ),
    },
    "evals": {"types", "report", "configs", "data"},
    "sampling": {"secrets", "stops", "errors", "paths", "types", "batching", "configs", "models", "rewards"},
    "checkpoints": {"errors", "disk", "finite", "types", "report"},
    "planner": {
        *(
            "errors",
            "terminal",
            "paths",
            "hub",
            "types",
            "segments",
            "batching",
            "report",
            "configs",
            "data",
            "models",
            "device",
        ),
        *("learner", "rewards"),
    },
    "runs": {
        *("secrets", "stops", "terminal", "errors", "disk", "hub", "finite", "types", "losses", "report", "configs"),
        *("batching", "data", "models", "device", "learner", "rewards", "checkpoints", "planner", "sampling"),
    },
    "studies": {
        *("stops", "errors", "disk", "paths", "types", "report", "configs", "data", "rewards", "evals", "planner"),
        "runs",
    },
}

OUTSIDE = {  # package from outside -> the only places that may import it
    "vllm": {"sampling/vllm_process/rlt_engine.py"},
    "torch": {"sampling/vllm_process/rlt_engine.py", "sampling/vllm_process/rlt_worker.py"},
    "httpx": {"sampling/server.py"},
    "flax": {"models"},
    "optax": {"learner"},
    "orbax": {"checkpoints/stored_arrays.py"},
    "math_verify": {"evals/math_worker.py"},
    "sympy": {"evals/math_worker.py"},
    "pynvml": {"device/gpu.py", "device/monitor.py"},
    "jax._src": {"device/jax_setup.py", "models/attention.py"},
    "flash_attn3_jax": {"models/attention.py"},
}

NO_JAX = {  # quick to import, host only
    *("secrets", "stops", "terminal", "errors", "disk", "paths", "hub", "types", "batching", "configs", "data"),
    *("evals", "report"),
}

MOST_LINES = 500  # of a file

FILES = sorted(PACKAGE.rglob("*.py"))


def place_of(file: Path) -> str:
    """`losses/kl.py`."""
    return file.relative_to(PACKAGE).as_posix()


def room_of(place: str) -> str:
    """`losses` for losses/kl.py, `types` for types.py."""
    return place.split("/")[0].removesuffix(".py")


def imported(source: str, package: tuple[str, ...]) -> Iterator[str]:
    """Full names of all that a module's source imports, wherever in it; `package` holds the module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{name.name}" for name in node.names)


def imports_of(file: Path) -> list[str]:
    """Full names of all that a file of the package imports."""
    return list(imported(file.read_text(encoding="utf-8"), ("rlt_jax", *Path(place_of(file)).parts[:-1])))


@pytest.mark.parametrize("file", FILES, ids=place_of)
def test_imports(file):
    place = place_of(file)
    room = room_of(place)
    for name in imports_of(file):
        for outside, homes in OUTSIDE.items():
            if f"{name}.".startswith(f"{outside}."):
                assert {room, place} & homes, f"{place} imports {name}, which belongs in {homes}"
        if room in NO_JAX:
            assert name.split(".")[0] not in ("jax", "jaxlib", "flax"), f"{place} imports {name}"
        if not name.startswith("rlt_jax.") or place == "__init__.py":
            continue
        other = name.split(".")[1]
        assert other not in DOORS, f"{place} imports the command {other}: move what both need to a room"
        assert room in DOORS | {other} or other in MAY_IMPORT[room], f"{place} imports {name}, which stands above"


def test_nothing_at_the_top_is_neither_a_door_nor_ground():
    assert {room_of(place_of(file)) for file in FILES} - {"__init__"} == MAY_IMPORT.keys() | DOORS
    ground = {path.stem for path in PACKAGE.glob("*.py")} - DOORS - {"__init__"}
    assert ground == {
        *("secrets", "stops", "terminal", "errors", "disk", "paths", "hub", "finite", "types", "batching"),
        "segments",
    }


def test_rooms_stand_above_all_that_they_import():
    """The table has no circle: each room comes after those that it may import."""
    below: set[str] = set()
    for room, others in MAY_IMPORT.items():
        assert others <= below, f"{room} may import {others - below}, which do not stand below it"
        below.add(room)


def test_files_do_not_import_each_other_in_circles():
    modules = {"rlt_jax." + place_of(file).removesuffix(".py").replace("/", "."): file for file in FILES}

    def target(name: str) -> str | None:
        return next((module for module in (name, name.rpartition(".")[0]) if module in modules), None)

    left = {
        module: {found for name in imports_of(file) if (found := target(name)) not in (None, module)}
        for module, file in modules.items()
    }
    while done := {module for module, others in left.items() if not others & left.keys()}:
        left = {module: others for module, others in left.items() if module not in done}
    assert left == {}, f"these import each other: {sorted(left)}"


@pytest.mark.parametrize("file", FILES, ids=place_of)
def test_a_file_can_be_read_at_once(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_the_loop_fits_on_a_screen():
    source = (PACKAGE / "train.py").read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 200
    (loop,) = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.For)]
    assert loop.end_lineno - loop.lineno < 40


@pytest.mark.parametrize("file", sorted((REPOSITORY / "tests").rglob("test_*.py")), ids=lambda file: file.name)
def test_tests_stand_where_the_code_does(file):
    """tests/losses/test_kl.py tests losses/kl.py; those of whole commands stand in tests/commands, tests/faults."""
    room = file.relative_to(REPOSITORY / "tests").parts[:-1]
    tested = file.stem.removeprefix("test_")
    if room[:1] in ((), ("commands",), ("faults",), ("scripts",)):
        return
    names = {path.stem for path in (PACKAGE.joinpath(*room)).glob("*") if path.suffix in ("", ".py")}
    assert tested in names or file.relative_to(REPOSITORY / "tests").as_posix() in OF_NO_MODULE


OF_NO_MODULE = {"configs/test_docs.py"}  # docs/configuration.md


def test_every_package_that_is_imported_is_required():
    """By `pip install rlt_jax` alone, without an extra, but for what is loaded only where it is asked for."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = {line.split(">")[0].split("[")[0].strip().replace("-", "_") for line in project["dependencies"]}
    names = {"orbax": "orbax_checkpoint", "yaml": "pyyaml", "pynvml": "nvidia_ml_py", "ml_dtypes": "ml_dtypes"}
    optional = {"wandb", "vllm", "torch", "cuda", "flash_attn3_jax"}
    found = {name.split(".")[0] for file in FILES for name in imports_of(file)}
    import sys

    # rlt_messages lies beside the program of the engine's process
    for package in found - set(sys.stdlib_module_names) - {"rlt_jax", "_typeshed", "rlt_messages"} - optional:
        assert names.get(package, package) in required, f"{package} is imported, but no dependency of the package"


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
