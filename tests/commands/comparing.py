"""What may differ between two runs that are the same. Imported by tests, and by full_disk.py, which is a program."""

from collections.abc import Iterable

TIMES = ("time", "seconds/", "tokens_per_second/", "mfu", "memory/", "checkpoint/", "compilations")


def without_times(records: Iterable[dict], *, also: tuple[str, ...] = ()) -> list[dict]:
    """Records of a run without times and what follows from them.

    Args:
      also: starts of more names to leave out.
    """
    return [{name: x for name, x in record.items() if not name.startswith(TIMES + also)} for record in records]
