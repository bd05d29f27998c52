"""Sets that grow: texts appended behind those that a set is of are harvested alone.

A set that has grown was harvested in parts. The shards of each keep the identity under which they were made,
which is that of the set as it was then; the identity of the whole lists in `earlier` what was another in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field, ValidationError

from contrans_dist.config import CaptureSettings, differing
from contrans_dist.data.table_hash import python_values, table_hash
from contrans_dist.data.texts import texts_hash
from contrans_dist.errors import UserError
from contrans_dist.harvest.compute import plan_shards, rows_per_shard
from contrans_dist.harvest.left_out import place_of
from contrans_dist.harvest.shard_files import HarvestSpec, Shard
from contrans_dist.store import schema
from contrans_dist.store.location import Location
from contrans_dist.store.manifest import Facts
from contrans_dist.store.shard_reader import opened

_SHOWN = 60
_OTHERWISE = {"rows", "texts", "prompts", "earlier"}
"""Fields of identities whose difference is told by the rows themselves."""


class Part(Facts):
    """The fields in which the identity of a set changes when texts are appended."""

    rows: Annotated[int, Field(ge=1)]
    """Of the input, up to the part's end."""
    texts: str
    prompts: str
    """Both are hashes over the rows up to the part's end."""
    shard_size: Annotated[int, Field(ge=1)]
    """Of this part alone."""


@dataclass(frozen=True)
class Asked:
    """What a harvest is asked for, before it is known what is there."""

    identity: dict[str, Any]
    """As if nothing were there."""
    texts: pa.Table
    prompts: Sequence[str]
    """As they are run."""
    capture: CaptureSettings
    d: int

    def held(self, held: dict[str, Any]) -> dict[str, Any] | None:
        """The identity of what is asked for where a set of the identity `held` is; None where they differ.

        That set may hold more blocks, be cut into shards otherwise if no size was asked for, have grown
        before, and have fewer rows: then it grows.
        """
        wanted, parts = self.at(held), _parts(held)
        if wanted == held or parts is None:
            return wanted if wanted == held else None
        last = parts[-1]
        if last.rows >= self.texts.num_rows:
            return None
        settings = set(held) | set(wanted)
        if any(
            held.get(name) != wanted.get(name) for name in settings - set(Part.model_fields) - {"earlier"}
        ):
            return None
        if texts_hash(self.prompts[: last.rows]) != last.prompts:
            return None
        if table_hash(self.texts.slice(0, last.rows)) != last.texts:
            return None
        rows = self.texts.num_rows - last.rows
        size = rows_per_shard(rows, len(wanted["blocks"]), self.d, self.capture.shard_size)
        return {**wanted, "earlier": [part.model_dump() for part in parts], "shard_size": size}

    def at(self, held: dict[str, Any]) -> dict[str, Any]:
        """The identity that is asked for, with the blocks, the parts and the size of shards that a set has
        which is there, where these serve."""
        blocks, size, wanted = held.get("blocks"), held.get("shard_size"), self.identity
        if not isinstance(blocks, list) or not set(wanted["blocks"]) <= set(blocks):
            return wanted
        wanted = {**wanted, "blocks": blocks}
        if "earlier" in held and _parts(held) is not None:
            wanted["earlier"] = held["earlier"]
        any_size = self.capture.shard_size is None and isinstance(size, int) and size > 0
        return {**wanted, "shard_size": size} if any_size else wanted

    def refusal(self, out: Location, held: dict[str, Any], source: Location | None) -> UserError:
        """Why rows of the identity `held` cannot stay in the folder."""
        wanted = self.at(held)
        other = {name for name in _OTHERWISE if held.get(name) != wanted.get(name)}
        lines = differing(
            *({k: v for k, v in identity.items() if k not in _OTHERWISE} for identity in (held, wanted))
        )
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

    def _otherwise(self, out: Location, held: dict[str, Any], source: Location | None) -> str:
        """How the texts differ from those that are there, or their prompts."""
        told = self._first_difference(out, source)
        if told is not None:
            return f"texts: {told}"
        there, rows = held.get("rows"), self.texts.num_rows
        if isinstance(there, int) and there > rows:
            return f"texts: found {there:,} rows, asked for the first {rows:,} of them"
        if isinstance(there, int) and table_hash(self.texts.slice(0, there)) == held.get("texts"):
            return f"prompts: those of the same {there:,} texts were others"
        return f"texts: found {held.get('texts')!r}, asked for {self.identity['texts']!r}"

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


def _parts(identity: dict[str, Any]) -> list[Part] | None:
    """The parts that a set of this identity was harvested in, in order; None where it does not say."""
    earlier = identity.get("earlier", [])
    try:
        parts = [Part.model_validate(record) for record in (*earlier, identity)]
    except (ValidationError, TypeError):
        return None
    ends = [part.rows for part in parts]
    return parts if ends == sorted(set(ends)) else None


def planned(spec: HarvestSpec) -> list[tuple[HarvestSpec, list[Shard]]]:
    """The parts of a set, in order: as what each is harvested, and its shards."""
    parts, made = _parts(spec.identity), list[tuple[HarvestSpec, list[Shard]]]()
    assert parts is not None, "the identity has no rows"
    rows = shards = 0
    for number, part in enumerate(parts):
        identity = {
            **spec.identity,
            **part.model_dump(),
            "earlier": spec.identity.get("earlier", [])[:number],
        }
        if not number:
            del identity["earlier"]
        planned_shards = plan_shards(part.rows - rows, part.shard_size, rows, shards)
        made.append((replace(spec, identity=identity), planned_shards))
        rows, shards = part.rows, shards + len(planned_shards)
    return made
