"""Scripts as modules, and what they print when they are called, in this process."""

import importlib.util
import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).parents[2]


def load_script(name: str) -> ModuleType:
    """scripts/NAME.py."""
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def call_script(script: ModuleType, *flags: object, expected: int = 0) -> str:
    """What the script prints, run from the repository's root; its own commands have their processes."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(printed):
        patch.chdir(REPOSITORY)
        patch.setattr(sys, "argv", [str(script.__file__), *map(str, flags)])
        try:
            script.main()
            code = 0
        except SystemExit as ended:
            code = ended.code
    assert code == expected, printed.getvalue()[-3000:]
    return printed.getvalue()
