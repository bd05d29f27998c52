"""Every reader of a stranger's file, given files made at random: it reads them, or refuses in one line."""

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from contrans_dist.config.recipe import load_recipe, runs_of
from contrans_dist.errors import RunError, UserError
from contrans_dist.evaluation.analysis import read_run
from contrans_dist.evaluation.parts import identity_in
from contrans_dist.models import load_model, model_facts
from contrans_dist.models.streaming import open_streamed
from contrans_dist.pipeline.inspection import inspected
from contrans_dist.pipeline.status import status_of
from contrans_dist.report import write_comparison
from contrans_dist.store.claims import claimed
from contrans_dist.store.location import Location
from contrans_dist.store.shard_reader import opened
from contrans_dist.store.verification import verify
from tests.pipeline.test_inspection import make_artefacts
from tests.store.test_fuzz_files import mutated, spoilt
from tests.tiny import save_tiny

FEW, MANY = 12, 1500
"""Examples a file: by default, and in the long run."""
MEGABYTES = 500
MOST = 200_000
"""Bytes that are changed: a page has many more, behind its head."""
Read = Callable[[Path], Any]


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_artefacts(tmp_path_factory.mktemp("fuzzed"))
    save_tiny(folder / "listed", n_blocks=2, d=16)
    names = load_file(folder / "listed/model.safetensors")
    (folder / "listed/model.safetensors").rename(folder / "listed/part.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, "part.safetensors")}
    (folder / "listed/model.safetensors.index.json").write_text(json.dumps(index))
    claim = {
        "identity": {"model": "m"}, "host": "elsewhere", "machine": "elsewhere", "pid": 5, "started": 1.0,
        "since": "now", "holding": False,
    }  # fmt: skip
    (folder / "claimed").mkdir()
    (folder / "claimed/.claim-z.json").write_text(json.dumps(claim))
    (folder / "two/runs/a").mkdir(parents=True)
    (folder / "two/recipe.yaml").write_bytes((folder / "run/recipe.yaml").read_bytes())
    return folder


def inspect(path: Path) -> None:
    json.dumps(inspected(Location.parse(path)).content, allow_nan=False).encode()
    inspected(Location.parse(path)).text().encode()


def run_folder(path: Path) -> None:
    """As reports read it."""
    read_run(Location.parse(path.parent))
    status_of(Location.parse(path.parent))


def evaluation(path: Path) -> None:
    identity_in(Location.parse(path.parent.parent))
    inspect(path.parent.parent)


def shard(path: Path) -> None:
    verify(Location.parse(path.parent))
    with opened(Location.parse(path)) as file:
        file.verify()


def recipe(path: Path) -> None:
    runs_of(load_recipe(path))


def claim(path: Path) -> None:
    os.utime(path, (1, 1))  # of a process of which nothing was heard for long
    with claimed(Location.parse(path.parent), {"model": "m"}):
        pass


def model(path: Path) -> None:
    name = str(path.parent)
    for ask in (model_facts, load_model, open_streamed):
        try:
            ask(name)
        except RunError as error:
            raise UserError(str(error)) from error


READERS: dict[str, tuple[Read, ...]] = {
    "run/run.json": (inspect, run_folder),
    "run/recipe.yaml": (inspect, run_folder, recipe),
    "run/report.html": (inspect,),
    "run/evaluations/emotions/results.parquet": (inspect,),
    "run/activations/corpus-source/shard-00000.parquet": (inspect, shard),
    "run/activations/corpus-source/manifest.json": (inspect,),
    "begun/parts/part-00000.parquet": (evaluation,),
    "search.json": (inspect,),
    "selection.json": (inspect,),
    "texts.parquet": (inspect,),
    "contrans.json": (inspect,),
    "map.safetensors": (inspect,),
    "v.gguf": (inspect,),
    "llama.gguf": (inspect,),
    "v.pt": (inspect,),
    "v.npy": (inspect,),
    "v.npy.about.json": (inspect,),
    "v.safetensors": (inspect,),
    "lens.json": (inspect,),
    "neuron.json": (inspect,),
    "claimed/.claim-z.json": (claim,),
    "listed/model.safetensors.index.json": (model,),
    "listed/part.safetensors": (model,),
    "listed/config.json": (model,),
    "listed/generation_config.json": (model,),
    "listed/tokenizer_config.json": (model,),
    "listed/tokenizer.json": (model,),
}


def _content(path: Path) -> st.SearchStrategy[bytes]:
    """The file with its bytes changed and, where it is JSON or YAML, its values."""
    data = path.read_bytes()[:MOST]
    if path.suffix not in (".json", ".yaml"):
        return spoilt(data)
    return spoilt(data) | mutated(yaml.safe_load(data) if path.suffix == ".yaml" else json.loads(data))


def _fuzz(path: Path, readers: tuple[Read, ...], most: int) -> None:
    whole = path.read_bytes()

    @settings(
        max_examples=most, deadline=None, derandomize=most == FEW, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(_content(path))
    def run(found: bytes) -> None:
        path.write_bytes(found)
        for read in readers:
            said = ""
            try:
                read(path)
            except UserError as error:
                said = str(error)
            assert "\n" not in said
            said.encode()

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        run()
    finally:
        path.write_bytes(whole)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES << 10


@pytest.mark.parametrize("name", READERS)
def test_every_file_is_read_or_refused(name: str, there: Path) -> None:
    _fuzz(there / name, READERS[name], FEW)


@pytest.mark.long
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", READERS)
def test_every_file_is_read_or_refused_at_length(name: str, there: Path) -> None:
    _fuzz(there / name, READERS[name], MANY)


def test_a_comparison_of_a_spoilt_recipe_is_made_or_refused(there: Path) -> None:
    def comparison(path: Path) -> None:
        write_comparison([Location.parse(there / "run")], Location.parse(path.parent))

    _fuzz(there / "two/recipe.yaml", (comparison,), 3)
