"""What the fault suite harvests, and how a harvest is held against one that nothing disturbed."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from tests.faults import paced_llama
from tests.harvests import shard_files
from tests.tiny import tiny_model, tiny_tokenizer

SHARD = 2
N_BLOCKS, D = 3, 16
KILLS, SPOILS, BEYOND = "<kills>", "<spoils>", "<beyond>"
_WORDS = ["the", "boy", "was", "happy", "sad", "angry", "afraid", "dog", "cat", "tree", "ball", "forest"]


def save_paced(folder: Path) -> Path:
    """A tiny model with code of its own: `KILLS` kills its process, `SPOILS` makes its rows infinite, and it
    knows no `BEYOND`."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([KILLS, SPOILS, BEYOND])
    kills, spoils = (tokenizer.convert_tokens_to_ids(word) for word in (KILLS, SPOILS))
    model = tiny_model("llama", n_blocks=N_BLOCKS, d=D, vocab=spoils + 1)
    with torch.no_grad():
        model.get_input_embeddings().weight[spoils] = float("inf")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    code = Path(paced_llama.__file__)
    shutil.copy(code, folder)
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoModel": "PacedModel", "AutoModelForCausalLM": "PacedForCausalLM"}
    config |= {"kills": kills, "architectures": ["PacedForCausalLM"]}
    config["auto_map"] = {auto: f"{code.stem}.{name}" for auto, name in classes.items()}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@dataclass(frozen=True)
class Compared:
    """A harvest beside the undisturbed one."""

    rows: int
    lost: int
    doubled: int
    other: int
    """Rows with another value in some column."""

    @property
    def same(self) -> bool:
        return not (self.lost or self.doubled or self.other)


@dataclass(frozen=True)
class World:
    """A model, texts, and their activations as one process makes them that nothing disturbs."""

    folder: Path
    model: str
    n_texts: int

    @classmethod
    def make(cls, folder: Path, n_texts: int) -> "World":
        folder.mkdir(exist_ok=True)
        world = cls(folder, str(save_paced(folder / "model")), n_texts)
        rng = np.random.default_rng(0)
        with (folder / "all.jsonl").open("w") as file:
            for number in range(n_texts):
                text = f"{' '.join(rng.choice(_WORDS, rng.integers(1, 12)))} {number}"
                file.write(json.dumps({"text": text, "label": _WORDS[number % 5]}) + "\n")
        calm = {name: value for name, value in os.environ.items() if not name.startswith("FAULTS_")}
        for out, how in ((world.swept, ["--placement", "stream"]), (world.truth, list[str]())):
            command = [*world.alone(n_texts, out), *how]
            done = subprocess.run(command, capture_output=True, text=True, env=calm, timeout=1200)
            assert done.returncode == 0, done.stderr
            assert world.compared(out, truth=out).same
        return world

    @classmethod
    def made(cls, folder: Path) -> "World | None":
        """That of this folder, where it was made."""
        if not (folder / "truth/manifest.json").exists():
            return None
        n_texts = len((folder / "all.jsonl").read_text().splitlines())
        return cls(folder, str(folder / "model"), n_texts)

    @property
    def truth(self) -> Path:
        return self.folder / "truth"

    @property
    def swept(self) -> Path:
        """The same block by block: without shared beginnings, which are rounded otherwise."""
        return self.folder / "swept"

    def texts(self, rows: int) -> str:
        """A file of the first of the texts."""
        path = self.folder / f"texts-{rows}.jsonl"
        if not path.exists():
            lines = (self.folder / "all.jsonl").read_text().splitlines(keepends=True)
            assert rows <= len(lines), f"the world has {len(lines)} texts, asked for {rows}"
            fresh = path.with_name(f"{path.name}.{os.getpid()}")  # two processes may want it
            fresh.write_text("".join(lines[:rows]))
            fresh.replace(path)
        return str(path)

    def alone(self, rows: int, out: Path | str, texts: str | None = None) -> list[str]:
        """`contrans harvest` of the first texts, which is little enough to be done in its own process."""
        return [
            *(sys.executable, "-m", "contrans_dist", "harvest", "--model", self.model, "--trust-remote-code"),
            *("--texts", texts or self.texts(rows), "--out", str(out), "--shard-size", str(SHARD)),
        ]

    def command(
        self, rows: int, out: Path | str, address: str, actors: int, *more: str, texts: str | None = None
    ) -> list[str]:
        """The same on a cluster."""
        where = ["--address", address, "--actors", str(actors), "--cpus-per-actor", "1", *more]
        return [*self.alone(rows, out, texts), *where]

    def compared(self, out: Path, rows: int | None = None, truth: Path | None = None) -> Compared:
        """Every column of every row in the shards of a folder, finished or not; `rows`: it should have."""
        found, wanted = read_set(out), read_set(truth or self.truth)
        wanted = wanted.slice(0, rows if rows is not None else wanted.num_rows)
        numbers = found.column("row").to_numpy() if found.num_rows else np.empty(0, np.int64)
        unique = np.unique(numbers)
        known = unique[unique < wanted.num_rows]
        places = {row: place for place, row in enumerate(numbers.tolist())}
        mine = found.take([places[row] for row in known.tolist()]) if len(known) else found
        other = np.zeros(len(known), bool)
        if len(known):
            assert found.column_names == wanted.column_names
            for name in wanted.column_names:
                other |= _differ(mine.column(name), wanted.column(name).take(pa.array(known)))
        strangers = len(unique) - len(known)
        return Compared(
            len(known), wanted.num_rows - len(known), len(numbers) - len(unique) + strangers, int(other.sum())
        )


def read_set(folder: Path) -> pa.Table:
    """All rows in the shards of a folder, in the order of the shards, without what they say of themselves."""
    files = shard_files(folder)
    tables = [pq.read_table(path).replace_schema_metadata(None) for path in files]
    return (
        pa.concat_tables(tables).combine_chunks() if tables else pa.table({"row": pa.array([], pa.int64())})
    )


def _differ(mine: pa.ChunkedArray, theirs: pa.ChunkedArray) -> np.ndarray:
    """In which rows two columns differ, floating-point numbers bit by bit."""
    if pa.types.is_fixed_size_list(mine.type):
        both = [
            pa.concat_arrays(column.chunks).flatten().to_numpy().view(np.uint32).reshape(len(column), -1)
            for column in (mine, theirs)
        ]
        return (both[0] != both[1]).any(axis=1)
    return np.array([a != b for a, b in zip(mine.to_pylist(), theirs.to_pylist(), strict=True)], bool)
