"""The manifest of an activation set: one model of it, sealed, and held against itself when it is read."""

import hashlib
import json
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

from contrans_dist.config.limits import BLOCKS, MANIFEST_BYTES, SHARDS, WIDTH, check_size
from contrans_dist.config.recipe import validated
from contrans_dist.errors import UserError, short
from contrans_dist.store import schema
from contrans_dist.store.identity import Count, Facts, Identity
from contrans_dist.store.location import Location
from contrans_dist.store.results import plain

AGAIN = "run the same harvest again"
"""What makes a set whole: it keeps what is sound and computes the rest anew."""
_ROUNDING = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
"""Relative deviation of a batched row from the same text alone, by the precision that is computed in, above
which it is more than rounding."""


class OtherFormatError(UserError):
    """A manifest of a version of the format that this program does not know."""


class ShardEntry(Facts):
    """What the manifest says of a shard."""

    name: str
    start: Count
    """First row of the input that it was to hold."""
    rows: Count
    """Rows that are there."""
    footer: str | None = None
    """SHA-256 of the file's footer, which holds that of the pages before it."""
    bytes: Count | None = None
    fingerprint: str | None = None
    """Of the set as it was when the shard was made, where it has grown since."""


class Skipped(Facts):
    """A row of the input that the set does not hold."""

    row: Count
    reason: str = ""


class Throughput(Facts):
    """How fast the shards were made that were missing; of all sets that were harvested together."""

    tokens: Count | None = None
    """Of this set alone."""
    seconds: float | None = None
    """From when the first actor was up."""
    seconds_starting: float | None = None
    tokens_per_second: float | None = None
    seconds_capturing: float | None = None
    """Summed over the actors; not capturing, an actor waits for a write or for its next shard."""
    seconds_waiting_for_writes: float | None = None
    actors: Count | None = None
    cpus_per_actor: float | None = None
    gpus_per_actor: float | None = None
    lost_actors: Count | None = None
    placement: str | None = None
    placement_reason: str | None = None


class Canary(Facts):
    """How far rows of a batch are from the same texts alone."""

    worst_deviation: float | None = None


class QuantizationCheck(Facts):
    """Cosines of a quantised model's rows to those of the same model, unquantised."""

    texts: Count
    """Behind the cosines; 0 where they could not be measured."""
    reason: str | None = None
    """Why not."""
    worst_cosine: float | None = None
    mean_cosine: dict[str, float] | None = None
    """By block."""


class Manifest(Facts):
    """A manifest whose types and ranges hold, and whose counts agree."""

    format: Literal[1]
    kind: Literal["activations"]
    fingerprint: str
    identity: Identity
    rows: Count
    d: PositiveInt
    n_blocks: PositiveInt
    """Of the whole model, harvested or not."""
    blocks: list[Count]
    columns: list[str]
    """That are not activations."""
    norms: dict[str, Annotated[float, Field(ge=0)]]
    """Median Euclidean norm of the rows at each block."""
    tokens: Count = 0
    truncated: Count = 0
    """Texts of which the start was cut."""
    context: int | None = None
    """Tokens that the model takes."""
    tokenizer_limit: int | None = None
    special_tokens: dict[str, str] | None = None
    """What stands before and after every text."""
    canary: Canary = Canary()
    shards: Annotated[list[ShardEntry], Field(fail_fast=True)]
    skipped: list[Skipped] = Field(default_factory=list, fail_fast=True)
    throughput: Throughput = Throughput()
    quantization_check: QuantizationCheck | None = None
    devices: list[str] = Field(default_factory=list)
    versions: dict[str, str] = Field(default_factory=dict)
    contrans_dist: str | None = None
    """The version of this program that made it."""
    command: str | None = None
    git_commit: str | None = None
    created: str | None = None
    seal: str | None = None

    @classmethod
    def read(cls, location: Location) -> "Manifest":
        """Raises UserError, one line that names file and field, for what is no manifest, is not what was
        sealed, or does not agree with itself; no other file is looked at."""
        content = location.read_json(MANIFEST_BYTES)
        if not isinstance(content, dict):
            raise UserError(f"{location}: expected a JSON object; {AGAIN}")
        if content.get("format") != schema.FORMAT_VERSION:
            found = short(content.get("format"))
            raise OtherFormatError(f"{location}: expected format {schema.FORMAT_VERSION}, found {found}")
        for key in ("shards", "skipped"):
            if isinstance(content.get(key), list):
                check_size(f"{location}: {key}", len(content[key]), SHARDS, "entries")
        manifest = validated(cls, content, str(location))
        check_size(f"{location}: n_blocks", manifest.n_blocks, BLOCKS, "blocks")
        check_size(f"{location}: d", manifest.d, WIDTH, "numbers a row")
        if manifest.seal is not None and manifest.seal != seal_of(content):
            raise UserError(f"{location}: its content was changed after it was written; {AGAIN}")
        wrong = manifest._contradiction() or manifest._gap()
        if wrong:
            raise UserError(f"{location}: {wrong}; {AGAIN}")
        for entry in manifest.shards:
            location.parent.inside(entry.name)
        return manifest

    @property
    def depends_on_batch(self) -> bool:
        """Whether rows differ from those of the same texts alone by more than rounding."""
        worst, most = self.canary.worst_deviation, _ROUNDING.get(self.identity.compute_dtype or "")
        return worst is not None and most is not None and worst > most

    def sealed(self) -> "Manifest":
        """The same with the digest of its content."""
        return self.model_copy(update={"seal": seal_of(plain(self))})

    def _contradiction(self) -> str | None:
        """What in it does not agree with something else in it."""
        if self.blocks != sorted(set(self.blocks)) or any(block >= self.n_blocks for block in self.blocks):
            return f"blocks: expected ascending numbers below {self.n_blocks}"
        if set(self.norms) != {str(block) for block in self.blocks}:
            return "norms: expected one for each of its blocks"
        if len(set(self.columns)) != len(self.columns) or "row" not in self.columns:
            return "columns: expected distinct names with `row` among them"
        if len({entry.name for entry in self.shards}) != len(self.shards):
            return "shards: the same file is listed twice"
        there = sum(entry.rows for entry in self.shards)
        return (
            None
            if there == self.rows
            else f"rows: expected {there}, the sum over its shards, found {self.rows}"
        )

    def _gap(self) -> str | None:
        """Where the shards' ranges leave a row out, or hold one twice, that was not skipped."""
        skipped = sorted({text.row for text in self.skipped})
        total = self.rows + len(skipped)
        starts = [*(entry.start for entry in self.shards), total]
        if starts[0] != 0:
            return f"shards[0].start: expected 0, found {starts[0]}"
        left = 0
        for index, (start, end) in enumerate(pairwise(starts)):
            begin = left
            while left < len(skipped) and skipped[left] < end:
                left += 1
            if end - start != self.shards[index].rows + left - begin:
                wanted = start + self.shards[index].rows + left - begin
                return f"shards[{index}]: its rows end at {wanted}, the next begin at {end}"
        return None if left == len(skipped) else f"skipped: row {skipped[left]} is none of its rows"


def seal_of(content: dict[str, Any]) -> str:
    """Digest of a manifest's content but for its seal."""
    rest = {key: value for key, value in content.items() if key != "seal"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:32]
