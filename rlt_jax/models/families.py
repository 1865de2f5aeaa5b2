"""The families of models that can be read. For a new one: import its folder, and name it in the tuple."""

from rlt_jax.models import qwen
from rlt_jax.models.family import Family

_FOLDERS = (qwen,)

FAMILIES: dict[str, Family] = {family.model_type: family for folder in _FOLDERS for family in folder.FAMILIES}
"""Family by the model_type of a config.json."""
