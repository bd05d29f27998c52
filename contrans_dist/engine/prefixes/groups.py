"""Which texts share what, and which run together: pure functions of the token ids."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

TRUNK_TOKENS = 256
"""What a trunk costs beside its own tokens: a pass of its own, and batches that end with it."""
SHARED_COST = 0.1
"""What a mask costs, as a share of the tokens run with it: little sharing does not pay."""
ROW_TOKENS = 512
"""Longest row of several texts, and twice the longest to which a text is added that shares little of it: each
token of a row is looked at by each, though the mask hides most."""


@dataclass(frozen=True)
class Row:
    """Texts that run as one row: what a text begins with in common with the one before it is there once."""

    texts: tuple[int, ...]
    length: int
    """Tokens of the row, its group's trunk left out."""


@dataclass(frozen=True)
class Group:
    """Texts with a common trunk, in the batches in which they run."""

    trunk: tuple[int, ...]
    """Token ids that they all begin with; empty where nothing is shared by all."""
    batches: list[list[Row]]

    @property
    def texts(self) -> list[int]:
        """All of them, batch by batch."""
        return [i for rows in self.batches for row in rows for i in row.texts]

    def all_alike(self, alike: Sequence[int]) -> bool:
        """Whether its texts have one and the same number."""
        return len({alike[i] for i in self.texts}) == 1

    @property
    def shares(self) -> bool:
        """Whether anything is run for several texts at once."""
        return bool(self.trunk) or any(len(row.texts) > 1 for batch in self.batches for row in batch)

    def alone(self, ids: Sequence[Sequence[int]]) -> "Group":
        """Its texts without a trunk, each in a batch by itself: what needs the least memory."""
        return Group((), [[Row((i,), len(ids[i]))] for i in self.texts])


@dataclass(frozen=True)
class Limits:
    """What a batch and a row may hold."""

    batch_tokens: int
    """Rows times longest row of a batch of several rows."""
    shared_tokens: int | None = None
    """Tokens of a row of several texts, its trunk included, and of a text that shares; None for no bound."""
    split_at: int | None = None
    """No batch holds both rows longer than this and others."""
    logits: int | None = None
    """Positions of a batch of several rows at which logits are wanted: a text's tokens from `own_from` on."""
    keys: int | None = None
    """Rows times longest row, its trunk included, of a batch of several rows: each block copies the trunk's
    keys and values for every row."""

    def rows(self, trunk: int, longest: int) -> int:
        """Rows of so many tokens, behind a trunk of so many, that a batch may hold."""
        by_tokens = self.batch_tokens // longest
        return min(by_tokens, self.keys // (trunk + longest)) if trunk and self.keys else by_tokens


def plan_groups(
    ids: Sequence[Sequence[int]],
    own_from: Sequence[int],
    limits: Limits,
    share: bool = True,
) -> list[Group]:
    """Every text in one row of one batch of one group; longest rows first.

    A pure function of its arguments, so that a shard is computed the same way wherever it is.

    Args:
        ids: Token ids of each text.
        own_from: For each text, the first of its tokens that may be in no trunk.
        limits: What batches and rows may hold.
        share: Whether what texts begin with may be run for several of them at once.
    """
    lengths = [len(text) for text in ids]
    texts = {i: tuple(text) for i, text in enumerate(ids)}
    bound = limits.shared_tokens
    sharing = [i for i, length in enumerate(lengths) if share and (bound is None or length <= bound)]
    keys = [texts[i][: own_from[i]] for i in sharing]
    chosen = _trunks(keys, [lengths[i] for i in sharing])
    trunks = [(depth, [sharing[c] for c in members]) for depth, members in chosen]
    grouped = {i for _, members in trunks for i in members}
    logits = {i: lengths[i] - own_from[i] for i in texts}
    groups = []
    for depth, members in [*trunks, (0, [i for i in range(len(ids)) if i not in grouped])]:
        longest = min(ROW_TOKENS, (bound or ROW_TOKENS) - depth)
        if depth:
            order = sorted(members, key=lambda i: (texts[i], i))
            batches = batch_rows(_filled(texts, depth, order, longest), limits, logits, depth)
        else:
            rows = _rows(texts, sorted({*members} & {*sharing}), longest)
            batches = _with_the_rest(rows, {i: lengths[i] for i in members}, limits, logits)
        if batches:
            groups.append(Group(texts[members[0]][:depth], batches))
    return groups


def rows_apart(
    group: Group,
    rows: Sequence[Row],
    ids: Sequence[Sequence[int]],
    own_from: Sequence[int],
    alike: Sequence[int],
    limits: Limits,
) -> list[list[Row]]:
    """The texts of one of a group's batches in batches anew, in rows with all their tokens, where something
    is another for each text. `alike`: for each text a number; only those of the same one share a row.

    The other arguments are those of `plan_groups`, which made the group.
    """
    texts = {i: tuple(ids[i]) for row in rows for i in row.texts}
    longest = min(ROW_TOKENS, limits.shared_tokens or ROW_TOKENS)
    kin: dict[int, list[int]] = {}
    for i in sorted(texts) if group.shares else ():
        if limits.shared_tokens is None or len(texts[i]) <= limits.shared_tokens:
            kin.setdefault(alike[i], []).append(i)
    shared = [row for members in kin.values() for row in _rows(texts, members, longest)]
    logits = {i: len(text) - own_from[i] for i, text in texts.items()}
    return _with_the_rest(shared, {i: len(text) for i, text in texts.items()}, limits, logits)


def _with_the_rest(
    rows: Sequence[Row], lengths: Mapping[int, int], limits: Limits, logits: Mapping[int, int]
) -> list[list[Row]]:
    """These rows in batches, and each text that is in none of them in a row by itself."""
    packed = {i for row in rows for i in row.texts}
    alone = [Row((i,), length) for i, length in lengths.items() if i not in packed]
    # Single texts need no mask: they stay among themselves.
    return [batch for kind in (rows, alone) for batch in batch_rows(kind, limits, logits)]


def _trunks(keys: Sequence[tuple[int, ...]], lengths: Sequence[int]) -> list[tuple[int, list[int]]]:
    """(depth, texts) of the trunks that save the most over the same texts in rows."""

    def saved(depth: int, count: int, tokens: int, shared: int) -> float:
        # Without a trunk each row begins with it, and has the less room for what follows.
        rows = min(count, (tokens - shared - depth) / max(1, ROW_TOKENS - depth))
        return (rows - 1) * depth - TRUNK_TOKENS

    return [(depth, sorted(members)) for depth, members in _antichain(keys, lengths, saved)]


def _rows(texts: Mapping[int, tuple[int, ...]], members: Sequence[int], longest: int) -> list[Row]:
    """Rows of two and more texts that save tokens, none longer than `longest`."""

    def saved(_depth: int, _count: int, tokens: int, shared: int) -> float:
        return shared - SHARED_COST * (tokens - shared)

    keys, lengths = [texts[i] for i in members], [len(texts[i]) for i in members]
    chosen = [[members[c] for c in group] for _, group in _antichain(keys, lengths, saved)]
    rows = [row for group in chosen for row in _filled(texts, 0, group, longest)]
    # A text that was left over alone, or that fills a row by itself, shares nothing.
    return [row for row in rows if len(row.texts) > 1]


def _filled(
    texts: Mapping[int, tuple[int, ...]], trunk: int, order: Sequence[int], longest: int
) -> list[Row]:
    """Texts in this order, as many to a row as go in; one that is longer than that has a row to itself."""
    rows: list[Row] = []
    row: list[int] = []
    length = 0
    for i in order:
        shared = common(texts[row[-1]], texts[i]) - trunk if row else 0
        more = len(texts[i]) - trunk - shared
        if row and length + more > (longest if shared > more else longest // 2):
            rows.append(Row(tuple(row), length))
            row, length, more = [], 0, len(texts[i]) - trunk
        row.append(i)
        length += more
    return [*rows, Row(tuple(row), length)] if row else rows


def _antichain(
    keys: Sequence[tuple[int, ...]], lengths: Sequence[int], saved: Callable[[int, int, int, int], float]
) -> list[tuple[int, list[int]]]:
    """(depth, texts in the keys' order) of the nodes of the keys' prefix tree, none below another, that save
    the most together.

    `saved(depth, count, tokens, shared)`: what a node saves with so many texts of so many tokens together, of
    which `shared` are there already when each text follows the one before it in the keys' order.
    """
    order = sorted(range(len(keys)), key=lambda i: (keys[i], i))
    tokens = [0, *accumulate(lengths[i] for i in order)]
    same = [common(keys[a], keys[b]) for a, b in pairwise(order)]
    shared = [0, *accumulate(same)]
    # Open nodes from the root down: depth, first leaf, the best that is saved below, and by which nodes.
    open_: list[tuple[int, int, float, list[tuple[int, int, int]]]] = [(0, 0, 0.0, [])]
    for end in range(1, len(order) + 1):
        depth = same[end - 1] if end < len(order) else 0
        first, best = end - 1, 0.0
        chosen: list[tuple[int, int, int]] = []
        while open_[-1][0] > depth:
            node, first, below, nodes = open_.pop()
            best, chosen = best + below, nodes + chosen
            here = saved(node, end - first, tokens[end] - tokens[first], shared[end - 1] - shared[first])
            if here > best:
                best, chosen = here, [(node, first, end)]
        if open_[-1][0] == depth:
            node, first, below, nodes = open_.pop()
            best, chosen = best + below, nodes + chosen
        open_.append((depth, first, best, chosen))
    return [(depth, order[first:end]) for depth, first, end in open_[-1][3]]


def common(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """How many tokens two keys have in common at their beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def batch_rows(
    rows: Sequence[Row], limits: Limits, logits: Mapping[int, int] | Sequence[int] = (), trunk: int = 0
) -> list[list[Row]]:
    """Rows in batches within the limits, longest first; `logits[i]`: positions of text i whose logits are
    wanted, where they are limited; `trunk`: tokens that come before each row."""
    batches: list[list[Row]] = []
    wanted = 0
    for row in sorted(rows, key=lambda row: (-row.length, row.texts)):
        more = sum(logits[i] for i in row.texts) if limits.logits is not None else 0
        longest = batches[-1][0].length if batches else 0
        full = bool(batches) and len(batches[-1]) >= limits.rows(trunk, longest)
        full = full or (limits.logits is not None and wanted + more > limits.logits)
        split = limits.split_at is not None and row.length <= limits.split_at < longest
        if not batches or full or split:
            batches.append([])
            wanted = 0
        batches[-1].append(row)
        wanted += more
    return batches
