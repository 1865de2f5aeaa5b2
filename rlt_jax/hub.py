"""Names of the Hugging Face hub: whether a text is one, and a repository's files, or at once the reason for none.

A path with a typing mistake may look like a name (`runs/warmup`): if its first part is a folder here, it is a path, and
the hub is not asked. Where there is no network, its clients would wait and repeat for half a minute before they say so.
"""

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rlt_jax.errors import UserError
from rlt_jax.paths import did_you_mean, expanded

Kind = Literal["model", "dataset"]
_WORDS: dict[Kind, tuple[str, str]] = {
    "model": ("a model's folder or its name on the Hugging Face hub", "the folder of a downloaded model"),
    "dataset": ("a data set's folder, file, or name on the Hugging Face hub", "the folder of a downloaded data set"),
}
_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def local_folder(path: str | Path) -> Path | None:
    """The folder on this machine that `path` names; None if the hub must be asked for a model of that name.

    Raises:
      UserError: there is no such folder, and it cannot be a name of the hub; it is a file, or a run's folder.
    """
    folder = Path(expanded(str(path)))
    if folder.is_dir():
        exported = folder / "final"
        if not (folder / "config.json").exists() and (exported / "config.json").exists():
            raise UserError(f"expected a model's folder, got the folder {folder} of a run: did you mean {exported}?")
        return folder
    if folder.exists():
        raise UserError(f"expected a model's folder, got the file {folder}: give the folder that holds config.json")
    if isinstance(path, Path):
        raise _no_path(str(path), "model")
    check_name(path, "model")
    return None


def check_name(name: str, kind: Kind) -> None:
    """Reject what does not exist here and is no name of the hub either.

    Raises:
      UserError: with the path that was probably meant.
    """
    first, slash, _ = name.partition("/")
    if not _NAME.fullmatch(name):
        raise _no_path(name, kind)
    if slash and Path(first).is_dir() and not _cached(name, kind):
        raise _no_path(name, kind, f" (as there is a folder {first} here, the hub is not asked)")


def fetch(name: str, *, files: Sequence[str], without: Sequence[str] = ()) -> Path:
    """Copy a model repository's files from the hub to its cache, unless they are there already.

    Args:
      files: patterns of the files.
      without: patterns of files to leave out.
    Returns:
      The folder of the cache.
    Raises:
      UserError: the hub has no such model, or cannot be asked.
    """
    from huggingface_hub import snapshot_download  # here: the import takes half a second
    from huggingface_hub.errors import HFValidationError

    # It logs every retry twice; the error that it finally raises says more.
    logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)
    try:
        return Path(snapshot_download(name, allow_patterns=list(files), ignore_patterns=list(without)))
    except (OSError, HFValidationError) as error:  # any failure to reach or find a repository is an OSError
        raise _no_name(name, "model", error) from None


def check_dataset(name: str) -> None:
    """Ask the hub once whether it has a data set, without the waits and repetitions of `datasets.load_dataset`.

    Raises:
      UserError: it has none or cannot be asked, and there is none of that name in the cache.
    """
    check_name(name, "dataset")
    if _cached(name, "dataset"):
        return
    import huggingface_hub

    try:
        huggingface_hub.HfApi().dataset_info(name, timeout=30)
    except Exception as error:  # which class stands for "no connection" depends on the version of the client
        raise _no_name(name, "dataset", error) from None


def _cached(name: str, kind: Kind) -> bool:
    """Whether the cache holds something of this name."""
    from huggingface_hub.constants import HF_HOME, HF_HUB_CACHE

    if (Path(HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}" / "snapshots").is_dir():
        return True
    if kind == "model":
        return False
    prepared = os.environ.get("HF_DATASETS_CACHE", Path(HF_HOME) / "datasets")  # as `datasets`, whose import is slow
    return (Path(prepared).expanduser() / name.lower().replace("/", "___")).is_dir()


def _no_path(path: str, kind: Kind, why: str = "") -> UserError:
    expected, _ = _WORDS[kind]
    return UserError(f"expected {expected}, but {path} does not exist{why}: {did_you_mean(path)}check the path")


def _no_name(name: str, kind: Kind, error: Exception) -> UserError:
    expected, instead = _WORDS[kind]
    thing = "model" if kind == "model" else "data set"
    return UserError(
        f"expected {expected}, but there is no {name} here and {_reason(thing, error)}: {did_you_mean(name)}"
        f"check the name, or give {instead}"
    )


def _reason(thing: str, error: Exception) -> str:
    """Why the hub gave nothing."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError):
        return f"the hub gives this {thing} only to those who accepted its terms: accept them there and `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the hub has no such {thing} (or it is private: `hf auth login`)"
    if constants.HF_HUB_OFFLINE:
        return f"HF_HUB_OFFLINE is set, so that the hub is not asked, and its cache holds no such {thing}"
    return f"the hub cannot be asked ({_last_line(error)})"


def _last_line(error: BaseException) -> str:
    """The cause of an error in one line: the client wraps it several times."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
