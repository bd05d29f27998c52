"""One activation set on its way: what is planned, what is there, and what makes it whole."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import pyarrow as pa
from pyarrow import fs

from contrans_dist.config import CaptureSettings, ModelSettings
from contrans_dist.config.limits import CHUNKS, SHARDS, check_size
from contrans_dist.console import note
from contrans_dist.data.texts import prompts, template_fields, texts_hash
from contrans_dist.distributed.actors import of_each
from contrans_dist.errors import RunError, UserError
from contrans_dist.harvest.compute import rows_per_shard
from contrans_dist.harvest.growing import Asked, planned, shards_in
from contrans_dist.harvest.left_out import check_left_out
from contrans_dist.harvest.manifest import identity_of, manifest_of, warn
from contrans_dist.harvest.shard_files import (
    ROW_GROUP,
    HarvestSpec,
    Shard,
    ShardReport,
    Unit,
    check_shard,
    read_norms,
    shard_identity,
)
from contrans_dist.models import ModelFacts, resolve_blocks
from contrans_dist.store import schema
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.store.claims import Claim
from contrans_dist.store.location import Location
from contrans_dist.store.manifest import (
    AGAIN,
    Identity,
    Manifest,
    OtherFormatError,
    QuantizationCheck,
    Throughput,
)
from contrans_dist.store.results import plain


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


@dataclass
class Underway:
    """One activation set on its way."""

    spec: HarvestSpec
    """Of the whole set."""
    job: HarvestJob
    request: Asked
    parts: list[tuple[HarvestSpec, list[Shard]]]
    """As what, and in which shards, its rows are harvested: see `growing`."""
    there: Manifest | None
    """The manifest that was found: that of this set, or of the set as it was before texts were appended."""
    held_identity: Identity | None
    """The identity that was found."""
    chosen: tuple[int, ...]
    """The blocks that were asked for: the folder's set may hold more."""
    reports: dict[int, ShardReport] = field(default_factory=dict)
    throughput: Throughput = field(default_factory=Throughput)
    quantization: QuantizationCheck | None = None
    """What was measured of the quantised model."""
    claim: Claim | None = None
    """On the folder; None where nothing is left to do."""

    @classmethod
    def of(cls, model: ModelSettings, facts: ModelFacts, job: HarvestJob) -> "Underway":
        """Plan a set. Raises UserError when the folder holds rows that cannot stay."""
        request = _asked(model, facts, job)
        _refuse_folders(job.out)
        there = _manifest_there(job.out)
        held_identity, identity = _held(request, job, there)
        spec = HarvestSpec(identity, job.capture, identity.blocks, facts.d, job.out)
        parts, chosen = planned(spec), tuple(request.identity.blocks)
        check_size("--shard-size", sum(len(shards) for _, shards in parts), SHARDS, "shards")
        return cls(spec, job, request, parts, there, held_identity, chosen)

    @property
    def texts(self) -> pa.Table:
        return self.job.texts

    @property
    def shards(self) -> list[Shard]:
        return [shard for _, shards in self.parts for shard in shards]

    @property
    def manifest(self) -> Manifest | None:
        """Of this set, if it is there."""
        written = self.there is not None and self.there.identity.fingerprint == self.spec.fingerprint
        return self.there if written else None

    @property
    def complete(self) -> bool:
        return self.manifest is not None and not self.missing

    @property
    def missing(self) -> list[Shard]:
        return [shard for shard in self.shards if shard.index not in self.reports]

    def units(self) -> list[Unit]:
        """The missing shards, with their texts."""
        return [
            Unit(spec, shard, self.texts.slice(shard.start, shard.rows))
            for spec, shards in self.parts
            for shard in shards
            if shard.index not in self.reports
        ]

    def check_existing(self) -> None:
        """Take in the shards that are there and sound, by their footers. In parallel: they may be many."""
        out = self.spec.out
        out.sweep()
        names = set(out.names())
        entries = {}
        if self.there is not None:
            entries = {entry.name: entry for entry in self.there.shards}
        there = [
            (spec, s, entries.get(s.name)) for spec, shards in self.parts for s in shards if s.name in names
        ]
        for (_, shard, _), result in zip(there, of_each(check_shard, there), strict=True):
            if isinstance(result, str):
                note(f"{out / shard.name}: {result}; it is computed again")
            else:
                self.reports[shard.index] = result
        if self.complete:
            note(f"{out}: complete, {self.texts.num_rows:,} rows; nothing to do")
            return
        appended = self.texts.num_rows - (self.held_identity or self.spec.identity).rows
        if appended:
            note(
                f"{out}: {appended:,} texts were appended to the {self.texts.num_rows - appended:,} it is of"
            )
        if self.reports:
            note(f"{out}: {len(self.reports)} of {len(self.shards)} shards are there; going on with the rest")

    def hold(self, claim: Claim) -> None:
        """Work under a claim on the folder. Raises as `of`, and RunError when rows were added meanwhile."""
        self.claim = claim
        _, identity = _held(self.request, self.job, _manifest_there(self.spec.out))
        if identity.fingerprint != self.spec.fingerprint:
            raise RunError(
                f"{self.spec.out}: another run has appended to it meanwhile; run the same command again"
            )

    def finish(self, facts: ModelFacts) -> ActivationSet:
        """Write the manifest, last of all: its being there means that the set is whole.

        Raises as `check_left_out`, when all that can be done is done.
        """
        written = self.complete and self.throughput.seconds is None
        if not written:
            self._confirm()
        skipped = [text for shard in self.shards for text in self.reports[shard.index].skipped]
        check_left_out(self.spec.out, skipped, self.texts, self.job.source, self.job.skip_bad)
        manifest = self.manifest
        if manifest is None or not written:
            reports = [self._with_norms(shard) for shard in self.shards]
            manifest = manifest_of(self.spec, facts, self.texts, reports, self.throughput, self.quantization)
            (self.spec.out / schema.MANIFEST).write_json(plain(manifest))
            self._remove_others()
            warn(manifest, self.spec.out)
        return ActivationSet(self.spec.out, manifest, self.chosen)

    def _confirm(self) -> None:
        """Take the shards as they are there now: another run of the same harvest may have written some too.

        Raises RunError where one is not this harvest's.
        """
        if self.claim is not None:
            self.claim.check()
        arguments = [(spec, shard, None) for spec, shards in self.parts for shard in shards]
        checked = of_each(check_shard, arguments)
        wrong = [
            (s.name, report)
            for s, report in zip(self.shards, checked, strict=True)
            if isinstance(report, str)
        ]
        if wrong:
            raise RunError(
                f"{self.spec.out}: {len(wrong)} of {len(self.shards)} shards are not as they were written "
                f"({': '.join(wrong[0])}); run the same command again to make only these"
            )
        for report in checked:
            if report.footer != self.reports[report.index].footer:
                self.reports[report.index] = report

    def _remove_others(self) -> None:
        """Remove shards behind the set's: of texts that were to be appended, and then were others."""
        planned_names = {shard.name for shard in self.shards}
        for name in shards_in(self.spec.out):
            if name not in planned_names and shard_identity(self.spec.out / name) is not None:
                note(f"{self.spec.out / name}: of texts that are no more asked for; it is removed")
                (self.spec.out / name).delete()

    def _with_norms(self, shard: Shard) -> ShardReport:
        report = self.reports[shard.index]
        return report if report.norms is not None else replace(report, norms=read_norms(self.spec, shard))


def _asked(model: ModelSettings, facts: ModelFacts, job: HarvestJob) -> Asked:
    """Raises UserError for settings that do not fit the model or the texts, or the limits."""
    capture, rows = job.capture, job.texts.num_rows
    if capture.template is not None:
        template_fields(capture.template)
    blocks = resolve_blocks(capture.blocks, facts.n_blocks)
    size = rows_per_shard(rows, len(blocks), facts.d, capture.shard_size)
    check_size("--shard-size", -(-rows // size), SHARDS, "shards")
    chunks = -(-size // ROW_GROUP) * (len(blocks) + job.texts.num_columns + 2)
    check_size("--shard-size", chunks, CHUNKS, "column chunks in a shard")
    rendered = facts.prompts(prompts(job.texts, capture.template), capture.chat, capture.chat_date)
    # A chat template may write what no setting tells: the prompts belong to the identity as they are run.
    identity = identity_of(model, facts, capture, blocks, size, job.texts, texts_hash(rendered))
    return Asked(identity, job.texts, rendered, capture, facts.d)


def _refuse_folders(out: Location) -> None:
    """Raise UserError where a folder has the name of a file of the set: only its owner can move it."""
    for info in out.entries():
        name = info.base_name
        if info.type is fs.FileType.Directory and (name == schema.MANIFEST or name.startswith("shard-")):
            raise UserError(f"{out / name}: expected a place for a file, there is a folder")


def _manifest_there(out: Location) -> Manifest | None:
    """The folder's manifest; None where there is none, or one that does not add up: it is written anew."""
    location = out / schema.MANIFEST
    if not location.exists():
        return None
    try:
        return Manifest.read(location)
    except OtherFormatError:
        raise
    except UserError as error:
        note(f"{str(error).removesuffix(f'; {AGAIN}')}; it is written anew")
        return None


def _held(request: Asked, job: HarvestJob, manifest: Manifest | None) -> tuple[Identity | None, Identity]:
    """The identity of the rows in the folder that can stay, if there are any, and that of the set with them.

    Raises UserError when those that are there cannot stay.
    """
    listed = {entry.name for entry in manifest.shards} if manifest is not None else set()
    names = [name for name in shards_in(job.out) if name not in listed]

    def first(names: Iterable[str]) -> Identity | None:
        return next(filter(None, (shard_identity(job.out / name) for name in names)), None)

    # Where texts were appended and the run was ended, the last shard says more than what was there before.
    there = [first(reversed(names)), first(names) if manifest is None else manifest.identity]
    identities = [identity for identity in there if identity]
    for held in identities:
        if (identity := request.held(held)) is not None:
            return held, identity
    if identities:
        raise request.refusal(job.out, identities[-1], job.source)
    return None, request.identity
