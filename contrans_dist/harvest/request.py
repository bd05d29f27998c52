"""What a harvest is asked for, and whether what its folder holds can stay.

Texts appended behind those that a set is of are harvested alone, so a set that has grown was harvested in
parts. The shards of each keep the identity under which they were made, which is that of the set as it was
then; the identity of the whole lists in `earlier` what was another in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from contrans_dist.config import CaptureSettings, ModelSettings, differing
from contrans_dist.config.limits import CHUNKS, SHARDS, check_size
from contrans_dist.console import size_words
from contrans_dist.data.table_hash import python_values, table_hash
from contrans_dist.data.templates import prompts, template_fields
from contrans_dist.data.texts import texts_hash
from contrans_dist.errors import UserError, short
from contrans_dist.harvest.left_out import place_of
from contrans_dist.harvest.manifest import identity_of
from contrans_dist.harvest.shard_files import ROW_GROUP
from contrans_dist.harvest.shards import rows_per_shard
from contrans_dist.models import ModelFacts, resolve_blocks
from contrans_dist.store import schema
from contrans_dist.store.identity import Identity, Part
from contrans_dist.store.location import Location
from contrans_dist.store.manifest import Manifest
from contrans_dist.store.patience import patiently
from contrans_dist.store.results import plain
from contrans_dist.store.shard_reader import first_identity, opened, shards_in

_S3_BYTES = 5 * 10**9
"""Of a file, which appears under its name by being copied there."""
_OTHERWISE = {"rows", "texts", "prompts", "earlier"}
"""Fields of identities whose difference is told by the rows themselves."""


@dataclass(frozen=True)
class HarvestJob:
    """One activation set to be made: these texts, captured so, into that folder."""

    texts: pa.Table
    out: Location
    capture: CaptureSettings
    source: Location | None = None
    """The file that the texts are of, to name it in messages."""
    skip_bad: bool = False
    """Leave out texts that cannot be run."""


@dataclass(frozen=True)
class Request:
    """A job for a certain model, before it is known what is there."""

    job: HarvestJob
    facts: ModelFacts
    identity: Identity
    """As if nothing were there."""
    prompts: Sequence[str]
    """Its texts as they are run."""

    @classmethod
    def of(cls, model: ModelSettings, facts: ModelFacts, job: HarvestJob) -> "Request":
        """Raises UserError for settings that do not fit the model or the texts, or the limits."""
        capture, rows = job.capture, job.texts.num_rows
        if capture.template is not None:
            template_fields(capture.template)
        blocks = resolve_blocks(capture.blocks, facts.n_blocks)
        size = rows_per_shard(rows, len(blocks), facts.d, capture.shard_size)
        check_size("--shard-size", -(-rows // size), SHARDS, "shards")
        _check_upload(job.out, min(size, rows), len(blocks) * facts.d * 4)
        chunks = -(-size // ROW_GROUP) * (len(blocks) + job.texts.num_columns + 2)
        check_size("--shard-size", chunks, CHUNKS, "column chunks in a shard")
        rendered = facts.prompts(prompts(job.texts, capture.template), capture.chat, capture.chat_date)
        # A chat template may write what no setting tells: the prompts belong to the identity as they are run.
        identity = identity_of(model, facts, capture, blocks, size, job.texts, texts_hash(rendered))
        return cls(job, facts, identity, rendered)

    def fitted(self, manifest: Manifest | None) -> tuple[Identity | None, Identity]:
        """The identity of the rows in the folder that can stay, if there are any, and that of the set with
        them. `manifest`: the folder's.

        Raises UserError when those that are there cannot stay.
        """
        out = self.job.out
        listed = {entry.name for entry in manifest.shards} if manifest is not None else set()
        names = [name for name in shards_in(out) if name not in listed]
        # Where texts were appended and the run was ended, the last shard says more than what was there.
        begun = first_identity(out, names) if manifest is None else manifest.identity
        there = [first_identity(out, reversed(names)), begun]
        identities = [identity for identity in there if identity is not None]
        for held in identities:
            if (identity := self._keeping(held)) is not None:
                return held, identity
        if identities:
            raise self._refusal(identities[-1])
        return None, self.identity

    def _keeping(self, held: Identity) -> Identity | None:
        """The identity of the set in which rows of the identity `held` stay; None where they cannot.

        Their set may hold more blocks, be cut into shards otherwise if no size was asked for, have grown
        before, and have fewer rows: then it grows.
        """
        wanted, texts = self._like(held), self.job.texts
        if wanted.fingerprint == held.fingerprint:
            return wanted
        if not (0 < held.rows < texts.num_rows and held.shard_size) or _settings(held) != _settings(wanted):
            return None
        if texts_hash(self.prompts[: held.rows]) != held.prompts:
            return None
        if table_hash(texts.slice(0, held.rows)) != held.texts:
            return None
        rows = texts.num_rows - held.rows
        size = rows_per_shard(rows, len(wanted.blocks), self.facts.d, self.job.capture.shard_size)
        last = Part.model_validate(held.model_dump(include=set(Part.model_fields)))
        return wanted.model_copy(update={"earlier": [*held.earlier, last], "shard_size": size})

    def _like(self, held: Identity) -> Identity:
        """The identity that is asked for, with the blocks, the parts and the size of shards that a set has
        which is there, where these serve."""
        identity = self.identity
        if not set(identity.blocks) <= set(held.blocks):
            return identity
        kept: dict[str, Any] = {"blocks": held.blocks}
        if held.earlier:
            kept["earlier"] = held.earlier
        if self.job.capture.shard_size is None and held.shard_size:
            kept["shard_size"] = held.shard_size
        return identity.model_copy(update=kept)

    def _refusal(self, held: Identity) -> UserError:
        """Why rows of the identity `held` cannot stay in the folder."""
        there, wanted = plain(held), plain(self._like(held))
        other = [name for name in _OTHERWISE if there.pop(name, None) != wanted.pop(name, None)]
        lines = differing(there, wanted)
        if other:
            lines.append(self._otherwise(held))
        told = (
            "; texts are harvested alone where they are appended to those that are there"
            if other and len(lines) == 1
            else ""
        )
        return UserError(
            f"{self.job.out}: holds a harvest under other settings ({'; '.join(lines)}); choose another "
            f"--out{told}"
        )

    def _otherwise(self, held: Identity) -> str:
        """How the texts differ from those that are there, or their prompts."""
        texts = self.job.texts
        told = self._first_difference()
        if told is not None:
            return f"texts: {told}"
        if held.rows > texts.num_rows:
            return f"texts: found {held.rows:,} rows, asked for the first {texts.num_rows:,} of them"
        if table_hash(texts.slice(0, held.rows)) == held.texts:
            return f"prompts: those of the same {held.rows:,} texts were others"
        return f"texts: found {held.texts!r}, asked for {self.identity.texts!r}"

    @patiently
    def _first_difference(self) -> str | None:
        """The first row, of those that are there, which another text or another value is in."""
        texts, out = self.job.texts, self.job.out
        mine = _given(texts.column_names)
        for name in shards_in(out):
            try:
                with opened(out / name) as shard:
                    theirs = _given(shard.layout.names)
                    if set(theirs) != set(mine):
                        other = sorted(set(theirs) ^ set(mine))[0]
                        return f"column {other!r} is {'new' if other in mine else 'missing'}"
                    rows = [row for row in shard.row_numbers().tolist() if row < texts.num_rows]
                    values = shard.read(theirs, 0, len(rows))
            except UserError:  # damaged: it tells nothing
                continue
            given = texts.take(pa.array(rows, pa.int64()))
            if (first := _differing(values, given, mine)) is not None:
                place, column, old, new = first
                where = place_of(texts, rows[place], self.job.source)
                return f"column {column!r} differs in {where}: found {old}, asked for {new}"
        return None


def _check_upload(out: Location, rows: int, row_bytes: int) -> None:
    """Raise UserError for shards that S3 would not copy to their names, when all of it is uploaded."""
    if out.store.startswith("s3:") and rows * row_bytes > _S3_BYTES:
        raise UserError(
            f"--shard-size: shards of {size_words(rows * row_bytes)}, and S3 copies at most "
            f"{size_words(_S3_BYTES)} at once; expected {_S3_BYTES // row_bytes:,} or less"
        )


def _given(columns: Sequence[str]) -> list[str]:
    """The columns that came with the texts, and theirs."""
    return [
        name
        for name in columns
        if name == "text" or (name not in schema.KEY_COLUMNS and schema.block_of(name) is None)
    ]


def _settings(identity: Identity) -> dict[str, Any]:
    """What does not change when texts are appended."""
    changing = {*Part.model_fields, "earlier"}
    settings = plain(identity).items()
    return {name: value for name, value in settings if name not in changing and value is not None}


def _differing(kept: pa.Table, given: pa.Table, names: Sequence[str]) -> tuple[int, str, str, str] | None:
    """The first row in which two tables differ: its place, the column, and both values, in short."""
    first: tuple[int, str, str, str] | None = None
    for name in names:
        pairs = zip(python_values(kept.column(name)), python_values(given.column(name)), strict=True)
        for place, (old, new) in enumerate(pairs):
            if first is not None and place >= first[0]:
                break
            if repr(old) != repr(new):
                first = (place, name, short(old), short(new))
    return first
