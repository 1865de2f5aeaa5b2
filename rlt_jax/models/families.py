"""The supported families of models: every folder next to this file defines some, as `FAMILIES`."""

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from rlt_jax.models.family import Family

_HERE = Path(__file__).parent
_FOLDERS = [import_module(f"rlt_jax.models.{found.name}") for found in iter_modules([str(_HERE)]) if found.ispkg]

FAMILIES: dict[str, Family] = {family.model_type: family for folder in _FOLDERS for family in folder.FAMILIES}
"""model_type of a config.json -> family."""
