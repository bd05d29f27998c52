"""One group of prompts under every intervention: which passes there are, each as large as memory has room."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from contrans_dist.engine.prefixes import (
    Group,
    Limits,
    Packed,
    Row,
    Trunk,
    found_in,
    pack,
    positions_per_pass,
    rows_apart,
)
from contrans_dist.engine.prefixes.trunks import as_arguments, fresh_cache
from contrans_dist.engine.scoring.forward import (
    End,
    Offsets,
    head_inputs,
    head_logits,
    logits,
    lower_states,
    upper_logits,
)
from contrans_dist.engine.scoring.interventions import by_lowest_block, per_prompt
from contrans_dist.models import LanguageModel
from contrans_dist.models.devices import out_of_memory
from contrans_dist.models.passing import first_of, like

_T = TypeVar("_T")


@dataclass(frozen=True)
class Texts:
    """One group of prompts."""

    sequences: Sequence[Sequence[int]]
    places: Sequence[range]
    """Of each sequence, those whose logits are wanted."""
    group: Group
    alike: Sequence[int] | None
    """As `same_rows` has it."""
    limits: Limits

    def in_common(self, offsets: Sequence[Offsets]) -> list[Offsets]:
        """Offsets with a row for each prompt as one for all of the group, where they are that."""
        if self.alike is None or not self.group.all_alike(self.alike):
            return list(offsets)
        first = self.group.texts[0]
        return [
            {k: row[first] if row.ndim == 2 else row for k, row in vectors.items()} for vectors in offsets
        ]

    def apart(self, rows: Sequence[Row]) -> Iterator[Packed]:
        """The prompts of a batch without a trunk, each row for prompts that get the same."""
        assert self.alike is not None
        own_from = [place.start for place in self.places]
        parts = rows_apart(self.group, rows, self.sequences, own_from, self.alike, self.limits)
        yield from (pack(part, self.sequences, self.places) for part in parts)

    def pieces(self, batch: Packed) -> list[range]:
        """The places of one long text so many at a time as their logits may be there at once; empty where
        those of the whole batch may be."""
        most, places = self.limits.logits, len(batch.rows)
        if len(batch.texts) > 1 or most is None or places <= most:
            return []
        return [range(start, min(start + most, places)) for start in range(0, places, most)]


Runs = Iterator[tuple[list[int], Tensor]]
"""Interventions, and their logits `[C, U, vocabulary]`; what the head is given, `[C, U, d]`, where the batch
has `pieces`."""


@dataclass
class Runner:
    """One group of prompts under every intervention. A pass that does not fit into a GPU's memory runs in
    halves; RuntimeError (`out_of_memory`) where one row under one intervention does not, or the trunk."""

    lm: LanguageModel
    texts: Texts
    offsets: Sequence[Offsets]

    def __post_init__(self) -> None:
        steered = by_lowest_block(self.offsets)
        own = {i for i, vectors in enumerate(self.offsets) if per_prompt(vectors)}
        self.shared = {k: [i for i in members if i not in own] for k, members in steered.items()}
        """By block, the interventions that add the same to all prompts."""
        self.own = {k: [i for i in members if i in own] for k, members in steered.items()}
        self.lower: Trunk | None = None
        self.upper: dict[int, Trunk] = {}
        self.trunk: dict[int, Tensor] = {}
        """The trunk's residual stream at blocks from which interventions go apart, `[P, d]`."""
        if self.texts.group.trunk:
            self._run_trunk(self.texts.group.trunk)

    def _run_trunk(self, ids: Sequence[int]) -> None:
        """Keys and values of the trunk: below the steered blocks, and above each for its interventions."""
        # The logits of one position are computed, which nobody reads.
        trunk = pack([Row((0,), len(ids))], [ids], [[0]])
        cache = fresh_cache()
        keeping = as_arguments(self.lm, trunk, keep=cache)
        states: dict[int, object] = {}
        if self.shared:
            states = lower_states(self.lm, trunk, list(self.shared), keeping)
        else:
            logits(self.lm, trunk, keeping)
        self.lower = Trunk.of(cache)
        self.trunk = {k: first_of(states[k])[0] for k, members in self.own.items() if members}
        for k, members in self.shared.items():
            most = self.texts.limits.batch_tokens // len(ids)
            chunks = _chunks(range(len(members)), most)
            parts = [self._trunk_above(trunk, k, states[k], members, chunk) for chunk in chunks]
            self.upper[k] = Trunk.of_all(parts)

    def _trunk_above(
        self, trunk: Packed, k: int, output: object, members: Sequence[int], chunk: range
    ) -> Trunk:
        def run(_rows: range, some: range) -> Trunk:
            cache = fresh_cache()
            keeping = as_arguments(self.lm, trunk, keep=cache)
            upper_logits(self.lm, trunk, k, output, [self.offsets[members[i]] for i in some], keeping)
            return Trunk.of(cache)

        return _fitting(self.lm, trunk, chunk, run, lambda parts, _dim: Trunk.of_all(parts))

    def unsteered(self, batch: Packed) -> Tensor:
        """`[1, U, vocabulary]`, or as `Runs` has it."""
        end = self._end(batch)

        def run(rows: range, _one: range) -> Tensor:
            part = batch.rows_of(rows)
            return end(self.lm, part, as_arguments(self.lm, part, self.lower if batch.trunk else None), 1)

        return _fitting(self.lm, batch, range(1), run, torch.cat)

    def logits_of(self, found: Tensor, places: range | None) -> Tensor:
        """`[C, n, vocabulary]` of what a pass has found, at some of its places where it has `pieces`."""
        return found if places is None else head_logits(self.lm, found[:, places.start : places.stop])

    def run(self, rows: Sequence[Row]) -> Iterator[tuple[Packed, Runs]]:
        """One of the group's batches, as many interventions at once as fit: once for those that add the same
        to all prompts, and in rows of prompts that get the same for the others."""
        batch = pack(rows, self.texts.sequences, self.texts.places, len(self.texts.group.trunk))
        if not self.shared:
            same = self.unsteered(batch)
            yield batch, (([i], same.clone()) for i in range(len(self.offsets)))
            return
        states = self._lower(batch)
        yield batch, self._run_shared(batch, states)
        for whole in self.texts.apart(rows) if any(self.own.values()) else ():
            yield whole, self._run_own(batch, whole, states)

    def _lower(self, batch: Packed) -> dict[int, object]:
        def run(rows: range, _one: range) -> dict[int, object]:
            part = batch.rows_of(rows)
            return lower_states(self.lm, part, list(self.shared), as_arguments(self.lm, part, self.lower))

        return _fitting(self.lm, batch, range(1), run, _joined_states)

    def _run_shared(self, batch: Packed, states: Mapping[int, object]) -> Runs:
        for k, members in self.shared.items():
            for chunk in _chunks(range(len(members)), self._fit(batch)):
                yield [members[i] for i in chunk], self._above(batch, k, states[k], members, chunk)

    def _run_own(self, batch: Packed, whole: Packed, states: Mapping[int, object]) -> Runs:
        """From the steered blocks on, each prompt's states taken from where the batch has them."""
        index = found_in(batch, whole)
        for k, members in self.own.items():
            if members:
                flat = first_of(states[k]).flatten(0, 1)
                known = torch.cat([self.trunk[k], flat]) if k in self.trunk else flat
                state = like(states[k], known[index.to(known.device)])
                for chunk in _chunks(range(len(members)), self._fit(whole)):
                    yield [members[i] for i in chunk], self._above(whole, k, state, members, chunk)

    def _fit(self, batch: Packed) -> int:
        """How many interventions run at once."""
        rows, longest = batch.ids.shape
        by_tokens = self.texts.limits.rows(batch.trunk, longest) // rows
        return min(by_tokens, positions_per_pass(self.lm) // len(batch.rows))

    def _above(self, batch: Packed, k: int, output: object, members: Sequence[int], chunk: range) -> Tensor:
        """`[C, U, vocabulary]`, or as `Runs` has it, of those members of block k's interventions."""
        end, state = self._end(batch), first_of(output)

        def run(rows: range, some: range) -> Tensor:
            part, trunk = batch.rows_of(rows), None
            if batch.trunk and self.lower is not None:
                trunk = self.lower.above(self.upper[k], some.start, some.stop)
            arguments = as_arguments(self.lm, part, trunk, times=len(some))
            entering = like(output, state[rows.start : rows.stop])
            return upper_logits(
                self.lm, part, k, entering, [self.offsets[members[i]] for i in some], arguments, end
            )

        return _fitting(self.lm, batch, chunk, run, torch.cat)

    def _end(self, batch: Packed) -> End:
        return head_inputs if self.texts.pieces(batch) else logits


def _chunks(members: range, fit: int) -> list[range]:
    return [members[start : start + max(1, fit)] for start in range(0, len(members), max(1, fit))]


def _joined_states(parts: Sequence[dict[int, object]], _dim: int) -> dict[int, object]:
    return {
        k: like(output, torch.cat([first_of(part[k]) for part in parts])) for k, output in parts[0].items()
    }


def _fitting(
    lm: LanguageModel,
    batch: Packed,
    members: range,
    run: Callable[[range, range], _T],
    joined: Callable[[list[_T], int], _T],
    rows: range | None = None,
) -> _T:
    """`run(rows, members)` of these rows of a batch, or all, under these interventions; where a GPU has not
    the memory, of half of the interventions and of the others, then of the rows, `joined` along 0 and 1."""
    # A function within that called itself would be a cycle, and keep the tensors until one looks for it.
    rows = range(len(batch.ids)) if rows is None else rows
    size = len(rows) * len(members) * (batch.trunk + batch.ids.shape[1])
    least = len(rows) == len(members) == 1
    if least or lm.fits is None or size <= lm.fits:
        try:
            return run(rows, members)
        except RuntimeError as error:
            if least or not out_of_memory(error):
                raise
        # Only here, after the exception, has the failed pass let go of its memory.
        lm.did_not_fit(size)
    half = len(members) // 2
    if half:
        parts = [_fitting(lm, batch, some, run, joined, rows) for some in (members[:half], members[half:])]
        return joined(parts, 0)
    half = len(rows) // 2
    parts = [_fitting(lm, batch, members, run, joined, some) for some in (rows[:half], rows[half:])]
    return joined(parts, 1)
