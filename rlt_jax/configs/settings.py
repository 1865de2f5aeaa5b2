"""The base of every configuration: whichever way it is made, `~` in its paths stands for the home folder."""

import dataclasses
import sys

from rlt_jax.errors import UserError
from rlt_jax.paths import expanded
from rlt_jax.secrets import without_forms

NO_PATHS = frozenset(
    {
        *("split", "eval_split", "heldout_split", "subset", "eval_subset", "heldout_subset", "url", "wandb_project"),
        *("question_column", "solution_column", "trace_column", "system_column", "explanation_column"),
        *("completion_column", "answer_column", "choice_columns", "answer", "only", "grid", "keep_best"),
        *("fn_sha256", "options"),
    }
)
"""Names of the fields whose text is no path, and is kept as it is. Every other text is a path or a name of the hub."""


class Settings:
    """Base class of the configurations, which are frozen dataclasses.

    A text that begins with `~` is expanded when the dataclass is made: from flags, from a YAML file, in Python. So
    config.yaml, fingerprints and comparisons with an earlier run know whole paths alone.
    """

    def __post_init__(self) -> None:
        """Expand `~`.

        Raises:
          UserError: there is no such user or home folder, or a text that the locale cannot hold, or one with a
            password or token in it: settings are written into files.
        """
        assert dataclasses.is_dataclass(self)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            whole: object = value
            if isinstance(value, str):
                whole = _whole(value, field.name)
            elif isinstance(value, tuple):
                whole = tuple(_whole(item, field.name) if isinstance(item, str) else item for item in value)
            elif field.name in NO_PATHS:
                _refuse_secrets(value, field.name)
            if whole != value:
                object.__setattr__(self, field.name, whole)


def _refuse_secrets(value: object, name: str) -> None:
    """Look through the texts in nested mappings and lists."""
    if isinstance(value, str):
        _whole(value, name)
    elif isinstance(value, dict | list | tuple):
        for item in [*value, *value.values()] if isinstance(value, dict) else value:
            _refuse_secrets(item, name)


def _whole(text: str, name: str) -> str:
    """The text of field `name`, expanded if it is a path."""
    if (shown := without_forms(text)) != text:
        raise UserError(
            f"{name}={shown}: expected no password or token, as settings are written into config.yaml and logs: leave "
            "it out, and give it by an environment variable (HF_TOKEN, VLLM_API_KEY) or `hf auth login`"
        )
    is_path = name not in NO_PATHS
    encoding = sys.getfilesystemencoding() if is_path else "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        raise UserError(
            f"{name}={text}: expected signs that the locale of this shell has, which is {sys.getfilesystemencoding()}: "
            "set LC_ALL=C.UTF-8 or PYTHONUTF8=1"
        ) from None
    return expanded(text, name=name) if is_path else text
