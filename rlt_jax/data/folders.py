"""Which files of a folder are one split of one data set.

- Hidden files and folders (`.` or `_` in front), `__pycache__`, checkpoint folders, Jupyter's `-checkpoint` copies and
  the hub's own files (dataset_info.json, ...) are no data; nor is any file whose name does not end in one of the FORMS,
  such as train.jsonl.bak.
- The `configs` in README.md decide, if there are any (`dataset_card`).
- Else a word in a file's name, or in that of a folder between it and the given one, names its split: SPLITS, as in
  Hugging Face `datasets`, or any other word that is asked for (`train_sft`). If no file's does, all are `train`.
- A split is one file, or the numbered parts of one: all of them, of one form. Files of other names or in other folders
  are other data sets, the subsets: one must be chosen. Nothing else is joined, and what is doubtful is refused.

Departure from `datasets`: that joins whatever matches, so that a copy or a second subset is trained on too.
"""

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from rlt_jax.data.dataset_card import CARD, CardSubset, card_subsets, chosen_subset, matches
from rlt_jax.data.file_rows import FORMS, form_of, holds_rows, stem_of
from rlt_jax.errors import UserError

SPLITS = (  # words for the same split
    frozenset({"train", "training"}),
    frozenset({"test", "testing", "eval", "evaluation"}),
    frozenset({"validation", "valid", "val", "dev"}),
)
_WORDS = frozenset().union(*SPLITS)
_LETTER = r"[^\W\d_]"
_SPLIT_WORD = re.compile(rf"(?<!{_LETTER})(?:{'|'.join(sorted(_WORDS))})(?!{_LETTER})", re.IGNORECASE)
_NO_DATA = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json"})
_NO_FOLDER = re.compile(r"[._].*|checkpoints?([-_]\d+)?", re.IGNORECASE)
_PART = re.compile(r"(.*?)(\d+)(?:[-_ ]?of[-_ ]?(\d+)(?:-[0-9a-f]{16})?)?", re.IGNORECASE)  # name, part, of how many
_PART_WORDS = _WORDS | {"part", "parts", "shard", "chunk", "split"}  # a number may follow them without a separator
_VERSION = re.compile(rf"(?<!{_LETTER})(?:v|ver|version|rev)$", re.IGNORECASE)  # numbers after it are not parts
_MOST_SHOWN = 5  # names in one message


@dataclass(frozen=True)
class Chosen:
    """The files of one split of one data set."""

    files: tuple[Path, ...]  # in the order to read them; a folder is one saved by `datasets`, without splits
    not_read: tuple[Path, ...]  # the folder's other data
    subset: str | None  # as asked for, or as README.md names the default


@dataclass(frozen=True)
class _Data:
    """A file with rows, or a folder saved by `datasets`, by its place and name."""

    path: Path
    folders: tuple[str, ...]  # between the given folder and the file; of a saved folder, its own name too
    label: str  # of the file, without its part's number
    part: int | None
    parts: int | None  # how many there are, if the name says so

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.folders, self.label)

    @property
    def words(self) -> frozenset[str]:
        """Words of all names, with and without digits."""
        text = " ".join((*self.folders, stem_of(self.path))).lower()
        text = unicodedata.normalize("NFC", text)  # an accent that stands alone would end a word
        return frozenset(re.findall(r"[^\W_]+", text) + re.findall(rf"{_LETTER}+", text))

    @property
    def splits(self) -> frozenset[frozenset[str]]:
        """The splits of SPLITS that the names mention."""
        return frozenset(split for split in SPLITS if split & self.words)

    @property
    def subset(self) -> tuple[str, ...]:
        """The names without the words for a split: what is left tells the data sets of a folder apart."""
        return tuple(name for name in map(_without_split, self.names) if name)


def _without_split(name: str) -> str:
    return re.sub(r"([-_. ])[-_. ]+", r"\1", _SPLIT_WORD.sub("", name)).strip("-_. ")


def choose_files(folder: Path, split: str, subset: str | None = None, *, flag: str = "--data.subset") -> Chosen:
    """Find the files of a split; `flag` is what names the subset, for messages.

    Raises:
      UserError: there are none, or it is not clear which a person means; the message names them.
    """
    found = sorted(_data_below(folder), key=lambda data: (data.folders, data.label, data.part or 0, data.path.name))
    if subsets := card_subsets(folder):
        chosen = chosen_subset(subsets, subset)
        if chosen is None:
            names = ", ".join(entry.name for entry in subsets)
            raise UserError(_which_subset(folder, f"its {CARD} describes the subsets {names}", subsets[0].name, flag))
        subset = chosen.name
        files = _files_of_card(folder, found, chosen, split, flag=flag)
    else:
        files = _files_by_name(folder, found, split, subset, flag=flag)
    read = dict.fromkeys(data.path for data in files)
    return Chosen(tuple(read), tuple(data.path for data in found if data.path not in read), subset)


def _data_below(folder: Path) -> Iterator[_Data]:
    """All data in a folder and those below it, links included."""

    def unreadable(error: OSError) -> None:
        raise UserError(f"expected to read the folder {folder}, but: {error}: check its permissions") from None

    for place, folders, files in os.walk(folder, followlinks=True, onerror=unreadable):
        here = Path(place)
        between = here.relative_to(folder).parts
        if between and {"state.json", "dataset_info.json"} <= set(files):
            folders.clear()
            yield _Data(here, between, "", None, None)
            continue
        folders[:] = [name for name in folders if not _NO_FOLDER.fullmatch(name) and not _is_loop(here / name)]
        for name in files:
            file = here / name
            copied = here / name.replace("-checkpoint.", ".")  # by Jupyter
            is_copy = copied != file and copied.name in files
            if holds_rows(file) and name[0] not in "._" and name not in _NO_DATA and not is_copy:
                yield _Data(file, between, *_numbered(stem_of(file)))


def _is_loop(folder: Path) -> bool:
    """Whether a folder is a link to one that it is in."""
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


def _numbered(stem: str) -> tuple[str, int | None, int | None]:
    """(label, part, parts): ("train", 0, 2) of train-00000-of-00002; (stem, None, None) of a name without a number."""
    found = _PART.fullmatch(stem)
    if found is None:
        return stem, None, None
    name, part, parts = found.groups()
    label = name.rstrip("-_. ")
    glued = label == name and label and re.split(r"[\W\d_]+", label.lower())[-1] not in _PART_WORDS
    if glued or _VERSION.search(label):
        return stem, None, None
    return label, int(part), None if parts is None else int(parts)


def _files_of_card(
    folder: Path, found: Sequence[_Data], subset: CardSubset, split: str, *, flag: str
) -> Sequence[_Data]:
    """The split's files by the patterns of README.md; by their names where it gives only a folder."""
    base = Path(subset.folder).parts
    inside = [data for data in found if data.path.relative_to(folder).parts[: len(base)] == base]
    if subset.patterns is None:
        below = [replace(data, folders=data.folders[len(base) :]) for data in inside]
        return _files_by_name(folder / subset.folder, below, split, None, flag=flag)
    if split not in subset.patterns:
        raise UserError(
            f"expected split {split!r} in {folder}, but its {CARD} describes {', '.join(subset.patterns)}"
            f"{_of(subset.name)}: choose one of these"
        )
    chosen: dict[_Data, None] = {}  # in order, each once
    for pattern in subset.patterns[split]:
        fitting = [data for data in inside if matches(data.path.relative_to(folder).parts[len(base) :], pattern)]
        if not fitting:
            raise UserError(
                f"expected files of {pattern!r} (split {split}{_of(subset.name)} in {folder / CARD}), but no "
                f"{', '.join(FORMS)} file there is one: download them, or fix the pattern"
            )
        chosen.update(dict.fromkeys(fitting))
    for group in _by_names(chosen):
        _check_parts(folder, group)
    _check_files(folder, list(chosen))
    return list(chosen)


def _of(subset: str | None) -> str:
    return "" if subset is None else f" of subset {subset}"


def _files_by_name(
    folder: Path, found: Sequence[_Data], split: str, subset: str | None, *, flag: str
) -> Sequence[_Data]:
    if not found:
        raise UserError(f"expected {', '.join(FORMS)} files in {folder}, but there are none: check the folder")
    if subset is not None:
        everything, found = found, [data for data in found if subset in (*data.names, *data.subset, _path(data))]
        if not found:
            names = ", ".join(dict.fromkeys(name for name in _subset_names(everything) if name))
            advice = f"but it holds {names}: choose one of these" if names else f"but it has none: leave out {flag}"
            raise UserError(f"expected subset {subset!r} in {folder}, {advice}")
    chosen = _files_of_split(folder, found, split)
    groups = _by_names(chosen)
    if len(groups) > 1:
        raise _several(folder, [group[0] for group in groups], split, flag)
    _check_parts(folder, chosen)
    _check_files(folder, chosen)
    return chosen


def _by_names(chosen: Iterable[_Data]) -> list[list[_Data]]:
    """What may be the parts of one file, together."""
    groups: dict[tuple[str, ...], list[_Data]] = {}
    for data in chosen:
        groups.setdefault(data.names, []).append(data)
    return list(groups.values())


def _path(data: _Data) -> str:
    return "/".join(data.subset)


def _files_of_split(folder: Path, found: Sequence[_Data], split: str) -> list[_Data]:
    asked = split.lower()
    words = next((words for words in SPLITS if asked in words), None)
    if words is None:  # a name of its own, such as train_sft
        chosen = [data for data in found if asked in map(str.lower, data.names)]
        chosen = chosen or [data for data in found if asked in data.words]
    else:
        chosen = [data for data in found if asked in data.words] or [data for data in found if words & data.words]
        for data in chosen:
            if len(data.splits) > 1:
                raise UserError(
                    f"expected one split in each name, but {data.path.relative_to(folder)} in {folder} names several: "
                    "rename the file or its folder"
                )
    if not chosen and asked == "train" and not any(data.splits for data in found):
        return list(found)
    if not chosen:
        raise UserError(
            f"expected a file of split {split!r} in {folder}, but it holds {_listed(folder, found)}: rename one, or "
            "choose another split"
        )
    return chosen


def _subset_names(found: Sequence[_Data]) -> list[str]:
    """What tells the data sets apart, one for each: the first name that is not common to all, "" if there is none."""
    names = [data.subset for data in found]
    common = 0
    if len(set(names)) > 1:
        while len({name[: common + 1] for name in names}) == 1:
            common += 1
    return [name[common] if len(name) > common else "" for name in names]


def _several(folder: Path, firsts: Sequence[_Data], split: str, flag: str) -> UserError:
    names, several = _subset_names(firsts), f"; to read several, list them in a {CARD} (the guide's section on data)"
    if all(names) and len(set(names)) == len(names):
        return UserError(_which_subset(folder, f"it holds the subsets {_shown(names)}", names[0], flag) + several)
    choices = [name for name in names if name and names.count(name) == 1]
    return UserError(
        f"expected one data set in {folder}, but split {split} is in {_listed(folder, firsts)}, which are not the "
        "numbered parts of one: give the file to read instead of the folder"
        + (f", or choose with {flag} {choices[0]}" if choices else "")
        + several
    )


def _which_subset(folder: Path, holds: str, example: str, flag: str) -> str:
    return f"expected one data set in {folder}, but {holds}: choose with {flag} {example}"


def _check_parts(folder: Path, group: Sequence[_Data]) -> None:
    """Raise UserError unless the files of one label are one file or all parts of one, in one form."""
    numbers = [data.part for data in group]
    if len({form_of(data.path) for data in group}) > 1:
        raise UserError(
            f"expected one form of a data set in {folder}, but came {_listed(folder, group)}: give the one to read "
            "instead of the folder, or delete the others"
        )
    if len(set(numbers)) < len(numbers) or (None in numbers and len(numbers) > 1):
        raise UserError(
            f"expected the numbered parts of one file in {folder}, but came {_listed(folder, group)}: give the one to "
            "read instead of the folder, or rename or delete the others"
        )
    totals = {data.parts for data in group}
    total = max((parts for parts in totals if parts is not None), default=None)
    if len(group) == 1 and total is None:
        return
    present = sorted(number for number in numbers if number is not None)
    first = 0 if 0 in present else 1
    expected = range(first, first + (total if total is not None else present[-1] - first + 1))
    if len(totals) > 1 or len(present) != len(expected) or present != list(expected):
        missing = list(islice((str(number) for number in expected if number not in present), _MOST_SHOWN))
        what = f"number {', '.join(missing)} of {len(expected)} is missing" if missing else "there are more"
        raise UserError(
            f"expected all numbered parts of one file in {folder}, but came {_listed(folder, group)}, and {what}: add "
            "it, or give a single file instead of the folder"
        )


def _check_files(folder: Path, chosen: Sequence[_Data]) -> None:
    """Raise UserError for a file that cannot be read, and for one that is there under two names."""
    seen: dict[Path, str] = {}
    for data in chosen:
        name = str(data.path.relative_to(folder))
        if data.path.is_dir():
            continue
        if not data.path.is_file():
            raise UserError(f"expected a file at {data.path}, but it is a link to nothing, or no file: delete it")
        if form_of(data.path) is None:
            raise UserError(f"expected rows in {', '.join(FORMS)} files, came {data.path}: unpack it")
        if data.path.stat().st_size == 0:
            raise UserError(f"expected rows in {data.path}, but it is empty: write it again, or delete it")
        if (real := data.path.resolve()) in seen:
            raise UserError(
                f"expected different files in {folder}, but {name} is {seen[real]} under another name: delete the link"
            )
        seen[real] = name


def _listed(folder: Path, found: Sequence[_Data]) -> str:
    return _shown([data.path.relative_to(folder).as_posix() for data in found])


def _shown(names: Sequence[str]) -> str:
    rest = len(names) - _MOST_SHOWN
    return ", ".join(names[:_MOST_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
