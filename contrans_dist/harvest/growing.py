"""Sets that grow: texts appended behind those that a set is of are harvested alone.

A set that has grown was harvested in parts. The shards of each keep the identity under which they were made,
which is that of the set as it was then; the identity of the whole lists in `earlier` what was another in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from contrans_dist.config import CaptureSettings, differing
from contrans_dist.data.table_hash import python_values, table_hash
from contrans_dist.data.texts import texts_hash
from contrans_dist.errors import UserError
from contrans_dist.harvest.compute import plan_shards, rows_per_shard
from contrans_dist.harvest.left_out import place_of
from contrans_dist.harvest.shard_files import HarvestSpec, Shard
from contrans_dist.store import schema
from contrans_dist.store.location import Location
from contrans_dist.store.manifest import Identity, Part
from contrans_dist.store.results import plain
from contrans_dist.store.shard_reader import opened

_SHOWN = 60
_OTHERWISE = {"rows", "texts", "prompts", "earlier"}
"""Fields of identities whose difference is told by the rows themselves."""


@dataclass(frozen=True)
class Asked:
    """What a harvest is asked for, before it is known what is there."""

    identity: Identity
    """As if nothing were there."""
    texts: pa.Table
    prompts: Sequence[str]
    """As they are run."""
    capture: CaptureSettings
    d: int

    def held(self, held: Identity) -> Identity | None:
        """The identity of what is asked for where a set of the identity `held` is; None where they differ.

        That set may hold more blocks, be cut into shards otherwise if no size was asked for, have grown
        before, and have fewer rows: then it grows.
        """
        wanted = self.at(held)
        if wanted.fingerprint == held.fingerprint:
            return wanted
        if not 0 < held.rows < self.texts.num_rows or _settings(held) != _settings(wanted):
            return None
        if texts_hash(self.prompts[: held.rows]) != held.prompts:
            return None
        if table_hash(self.texts.slice(0, held.rows)) != held.texts:
            return None
        rows = self.texts.num_rows - held.rows
        size = rows_per_shard(rows, len(wanted.blocks), self.d, self.capture.shard_size)
        return wanted.model_copy(update={"earlier": held.parts, "shard_size": size})

    def at(self, held: Identity) -> Identity:
        """The identity that is asked for, with the blocks, the parts and the size of shards that a set has
        which is there, where these serve."""
        if not set(self.identity.blocks) <= set(held.blocks):
            return self.identity
        kept: dict[str, Any] = {"blocks": held.blocks}
        if held.earlier:
            kept["earlier"] = held.earlier
        if self.capture.shard_size is None and held.shard_size:
            kept["shard_size"] = held.shard_size
        return self.identity.model_copy(update=kept)

    def refusal(self, out: Location, held: Identity, source: Location | None) -> UserError:
        """Why rows of the identity `held` cannot stay in the folder."""
        found, wanted = plain(held), plain(self.at(held))
        other = [name for name in _OTHERWISE if found.pop(name, None) != wanted.pop(name, None)]
        lines = differing(found, wanted)
        if other:
            lines.append(self._otherwise(out, held, source))
        told = (
            "; texts are harvested alone where they are appended to those that are there"
            if other and len(lines) == 1
            else ""
        )
        return UserError(
            f"{out}: holds a harvest under other settings ({'; '.join(lines)}); choose another --out{told}"
        )

    def _otherwise(self, out: Location, held: Identity, source: Location | None) -> str:
        """How the texts differ from those that are there, or their prompts."""
        told = self._first_difference(out, source)
        if told is not None:
            return f"texts: {told}"
        rows = self.texts.num_rows
        if held.rows > rows:
            return f"texts: found {held.rows:,} rows, asked for the first {rows:,} of them"
        if table_hash(self.texts.slice(0, held.rows)) == held.texts:
            return f"prompts: those of the same {held.rows:,} texts were others"
        return f"texts: found {held.texts!r}, asked for {self.identity.texts!r}"

    def _first_difference(self, out: Location, source: Location | None) -> str | None:
        """The first row, of those that are there, which another text or another value is in."""
        mine = [name for name in self.texts.column_names if name not in schema.KEY_COLUMNS or name == "text"]
        for name in shards_in(out):
            try:
                with opened(out / name) as shard:
                    theirs = [column for column in shard.layout.names if schema.block_of(column) is None]
                    theirs = [
                        column for column in theirs if column not in schema.KEY_COLUMNS or column == "text"
                    ]
                    if set(theirs) != set(mine):
                        other = sorted(set(theirs) ^ set(mine))[0]
                        return f"column {other!r} is {'new' if other in mine else 'missing'}"
                    rows = [row for row in shard.row_numbers().tolist() if row < self.texts.num_rows]
                    values = shard.read(theirs, 0, len(rows))
            except UserError:  # damaged: it tells nothing
                continue
            given = self.texts.take(pa.array(rows, pa.int64()))
            if (first := _differing(values, given, mine)) is not None:
                place, column, old, new = first
                where = place_of(self.texts, rows[place], source)
                return f"column {column!r} differs in {where}: found {old}, asked for {new}"
        return None


def _differing(kept: pa.Table, given: pa.Table, names: Sequence[str]) -> tuple[int, str, str, str] | None:
    """The first row in which two tables differ: its place, the column, and both values, in short."""
    first: tuple[int, str, str, str] | None = None
    for name in names:
        pairs = zip(python_values(kept.column(name)), python_values(given.column(name)), strict=True)
        for place, (old, new) in enumerate(pairs):
            if first is not None and place >= first[0]:
                break
            if repr(old) != repr(new):
                first = (place, name, _short(old), _short(new))
    return first


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."


def shards_in(out: Location) -> list[str]:
    return sorted(
        (name for name in out.names() if name.startswith("shard-")), key=lambda name: (len(name), name)
    )


def _settings(identity: Identity) -> dict[str, Any]:
    """What does not change when texts are appended."""
    changing = {*Part.model_fields, "earlier"}
    settings = plain(identity).items()
    return {name: value for name, value in settings if name not in changing and value is not None}


def planned(spec: HarvestSpec) -> list[tuple[HarvestSpec, list[Shard]]]:
    """The parts of a set, in order: as what each is harvested, and its shards."""
    parts, made = spec.identity.parts, list[tuple[HarvestSpec, list[Shard]]]()
    rows = shards = 0
    for number, part in enumerate(parts):
        content = {**plain(spec.identity), **plain(part)}
        content.pop("earlier", None)
        if number:
            content["earlier"] = [plain(earlier) for earlier in parts[:number]]
        planned_shards = plan_shards(part.rows - rows, part.shard_size, rows, shards)
        made.append((replace(spec, identity=Identity.model_validate(content)), planned_shards))
        rows, shards = part.rows, shards + len(planned_shards)
    return made
