"""What the README.md of a data set's folder says about its files: the YAML metadata of the Hugging Face hub.

configs:
- config_name: main                # a subset
  default: true                    # taken if none is named; so is the only one, and one called default
  data_dir: data                   # the folder of the patterns; without data_files, files count by their names
  data_files:                      # a pattern, a list of patterns (both: split train), or a list of splits
  - split: train
    path: main/train-*             # a pattern or a list of patterns; * within a name, ** across folders
"""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from rlt_jax.errors import UserError

CARD = "README.md"


@dataclass(frozen=True)
class CardSubset:
    """A subset as the card describes it."""

    name: str
    default: bool
    folder: str  # data_dir, "" for the card's own
    patterns: Mapping[str, tuple[str, ...]] | None  # split -> patterns in `folder`; None: no data_files


def card_subsets(folder: Path) -> tuple[CardSubset, ...]:
    """The subsets that folder/README.md describes; none without such a file or without `configs` in it.

    Raises:
      UserError: the metadata is malformed.
    """
    card = folder / CARD
    if not card.is_file():
        return ()
    import yaml
    from huggingface_hub import metadata_load  # here: the import takes a while

    try:
        configs = (metadata_load(card) or {}).get("configs")
    except (OSError, UnicodeDecodeError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"expected YAML metadata between the --- lines of {card}, but: {reason}: fix it, or delete it to go by the "
            "names of the files"
        ) from None
    if not configs:
        return ()
    if not isinstance(configs, list):
        raise _malformed(card, "configs is not a list")
    subsets = tuple(_subset(config, card) for config in configs)
    names = [subset.name for subset in subsets]
    if len(set(names)) < len(names):
        raise _malformed(card, f"configs has a name twice: {', '.join(names)}")
    return subsets


def chosen_subset(subsets: tuple[CardSubset, ...], name: str | None) -> CardSubset | None:
    """The subset of that name; without a name the only one, the one called default or the one marked as default."""
    if name is not None:
        return next((subset for subset in subsets if subset.name == name), None)
    defaults = [subset for subset in subsets if len(subsets) == 1 or subset.name == "default" or subset.default]
    return defaults[0] if len(defaults) == 1 else None


def matches(parts: tuple[str, ...], pattern: str) -> bool:
    """Whether a file, as the parts of its path, is one of a pattern's: * within a name, ** for any folders."""
    return _matches(parts, PurePosixPath(pattern).parts)


def _matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    if not pattern or not parts:
        return not pattern and not parts
    if pattern[0] == "**":
        rest = pattern[1:] or ("*",)
        return any(_matches(parts[start:], rest) for start in range(len(parts)))
    return fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _subset(config: object, card: Path) -> CardSubset:
    if not isinstance(config, Mapping) or not isinstance(config.get("config_name"), str):
        raise _malformed(card, f"an entry of configs has no config_name: {reprlib.repr(config)}")
    name, folder = config["config_name"], config.get("data_dir") or ""
    if not isinstance(folder, str) or _leaves(folder):
        raise _malformed(card, f"data_dir of {name} is no folder below it: {reprlib.repr(folder)}")  # YAML can be huge
    files = config.get("data_files")
    patterns = None if files is None else _patterns(files, name, card)
    return CardSubset(name, config.get("default") is True, folder, patterns)


def _patterns(files: object, name: str, card: Path) -> dict[str, tuple[str, ...]]:
    """Split -> patterns, of any form of data_files."""
    entries = files if isinstance(files, list) else [files]
    if not any(isinstance(entry, Mapping) for entry in entries):
        entries = [{"split": "train", "path": entries}]
    patterns: dict[str, tuple[str, ...]] = {}
    for entry in entries:
        split = entry.get("split") if isinstance(entry, Mapping) else None
        paths = entry.get("path") if isinstance(entry, Mapping) else None
        paths = [paths] if isinstance(paths, str) else paths
        if not isinstance(split, str) or not isinstance(paths, list) or not all(isinstance(p, str) for p in paths):
            raise _malformed(card, f"data_files of {name} is no pattern, list of patterns or list of split and path")
        if split in patterns:
            raise _malformed(card, f"data_files of {name} has split {split} twice")
        for path in paths:
            if _leaves(path):
                raise UserError(
                    f"expected files below the folder of {card}, but its subset {name} names {path}: download it into "
                    "the folder and name it there"
                )
        patterns[split] = tuple(paths)
    return patterns


def _leaves(path: str) -> bool:
    """Whether a path or pattern leads out of the folder: an address, an absolute path, or one with .. in it."""
    return "://" in path or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts


def _malformed(card: Path, why: str) -> UserError:
    return UserError(
        f"expected metadata of a data set in {card}, but {why}: fix it, or delete it to go by the names of the files"
    )
