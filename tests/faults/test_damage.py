"""Shards and manifests that are cut short or have a bit flipped: found, named, and made again, they alone."""

import random
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.commands import run
from tests.faults.bench import Bench
from tests.faults.tally import Tally
from tests.faults.world import World
from tests.harvests import manifest_of, shard_files, stamps

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3000)]
_MARGIN = 8
"""Bytes at a Parquet file's end: the length of its footer, and a mark."""


def _flip(path: Path, place: int, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(bytes(content))


def _footer_start(path: Path) -> int:
    return path.stat().st_size - _MARGIN - pq.read_metadata(path).serialized_size


def _cut(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


def _flip_data(path: Path, draw: random.Random) -> None:
    _flip(path, draw.randrange(4, _footer_start(path)), draw.randrange(8))


def _flip_footer(path: Path, draw: random.Random) -> None:
    _flip(path, draw.randrange(_footer_start(path), path.stat().st_size), draw.randrange(8))


@pytest.mark.parametrize(
    ("fault", "damage", "seen_by_footer"),
    [
        ("shard cut short", _cut, True),
        ("a bit flipped in a shard's data", _flip_data, False),
        ("a bit flipped in a shard's footer", _flip_footer, True),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_damaged_shards(
    fault: str, damage: object, seen_by_footer: bool, finished: bool, bench: Bench, world: World,
    tally: Tally, times: int, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """As many shards as repetitions, each at a place of its own, in a set that is finished or was not."""
    assert callable(damage)
    draw = random.Random(fault)
    out = Path(shutil.copytree(world.truth, tmp_path / "set"))
    if not finished:
        (out / "manifest.json").unlink()
    spoilt = draw.sample(shard_files(out), times)
    for path in spoilt:
        damage(path, draw)
    before = stamps(out)
    command = world.command(world.n_texts, out, bench.address, 2)[3:]
    if not seen_by_footer:
        # Pages are read by readers, and by --verify, which name every one.
        told = run(capsys, "status", out, "--verify")
        assert told.code == 1
        for path in shard_files(out):
            assert (path in spoilt) == (f"{path}: " in told.err), told.err
        for path in spoilt:
            path.unlink()
    ended = run(capsys, *command)
    compared = world.compared(out)
    again = {name for name, stamp in stamps(out).items() if before[name] != stamp}
    tally.add(fault, compared, times, len(again), [ended.code])
    assert ended.code == 0, ended.err
    assert compared.same
    assert again == {path.name for path in spoilt}
    assert run(capsys, "status", out, "--verify").code == 0


def test_damaged_manifest(
    bench: Bench, world: World, tally: Tally, times: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bit of it is flipped, or its end is gone: it is written anew, and no shard is."""
    out = Path(shutil.copytree(world.truth, tmp_path / "set"))
    whole, path, draw = (out / "manifest.json").read_bytes(), out / "manifest.json", random.Random(6)
    before, wanted = stamps(out), manifest_of(out)["shards"]
    command = world.command(world.n_texts, out, bench.address, 2)[3:]
    for repetition in range(2 * times):
        path.write_bytes(whole)
        if repetition % 2:
            _cut(path, draw)
        else:
            _flip(path, draw.randrange(len(whole)), draw.randrange(8))
        damaged = path.read_bytes()
        ended = run(capsys, *command)
        compared = world.compared(out)
        again = sum(before[name] != stamp for name, stamp in stamps(out).items())
        fault = "manifest cut short" if repetition % 2 else "a bit flipped in the manifest"
        tally.add(fault, compared, 1, again, [ended.code])
        assert ended.code == 0, (ended.err, damaged)
        assert compared.same
        assert not again
        assert manifest_of(out)["shards"] == wanted
        assert path.read_bytes() != damaged
