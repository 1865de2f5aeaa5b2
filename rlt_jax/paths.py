"""Paths as people type them: `~`, and the name that was probably meant."""

import difflib
import os
from pathlib import Path

from rlt_jax.errors import UserError


def expanded(path: str, *, name: str = "the path") -> str:
    """`path` with the home folder for a leading `~` or `~USER`; everything else, a hub name too, is returned as it is.

    Args:
      name: of the setting, for messages.
    Raises:
      UserError: there is no such user or home folder.
    """
    if not path.startswith("~"):
        return path
    user = path.partition("/")[0]
    home = os.path.expanduser(user)
    if home == user:
        whose = "the home folder of a user of this machine" if user != "~" else "HOME to be set"
        raise UserError(
            f"{name}={path}: expected {whose}, but there is none for {user}: write the whole path, or ./{path} for a "
            "name that begins with ~"
        )
    if not os.path.isdir(home):
        raise UserError(
            f"{name}={path}: expected {user} to be a folder, but there is no {home}: set HOME, or write the whole path"
        )
    return os.path.expanduser(path)


def did_you_mean(path: str | Path) -> str:
    """`did you mean runs/warmup/final? ` for a path that does not exist, ending in a space; "" if nothing is near."""
    near = nearest(path)
    return "" if near is None else f"did you mean {near}? "


def nearest(path: str | Path) -> Path | None:
    """The existing path that is most like one that does not exist; None if there is none like it, or it exists.

    Part by part, from the front: a part that does not exist is replaced by the likest name in that folder.
    """
    wanted = Path(os.path.expanduser(path))
    found = Path(wanted.anchor)
    for part in wanted.parts[1:] if wanted.anchor else wanted.parts:
        if not (found / part).exists():
            try:
                names = sorted(os.listdir(found))
            except OSError:
                return None
            near = difflib.get_close_matches(part, names, n=1, cutoff=0.75)
            if not near:
                return None
            part = near[0]
        found = found / part
    return None if found == wanted else found
