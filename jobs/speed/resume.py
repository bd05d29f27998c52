"""What it takes to see that a finished set is finished: `python jobs/speed/resume.py FOLDER [GB]`.

Writes a set of so many GB of random rows as a harvest writes it, if none is there, then times the driver's
check of its shards by their footers, and every byte of it by `verify`.
"""

import resource
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from contrans_dist.config import CaptureSettings
from contrans_dist.data.texts import text_table
from contrans_dist.engine.capture import Activations
from contrans_dist.harvest.runnable import Runnable
from contrans_dist.harvest.shard_files import check_shard, publish_shard
from contrans_dist.harvest.shards import HarvestSpec, Shard, plan_shards
from contrans_dist.store.identity import Identity
from contrans_dist.store.location import Location
from contrans_dist.store.verification import verify

_BLOCKS, _D, _ROWS = 8, 4096, 1024
_STORED = 1.38
"""Bytes on disk of each random number, measured."""


def main() -> None:
    folder, size = Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 2.0
    count = round(size * 1e9 / (_BLOCKS * _D * _ROWS * _STORED))
    identity = Identity(model="random", blocks=list(range(_BLOCKS)), rows=count * _ROWS, shard_size=_ROWS)
    shards = plan_shards(HarvestSpec(identity, CaptureSettings(), _D, Location.parse(folder)))
    for shard in shards:
        if not (folder / shard.name).exists():
            _write(shard)
    written = sum((folder / shard.name).stat().st_size for shard in shards)
    print(f"{written / 1e9:.2f} GB in {len(shards)} shards")
    _timed("footers", lambda: [check_shard(shard, None) for shard in shards])
    _timed("every byte", lambda: verify(Location.parse(folder)))


def _write(shard: Shard) -> None:
    rng = np.random.default_rng(shard.index)
    whole = rng.standard_normal((_BLOCKS, _ROWS, _D), dtype=np.float32)
    whole = (whole.view(np.uint32) & 0xFFFF0000).view(np.float32)  # as bfloat16 has it
    table = text_table({"text": [f"text {row}" for row in range(shard.start, shard.start + _ROWS)]})
    table = table.set_column(0, "row", pa.array(range(shard.start, shard.start + _ROWS), pa.int64()))
    ones = np.ones(_ROWS, np.int32)
    texts, piece = Runnable(table, [[1]] * _ROWS), Activations(dict(enumerate(whole)), ones, ones, [])
    publish_shard(shard, texts, [piece], 0.0, "cpu")


def _timed(name: str, work: object) -> None:
    assert callable(work)
    began = time.monotonic()
    work()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{name}: {time.monotonic() - began:.2f} s, peak {peak:,.0f} MB so far in this process")


if __name__ == "__main__":
    main()
