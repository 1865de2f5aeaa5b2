"""The supported families of models. To add one, import its folder and add it to the tuple."""

from rlt_jax.models import qwen
from rlt_jax.models.family import Family

_FOLDERS = (qwen,)

FAMILIES: dict[str, Family] = {family.model_type: family for folder in _FOLDERS for family in folder.FAMILIES}
"""model_type of a config.json -> family."""
