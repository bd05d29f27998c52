"""Shards as they are opened: under limits, and held against themselves."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from contrans_dist.config.limits import CHUNKS, FOOTER_BYTES, check_size, raised
from contrans_dist.config.recipe import validated
from contrans_dist.errors import RunError, UserError, one_line
from contrans_dist.store import schema
from contrans_dist.store.footers import PageFacts, ShardFacts, footer_is_whole
from contrans_dist.store.identity import Identity
from contrans_dist.store.location import Location
from contrans_dist.store.patience import patiently
from contrans_dist.store.shard_file import DamagedError, ShardFile

_TAIL_BYTES = 64 << 10
_MAGIC = b"PAR1"
_REQUESTS = 16


def readers(folder: Location) -> ThreadPoolExecutor:
    """Threads that read shards: of an object store many at once, since each answer takes its time."""
    return ThreadPoolExecutor(1 if folder.is_local else _REQUESTS)


@contextmanager
def opened(location: Location) -> Iterator[ShardFile]:
    """Open a shard and read its footer.

    Raises UserError, one line that names the file, when it is none of ours, is larger than the limits allow,
    or is damaged, also where that is found while it is read; and as `Location.open`.
    """
    try:
        with location.open() as source:
            yield _parsed(location, source)
    except (UserError, RunError):
        raise
    except (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError) as error:
        raise _damaged(location, error) from error


@patiently
def shard_identity(location: Location) -> Identity | None:
    """The identity a shard was harvested under, from its footer alone; None when the file cannot be read."""
    try:
        with opened(location) as file:
            return file.facts.identity
    except UserError:
        return None


def shards_in(folder: Location) -> list[str]:
    """Names of the shards in a folder, in the order of their numbers."""
    return sorted(filter(schema.is_shard, folder.names()), key=lambda name: (len(name), name))


def first_identity(folder: Location, names: Iterable[str]) -> Identity | None:
    """That of the first of these shards which can be read; None where none can."""
    return next(filter(None, (shard_identity(folder / name) for name in names)), None)


def footer_of(location: Location) -> pq.FileMetaData:
    """The footer of any Parquet file, under the same limits. Raises UserError for one that is damaged."""
    try:
        with location.open() as source:
            return _parquet(location, source, _footer(location, source)).metadata
    except DamagedError as error:
        raise UserError(f"{location}: {error.reason}") from error
    except (UserError, RunError):
        raise
    except Exception as error:  # a damaged footer makes a reader raise whatever it likes
        raise UserError(f"{location}: expected a Parquet file that is whole ({one_line(error)})") from error


def _damaged(location: Location, error: BaseException) -> DamagedError:
    return DamagedError(location, f"damaged ({one_line(error)})")


def _footer(location: Location, source: pa.NativeFile) -> bytes:
    size = source.size()
    tail = source.read_at(min(size, _TAIL_BYTES), max(size - _TAIL_BYTES, 0))
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if tail[-4:] != _MAGIC or length + len(_MAGIC) > size:
        raise DamagedError(location, "expected a Parquet file that is whole")
    check_size(f"{location}: footer", length, FOOTER_BYTES)
    footer = bytes(tail[-length:] if length <= len(tail) else source.read_at(length, size - length))
    if not footer_is_whole(footer):
        raise DamagedError(location, "its footer is damaged")
    return footer


def _parsed(location: Location, source: pa.NativeFile) -> ShardFile:
    footer = _footer(location, source)
    try:
        file = _parquet(location, source, footer)
        facts, pages = _facts(location, file)
        shard = ShardFile(
            location, source, file, source.size(), len(footer), hashlib.sha256(footer).hexdigest(), facts,
            pages,
        )  # fmt: skip
        _check_counts(shard)
    except (UserError, RunError):
        raise
    except Exception as error:  # a damaged footer makes a reader raise whatever it likes
        raise _damaged(location, error) from error
    return shard


def _parquet(location: Location, source: pa.NativeFile, footer: bytes) -> pq.ParquetFile:
    """The file with its footer parsed, under limits; the footer is not read again, and a store is asked for
    all chunks of a read at once."""
    metadata = pq.ParquetFile(
        pa.BufferReader(_MAGIC + footer),
        thrift_string_size_limit=raised(FOOTER_BYTES),
        thrift_container_size_limit=raised(CHUNKS),
    ).metadata
    return pq.ParquetFile(
        source, metadata=metadata, page_checksum_verification=True, pre_buffer=not location.is_local
    )


def _facts(location: Location, file: pq.ParquetFile) -> tuple[ShardFacts, PageFacts]:
    metadata = file.metadata.metadata or {}
    facts, pages = metadata.get(schema.METADATA_KEY), metadata.get(schema.PAGES_KEY)
    if facts is None or pages is None:
        raise DamagedError(location, "expected a shard written by contrans")
    where = f"{location}: footer"
    return validated(ShardFacts, json.loads(facts), where), validated(PageFacts, json.loads(pages), where)


def _check_counts(shard: ShardFile) -> None:
    """What the footer counts must agree with itself, and with the size of the file."""
    metadata, where = shard.file.metadata, str(shard.location)
    check_size(f"{where}: footer", metadata.num_row_groups * metadata.num_columns, CHUNKS, "column chunks")
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    if min((group.num_rows for group in groups), default=0) < 0:
        raise DamagedError(shard.location, "its row groups have fewer than no rows")
    if sum(group.num_rows for group in groups) != metadata.num_rows:
        raise DamagedError(shard.location, "its row groups do not hold the rows that it says")
    widths = [field.type.list_size for field in shard.layout if pa.types.is_fixed_size_list(field.type)]
    check_size(f"{where}: its blocks unfold to", metadata.num_rows * sum(widths) * 4, shard.most_bytes)
    unfolded = sum(
        group.column(i).total_uncompressed_size for group in groups for i in range(group.num_columns)
    )
    check_size(f"{where}: its pages unfold to", unfolded, shard.most_bytes)
