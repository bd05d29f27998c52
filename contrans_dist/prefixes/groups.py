"""Which texts share what, and which run together: pure functions of the token ids."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace
from itertools import accumulate

TRUNK_TOKENS = 256
"""What a trunk costs beside its own tokens: a pass of its own, and batches that end with it."""
SHARED_COST = 0.1
"""What a mask and a cache cost, as a share of the tokens run with them: little sharing does not pay."""
ROW_TOKENS = 512
"""Longest row of several texts: each token of it is looked at by each, though the mask hides most."""
PACKED_TOKENS = 256
"""Longest row of several texts that have nothing but the trunk in common."""


@dataclass(frozen=True)
class Row:
    """Texts that run as one row."""

    texts: tuple[int, ...]
    head: int
    """Tokens after the trunk that all of them share; 0 for a single text."""
    length: int
    """Tokens of the row: the head, and each text's tail."""


@dataclass(frozen=True)
class Group:
    """Texts with a common trunk, in the batches in which they run."""

    trunk: tuple[int, ...]
    """Token ids that they all begin with; empty where nothing is shared by all."""
    batches: list[list[Row]]

    @property
    def shares(self) -> bool:
        """Whether anything is run for several texts at once."""
        return bool(self.trunk) or any(len(row.texts) > 1 for batch in self.batches for row in batch)


def plan_groups(
    ids: Sequence[Sequence[int]],
    own_from: Sequence[int],
    batch_tokens: int,
    *,
    share: bool = True,
    bound: int | None = None,
    split_at: int | None = None,
    positions: Sequence[int] | None = None,
    most_positions: int | None = None,
) -> list[Group]:
    """Every text in one row of one batch of one group; longest rows first.

    A text's tokens from `own_from[i]` on are never shared; nothing is where a text has more than `bound`
    tokens, and no row of several texts has more, its trunk included. Rows times longest row is at most
    `batch_tokens` unless a batch is one row, and no batch holds both rows longer than `split_at` and others,
    nor wants logits at more than `most_positions` positions, of which text i wants `positions[i]`. A pure
    function of its arguments, so that a shard is computed the same way wherever it is.
    """
    lengths = [len(text) for text in ids]
    share = share and (bound is None or max(lengths, default=0) <= bound)
    trunks = []
    if share:
        keys = [tuple(text[:end]) for text, end in zip(ids, own_from, strict=True)]
        trunks = _trunks(keys, lengths)
    grouped = {i for _, members in trunks for i in members}
    groups = []
    for depth, members in [*trunks, (0, [i for i in range(len(ids)) if i not in grouped])]:
        longest = min(ROW_TOKENS, (bound or ROW_TOKENS) - depth)
        rows = _rows(ids, own_from, depth, members, longest) if share else []
        packed = {i for row in rows for i in row.texts}
        alone = [Row((i,), 0, lengths[i] - depth) for i in members if i not in packed]
        if depth:
            alone = _equal_rows(alone, min(PACKED_TOKENS, longest))
        # Without a trunk, single texts need no mask: they stay among themselves.
        kinds = [rows, alone] if depth == 0 else [rows + alone]
        batches = [
            batch
            for kind in kinds
            for batch in batch_rows(
                kind,
                batch_tokens,
                split_at=split_at,
                positions=positions,
                most_positions=most_positions,
            )
        ]
        if batches:
            groups.append(Group(tuple(ids[members[0]][:depth]), batches))
    return groups


def _trunks(keys: Sequence[tuple[int, ...]], lengths: Sequence[int]) -> list[tuple[int, list[int]]]:
    """(depth, texts) of the trunks that save the most."""

    def saved(depth: int, count: int, tokens: int) -> float:
        # What fits one row needs no trunk.
        if depth + tokens - count * depth <= ROW_TOKENS:
            return 0.0
        return (count - 1) * depth - TRUNK_TOKENS - SHARED_COST * (tokens - (count - 1) * depth)

    return _antichain(keys, lengths, saved)


def _rows(
    ids: Sequence[Sequence[int]],
    own_from: Sequence[int],
    trunk: int,
    members: Sequence[int],
    longest_row: int,
) -> list[Row]:
    """Rows of two and more texts that save tokens beyond the trunk, none longer than `longest_row`."""

    def saved(depth: int, count: int, tokens: int) -> float:
        return (count - 1) * depth - SHARED_COST * (tokens - (count - 1) * depth)

    keys = [tuple(ids[i][trunk : own_from[i]]) for i in members]
    lengths = [len(ids[i]) - trunk for i in members]
    rows = []
    for head, chosen in _antichain(keys, lengths, saved):
        row: list[int] = []
        length = head
        for i in (members[c] for c in chosen):
            tail = len(ids[i]) - trunk - head
            if row and length + tail > longest_row:
                rows.append(Row(tuple(row), head, length))
                row, length = [], head
            row.append(i)
            length += tail
        rows.append(Row(tuple(row), head, length))
    # A text that was left over alone, or that fills a row by itself, shares nothing.
    return [row for row in rows if len(row.texts) > 1]


def _equal_rows(alone: Sequence[Row], longest_row: int) -> list[Row]:
    """Single texts side by side, in the fewest rows of about the same length: nothing to pad, and a trunk's
    keys once a row instead of once a text."""
    fit = [row for row in alone if row.length <= longest_row]
    rows = [row for row in alone if row.length > longest_row]
    if not fit:
        return rows
    for count in range(-(-sum(row.length for row in fit) // longest_row), len(fit) + 1):
        filled = _dealt(fit, count)
        if max(length for length, _ in filled) <= longest_row:
            break
    return rows + [Row(tuple(texts), 0, length) for length, texts in filled]


def _dealt(alone: Sequence[Row], count: int) -> list[tuple[int, list[int]]]:
    """(length, texts) of so many rows: the longest text first, each to the row that is shortest yet."""
    filled: list[tuple[int, int, list[int]]] = [(0, k, []) for k in range(count)]
    heapify(filled)
    for row in sorted(alone, key=lambda row: (-row.length, row.texts)):
        length, k, texts = filled[0]
        heapreplace(filled, (length + row.length, k, [*texts, *row.texts]))
    return [(length, sorted(texts)) for length, _, texts in filled]


def _antichain(
    keys: Sequence[tuple[int, ...]], lengths: Sequence[int], saved: Callable[[int, int, int], float]
) -> list[tuple[int, list[int]]]:
    """(depth, texts) of the nodes of the keys' prefix tree, none below another, that save the most together.

    `saved(depth, count, tokens)`: what a node saves with so many texts of so many tokens together.
    """
    order = sorted(range(len(keys)), key=lambda i: (keys[i], i))
    tokens = [0, *accumulate(lengths[i] for i in order)]
    # Open nodes from the root down: depth, first leaf, the best that is saved below, and by which nodes.
    open_: list[tuple[int, int, float, list[tuple[int, int, int]]]] = [(0, 0, 0.0, [])]
    for end in range(1, len(order) + 1):
        depth = common(keys[order[end - 1]], keys[order[end]]) if end < len(order) else 0
        first, best = end - 1, 0.0
        chosen: list[tuple[int, int, int]] = []
        while open_[-1][0] > depth:
            node, first, below, nodes = open_.pop()
            best, chosen = best + below, nodes + chosen
            own = saved(node, end - first, tokens[end] - tokens[first])
            if own > best:
                best, chosen = own, [(node, first, end)]
        if open_[-1][0] == depth:
            node, first, below, nodes = open_.pop()
            best, chosen = best + below, nodes + chosen
        open_.append((depth, first, best, chosen))
    return [(depth, sorted(order[first:end])) for depth, first, end in open_[-1][3]]


def common(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """How many tokens two keys have in common at their beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def batch_rows(
    rows: Sequence[Row],
    batch_tokens: int,
    *,
    split_at: int | None = None,
    positions: Sequence[int] | None = None,
    most_positions: int | None = None,
) -> list[list[Row]]:
    """Rows in batches, longest first, within the limits that `plan_groups` names."""
    batches: list[list[Row]] = []
    wanted = 0
    for row in sorted(rows, key=lambda row: (-row.length, row.texts)):
        more = sum(positions[i] for i in row.texts) if positions is not None else 0
        longest = batches[-1][0].length if batches else 0
        tokens = (len(batches[-1]) + 1) * longest if batches else 0
        full = tokens > batch_tokens or (most_positions is not None and wanted + more > most_positions)
        split = split_at is not None and row.length <= split_at < longest
        if not batches or full or split:
            batches.append([])
            wanted = 0
        batches[-1].append(row)
        wanted += more
    return batches
