"""Micro-batches of segments: where the tokens of ragged rows lie, so that no token is computed twice.

A row is what it shares with other rows (a prompt) and what is its own (a completion). In a micro-batch the shared part
stands once, as one segment, and what each row adds to it follows, a segment each:

    sequence   [ prompt | completion 1 | completion 2 | ... | prompt | completion 1 | ... | padding ]

The tokens of a segment attend to those before them in it, and to all of the segment that it continues; positions count
from the row's first token. So each token has the hidden state that it has in its row alone, up to rounding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal, NamedTuple

import jax
import numpy as np

from rlt_jax.batching import bucket_length, bucket_within, power_of_two
from rlt_jax.types import Array

Arrangement = Literal["flat", "masked", "rows"]
"""What attention can do: flat: segments of one long sequence; masked: those of several, by a mask of the square of
their length; rows: nothing but one whole row a sequence."""

MIN_SHARED = 16  # tokens; a shorter common prefix is not worth a segment of its own
SIZE_STEP = 1024  # tokens of which the length of a whole flat sequence is a multiple
SHARES = (1, 2, 8)  # flat sequences have the whole, a half or an eighth of a micro-batch's tokens
PARTS = (8, 4, 2, 1)  # of a flat sequence, as bounds of its segments' lengths
MOST_EMPTY = 1.25  # sequences with those that fill up micro-batches, over those there are
LOOK_BACK = 1024  # rows that are considered for one group
SUMS_BYTES = 2e9  # that a kernel's sums may take in one call, where it has any
FEW_SEGMENTS, MOST_SEGMENTS = 16, 128  # of a flat sequence; their number is a multiple of 8, the parts of a sequence
FEW_GROUPS, MOST_GROUPS = 2, 8
MEAN_SEGMENT = 512  # tokens; where segments cost memory, no more of them than this many each fill a sequence


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["segment", "group", "leads", "position", "before", "spans", "groups"],
    meta_fields=["longest"],
)
@dataclass(frozen=True)
class Layout:
    """Where the segments of a micro-batch lie. Flattened positions are b·T + t."""

    segment: Array  # i32[B, T] number of the token's segment, from 1, in the order in which they lie; padding is one
    group: Array  # i32[B, T] number of the group that the token belongs to, from 1; 0: of none
    leads: Array  # bool[B, T] True on a segment that others continue
    position: Array  # i32[B, T] of the token in its row
    before: Array  # i32[B, T] flattened position of the token before it in its row; the first one's is its own
    spans: Array  # i32[S, 2] flattened start and length of each segment of a flat sequence; the rest (T, 0)
    groups: Array  # i32[G, 4] likewise, of what a group shares and of all that continues it; the rest (T, 0, T, 0)
    longest: int = 0  # tokens that no segment exceeds, a part of T; 0 where there are no spans


class Limits(NamedTuple):
    """What a flat sequence may hold."""

    segments: int  # S, padding included; more where they are shorter than the longest row (`segments_at`)
    groups: int  # G
    longest: int = 0  # tokens of the longest row, so that padding is cut into segments no longer; 0: it is not cut

    def segments_at(self, part: int, tokens: int) -> int:
        """S of a sequence of `tokens` tokens whose segments a part of it bounds: the shorter, the more, so that S times
        the part is never more than where the longest row is a segment."""
        if not self.longest:
            return self.segments
        whole = part_of(tokens, min(self.longest, tokens))
        return min(self.segments * max(whole // part, 1), max(MOST_SEGMENTS, self.segments))


MANY = Limits(256, 64)
NONE = Limits(0, 0)


def part_of(tokens: int, longest: int) -> int:
    """The smallest part of a flat sequence (`PARTS`) that segments of at most `longest` tokens do not exceed."""
    return next((tokens // part for part in PARTS if longest <= tokens // part), tokens)


def limits_of(rows: int, tokens: int, longest: int, *, sum_bytes: int = 0) -> Limits:
    """What flat sequences of micro-batches of at most `tokens` tokens may hold.

    A kernel may keep sums for each segment, as if it were as long as the part of the sequence that none exceeds, and
    for each group, as if it were the whole sequence. Then there are as many of either as `SUMS_BYTES` hold.

    Args:
      rows: of all micro-batches.
      longest: tokens of the longest row.
      sum_bytes: of those sums, for one token; 0: the kernel has none.
    """
    whole = flat_sizes(max(tokens, longest))[0]
    segments, groups = power_of_two(2 * rows + 1), MOST_GROUPS
    if sum_bytes:
        segments = min(segments, int(SUMS_BYTES / (sum_bytes * part_of(whole, longest))), whole // MEAN_SEGMENT)
        groups = min(groups, int(SUMS_BYTES / (sum_bytes * whole)))
    segments = min(max(segments // 8 * 8, FEW_SEGMENTS), MOST_SEGMENTS)
    return Limits(segments, max(min(groups, segments // 4), FEW_GROUPS), longest)


def summed_tokens(limits: Limits, tokens: int) -> int:
    """Tokens whose sums a kernel keeps for a flat sequence of `tokens` tokens: those of all segments and groups that
    there may be, each as long as it may be. See `limits_of`."""
    return limits.segments * part_of(tokens, min(limits.longest or tokens, tokens)) + limits.groups * tokens


class Tree(NamedTuple):
    """Rows that share their first tokens, which are computed once."""

    rows: list[int]
    shared: int  # tokens; 0 for a row alone
    length: int  # tokens in all


@dataclass(frozen=True)
class MicroBatch:
    """The rows of one forward pass, and where they lie."""

    sequences: list[list[Tree]]
    num_sequences: int  # B, including empty ones
    length: int  # T
    arrangement: Arrangement
    limits: Limits = NONE  # of a flat sequence

    @property
    def trees(self) -> list[Tree]:
        """The trees, in the order in which they lie."""
        return [tree for trees in self.sequences for tree in trees]

    @property
    def rows(self) -> list[int]:
        """The rows, in the order in which they lie."""
        return [row for tree in self.trees for row in tree.rows]

    @property
    def computed(self) -> int:
        """Tokens that a forward pass computes, with padding."""
        return self.num_sequences * self.length

    @property
    def distinct(self) -> int:
        """Tokens that are no padding, shared ones once."""
        return sum(tree.length for tree in self.trees)

    def _placed(self) -> Iterator[tuple[int, Tree]]:
        """Each tree, after the flattened position of its first token."""
        for b, trees in enumerate(self.sequences):
            first = b * self.length
            for tree in trees:
                yield first, tree
                first += tree.length

    def ids(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """i32[B, T]: the tokens of the rows i32[T_i] where they lie, and 0 on padding."""
        ids = np.zeros(self.computed, np.int32)
        for first, tree in self._placed():
            parts = [rows[tree.rows[0]][: tree.shared], *(rows[row][tree.shared :] for row in tree.rows)]
            ids[first : first + tree.length] = np.concatenate(parts)
        return ids.reshape(self.num_sequences, self.length)

    def places(self, lengths: Sequence[int]) -> dict[int, np.ndarray]:
        """Row -> i32[T_i] flattened position of each of its tokens."""
        places = {}
        for first, tree in self._placed():
            own = first + tree.shared
            for row in tree.rows:
                size = lengths[row] - tree.shared
                places[row] = np.concatenate([np.arange(first, first + tree.shared), np.arange(own, own + size)])
                own += size
        return {row: place.astype(np.int32) for row, place in places.items()}

    def layout(self, lengths: Sequence[int]) -> Layout | None:
        """The layout; None if each sequence is one row."""
        if self.arrangement == "rows":
            return None
        end = self.computed
        segment, group, position = (np.zeros(end, np.int32) for _ in range(3))
        leads, before = np.zeros(end, bool), np.arange(-1, end - 1, dtype=np.int32)
        spans: list[tuple[int, int]] = []
        groups: list[tuple[int, int, int, int]] = []

        def add(first: int, size: int, *, at: int = 0, after: int | None = None) -> int:
            """A segment of `size` tokens, whose first is number `at` of its row and follows the one at `after`."""
            if size:
                spans.append((first, size))
                segment[first : first + size] = len(spans)
                position[first : first + size] = np.arange(at, at + size)
                before[first] = first if after is None else after
            return first + size

        filled = 0
        for first, tree in self._placed():
            while filled < first:  # what is left of the sequences before
                filled = add(filled, min(first, (filled // self.length + 1) * self.length) - filled)
            if not tree.shared:
                filled = add(first, tree.length)
                continue
            own = filled = add(first, tree.shared)
            for row in tree.rows:
                filled = add(filled, lengths[row] - tree.shared, at=tree.shared, after=own - 1)
            if filled > own:
                groups.append((first, tree.shared, own, filled - own))
                group[first:filled], leads[first:own] = len(groups), True
        longest = 0
        if self.arrangement == "flat":
            longest = self._part(spans, end - filled)
        while filled < end:
            size = (filled // self.length + 1) * self.length - filled
            filled = add(filled, min(size, longest or size))
        if self.arrangement == "flat":
            spans += [(end, 0)] * (self.limits.segments_at(longest, end) - len(spans))
            groups += [(end, 0, end, 0)] * (self.limits.groups - len(groups))
        else:  # whose shape depends on nothing but B and T
            spans, groups = [], []
        shape = (self.num_sequences, self.length)
        return Layout(
            segment=segment.reshape(shape),
            group=group.reshape(shape),
            leads=leads.reshape(shape),
            position=position.reshape(shape),
            before=before.reshape(shape),
            spans=np.array(spans, np.int32).reshape(-1, 2),
            groups=np.array(groups, np.int32).reshape(-1, 4),
            longest=longest,
        )

    def _part(self, spans: Sequence[tuple[int, int]], padding: int) -> int:
        """The part of a flat sequence that no segment exceeds, where `padding` tokens are cut into parts, too."""
        size = max((size for _, size in spans), default=1)
        if not self.limits.longest:
            return part_of(self.length, max(size, padding))
        parts = (self.length // part for part in PARTS if size <= self.length // part)
        most = partial(self.limits.segments_at, tokens=self.length)
        return next((part for part in parts if len(spans) + -(-padding // part) <= most(part)), self.length)


class Group(NamedTuple):
    """Rows whose first `shared` tokens are the same; a group of one row shares nothing."""

    rows: list[int]
    shared: int


def common_prefixes(rows: Sequence[np.ndarray]) -> list[Group]:
    """Put each row i32[T_i] into one group, so that many tokens need be computed once only.

    In lexicographic order the common prefix of rows i .. j is the shortest of those of neighbours. Groups are runs of
    that order, those that save most tokens, found by dynamic programming:

        saved(j) = max_i  saved(i) + (j - i - 1) · min(common prefix of neighbours among rows i .. j - 1)
    """
    keys = [np.ascontiguousarray(row, ">u4").tobytes() for row in rows]
    order = sorted(range(len(rows)), key=keys.__getitem__)
    common = np.array([_common(rows[a], rows[b]) for a, b in pairwise(order)], np.int64)
    common[common < MIN_SHARED] = 0
    saved, starts = np.zeros(len(rows) + 1, np.int64), np.zeros(len(rows) + 1, np.int64)
    shortest = np.zeros(0, np.int64)  # of rows i .. j - 1, for the last i
    for j in range(1, len(rows) + 1):
        if j > 1:
            shortest = np.minimum(shortest, common[j - 2])[-LOOK_BACK:]
        shortest = np.append(shortest, np.iinfo(np.int64).max)  # of row j - 1 alone
        first = j - len(shortest)
        count = np.arange(len(shortest) - 1, -1, -1)
        totals = saved[first:j] + count * np.where(count, shortest, 0)
        best = int(np.argmax(totals[::-1]))  # ties: the smallest group
        saved[j], starts[j] = totals[::-1][best], j - 1 - best
    groups, j = [], len(rows)
    while j:
        i = int(starts[j])
        shared = int(common[i : j - 1].min()) if j - i > 1 else 0
        groups.append(Group([order[k] for k in range(i, j)], shared))
        j = i
    return groups


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """How many first tokens are the same."""
    size = min(len(a), len(b))
    differs = np.flatnonzero(a[:size] != b[:size])
    return int(differs[0]) if len(differs) else size


def micro_batches(
    rows: Sequence[np.ndarray],
    *,
    tokens: int,
    arrangement: Arrangement,
    limits: Limits = MANY,
    packed_length: int | None = None,
) -> list[MicroBatch]:
    """Cut rows i32[T_i] into micro-batches of at most `tokens` tokens, shared ones counted once; the largest first.

    Largest first, so that one that does not fit in memory fails at once. A row longer than `tokens` is a micro-batch of
    its own. Shapes come from a small set: flat sequences have the sizes of `flat_sizes`, for which `tokens` is rounded
    up; others those of buckets, where padding counts as tokens.

    Args:
      limits: of a flat sequence.
      packed_length: masked: let rows share sequences of at most this many tokens. None: only with those that have the
        same first tokens.
    """
    if not rows:
        return []
    lengths = [len(row) for row in rows]
    groups = [Group([i], 0) for i in range(len(rows))] if arrangement == "rows" else common_prefixes(rows)
    if arrangement == "flat":
        return _flat(groups, lengths, tokens, limits)
    longest = bucket_length(max(lengths))
    most = max(longest, bucket_within(tokens))  # tokens of a sequence
    trees = _trees(groups, lengths, min(2 * longest, most))  # longer: the mask costs more than it saves
    if packed_length is None or arrangement == "rows":
        sequences = [[tree] for tree in trees]
    else:
        sequences = _packed(trees, min(bucket_length(packed_length), most))
    alone = all(len(trees) == 1 and len(trees[0].rows) == 1 for trees in sequences)
    return _in_sequences(sequences, tokens, "rows" if alone else "masked")


def flat_sizes(tokens: int) -> list[int]:
    """Lengths of flat sequences of at most about `tokens` tokens, the longest first."""
    whole = -(-tokens // SIZE_STEP) * SIZE_STEP
    return [whole // share for share in SHARES]


def _trees(groups: Sequence[Group], lengths: Sequence[int], capacity: int) -> list[Tree]:
    """Cut groups into trees of at most `capacity` tokens, or one row; the longest first."""
    trees: list[Tree] = []
    for group in groups:
        rest = sorted(group.rows, key=lambda row: -lengths[row])
        while rest:
            room = _Room(capacity, capacity, Limits(len(lengths) * 2 + 2, 0))
            tree = _take(rest, group.shared, lengths, room)[0] or _tree([rest[0]], 0, lengths)
            rest = _without(rest, tree)
            trees.append(tree)
    return sorted(trees, key=lambda tree: -tree.length)


def _tree(rows: list[int], shared: int, lengths: Sequence[int]) -> Tree:
    shared = shared if len(rows) > 1 else 0
    return Tree(rows, shared, shared + sum(lengths[row] - shared for row in rows))


def _without(rows: Sequence[int], tree: Tree) -> list[int]:
    """Those that are not in the tree, in their order."""
    taken = set(tree.rows)
    return [row for row in rows if row not in taken]


class _Room(NamedTuple):
    """What is left of a sequence that is being filled."""

    size: int  # tokens of the whole sequence
    left: int  # tokens
    limits: Limits
    segments: int = 0  # that it has
    longest: int = 1  # tokens of these

    def after(self, *segments: int) -> "_Room | None":
        """With segments of that many tokens more, and room for padding's; None: they do not fit."""
        longest, left = max((self.longest, *segments)), self.left - sum(segments)
        if left < 0:
            return None
        part, count = part_of(self.size, longest), self.segments + sum(size > 0 for size in segments)
        padding = part if self.limits.longest else self.size
        if count + -(-left // padding) > self.limits.segments_at(part, self.size):
            return None
        return self._replace(left=left, segments=count, longest=longest)


def _take(rest: Sequence[int], shared: int, lengths: Sequence[int], room: _Room) -> tuple[Tree | None, _Room]:
    """Rows of a group, from the first on, that fit, and the room after them; None if not even one does."""
    taken: list[int] = []
    for row in rest:
        after = room.after(lengths[row] - shared) if taken else room.after(shared, lengths[row] - shared)
        if after is not None:
            taken.append(row)
            room = after
    return (_tree(taken, shared, lengths) if taken else None), room


def _packed(trees: Sequence[Tree], longest: int) -> list[list[Tree]]:
    """First fit, longest first, into sequences of the bucket up to `longest` that leaves the least padding."""

    def packed_into(capacity: int) -> list[list[Tree]]:
        sequences: list[list[Tree]] = []
        room: list[int] = []
        for tree in trees:
            place = next((i for i, free in enumerate(room) if free >= tree.length), len(room))
            if place == len(room):
                sequences.append([])
                room.append(capacity)
            sequences[place].append(tree)
            room[place] -= tree.length
        return sequences

    capacities = [bucket_length(trees[0].length)]
    while (longer := bucket_length(capacities[-1] + 1)) <= longest:
        capacities.append(longer)
    packs = [packed_into(capacity) for capacity in capacities]
    sizes = [capacity * len(sequences) for capacity, sequences in zip(capacities, packs)]
    return packs[sizes.index(min(sizes))]  # ties: the shortest, as attention is quadratic


def _in_sequences(sequences: list[list[Tree]], tokens: int, arrangement: Arrangement) -> list[MicroBatch]:
    """Micro-batches of several sequences, each padded to the bucket of the longest among them.

    Their number is a power of two, so that few shapes occur: the largest of which few sequences stay empty.
    """

    def size(trees: list[Tree]) -> int:
        return sum(tree.length for tree in trees)

    ordered = sorted(sequences, key=size, reverse=True)
    most = max(1, tokens // bucket_length(size(ordered[0])))
    powers = [1 << power for power in range(most.bit_length())]
    rounded = [-(-len(ordered) // count) * count for count in powers]
    count = max(count for count, size in zip(powers, rounded) if size <= MOST_EMPTY * len(ordered))
    batches = [ordered[i : i + count] for i in range(0, len(ordered), count)]
    return [MicroBatch(batch, count, bucket_length(size(batch[0])), arrangement) for batch in batches]


def _flat(groups: Sequence[Group], lengths: Sequence[int], tokens: int, limits: Limits) -> list[MicroBatch]:
    whole, half, eighth = flat_sizes(max(tokens, *lengths))
    pending = [(sorted(group.rows, key=lambda row: -lengths[row]), group.shared) for group in groups]
    pending.sort(key=lambda item: -sum(lengths[row] for row in item[0]))
    batches: list[MicroBatch] = []
    while pending:
        candidates = [[whole]]
        if _total(pending, lengths) <= whole:  # the last ones: the smallest sizes that hold them
            candidates = sorted([[eighth] * n + h for n in range(4) for h in ([], [half]) if n or h], key=sum)
            candidates.append([whole])
        for sizes in candidates:
            done, left = _fill(pending, lengths, sorted(sizes, reverse=True), limits, shapes=[eighth, half, whole])
            if not left or sizes == [whole]:
                break
        batches += done
        pending = left
    return sorted(batches, key=lambda batch: -batch.length)


def _total(pending: Sequence[tuple[list[int], int]], lengths: Sequence[int]) -> int:
    return sum(shared + sum(lengths[row] - shared for row in rows) for rows, shared in pending)


def _fill(
    pending: Sequence[tuple[list[int], int]],
    lengths: Sequence[int],
    sizes: Sequence[int],
    limits: Limits,
    *,
    shapes: Sequence[int],
) -> tuple[list[MicroBatch], list[tuple[list[int], int]]]:
    """Fill sequences of the given sizes, and return what is left.

    One that is full of segments before it is full of tokens gets the smallest of `shapes` that holds it.
    """
    batches = []
    for size in sizes:
        trees: list[Tree] = []
        left = []
        room, shares = _Room(size, size, limits), limits.groups
        for rows, shared in pending:
            before = room
            tree, room = _take(rows if shares else rows[:1], shared, lengths, before)
            if tree is not None and len(tree.rows) == 1:  # its prompt is no segment of its own
                alone = before.after(tree.length)
                tree, room = (None, before) if alone is None else (tree, alone)
            if tree is not None:
                trees.append(tree)
                shares -= tree.shared > 0
                rows = _without(rows, tree)
            if rows:
                left.append((rows, shared))
        pending = left
        if trees:
            used = size - room.left
            shorter = (room._replace(size=shape, left=shape - used).after() for shape in shapes if shape < size)
            length = next((other.size for other in shorter if other is not None), size)
            batches.append(MicroBatch([trees], 1, length, "flat", limits))
    return batches, list(pending)
