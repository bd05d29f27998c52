"""Every byte of activation sets, held against what they say of themselves: `contrans status --verify`."""

from collections.abc import Iterator

from contrans_dist.console import Progress
from contrans_dist.errors import UserError
from contrans_dist.store import schema
from contrans_dist.store.location import Location
from contrans_dist.store.manifest import Manifest, ShardEntry
from contrans_dist.store.patience import patiently
from contrans_dist.store.shard_file import DamagedError
from contrans_dist.store.shard_reader import opened, readers, shards_in


def verify(location: Location) -> list[str]:
    """What is damaged in the activation sets of a run, or in a single one, one line each.

    Hash, page checksums and row numbers of every shard. Raises UserError where no set is.
    """
    sets = list(_sets(location))
    if not sets:
        raise UserError(f"{location}: expected a harvest or a run")
    problems: list[str] = []
    planned = [shard for folder in sets for shard in _shards(folder, problems)]
    with Progress("verify", len(planned), "shards") as progress, readers(location) as threads:
        for problem in threads.map(lambda shard: _problem(*shard), planned):
            problems += [problem] if problem else []
            progress.advance(1)
    return problems


def _sets(location: Location) -> Iterator[Location]:
    """Folders with a manifest or with shards: this one, or those of a run, or of a recipe's runs."""
    if _is_set(location):
        yield location
        return
    runs = [location, *(location / "runs" / name for name in (location / "runs").names())]
    for folder in (run / "activations" for run in runs):
        for name in folder.names():
            if _is_set(folder / name):
                yield folder / name


def _is_set(folder: Location) -> bool:
    return any(name == schema.MANIFEST or name.endswith(".parquet") for name in folder.names())


def _shards(
    folder: Location, problems: list[str]
) -> Iterator[tuple[Location, Manifest | None, ShardEntry | None]]:
    """Each shard, with the manifest and its entry there, where there is one that adds up."""
    location = folder / schema.MANIFEST
    if location.exists():
        try:
            manifest = Manifest.read(location)
            yield from ((folder / entry.name, manifest, entry) for entry in manifest.shards)
            return
        except UserError as error:
            problems.append(str(error))
    yield from ((folder / name, None, None) for name in shards_in(folder))


@patiently
def _problem(shard: Location, manifest: Manifest | None, entry: ShardEntry | None) -> str | None:
    """What is wrong with a shard, if anything is."""
    try:
        with opened(shard) as file:
            if manifest is not None and entry is not None and (wrong := file.not_of(manifest, entry)):
                raise DamagedError(shard, wrong)
            file.verify()
    except UserError as error:
        return str(error)
    return None
