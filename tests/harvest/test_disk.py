"""What a harvest takes of its disk: as estimated, and refused beforehand where it is certain not to fit."""

import random
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contrans_dist.config import CaptureSettings, ModelSettings
from contrans_dist.data.texts import text_table
from contrans_dist.errors import UserError
from contrans_dist.harvest.disk import stored_bytes
from contrans_dist.harvest.driver import harvest
from contrans_dist.store.activation_set import ActivationSet
from tests.harvests import shard_files

pytestmark = pytest.mark.usefixtures("in_process")

WORDS = ["Anna", "was", "glad", "when", "the", "dog", "came", "home", "and", "Tom", "ate", "his", "soup"]
ROWS, N_BLOCKS, D = 192, 4, 96
RAW = ROWS * N_BLOCKS * D * 4


def _texts() -> pa.Table:
    words = random.Random(0)
    return text_table({"text": [f"{i} " + " ".join(words.choices(WORDS, k=9)) for i in range(ROWS)]})


def _harvest(out: Path, dtype: str = "float32", position: str | int = "last") -> ActivationSet:
    model = ModelSettings(id="demo:source", dtype=dtype, compute_dtype=dtype)
    return harvest(model, _texts(), str(out), CaptureSettings(position=position, shard_size=64))


def _of_blocks(out: Path) -> int:
    """Bytes that the columns of blocks take, by the shards' own footers."""
    footers = [pq.read_metadata(path) for path in shard_files(out)]
    groups = [footer.row_group(i) for footer in footers for i in range(footer.num_row_groups)]
    columns = [group.column(i) for group in groups for i in range(group.num_columns)]
    return sum(c.total_compressed_size for c in columns if c.path_in_schema.startswith("block_"))


@pytest.mark.parametrize(
    ("dtype", "position"),
    [("float32", "last"), ("bfloat16", "mean"), ("bfloat16", "last"), ("float16", "last")],
)
def test_it_takes_what_is_estimated(dtype: str, position: Any, tmp_path: Path) -> None:
    _harvest(tmp_path, dtype, position)
    assert 0.75 < _of_blocks(tmp_path) / stored_bytes(ROWS, N_BLOCKS, D, dtype, position) < 1.1


def test_what_does_not_fit_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there already needs no room; what may fit, and what rows at the first token take, is tried."""
    free, asked = [0.6 * RAW], list[Path]()

    def usage(folder: Path) -> SimpleNamespace:
        asked.append(folder)
        return SimpleNamespace(free=int(free[0]))

    out = tmp_path / "run" / "set"
    monkeypatch.setattr(shutil, "disk_usage", usage)
    with pytest.raises(UserError, match=r"set: about 0.3 MB are to be written, .* 0.2 MB free: fewer"):
        _harvest(out)
    assert asked == [tmp_path]
    assert not list(tmp_path.iterdir())
    _harvest(tmp_path / "first", position=0)
    free[0] = 0.8 * RAW
    _harvest(out)
    shard_files(out)[1].unlink()
    (out / "manifest.json").unlink()
    free[0] = 0.2 * RAW
    with pytest.raises(UserError, match=r"about 0.1 MB are to be written"):
        _harvest(out)
    free[0] = 0.3 * RAW
    assert _harvest(out).n_rows == ROWS
