"""Every byte of activation sets, held against what they say of themselves: `contrans status --verify`."""

from collections.abc import Iterator

from contrans_dist.config.limits import MANIFEST_BYTES
from contrans_dist.console import Progress
from contrans_dist.errors import UserError
from contrans_dist.store import schema
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.store.location import Location
from contrans_dist.store.manifest import ShardEntry
from contrans_dist.store.shard_reader import DamagedError, content_hash, opened


def verify(location: Location) -> list[str]:
    """What is damaged in the activation sets of a run, or in a single one, one line each.

    Hash, page checksums and row numbers of every shard, one at a time. Raises UserError where no set is.
    """
    sets = list(_sets(location))
    if not sets:
        raise UserError(f"{location}: expected a harvest or a run")
    problems: list[str] = []
    planned = [(found, *shard) for found in sets for shard in _shards(found, problems)]
    with Progress("verify", len(planned), "shards") as progress:
        for folder, name, entry, whole in planned:
            try:
                _verify(folder / name, entry, whole)
            except UserError as error:
                problems.append(str(error))
            progress.advance(1)
    return problems


def _sets(location: Location) -> Iterator[Location]:
    """Folders with a manifest or with shards: this one, or those of a run, or of a recipe's runs."""
    if any(name == schema.MANIFEST or name.endswith(".parquet") for name in location.names()):
        yield location
        return
    runs = [location, *(location / "runs" / name for name in (location / "runs").names())]
    for folder in (run / "activations" for run in runs):
        for name in folder.names():
            if any(each == schema.MANIFEST or each.endswith(".parquet") for each in (folder / name).names()):
                yield folder / name


def _shards(
    folder: Location, problems: list[str]
) -> Iterator[tuple[str, ShardEntry | None, ActivationSet | None]]:
    """Name of each shard, with its manifest's entry and the set where there is a manifest that adds up."""
    manifest = folder / schema.MANIFEST
    if manifest.exists():
        try:
            whole = ActivationSet(folder, manifest.read_json(MANIFEST_BYTES))
            yield from ((entry.name, entry, whole) for entry in whole.facts.shards)
            return
        except UserError as error:
            problems.append(str(error))
    yield from ((name, None, None) for name in folder.names() if name.startswith("shard-"))


def _verify(location: Location, entry: ShardEntry | None, whole: ActivationSet | None) -> None:
    with opened(location) as shard:
        if entry is not None and whole is not None:
            wrong = shard.not_of(whole.facts, entry)
            if wrong:
                raise DamagedError(location, wrong)
            if entry.sha256 not in (None, content_hash(shard.source, shard.size)):
                raise DamagedError(location, "its checksum is not the manifest's")
        shard.verify()
