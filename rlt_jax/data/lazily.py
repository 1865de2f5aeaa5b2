"""Records that are built when they are asked for: a step needs a few of them, a data set has many."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar, overload

Item = TypeVar("Item")
Built = TypeVar("Built")

AT_ONCE = 64  # records built together when all are asked for in turn: the tokenizer then uses all cores


class Lazily(Sequence[Built], Generic[Item, Built]):
    """What `build` makes of each item, built again at every access: keep what you use twice."""

    def __init__(self, items: Sequence[Item], build: Callable[[Sequence[Item]], list[Built]]) -> None:
        """`build` makes a list of records of a list of items, each independent of the others."""
        self._items = items
        self._build = build

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> Built: ...
    @overload
    def __getitem__(self, index: slice) -> "Lazily[Item, Built]": ...
    def __getitem__(self, index: int | slice) -> "Built | Lazily[Item, Built]":
        """The record at a place, or those of a range, which are not built yet."""
        if isinstance(index, slice):
            return Lazily(self._items[index], self._build)
        return self._build([self._items[index]])[0]

    def __iter__(self) -> Iterator[Built]:
        for start in range(0, len(self._items), AT_ONCE):
            yield from self._build(self._items[start : start + AT_ONCE])

    def take(self, places: Iterable[int]) -> list[Built]:
        """The records at several places; quicker than one at a time."""
        return self._build([self._items[place] for place in places])
