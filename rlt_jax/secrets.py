"""Passwords and tokens, which no log, file or message may hold: found by their form, or as values of the environment.

They come in by environment variables (`HF_TOKEN`, `WANDB_API_KEY`, proxies), and out in the errors of libraries, which
quote addresses and headers, and in what a user types by mistake where a path belongs.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
SHORTEST = 12  # characters of an environment variable's value that is looked for: a shorter one may be an ordinary word

_NAMES = re.compile(r".*(TOKEN|API_?KEY|SECRET|PASSWORD|PASSWD|SECRET_ACCESS_KEY|CREDENTIALS)", re.IGNORECASE)
_FORMS = (
    (
        re.compile(  # one slash, where a library took the address for a path; a number after the colon is a port
            r"(?<![A-Za-z0-9])([A-Za-z][A-Za-z0-9+.-]{1,20}:/{1,2})(?:[^\s/@:'\"]{0,200}:(?!\d+/)[^\s'\"]{0,300}|[^\s/@'\"]{0,300})@"
        ),
        rf"\1{HIDDEN}@",
    ),
    (re.compile(r"\b(hf_)[A-Za-z0-9]{20,}"), rf"\1{HIDDEN}"),
    (re.compile(r"\b(sk-|ghp_|github_pat_|glpat-)[A-Za-z0-9_-]{32,}"), rf"\1{HIDDEN}"),
    (re.compile(r"\b(Authorization\W{1,6}(?:Basic|Bearer) +|Bearer +(?=\S{20}))[\w.~+/=-]+", re.I), rf"\1{HIDDEN}"),
    (
        re.compile(
            r"([?&](?:[\w-]{0,40}(?:token|api[_-]?key|signature|credential|password|secret))=)[^&\s'\"]+", re.IGNORECASE
        ),
        rf"\1{HIDDEN}",
    ),
)


def redacted(text: str) -> str:
    """`text` with `***` in place of each secret.

    These are a name and password in an address, tokens that begin as those of well-known services do, what stands
    in a header Authorization, signatures and keys in an address's query, and the values of environment variables
    whose names end in TOKEN, API_KEY, SECRET or PASSWORD.
    """
    for value in _values():
        text = text.replace(value, HIDDEN)
    return without_forms(text)


def without_forms(text: str) -> str:
    """`text` without the secrets that are known by their form alone."""
    for form, shown in _FORMS:
        text = form.sub(shown, text)
    return text


def redacted_values(value: Any) -> Any:
    """Nested dicts, lists and tuples with every text redacted."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return {key: redacted_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(redacted_values(item) for item in value)
    return value


def public_environment() -> dict[str, str]:
    """The environment for a process that needs no secrets: without the variables that hold one."""
    return {name: value for name, value in os.environ.items() if not is_secret(name)}


def is_secret(name: str) -> bool:
    """Whether an environment variable of this name holds a secret."""
    return _NAMES.fullmatch(name) is not None


def _values() -> list[str]:
    """Values of the environment that must not be shown, the longest first."""
    found = {value for name, value in os.environ.items() if is_secret(name) and len(value) >= SHORTEST}
    return sorted(found, key=len, reverse=True)
