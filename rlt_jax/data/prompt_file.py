"""System prompts from text files."""

from pathlib import Path

from rlt_jax.errors import UserError
from rlt_jax.paths import did_you_mean, expanded


def read_prompt_file(path: str | Path) -> str:
    """The text of a prompt file, without trailing newlines.

    Raises:
      UserError: the file is missing, unreadable, not UTF-8 or empty.
    """
    try:
        text = Path(expanded(str(path))).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(
            f"expected a prompt file at {path}, but it cannot be read ({error.strerror}): {did_you_mean(path)}"
            "check the path"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"expected UTF-8 text in the prompt file {path}, but byte {error.start} is not: save it as UTF-8"
        ) from None
    if not text.strip():
        raise UserError(
            f"expected a prompt in {path}, but the file is empty: write one, or leave the flag out for the default"
        )
    return text.rstrip("\r\n")
