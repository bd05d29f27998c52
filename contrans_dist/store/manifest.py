"""The manifest of an activation set: one model of it, sealed, and held against itself when it is read."""

import hashlib
import json
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from contrans_dist.config import Settings
from contrans_dist.config.limits import BLOCKS, SHARDS, WIDTH, check_size
from contrans_dist.config.recipe import validated
from contrans_dist.errors import UserError
from contrans_dist.store import schema
from contrans_dist.store.location import Location

AGAIN = "run the same harvest again"
"""What makes a set whole: it keeps what is sound and computes the rest anew."""

Count = Annotated[int, Field(ge=0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class OtherFormatError(UserError):
    """A manifest of a version of the format that this program does not know."""


class Facts(Settings):
    """What a file of ours says of itself: keys that a later version adds are left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, protected_namespaces=())


class ShardEntry(Facts):
    """What the manifest says of a shard."""

    name: str
    start: Count
    """First row of the input that it was to hold."""
    rows: Count
    """Rows that are there."""
    bytes: Count | None = None
    footer: str | None = None
    """SHA-256 of the file's footer, which holds that of the pages before it."""
    sha256: str | None = None
    """Of the whole file: in sets of earlier versions."""
    fingerprint: str | None = None
    """Of the set as it was when the shard was made, where it has grown since."""


class Skipped(Facts):
    """A row of the input that the set does not hold."""

    row: Count
    reason: str = ""


class Identity(Facts):
    """What the report and the vectors need of what was harvested."""

    model: str
    dtype: str | None = None
    quantization: str | None = None
    position: str | int | None = None


class Throughput(Facts):
    tokens: Count | None = None
    seconds: Finite | None = None
    tokens_per_second: Finite | None = None
    actors: Count | None = None


class Canary(Facts):
    worst_deviation: Finite | None = None


class Manifest(Facts):
    """A manifest whose types and ranges hold, and whose counts agree."""

    format: Literal[1]
    kind: Literal["activations"]
    fingerprint: str
    identity: Identity
    rows: Count
    d: Annotated[int, Field(ge=1)]
    n_blocks: Annotated[int, Field(ge=1)]
    blocks: list[Count]
    columns: list[str]
    norms: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]
    tokens: Count = 0
    truncated: Count = 0
    canary: Canary = Canary()
    throughput: Throughput = Throughput()
    shards: Annotated[list[ShardEntry], Field(fail_fast=True)]
    skipped: Annotated[list[Skipped], Field(fail_fast=True, default_factory=list)]
    versions: Annotated[dict[str, str], Field(default_factory=dict)]
    contrans_dist: str | None = None
    """The version of this program that made it."""
    command: str | None = None
    seal: str | None = None

    @classmethod
    def of(cls, content: Any, where: Location) -> "Manifest":
        """The model of a manifest's content. Raises UserError, one line that names file and field, when it
        is none, is not what was sealed, or does not agree with itself; nothing but it is looked at."""
        if not isinstance(content, dict):
            raise UserError(f"{where}: expected a JSON object; {AGAIN}")
        if content.get("format") != schema.FORMAT_VERSION:
            found = repr(content.get("format"))[:50]
            raise OtherFormatError(f"{where}: expected format {schema.FORMAT_VERSION}, found {found}")
        for key in ("shards", "skipped"):
            if isinstance(content.get(key), list):
                check_size(f"{where}: {key}", len(content[key]), SHARDS, "entries")
        made = validated(cls, content, str(where))
        check_size(f"{where}: n_blocks", made.n_blocks, BLOCKS, "blocks")
        check_size(f"{where}: d", made.d, WIDTH, "numbers a row")
        if made.seal is not None and made.seal != seal_of(content):
            raise UserError(f"{where}: its content was changed after it was written; {AGAIN}")
        wrong = made._contradiction() or made._gap()
        if wrong:
            raise UserError(f"{where}: {wrong}; {AGAIN}")
        for entry in made.shards:
            where.parent.inside(entry.name)
        return made

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
        skipped = sorted({each.row for each in self.skipped})
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


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a manifest with its seal. Expects plain JSON, keys and all."""
    return {**content, "seal": seal_of(content)}
