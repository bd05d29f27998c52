"""The reduce driver: two activation sets in, maps out; sums over many rows are spread over Ray tasks."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from contrans_dist.config.map_options import Fitting, fitting
from contrans_dist.console import note
from contrans_dist.data.contamination import unit_hashes
from contrans_dist.distributed.actors import answer, as_task
from contrans_dist.distributed.cluster import connected
from contrans_dist.errors import UserError
from contrans_dist.mapping.alignment import (
    Joined,
    all_pairs,
    choose_pairs,
    join,
    one_block,
    read_blocks,
    values,
)
from contrans_dist.mapping.fit import PROTOCOLS, AffineMap, Protocol, fit_map, fit_moments, shuffled_map
from contrans_dist.mapping.heldout import FIT, TEST, VALIDATION, effective_rows, token_groups
from contrans_dist.mapping.linear_map import options_of, ridges_of
from contrans_dist.mapping.map_set import MapSet
from contrans_dist.mapping.row_sums import (
    CHUNK_ROWS,
    SHUFFLED,
    Reading,
    Tokens,
    merge_parts,
    merge_tokens,
    part_sums,
    token_sums,
)
from contrans_dist.store.activation_set import ActivationSet

__all__ = ["all_pairs", "choose_pairs", "fit", "join", "one_block"]

ROWS_IN_MEMORY = 16_384
"""Up to here the rows are simply read; beyond, they are summed in chunks by Ray tasks."""
_CHUNK_ROWS = CHUNK_ROWS
_WIDTHS_A_TASK = 8
"""Rows that a task sums up, in units of the models' widths together."""
_RUN_ROWS = 512
"""Rows of the shuffled control that change places together: few for a control, many for a file to be read."""
_FEWEST_RUNS = 64


@dataclass(frozen=True)
class _Task:
    """One map to fit: from these source blocks, side by side, to one target block."""

    source: list[int]
    target: int
    protocol: Protocol
    options: Fitting
    seed: int
    shuffled: bool

    @property
    def arguments(self) -> dict[str, Any]:
        return {"protocol": self.protocol, **option_arguments(self.protocol, self.options)}


Fitted = tuple[AffineMap, AffineMap | None]
"""A map and, if asked for, its control: the same fit on permuted source rows."""


def fit_pair(joined: Joined, task: _Task) -> Fitted:
    """A map and its control from the rows."""
    x, y = joined.read_source(task.source), joined.read(joined.target, task.target)
    split = joined.split if task.protocol == "default" else None
    tokens = joined.tokens() if task.options.centre == "token" else None
    try:
        mapping = fit_map(x, y, split=split, tokens=tokens, **task.arguments)
        if not task.shuffled:
            return mapping, None
        return mapping, shuffled_map(x, y, mapping, seed=task.seed, split=split, tokens=tokens)
    except ValueError as error:
        raise UserError(f"{joined.source.location}: {error}") from error


def _fit_streaming(joined: Joined, task: _Task) -> Fitted:
    """The same from sums: memory grows with the width of the models, not with the rows."""
    reading = Reading(joined, task.source, task.target)
    n, length = len(joined.split), _rows_a_task(*reading.widths)
    runs = [(start, min(start + length, n)) for start in range(0, n, length)]
    both = ray.put(reading)  # it names the part of every row: too much to travel with each task
    about, tokens, held, labels = None, None, None, None
    arguments = task.arguments
    if task.options.centre == "token":
        labels = joined.tokens()
        group, n_groups = token_groups(labels, joined.split)
        held, by_group = ray.put(group), as_task(token_sums)
        # In the hands of the driver, so that no lost node takes them along.
        about = answer(
            lambda: _tree([by_group.remote(both, *run, held, n_groups) for run in runs], merge_tokens)
        )
        tokens = ray.put(about)
        arguments["centre"] = True  # the sums are about the tokens' means already
    control = ray.put(_shuffled_rows(joined.split == FIT, task.seed)) if task.shuffled else None
    by_part, whiten = as_task(part_sums), task.options.whiten > 0
    merged = answer(
        lambda: _tree(
            [by_part.remote(both, *run, control, whiten, tokens, held) for run in runs], merge_parts
        )
    )
    try:
        counted = None if labels is None else effective_rows(labels, joined.split)
        mapping = fit_moments(merged[FIT], merged[VALIDATION], merged[TEST], **arguments)
        if not task.shuffled:
            return _about(mapping, about, counted), None
        again = {
            "protocol": task.protocol,
            **option_arguments(task.protocol, options_of(mapping)),
            "ridges": ridges_of(mapping),
        }
        return _about(mapping, about, counted), fit_moments(merged[SHUFFLED], **again)
    except ValueError as error:
        raise UserError(f"{joined.source.location}: {error}") from error


def _about(mapping: AffineMap, tokens: Tokens | None, counted: tuple[int, list[str]] | None) -> AffineMap:
    """A map from sums about tokens' means, with the bias that takes the mean of all rows to itself.

    `counted` is that of `splits.effective_rows`. Without tokens the map is left as it is.
    """
    if tokens is None or counted is None:
        return mapping
    n_effective, warnings = counted
    mean_x, mean_y = tokens.overall()
    bias = mean_y - mean_x @ mapping.weight.astype(np.float64)
    return replace(
        mapping,
        centre="token",
        bias=bias.astype(np.float32),
        n_effective=n_effective,
        warnings=[*warnings, *mapping.warnings],
    )


def option_arguments(protocol: str, options: Fitting) -> dict[str, Any]:
    """The options as `fit_map` and `fit_moments` take them; nothing where the protocol fixes them."""
    return {} if protocol != "default" else vars(options)


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


def _tree(references: list[ray.ObjectRef], merged: Callable[[Any, Any], Any]) -> ray.ObjectRef:
    """Merge neighbours level by level, as tasks, so that no process ever holds more than two sets of sums."""
    task = as_task(merged)
    while len(references) > 1:
        pairs = [task.remote(*references[i : i + 2]) for i in range(0, len(references) - 1, 2)]
        references = pairs + references[len(pairs) * 2 :]
    return references[0]


def _hashes(source: ActivationSet, rows: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """Sorted hashes of the texts of the fit, for the leak check."""
    if rows is not None:
        return unit_hashes(source.read_columns(["text"]).column("text").take(rows).to_pylist())
    return np.unique(np.concatenate([unit_hashes([]), *map(unit_hashes, values(source, "text"))]))


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
    options: Fitting | None = None,
    source_blocks: int | None = None,
    vectors_at: Collection[int] | None = None,
) -> MapSet:
    """Fit the maps that `blocks` asks for between two activation sets over the same texts.

    `rows` restricts the fit (one concept's contrast prompts, as in L-Cross Modulation). `shuffled` fits the
    control beside each map. `quiet` keeps warnings in the maps alone. `options` are those of `fitting`, None
    the protocol's. `source_blocks`: how many source blocks a map reads, each pair's own and those below it;
    None takes the protocol's number as far as these were harvested, and are among `vectors_at`, the blocks at
    which there are vectors to carry. Raises UserError for sets over different texts, blocks that were not
    harvested, or too few rows.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"--protocol {protocol}: expected one of {', '.join(PROTOCOLS)}")
    joined = join(source, target, protocol, rows)
    pairs, table = choose_pairs(blocks, joined)
    held = set(source.blocks) if vectors_at is None else set(source.blocks) & set(vectors_at)
    options = options or fitting(protocol)
    tasks = {
        pair: _Task(
            read_blocks(pair[0], protocol, source_blocks, held), pair[1], protocol, options, seed, shuffled
        )
        for pair in pairs
    }
    if len(joined.split) > ROWS_IN_MEMORY and rows is None:
        with connected(address):
            fitted = {pair: _fit_streaming(joined, task) for pair, task in tasks.items()}
    else:
        fitted = {pair: fit_pair(joined, task) for pair, task in tasks.items()}
    for pair, (mapping, _) in fitted.items():
        for warning in mapping.warnings if not quiet else ():
            note(f"map {pair[0]}:{pair[1]}: {warning}")
    return MapSet(
        source_model=source.manifest["identity"]["model"],
        target_model=target.manifest["identity"]["model"],
        n_target_blocks=target.n_blocks,
        protocol=protocol,
        maps={
            pair: replace(mapping, source_blocks=tasks[pair].source if len(tasks[pair].source) > 1 else None)
            for pair, (mapping, _) in fitted.items()
        },
        source_norms=source.norms,
        target_norms=target.norms,
        shuffled={pair: control.weight for pair, (_, control) in fitted.items() if control is not None},
        text_hashes=_hashes(source, rows),
        r2_table=table,
    )
