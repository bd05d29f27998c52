"""What `contrans inspect` tells of every kind of artefact, on its lines and as JSON."""

import json
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from contrans_dist.report import write_report
from contrans_dist.store.location import Location
from contrans_dist.store.running import Running, tell
from contrans_dist.vectors.concept_vector import ConceptVector
from contrans_dist.vectors.exchange import export_vector
from contrans_dist.vectors.formats.foreign import Asked
from tests.commands import run
from tests.mapping.test_map_set import fitted, vector
from tests.runfolder import BLOCK, write_run
from tests.sets import make_set
from tests.tiny import save_tiny

Capture = pytest.CaptureFixture[str]
RUNNING = Running(
    stage="harvest", model="org/m", unit="texts", done=0, wanted=9, rate=0, tokens=0, actors=1, finished=0,
    lost=0, failed=0, host="here", process=1, told=datetime.now(UTC),
)  # fmt: skip
TOLD = {
    "run": ("run", ["source  demo:source", "concepts", "command  contrans run demo.yaml", "complete"]),
    "run/run.json": ("run", ["evaluations/emotions  complete"]),
    "run/report.html": ("report", ["which is  run", "title  demo · contrans report"]),
    "run/recipe.yaml": ("recipe", ["target  demo:target", "emotions: emotions"]),
    "run/evaluations/emotions": (
        "evaluation",
        ["model  demo:target", "token_acc_negative, vector  0.1 at 0.5, 0.35 at 1, 0.65 at 1.5, 0.8 at 2"],
    ),
    "run/evaluations/emotions/metrics.json": ("evaluation", ["benchmark  emotions"]),
    "run/evaluations/emotions/results.parquet": ("table", ["rows  2,520", "token_hit: bool"]),
    "run/evaluations": ("folder", ["emotions  evaluation"]),
    "run/maps": ("folder", ["corpus.safetensors  vector or map"]),
    "run/activations": ("folder", ["corpus-source  activations"]),
    "run/activations/corpus-source": (
        "activations",
        ["model  demo:source", "rows  90", "blocks  0 to 3", "of  4 blocks of 12", "contrans harvest"],
    ),
    "run/activations/corpus-source/manifest.json": ("activations", ["tokens  450"]),
    "run/activations/corpus-source/shard-00000.parquet": ("shard", ["rows  90 from row 0", "width  12"]),
    "half": ("activations", ["shards  1", "1 shard finished, not complete: run the same harvest again"]),
    "begun": (
        "evaluation",
        ["parts  1", "1 part finished, not complete: run the same evaluation again"],
    ),
    "under way": ("activations", ["model  org/m", "state  harvest: 0 of 9 texts, 1 actor; "]),
    "reduced": ("reduction", ["source model  org/source", "vectors/source  joy", "corpus, block 3 -> 4"]),
    "joy.safetensors": ("vector", ["concept  joy", "blocks  1, 3", "of  4 blocks of 6", "method  pca"]),
    "map.safetensors": ("map", ["target model  org/target", "block 3 -> 4  fitted on", "cosines: joy: 0.5"]),
    "search.json": ("search", ["criterion  mc1", "chosen  vector: 2"]),
    "selection.json": ("block choice", ["tried on  validation items", "chosen  block 4, strength 2"]),
    "texts.jsonl": ("texts", ["texts  2", "columns  text: string, label: string", "first  one"]),
    "texts.txt": ("texts", ["texts  2"]),
    "texts.parquet": ("texts", ["texts  1"]),
    "contrans.json": ("texts", ["texts  2", "label: string"]),
    "model": ("model", ["model_type  llama", "n_blocks  3", "d  32", "weights  sha256:"]),
    "v.gguf": ("steering", ["model  demo:target", "concept  joy", "blocks  4", "format  gguf"]),
    "v.pt": ("steering", ["hook points  layers.4", "strength  3 times the concept vector"]),
    "v.npy": ("steering", ["format  npy", "in values"]),
    "v.npy.about.json": ("steering", ["format  description"]),
    "v.safetensors": ("steering", ["format  safetensors", "tensors  block.4"]),
    "lens.json": ("steering", ["format  vllm-lens"]),
    "easy.json": ("steering", ["format  easysteer"]),
    "neuron.json": ("steering", ["format  neuronpedia"]),
    "foreign.npy": ("steering", ["rows  1", "width  6"]),
    "llama.gguf": ("model", ["architecture  llama", "blocks  2"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artefacts(tmp_path_factory.mktemp("artefacts"))


def make_artefacts(folder: Path) -> Path:
    """One of each kind, by the names in `TOLD`."""
    write_run(folder / "run")
    recipe = yaml.safe_load((folder / "run/recipe.yaml").read_text())
    recipe |= {"concepts": {"texts": "demo:contrast.jsonl"}}
    recipe["evaluations"]["emotions"]["benchmark"] = "emotions"
    (folder / "run/recipe.yaml").write_text(yaml.safe_dump(recipe))
    write_report(Location.parse(folder / "run"))
    make_set(folder / "half", {0: np.ones((5, 4))}, 1)
    (folder / "half/manifest.json").unlink()
    (folder / "under way").mkdir()
    tell(Location.parse(folder / "under way"), RUNNING)
    parts = folder / "begun/parts"
    parts.mkdir(parents=True)
    shutil.copy(folder / "run/evaluations/emotions/results.parquet", parts / "part-00000.parquet")
    vector().save(Location.parse(folder / "reduced/vectors/source/joy.safetensors"))
    fitted().save(Location.parse(folder / "reduced/maps/corpus.safetensors"))
    vector().save(Location.parse(folder / "joy.safetensors"))
    fitted().save(Location.parse(folder / "map.safetensors"))
    tried = {"condition": "vector", "strength": 2.0, "score": 0.5}
    search = {"criterion": "mc1", "higher": True, "candidates": [tried], "chosen": {"vector": 2.0}}
    choice = {"criterion": "mc1", "candidates": [{**tried, "block": 4}], "chosen": 4, "strength": 2.0}
    texts = {"search.json": search, "selection.json": choice, "contrans.json": {"pos": ["a"], "neg": ["b"]}}
    for name, content in texts.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "texts.jsonl").write_text('{"text": "one", "label": "a"}\n{"text": "two", "label": "b"}\n')
    (folder / "texts.txt").write_text("one\ntwo\n")
    pq.write_table(pa.table({"text": ["one"]}), folder / "texts.parquet")
    save_tiny(folder / "model", n_blocks=3)
    _exported(folder)
    return folder


def _exported(folder: Path) -> None:
    """The files of other tools, ours and some of theirs."""
    from gguf import GGUFWriter

    values = np.zeros((6, 160), np.float32)
    values[BLOCK] = 1
    joy = ConceptVector(values=values, concept="joy", model="demo:target", norms={BLOCK: 30.0})
    for name, kind in {
        "v.gguf": "gguf", "v.pt": "lm-eval", "v.npy": "npy", "v.safetensors": "safetensors",
        "lens.json": "vllm-lens", "easy.json": "easysteer", "neuron.json": "neuronpedia",
    }.items():  # fmt: skip
        export_vector(joy, Location.parse(folder / name), kind, None, 3.0, Asked(model_id="x"))
    table = np.zeros((3, 6))
    table[1] = 1
    np.save(folder / "foreign.npy", table)
    writer = GGUFWriter(folder / "llama.gguf", "llama")
    writer.add_block_count(2)
    writer.add_float32("llama.strange", float("nan"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


@pytest.mark.parametrize("name", TOLD)
def test_it_says_what_from_what_how_and_what_is_in_it(name: str, there: Path, capsys: Capture) -> None:
    kind, lines = TOLD[name]
    ended = run(capsys, "inspect", there / name)
    assert (ended.code, ended.err) == (0, "")
    first, *rest = ended.out.splitlines()
    assert first == f"kind   {kind}"
    told = [re.sub(" {2,}", "  ", line[7:]) for line in rest]
    for wanted in lines:
        assert any(wanted in line for line in told), (wanted, told)
    assert json.loads(run(capsys, "inspect", there / name, "--json").out)["kind"] == kind


def test_as_json_it_is_the_whole_file(there: Path, capsys: Capture) -> None:
    def whole(name: str) -> dict[str, Any]:
        content = json.loads(run(capsys, "inspect", there / name, "--json").out)
        assert isinstance(content, dict)
        return content

    manifest = json.loads((there / "run/activations/corpus-source/manifest.json").read_text())
    told = whole("run/activations/corpus-source")
    assert {key: told[key] for key in ("rows", "norms", "shards", "seal") if key in manifest} == {
        key: manifest[key] for key in ("rows", "norms", "shards", "seal") if key in manifest
    }
    metrics = json.loads((there / "run/evaluations/emotions/metrics.json").read_text())
    assert whole("run/evaluations/emotions")["leak"] == metrics["leak"]
    assert len(whole("run/evaluations/emotions")["conditions"]) == len(metrics["conditions"])
    assert whole("map.safetensors")["r2_table"]["r2"] == [[0.1, None], [0.3, 0.7]]
    assert whole("llama.gguf")["llama.strange"] == "nan"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.bin", b"1"), ("x.svg", b"<svg/>"), ("x.html", b"<p>x"), ("x.json", b'{"a": 1}'),
        ("x.json", b"[1"),
        ("x.pt", b"x"), ("x.npy", b"x"), ("x.gguf", b""), ("x.gguf", b"GGUF"), ("x.yaml", b"[1]"),
        ("x.parquet", b"PAR1"), ("x.txt", b"\xff"), ("x.safetensors", b""), ("empty", None),
    ],
)  # fmt: skip
def test_anything_else_is_refused_in_a_line(
    name: str, content: bytes | None, tmp_path: Path, capsys: Capture
) -> None:
    if content is None:
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_bytes(content)
    run(capsys, "inspect", tmp_path / name).refused(f"{tmp_path / name}")


def test_what_a_stranger_wrote_steers_no_terminal(there: Path, tmp_path: Path, capsys: Capture) -> None:
    content = json.loads((there / "search.json").read_text()) | {"criterion": "\x1b[31mred\x07\n\u202eback"}
    (tmp_path / "search.json").write_text(json.dumps(content))
    printed = run(capsys, "inspect", tmp_path / "search.json").out
    assert "criterion" in printed
    assert "\\x1b[31mred\\x07\\n\\u202eback" in printed
    assert not {"\x1b", "\x07", "\u202e"} & set(printed)
