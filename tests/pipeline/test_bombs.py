"""Files that unfold to more than the memory: each is refused in a line, by a process that has little."""

import json
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.tiny import save_tiny

ROOM, GROWTH, SECONDS = 8 << 30, 400, 10
"""Bytes of address space beyond what the libraries have taken, megabytes by which all readers together may
grow, processor seconds of one."""
HUGE = 40 << 30
"""Of files that are holes: nothing is written."""
BELOW = """
import json, resource, sys, time
from pathlib import Path
from contrans_dist.data.texts import read_texts
from contrans_dist.errors import UserError
from contrans_dist.evaluation.parts import identity_in
from contrans_dist.mapping.map_set import MapSet
from contrans_dist.models import load_model, model_facts
from contrans_dist.pipeline.inspection import inspected
from contrans_dist.pipeline.runs import open_recipe
from contrans_dist.report import write_report
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.store.location import Location
from contrans_dist.vectors.concept_vector import ConceptVector
from contrans_dist.vectors.exchange import import_vector

used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))

def parts(path):
    assert identity_in(path.parent.parent) is None  # what cannot be read is computed again
    raise UserError(f"{path.parent.parent}: begun anew")

CALLS = {
    "inspect": inspected, "texts": read_texts, "vector": ConceptVector.load, "map": MapSet.load,
    "import": lambda path: import_vector(path, norms="none"), "parts": parts,
    "report": lambda path: write_report(path.parent),
    "recipe": lambda path: open_recipe(Path(path.path)),
    "set": lambda path: ActivationSet.open(path.parent), "model": lambda path: load_model(path.parent.path),
    "facts": lambda path: model_facts(path.parent.path),
}

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

before = peak()
for name, path in json.loads(sys.argv[1]):
    began = time.process_time()
    try:
        CALLS[name](Location.parse(path))
        said = "nothing"
    except UserError as error:
        said = str(error)
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"[:200]
    print(json.dumps([name, path, said, time.process_time() - began, peak() - before]), flush=True)
""".replace("ROOM", str(ROOM))


def hole(path: Path, head: bytes = b"") -> Path:
    """A file of HUGE bytes that takes no room."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(HUGE)
    return path


def zeros(path: Path, table: pa.Table, times: int) -> Path:
    """A Parquet file of a few hundred kilobytes with a table many times over."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, table.schema, compression="zstd", use_dictionary=False) as writer:
        for _ in range(times):
            writer.write_table(table)
    assert path.stat().st_size < 8 << 20
    return path


def bombs(folder: Path) -> list[tuple[str, Path]]:
    """(who reads it, the file)"""
    long = pa.table({"text": ["x" * (1 << 20)] * 16, "condition": ["base"] * 16})
    anchors = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 10)}]\n" for i in range(9)
    )
    deep = "[" * 2_000_000
    found = [
        ("texts", zeros(folder / "texts.parquet", long, 128)),
        ("inspect", folder / "texts.parquet"),
        ("parts", zeros(folder / "begun/parts/part-00000.parquet", long, 128)),
    ]
    for name in ("x.json", "x.jsonl", "x.txt", "x.yaml", "search.json", "selection.json"):
        found.append(("inspect", hole(folder / "holes" / name)))
    for name in ("manifest.json", "metrics.json", "run.json"):
        found.append(("inspect", hole(folder / name.partition(".")[0] / name)))
    found += [("texts", folder / "holes/x.jsonl"), ("recipe", folder / "holes/x.yaml")]
    found += [("set", folder / "manifest/manifest.json"), ("report", folder / "metrics/metrics.json")]
    for name, text in {"deep.json": deep, "deep.yaml": deep, "anchors.yaml": anchors}.items():
        (folder / name).write_text(text)
        found.append(("inspect", folder / name))
    (folder / "deep.jsonl").write_text(f'{{"text": "a", "b": {deep}\n')
    found.append(("texts", folder / "deep.jsonl"))
    length = (HUGE - 8).to_bytes(8, "little")
    found.append(("vector", hole(folder / "v.safetensors", length)))
    found += [("map", folder / "v.safetensors"), ("inspect", folder / "v.safetensors")]
    for name, head in {
        "x.npy": b"\x93NUMPY\x01\x00", "x.gguf": b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 60),
        "x.pt": b"PK\x03\x04", "x.parquet": b"PAR1",
    }.items():  # fmt: skip
        found += [("inspect", hole(folder / name, head)), ("import", folder / name)]
    torch.save({"layers.1": {"steering_vector": torch.zeros(1 << 20)}}, folder / "plain.pt")
    with (
        zipfile.ZipFile(folder / "plain.pt") as source,
        zipfile.ZipFile(folder / "packed.pt", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed,
    ):
        for name in source.namelist():
            with packed.open(name, "w") as part:
                for _ in range(128 if name.endswith("data/0") else 0):
                    part.write(bytes(4 << 20))
                part.write(source.read(name))
    found.append(("inspect", folder / "packed.pt"))
    for name in ("config.json", "tokenizer.json", "model.safetensors", "generation_config.json"):
        model = save_tiny(folder / f"of {name}", n_blocks=2, d=16)
        hole(model / name, length if name.endswith("safetensors") else b"")
        found += [("model", model / name), ("facts", model / name)]
    return found


@pytest.mark.slow
def test_each_is_refused_by_a_process_with_little_memory(tmp_path: Path) -> None:
    there = bombs(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", BELOW, json.dumps([(name, str(path)) for name, path in there])],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == len(there), done.stderr
    failed = [
        line
        for line in lines
        if str(tmp_path) not in line[2]
        or "\n" in line[2]
        or not line[2].startswith(("/", "--"))
        or line[3] > SECONDS
    ]
    assert failed == []
    assert lines[-1][-1] < GROWTH, [(name, path, grown) for name, path, _, _, grown in lines]
