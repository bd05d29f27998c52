"""The reduce driver: two activation sets in, maps out; sums over many rows are spread over Ray tasks."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import ray
from numpy.typing import NDArray

from contrans_dist.affine import PROTOCOLS, AffineMap, Protocol, fit_map, fit_moments, shuffled_map
from contrans_dist.artifacts import ActivationSet
from contrans_dist.cluster import connected
from contrans_dist.errors import UserError
from contrans_dist.leak import unit_hashes
from contrans_dist.maps import MapSet, Pair, R2Table
from contrans_dist.models import matched_depth, resolve_blocks
from contrans_dist.moments import Moments, MomentSums, merge
from contrans_dist.pairs import r2_table
from contrans_dist.progress import note
from contrans_dist.splits import FIT, TEST, VALIDATION, paper_split, split_of

ROWS_IN_MEMORY = 16_384
"""Up to here the rows are simply read; beyond, they are summed in chunks by Ray tasks."""
_CHUNK_ROWS = 8_192
_WIDTHS_A_TASK = 8
"""Rows that a task sums up, in units of the models' widths together."""
_RUN_ROWS = 512
"""Rows of the shuffled control that change places together: few for a control, many for a file to be read."""
_FEWEST_RUNS = 64
_SHUFFLED = "shuffled"
_ROWS_READ = 65_536
"""Ids and texts that are read at a time."""
_TABLE_ROWS = 4_096
"""Rows that the table of all pairs is fitted on: it ranks pairs, it is not the map."""


@dataclass(frozen=True)
class _Joined:
    """Two activation sets over the same texts, and which part of a fit each row belongs to."""

    source: ActivationSet
    target: ActivationSet
    split: NDArray[np.str_]
    rows: NDArray[np.int64] | None = None
    """Only these rows take part; None is all of them."""

    def read(self, side: ActivationSet, block: int, n_rows: int | None = None) -> NDArray[np.float32]:
        """The rows that take part, or the first `n_rows` of them: float32 `[rows, d]`."""
        if self.rows is None:
            return side.read_block(block, 0, n_rows)
        return side.read_block(block)[self.rows[:n_rows]]


def join(
    source: ActivationSet, target: ActivationSet, protocol: Protocol, rows: NDArray[np.int64] | None = None
) -> _Joined:
    """Join on `row`; the text ids must agree. Raises UserError naming the first row that differs.

    The default protocol holds rows out by a hash of the text, or of the text that a prefix was cut from.
    """
    row = _first_difference(source, target)
    if row is not None:
        raise UserError(
            f"{source.location} and {target.location} differ in row {row}: harvest both on the same texts"
        )
    n = source.n_rows if rows is None else len(rows)
    if protocol == "default":
        name = "source_row" if "source_row" in source.columns else "text_id"
        split = np.concatenate([split_of([]), *map(split_of, _values(source, name))])
        split = split if rows is None else split[rows]
    elif protocol == "paper":
        split = paper_split(n)
    else:
        split = np.full(n, FIT)
    return _Joined(source, target, split, rows)


def _values(side: ActivationSet, name: str) -> Iterator[list[str]]:
    """A column's values as text, some rows at a time: all of them at once may be large."""
    for start in range(0, side.n_rows, _ROWS_READ):
        column = side.read_columns([name], start, min(start + _ROWS_READ, side.n_rows)).column(name)
        yield [str(value) for value in column.to_pylist()]


def _first_difference(source: ActivationSet, target: ActivationSet) -> int | None:
    """The first row in which the sets' text ids differ; None where they are the same."""
    sides = (_values(side, "text_id") for side in (source, target))
    for index, (a, b) in enumerate(zip(*sides, strict=False)):
        if a != b:
            pairs = enumerate(zip(a, b, strict=False))
            within = next((row for row, (x, y) in pairs if x != y), min(len(a), len(b)))
            return index * _ROWS_READ + within
    return None if source.n_rows == target.n_rows else min(source.n_rows, target.n_rows)


def choose_pairs(spec: str, joined: _Joined) -> tuple[list[Pair], R2Table | None]:
    """The pairs of blocks that `--blocks` asks for, and the table of all pairs where that was needed.

    `depth`: three quarters of both models; `24:30` (several joined by commas); `best`: highest validation R2.
    """
    source, target = joined.source, joined.target
    if spec == "depth":
        return [(matched_depth(source.n_blocks), matched_depth(target.n_blocks))], None
    if spec == "best":
        table = all_pairs(joined)
        return [table.best()], table
    pairs = []
    for piece in spec.split(","):
        sides = piece.split(":")
        if len(sides) != 2:
            raise UserError(f"--blocks {spec}: expected depth, best, or source:target such as 24:30")
        pairs.append((one_block(sides[0], source.n_blocks), one_block(sides[1], target.n_blocks)))
    return pairs, None


def one_block(spec: str, n_blocks: int, flag: str = "--blocks") -> int:
    """The block that one side of `source:target` names. Raises UserError when it names none or several."""
    blocks = resolve_blocks(spec, n_blocks, flag)
    if len(blocks) != 1:
        raise UserError(f"{flag} {spec}: expected one block on each side, such as 24:30, found {len(blocks)}")
    return blocks[0]


def all_pairs(joined: _Joined) -> R2Table:
    """Validation R2 of the ridge map of every pair of harvested blocks, on at most 4,096 rows."""
    split = joined.split
    if set(split) == {FIT}:
        raise UserError("--blocks best needs held-out rows, which protocol lcross has not; name the pair")
    kept = split[:_TABLE_ROWS]
    sides = (_Blocks(joined, joined.source, len(kept)), _Blocks(joined, joined.target, len(kept)))
    try:
        r2 = r2_table(sides[0], sides[1], kept)
    except ValueError as error:
        raise UserError(f"{joined.source.location}: {error}") from error
    return R2Table(joined.source.blocks, joined.target.blocks, r2)


@dataclass(frozen=True)
class _Blocks(Mapping[int, NDArray[np.float32]]):
    """The first rows of each harvested block, read when asked for: all blocks at once may not fit."""

    joined: _Joined
    side: ActivationSet
    n_rows: int

    def __getitem__(self, block: int) -> NDArray[np.float32]:
        return self.joined.read(self.side, block, self.n_rows)

    def __iter__(self) -> Iterator[int]:
        return iter(self.side.blocks)

    def __len__(self) -> int:
        return len(self.side.blocks)


def fit_pair(
    joined: _Joined, pair: Pair, protocol: Protocol, seed: int = 0, shuffled: bool = True
) -> tuple[AffineMap, AffineMap | None]:
    """The map of one pair of blocks and, if asked for, its control: the same fit on permuted source rows."""
    x, y = joined.read(joined.source, pair[0]), joined.read(joined.target, pair[1])
    split = joined.split if protocol == "default" else None
    try:
        mapping = fit_map(x, y, protocol=protocol, split=split)
        return mapping, shuffled_map(x, y, mapping, seed=seed, split=split) if shuffled else None
    except ValueError as error:
        raise UserError(f"{joined.source.location}: {error}") from error


def _fit_streaming(
    joined: _Joined, pair: Pair, protocol: Protocol, seed: int = 0, shuffled: bool = True
) -> tuple[AffineMap, AffineMap | None]:
    """The same from sums: memory grows with the width of the models, not with the rows."""
    task = ray.remote(_sums)
    n, length = len(joined.split), _rows_a_task(joined.source.d, joined.target.d)
    control = ray.put(_shuffled_rows(joined.split == FIT, seed)) if shuffled else None
    both = ray.put(joined)  # it names the part of every row: too much to travel with each task
    sums = [task.remote(both, pair, start, min(start + length, n), control) for start in range(0, n, length)]
    merged = ray.get(_tree(sums))
    mapping = fit_moments(merged[FIT], merged[VALIDATION], merged[TEST], protocol=protocol)
    if not shuffled:
        return mapping, None
    ridges = None if mapping.ridge is None else [mapping.ridge]
    return mapping, fit_moments(merged[_SHUFFLED], protocol=protocol, ridges=ridges)


def _rows_a_task(d_source: int, d_target: int) -> int:
    """Rows that one task sums up: enough that to set up the sums and to merge them costs little beside.

    A function of the widths alone, so that the result does not depend on the cluster.
    """
    chunks = _WIDTHS_A_TASK * (d_source + d_target) // _CHUNK_ROWS
    return _CHUNK_ROWS * max(chunks, 1)


def _shuffled_rows(fit: NDArray[np.bool_], seed: int) -> NDArray[np.int64]:
    """For every row, int64 `[n]`, the row whose source states stand in for its own in the control.

    The fit rows (true in `fit`) change places in runs of `_RUN_ROWS`, over the whole set, so that they can
    still be read in runs; each of them is used once, and none of more than one run stays where it was.
    """
    order = np.arange(len(fit), dtype=np.int64)
    rows = np.flatnonzero(fit)
    runs = np.array_split(rows, max(-(-len(rows) // _RUN_ROWS), min(len(rows), _FEWEST_RUNS), 1))
    drawn = np.random.default_rng(seed).permutation(len(runs))
    # Each run takes the place of the one drawn before it: runs differ in length by one row at most.
    order[np.concatenate([runs[k] for k in drawn])] = np.concatenate([runs[k] for k in np.roll(drawn, 1)])
    return order


def _sums(
    joined: _Joined, pair: Pair, start: int, stop: int, control: NDArray[np.int64] | None
) -> dict[str, Moments]:
    """Sums over the rows from `start` to `stop` by part of the split, and those of the control."""
    names = [FIT, VALIDATION, TEST, *([_SHUFFLED] if control is not None else [])]
    sums = {name: MomentSums(joined.source.d, joined.target.d) for name in names}
    for first in range(start, stop, _CHUNK_ROWS):
        last = min(first + _CHUNK_ROWS, stop)
        x = joined.source.read_block(pair[0], first, last)
        y = joined.target.read_block(pair[1], first, last)
        split = joined.split[first:last]
        for name in (FIT, VALIDATION, TEST):
            sums[name].add(x, y, np.flatnonzero(split == name))
        if control is not None:
            fit = np.flatnonzero(split == FIT)
            sums[_SHUFFLED].add(_read_rows(joined.source, pair[0], control[first:last][fit]), y[fit])
    return {name: each.moments() for name, each in sums.items()}


def _read_rows(side: ActivationSet, block: int, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """The rows of these numbers, run by run: float32 `[m, d]`."""
    values = np.empty((len(rows), side.d), np.float32)
    # Between two fit rows of a run lie rows of the other parts: a gap, but no jump.
    jumps = np.flatnonzero((np.diff(rows) < 0) | (np.diff(rows) > _RUN_ROWS)) + 1
    for run in np.split(np.arange(len(rows)), jumps):
        if len(run):
            first, last = int(rows[run[0]]), int(rows[run[-1]])
            values[run] = side.read_block(block, first, last + 1)[rows[run] - first]
    return values


def _merge_parts(a: dict[str, Moments], b: dict[str, Moments]) -> dict[str, Moments]:
    return {name: merge(a[name], b[name]) for name in a}


def _tree(references: list[ray.ObjectRef]) -> ray.ObjectRef:
    """Merge neighbours level by level, as tasks, so that no process ever holds more than two sets of sums."""
    task = ray.remote(_merge_parts)
    while len(references) > 1:
        pairs = [task.remote(*references[i : i + 2]) for i in range(0, len(references) - 1, 2)]
        references = pairs + references[len(pairs) * 2 :]
    return references[0]


def _hashes(source: ActivationSet, rows: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """Sorted hashes of the texts of the fit, for the leak check."""
    if rows is not None:
        return unit_hashes(source.read_columns(["text"]).column("text").take(rows).to_pylist())
    return np.unique(np.concatenate([unit_hashes([]), *map(unit_hashes, _values(source, "text"))]))


def fit(
    source: ActivationSet,
    target: ActivationSet,
    blocks: str = "depth",
    protocol: Protocol = "default",
    rows: NDArray[np.int64] | None = None,
    address: str | None = None,
    seed: int = 0,
    shuffled: bool = True,
    quiet: bool = False,
) -> MapSet:
    """Fit the maps that `blocks` asks for between two activation sets over the same texts.

    `rows` restricts the fit (one concept's contrast prompts, as in L-Cross Modulation). `shuffled` fits the
    control beside each map. `quiet` keeps warnings in the maps alone. Raises UserError for sets over
    different texts, blocks that were not harvested, or too few rows.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"--protocol {protocol}: expected one of {', '.join(PROTOCOLS)}")
    joined = join(source, target, protocol, rows)
    pairs, table = choose_pairs(blocks, joined)
    if len(joined.split) > ROWS_IN_MEMORY and rows is None:
        with connected(address):
            fitted = {pair: _fit_streaming(joined, pair, protocol, seed, shuffled) for pair in pairs}
    else:
        fitted = {pair: fit_pair(joined, pair, protocol, seed, shuffled) for pair in pairs}
    for pair, (mapping, _) in fitted.items():
        for warning in mapping.warnings if not quiet else ():
            note(f"map {pair[0]}:{pair[1]}: {warning}")
    return MapSet(
        source_model=source.manifest["identity"]["model"],
        target_model=target.manifest["identity"]["model"],
        n_target_blocks=target.n_blocks,
        protocol=protocol,
        maps={pair: mapping for pair, (mapping, _) in fitted.items()},
        source_norms=source.norms,
        target_norms=target.norms,
        shuffled={pair: control.weight for pair, (_, control) in fitted.items() if control is not None},
        text_hashes=_hashes(source, rows),
        r2_table=table,
    )
