"""An activation set as it is planned: what of it is there, and what makes it whole."""

import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace

import pyarrow as pa
from pyarrow import fs

from contrans_dist.config.limits import SHARDS, check_size
from contrans_dist.console import count_of, note
from contrans_dist.distributed.tasks import alone
from contrans_dist.errors import RunError, UserError
from contrans_dist.harvest.left_out import check_left_out
from contrans_dist.harvest.manifest import manifest_of, warn
from contrans_dist.harvest.request import Request
from contrans_dist.harvest.runnable import FATAL
from contrans_dist.harvest.shard_files import check_shard, read_norms
from contrans_dist.harvest.shards import HarvestSpec, Shard, ShardReport, plan_shards
from contrans_dist.store import schema
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.store.claims import Claim
from contrans_dist.store.identity import Identity
from contrans_dist.store.location import Location
from contrans_dist.store.manifest import (
    AGAIN,
    Manifest,
    OtherFormatError,
    QuantizationCheck,
    ShardEntry,
    Throughput,
)
from contrans_dist.store.results import plain
from contrans_dist.store.shard_reader import first_identity, shard_identity, shards_in

_READERS = 16
_SEEN_SECONDS = 120.0
"""After which a shard that one node has made is to be seen by all."""
_SHARED = "--out must be on a disk that all nodes of the cluster share, or in an object store"


@dataclass
class PlannedSet:
    """One activation set of a harvest."""

    request: Request
    spec: HarvestSpec
    """Of the whole set."""
    shards: list[Shard]
    manifest: Manifest | None
    """That was there: of this set, or of the set as it was before texts were appended."""
    rows_there: int
    """Rows of the input that the set was of which was there."""
    reports: dict[str, ShardReport] = field(default_factory=dict)
    """Of the shards that are there by now, by address."""
    throughput: Throughput = field(default_factory=Throughput)
    quantization: QuantizationCheck | None = None
    """What was measured of the quantised model."""
    claim: Claim | None = None
    """On the folder; None where nothing is left to do."""
    unseen: deque[tuple[float, str]] = field(default_factory=deque)
    """When a shard was said to be there that was not yet looked for, and its name."""

    @classmethod
    def of(cls, request: Request) -> "PlannedSet":
        """Plan a set. Raises UserError when the folder holds rows that cannot stay."""
        out = request.job.out
        _refuse_folders(out)
        manifest = _manifest_in(out)
        held, identity = request.fitted(manifest)
        spec = HarvestSpec(identity, request.job.capture, request.facts.d, out)
        shards = plan_shards(spec)
        check_size("--shard-size", len(shards), SHARDS, "shards")
        return cls(request, spec, shards, manifest, (held or identity).rows)

    @property
    def out(self) -> Location:
        return self.spec.out

    @property
    def complete(self) -> bool:
        written = self.manifest is not None and self.manifest.identity.fingerprint == self.spec.fingerprint
        return written and not self.missing

    @property
    def missing(self) -> list[Shard]:
        return [shard for shard in self.shards if shard.address not in self.reports]

    def rows_of(self, shard: Shard) -> pa.Table:
        """A shard's rows of the input."""
        return self.request.job.texts.slice(shard.start, shard.rows)

    def take_in(self) -> None:
        """Take in the shards that are there and sound, by their footers."""
        self.out.sweep()
        names = set(self.out.names())
        entries = {entry.name: entry for entry in self.manifest.shards} if self.manifest is not None else {}
        there = [(shard, entries.get(shard.name)) for shard in self.shards if shard.name in names]
        for (shard, entry), report in zip(there, _checked(there), strict=True):
            if isinstance(report, str):
                note(f"{shard.address}: {report}; it is computed again")
            elif entry is None and not self.request.job.skip_bad and _fatal(report):
                note(f"{shard.address}: lacks a text at which a process died; it is tried again")
            else:
                self.reports[shard.address] = report
        out, rows = self.out, self.spec.identity.rows
        if self.complete:
            note(f"{out}: complete, {count_of(rows, 'row')}; nothing to do")
            return
        if appended := rows - self.rows_there:
            note(f"{out}: {count_of(appended, 'text')} appended to the {self.rows_there:,} it is of")
        if self.reports:
            note(f"{out}: {len(self.reports)} of {len(self.shards)} shards are there; going on with the rest")

    def take(self, address: str, report: ShardReport) -> None:
        """Take in a shard that an actor has made.

        Raises RunError when one that was made a while ago is not to be seen here: other nodes have a disk of
        their own under this name; and when the claim on the folder is gone, as what is made then is lost.
        """
        if self.claim is not None:
            self.claim.look()
        self.reports[address] = report
        if self.out.is_local:
            self.unseen.append((time.monotonic(), report.entry.name))
        # Not at once: NFS would remember that it was not there yet.
        while self.unseen and time.monotonic() - self.unseen[0][0] > _SEEN_SECONDS:
            name = self.unseen.popleft()[1]
            if self._elsewhere([name]):
                raise RunError(
                    f"{self.out / name}: was made by another node and is not to be seen here; {_SHARED}"
                )

    def hold(self, claim: Claim) -> None:
        """Work under a claim on the folder. Raises as `of`, and RunError when rows were added meanwhile."""
        self.claim = claim
        _, identity = self.request.fitted(_manifest_in(self.out))
        if identity.fingerprint != self.spec.fingerprint:
            raise RunError(
                f"{self.out}: another run has appended to it meanwhile; run the same command again"
            )

    def finish(self) -> ActivationSet:
        """Write the manifest, last of all: its being there means that the set is whole.

        Raises as `check_left_out`, when all that can be done is done.
        """
        job = self.request.job
        if self.claim is not None:
            self._confirm(self.claim)
        reports = [self.reports[shard.address] for shard in self.shards]
        skipped = [text for report in reports for text in report.facts.skipped]
        check_left_out(self.out, skipped, job.texts, job.source, job.skip_bad)
        if self.claim is not None or self.manifest is None:
            self.manifest = self._write()
        return ActivationSet(self.out, self.manifest, tuple(self.request.identity.blocks))

    def _write(self) -> Manifest:
        reports = [self._with_norms(shard) for shard in self.shards]
        request = self.request
        manifest = manifest_of(
            self.spec, request.facts, request.job.texts, reports, self.throughput, self.quantization
        )
        (self.out / schema.MANIFEST).write_json(plain(manifest))
        self._remove_others()
        warn(manifest, self.out)
        return manifest

    def _with_norms(self, shard: Shard) -> ShardReport:
        report = self.reports[shard.address]
        return report if report.norms is not None else replace(report, norms=read_norms(shard))

    def _confirm(self, claim: Claim) -> None:
        """Take the shards as they are there now: another run of the same harvest may have written some too.

        Raises RunError where one is not this harvest's.
        """
        claim.check()
        reports = _checked([(shard, None) for shard in self.shards])
        checked = list(zip(self.shards, reports, strict=True))
        wrong = [(shard.name, report) for shard, report in checked if isinstance(report, str)]
        if wrong:
            raise RunError(
                f"{self.out}: {len(wrong)} of {len(self.shards)} shards are not as they were written "
                f"({': '.join(wrong[0])}); run the same command again to make only these"
                + (f", but {_SHARED}" if self._elsewhere([name for name, _ in wrong]) else "")
            )
        for shard, report in checked:
            if (
                not isinstance(report, str)
                and report.entry.footer != self.reports[shard.address].entry.footer
            ):
                self.reports[shard.address] = report

    def _elsewhere(self, names: Sequence[str]) -> bool:
        """Whether shards lie on other nodes' own disks: none is here, and there are other nodes."""
        return self.out.is_local and all(_gone(self.out / name) for name in names) and not alone()

    def _remove_others(self) -> None:
        """Remove shards behind the set's: of texts that were to be appended, and then were others."""
        names = {shard.name for shard in self.shards}
        for name in shards_in(self.out):
            if name not in names and shard_identity(self.out / name) is not None:
                note(f"{self.out / name}: of texts that are no more asked for; it is removed")
                (self.out / name).delete()


def _checked(shards: Sequence[tuple[Shard, ShardEntry | None]]) -> list[ShardReport | str]:
    """`check_shard` of each. In threads: a footer is a millisecond's work and a store's time to answer, where
    a process of Ray's takes seconds to start."""
    with ThreadPoolExecutor(_READERS) as threads:
        return list(threads.map(lambda pair: check_shard(*pair), shards))


def _fatal(report: ShardReport) -> bool:
    """Whether a shard lacks texts at which a process died: another machine may have the memory for them."""
    return any(text.reason.startswith(FATAL) for text in report.facts.skipped)


def _gone(location: Location) -> bool:
    """Whether its disk says that it is not there; one that is in trouble does not say so."""
    with suppress(UserError, RunError):
        return not location.exists()
    return False


def _refuse_folders(out: Location) -> None:
    """Raise UserError where a folder has the name of a file of the set: only its owner can move it."""
    for info in out.entries():
        name = info.base_name
        if info.type is fs.FileType.Directory and (name == schema.MANIFEST or schema.is_shard(name)):
            raise UserError(f"{out / name}: expected a place for a file, there is a folder")


def identity_in(out: Location) -> Identity | None:
    """The identity of the rows in a folder, if there are any. Nothing is checked, and nothing said."""
    try:
        return Manifest.read(out / schema.MANIFEST).identity
    except UserError:
        return first_identity(out, shards_in(out))


def _manifest_in(out: Location) -> Manifest | None:
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
