"""Vectors, maps, metrics and a run's files that are damaged or hostile: one line, or a page without them."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

from contrans_dist.errors import UserError
from contrans_dist.evaluation.analysis import Evaluation, judge, read_evaluation, read_run
from contrans_dist.mapping.map_set import MapSet
from contrans_dist.pipeline.inspection import inspected
from contrans_dist.pipeline.status import status_of
from contrans_dist.report import write_report
from contrans_dist.report.answers import answers_table
from contrans_dist.report.examples import examples_of
from contrans_dist.report.parts import Table
from contrans_dist.store.location import Location
from contrans_dist.store.results import RunFile
from contrans_dist.vectors.concept_vector import ConceptVector
from tests.commands import run
from tests.mapping.test_map_set import fitted, vector
from tests.runfolder import write_run

Change = Callable[[dict[str, Any]], Any]


def refused(work: Callable[[], Any], *said: str) -> None:
    with pytest.raises(UserError) as caught:
        work()
    assert "\n" not in str(caught.value)
    for line in said:
        assert line in str(caught.value), str(caught.value)


def raw(path: Path, head: Any, data: bytes = b"") -> Path:
    """A safetensors file from its parts, whatever they say."""
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def taken_apart(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def put(*keys: Any) -> Callable[[dict[str, Any]], None]:
    """A change of one entry: `put("a", 0, "b", value)`."""

    def change(content: Any) -> None:
        for key in keys[:-2]:
            content = content[key]
        content[keys[-2]] = keys[-1]

    return change


def remove(*keys: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return change


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A real vector file (with a shuffled control) and a real map file."""
    files = {"vector": tmp_path / "joy.safetensors", "map": tmp_path / "map.safetensors"}
    fitted().carry(vector(), "match", (3, 4)).save(Location.parse(files["vector"]))
    fitted().save(Location.parse(files["map"]))
    return files


LOADS: dict[str, Callable[[str], Any]] = {"vector": ConceptVector.load, "map": MapSet.load}


# -- the safetensors format --------------------------------------------------------------------------


def test_a_vector_file_cut_at_any_byte_is_one_line(files: dict[str, Path]) -> None:
    path = files["vector"]
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        refused(lambda: ConceptVector.load(str(path)), "joy.safetensors: ")
        refused(lambda: inspected(Location.parse(path)).content, "joy.safetensors: ")
    path.write_bytes(whole + b"\0")
    refused(lambda: ConceptVector.load(str(path)), "joy.safetensors: the file is damaged")


@pytest.mark.parametrize("kind", ["vector", "map"])
@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"dtype": "F32", "shape": [2**33, 0], "data_offsets": [0, 0]}, "dimensions of at least 1"),
        ({"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 0]}, "bytes, it has 0"),
        ({"dtype": "F32", "shape": [-1, 4], "data_offsets": [0, 16]}, "dimensions of at least 1"),
        ({"dtype": "F32", "shape": [1.0, 4], "data_offsets": [0, 16]}, "dimensions of at least 1"),
        ({"dtype": "F32", "shape": 4, "data_offsets": [0, 16]}, "dimensions of at least 1"),
        ({"dtype": "F32", "shape": [1, 4], "data_offsets": [0, 2**62]}, "needs 16 bytes"),
        ({"dtype": "F32", "shape": [1, 4], "data_offsets": [16, 0]}, "needs 16 bytes"),
        ({"dtype": "F32", "shape": [1, 4], "data_offsets": [8, 24]}, "the file is damaged"),
        ({"dtype": "F32", "shape": [1, 4]}, "data_offsets: expected two numbers"),
        ({"dtype": "F31", "shape": [1, 4], "data_offsets": [0, 16]}, "dtype: expected one of"),
        ({"dtype": ["F32"], "shape": [1, 4], "data_offsets": [0, 16]}, "dtype: expected one of"),
        ([], "dtype: expected one of"),
    ],
)  # fmt: skip
def test_shapes_and_places_are_held_against_the_file(
    kind: str, entry: Any, said: str, tmp_path: Path
) -> None:
    metadata = {"contrans": json.dumps({"kind": kind})}
    path = raw(tmp_path / "x.safetensors", {"__metadata__": metadata, "vector": entry}, bytes(16))
    refused(lambda: LOADS[kind](str(path)), "x.safetensors: ", said)
    refused(lambda: inspected(Location.parse(path)).content, "x.safetensors: ", said)


def test_tensors_that_overlap_are_refused(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [1, 4], "data_offsets": [0, 16]}
    head = {"__metadata__": {"contrans": json.dumps({"kind": "vector"})}, "vector": entry, "other": entry}
    path = raw(tmp_path / "x.safetensors", head, bytes(32))
    refused(lambda: ConceptVector.load(str(path)), "the file is damaged")


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"", "expected JSON"),
        (b"[]", "written by contrans"),
        (b"[" * 100_000, "lists in lists without end"),
        (b'{"a":' * 100_000, "lists in lists without end"),
        (b"\xff\xfe", "expected JSON"),
        (b'{"__metadata__": {}}', "written by contrans"),
        (b'{"__metadata__": 5}', "written by contrans"),
        (b'{"__metadata__": {"contrans": 5}}', "written by contrans"),
        (b'{"__metadata__": {"contrans": "[]"}}', "header: expected a JSON object"),
        (b'{"__metadata__": {"contrans": "{\\"kind\\": [1]}"}}', "this is a foreign file"),
        (b'{"__metadata__": {"contrans": "{\\"kind\\": NaN}"}}', "expected JSON"),
    ],
    ids=range(11),
)
def test_heads_that_are_none(head: bytes, said: str, tmp_path: Path) -> None:
    path = raw(tmp_path / "x.safetensors", head)
    refused(lambda: ConceptVector.load(str(path)), "x.safetensors: ", said)
    refused(lambda: MapSet.load(str(path)), "x.safetensors: ", said)
    refused(lambda: inspected(Location.parse(path)).content, "x.safetensors: ", said)


def test_a_head_longer_than_the_file_or_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes((2**63).to_bytes(8, "little") + b"{}")
    refused(lambda: ConceptVector.load(str(path)), "found 10 bytes, no whole head")
    with path.open("wb") as stream:  # sparse: nothing is written
        stream.write((2**31).to_bytes(8, "little"))
        stream.truncate(2**31 + 8)
    refused(lambda: ConceptVector.load(str(path)), "header: 2,147,483,648 bytes, expected at most")


# -- what headers say --------------------------------------------------------------------------------

VECTOR_HEADERS: list[tuple[Change, str]] = [
    (remove("concept"), "missing key 'concept'"),
    (put("concept", 5), "header: concept: "),
    (put("model", None), "header: model: "),
    (put("n_positive", -1), "header: n_positive: "),
    (put("n_negative", "many"), "header: n_negative: "),
    (put("norms", [1]), "header: norms: "),
    (put("norms", {"x": 1.0}), "header: norms"),
    (put("norms", {"5": 1.0}), "header: norms: block 5 of 5"),
    (put("norms", {"1": -1.0}), "header: norms.1: "),
    (put("norms", {"1": "x"}), "header: norms.1: "),
    (put("blocks", [0]), "blocks: the header names [0], the tensor carries [4]"),
    (put("blocks", "all"), "header: blocks: "),
    (put("steps", "x"), "header: steps: "),
    (put("format", 2), "header: format: "),
]
MAP_HEADERS: list[tuple[Change, str]] = [
    (remove("pairs"), "missing key 'pairs'"),
    (put("pairs", []), "header: pairs: "),
    (put("pairs", {}), "header: pairs: "),
    (remove("pairs", 0, "source"), "missing key 'pairs.0.source'"),
    (put("pairs", 0, "source", -1), "header: pairs.0.source: "),
    (put("pairs", 0, "source", 2), "tensor 'weight.2.2' is missing"),
    (put("pairs", 0, "target", 5), "not 5"),
    (put("pairs", 0, "n_fit", "x"), "header: pairs.0.n_fit: "),
    (put("pairs", 0, "ridge", "x"), "header: pairs.0.ridge: "),
    (put("pairs", 0, "warnings", "x"), "header: pairs.0.warnings: "),
    (put("pairs", 0, "cosines", {"joy": "x"}), "header: pairs.0.cosines.joy: "),
    (put("pairs", 0, "source_blocks", []), "header: pairs.0.source_blocks: "),
    (put("pairs", 0, "source_blocks", [0, 2]), "source_blocks [0, 2]"),
    (put("pairs", 0, "source_blocks", [0, 1, 2, 1]), "source_blocks [0, 1, 2, 1]"),
    (lambda content: content["pairs"].append(content["pairs"][0]), "pairs of blocks, each once"),
    (put("n_target_blocks", 0), "header: n_target_blocks: "),
    (put("n_target_blocks", 10**12), "header: n_target_blocks: "),
    (put("target_norms", {"9": 1.0}), "not 9"),
    (put("source_norms", 5), "header: source_norms: "),
    (put("r2_table", "r2", [[0.1]]), "header: r2_table: expected a row a source block"),
    (put("r2_table", []), "header: r2_table: "),
    (put("selection", {"chosen": [1]}), "missing key 'selection.chosen.1'"),
    (
        put("selection", {"candidates": [{"source": 1, "strength": 1, "score": 1}]}),
        "missing key 'selection.candidates.0.target'",
    ),
    (put("source_model", {}), "header: source_model: "),
]


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        *(("vector", *case) for case in VECTOR_HEADERS),
        *(("map", *case) for case in MAP_HEADERS),
    ],
)
def test_every_field_of_a_header_is_held_against_the_rest(
    kind: str, change: Change, said: str, files: dict[str, Path]
) -> None:
    head, data = taken_apart(files[kind])
    header = json.loads(head["__metadata__"]["contrans"])
    change(header)
    head["__metadata__"]["contrans"] = json.dumps(header)
    raw(files[kind], head, data)
    refused(lambda: LOADS[kind](str(files[kind])), f"{files[kind].name}: ", said)


@pytest.mark.parametrize(
    ("kind", "name", "value", "said"),
    [
        ("vector", "vector", np.full((5, 4), np.nan, np.float32), "'vector': expected finite numbers"),
        ("vector", "vector", np.full((5, 4), np.inf, np.float32), "'vector': expected finite numbers"),
        ("vector", "vector", np.zeros((5, 4), np.float16), "expected 2 dimensions of F32"),
        ("vector", "vector", np.zeros(20, np.float32), "expected 2 dimensions of F32"),
        ("vector", "vector", None, "tensor 'vector' is missing"),
        ("vector", "shuffled_map", np.zeros((4, 5), np.float32), "expected shape [5, 4], found [4, 5]"),
        ("vector", "text_hashes", np.zeros(3, np.float32), "expected 1 dimensions of I64"),
        ("map", "weight.1.2", np.full((6, 4), np.nan, np.float32), "'weight.1.2': expected finite numbers"),
        ("map", "weight.1.2", np.zeros((6, 3), np.float32), "'bias.1.2': expected shape [3], found [4]"),
        ("map", "weight.1.2", None, "tensor 'weight.1.2' is missing"),
        ("map", "bias.3.4", None, "tensor 'bias.3.4' is missing"),
        ("map", "shuffled.3.4", np.zeros((4, 6), np.float32), "'shuffled.3.4': expected shape [6, 4]"),
        ("map", "text_hashes", np.zeros((3, 1), np.int64), "expected 1 dimensions of I64"),
    ],
)  # fmt: skip
def test_every_tensor_is_held_against_the_header(
    kind: str, name: str, value: Any, said: str, files: dict[str, Path]
) -> None:
    head, _ = taken_apart(files[kind])
    tensors = load_file(files[kind])
    tensors.pop(name, None)
    if value is not None:
        tensors[name] = value
    save_file(tensors, files[kind], metadata=head["__metadata__"])
    refused(lambda: LOADS[kind](str(files[kind])), f"{files[kind].name}: ", said)


def test_maps_of_two_widths_are_refused(files: dict[str, Path]) -> None:
    head, _ = taken_apart(files["map"])
    tensors = load_file(files["map"]) | {
        "weight.1.2": np.ones((7, 3), np.float32), "bias.1.2": np.ones(3, np.float32),
    }  # fmt: skip
    save_file(tensors, files["map"], metadata=head["__metadata__"])
    refused(lambda: MapSet.load(str(files["map"])), "maps between the same two widths")


# -- through the commands ----------------------------------------------------------------------------


def damages(path: Path) -> dict[str, Callable[[], Any]]:
    """What may be found where a file should be."""
    data = path.read_bytes()
    return {
        "cut": lambda: path.write_bytes(data[: len(data) // 2]),
        "empty": lambda: path.write_bytes(b""),
        "noise": lambda: path.write_bytes(np.random.default_rng(0).bytes(200)),
        "zeros": lambda: path.write_bytes(bytes(200)),
        "list": lambda: path.write_bytes(b"[1, 2]"),
        "deep": lambda: path.write_bytes(b"[" * 200_000),
        "nan": lambda: path.write_bytes(b'{"a": NaN}'),
        "bytes": lambda: path.write_bytes(b'{"a": "\xff"}'),
        "folder": path.mkdir,
        "loop": lambda: os.symlink(path.name, path),
        "pipe": lambda: os.mkfifo(path),
    }


@pytest.mark.parametrize("damage", list(damages(Path(__file__))))
def test_every_command_refuses_damaged_vectors_and_maps(
    damage: str, files: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plain = tmp_path / "plain.safetensors"
    vector().save(Location.parse(plain))
    for kind, path in files.items():
        whole = path.read_bytes()
        spoil = damages(path)[damage]
        path.unlink()
        spoil()
        out = ["--out", tmp_path / "o.safetensors"]
        run(capsys, "inspect", path).refused(path.name)
        run(capsys, "status", path).refused(path.name)
        run(capsys, "report", path).refused(path.name)
        run(capsys, "transplant", "--vector", path, "--map", path, *out).refused(path.name)
        if kind == "vector":
            run(capsys, "generate", "--model", "demo:target", "--vector", path, "x").refused(path.name)
            scored = ["--benchmark", "perplexity", "--data", __file__, "--out", tmp_path / "e"]
            run(capsys, "evaluate", "--model", "demo:target", *scored, "--vector", path).refused(path.name)
            given = ["--map", files["map"], "--blocks", "3:4"]
            run(capsys, "transplant", "--vector", plain, *given, "--own", path, *out).refused(path.name)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        path.write_bytes(whole)
    assert not (tmp_path / "o.safetensors").exists()


def test_places_where_no_file_can_be(capsys: pytest.CaptureFixture[str], files: dict[str, Path]) -> None:
    plain = files["vector"].parent / "plain.safetensors"
    vector().save(Location.parse(plain))
    given = ["transplant", "--vector", plain, "--map", files["map"], "--blocks", "3:4", "--out"]
    run(capsys, *given[:-2], "\u00b2:\u00b3", *given[-1:], plain).refused("expected source:target")
    run(capsys, *given, plain.parent).refused("expected a place for a file, there is a folder")
    run(capsys, *given, plain / "o.safetensors").refused("cannot be written")


def test_what_comes_out_of_a_map_is_finite_and_something(files: dict[str, Path]) -> None:
    maps, given = fitted(), vector()
    maps.maps[3, 4].weight[:] = 0
    refused(lambda: maps.carry(given, "keep", (3, 4)), "'joy': the map takes it to nothing")
    maps.maps[3, 4].weight[:] = 3e38
    given.values[:] = 1e30
    refused(lambda: maps.carry(given, "keep", (3, 4)), "'joy': the map takes it to nothing, or beyond")
    maps.target_norms.clear()
    refused(lambda: maps.carry(given, "match", (3, 4)), "'joy': norm 'match' needs the median residual norms")


# -- a run's files -----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", concepts=("anger", "fear"))


EVALUATION = "evaluations/emotions"


# A link that ends in itself is as good as nothing.
DAMAGES = [damage for damage in damages(Path(__file__)) if damage != "loop"]
OPTIONAL = (
    "run.json", f"{EVALUATION}/results.parquet", f"{EVALUATION}/examples.parquet",
    f"{EVALUATION}/tokens.parquet", "maps/corpus.safetensors", "vectors/vector/vector-0.safetensors",
    "analyses/states-source.parquet",
)  # fmt: skip


def spoilt(path: Path, damage: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    spoil = damages(path)[damage]
    path.unlink()
    spoil()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_page_goes_without_what_is_damaged_and_names_it(
    damage: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in OPTIONAL:
        spoilt(folder / name, damage)
    output = run(capsys, "report", folder)
    assert (output.code, output.err) == (0, "")
    page = (folder / "report.html").read_text()
    assert "Token Acc" in page
    for name in OPTIONAL:
        assert f"/{name}: " in page, name
    state = run(capsys, "status", folder)
    assert (state.code, state.err) == (0, "")
    run(capsys, "inspect", folder).refused("run.json: ")


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_metrics_and_recipes_are_one_line(
    damage: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(folder / "activations")
    shutil.rmtree(folder / "maps")
    spoilt(folder / EVALUATION / "metrics.json", damage)
    for command, place in (
        ("report", folder),
        ("report", folder / EVALUATION),
        ("inspect", folder / EVALUATION),
    ):
        run(capsys, command, place).refused("metrics.json: ")
    state = run(capsys, "status", folder)
    assert (state.code, state.err) == (0, "")
    assert "damaged (metrics.json: " in state.out
    if damage not in ("empty", "nan"):  # these are YAML
        spoilt(folder / "recipe.yaml", damage)
        run(capsys, "report", folder).refused("recipe.yaml: ")


def changed(path: Path, change: Change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


METRICS: list[tuple[Change, str]] = [
    (remove("benchmark"), "missing key 'benchmark'"),
    (put("model", 5), "model: "),
    (put("conditions", {}), "conditions: "),
    (put("conditions", [5]), "conditions.0: "),
    (put("conditions", 0, "strength", "x"), "conditions.0.strength: "),
    (put("conditions", 0, "metrics", []), "conditions.0.metrics: "),
    (put("conditions", 0, "metrics", {"a": 5}), "conditions.0.metrics.a: "),
    (put("conditions", 0, "metrics", {"a": {"value": "x"}}), "conditions.0.metrics.a.value: "),
    (put("conditions", 0, "metrics", {"a": {"value": 1, "n": -1}}), "conditions.0.metrics.a.n: "),
    (put("conditions", 0, "p_vs", {"random": [1]}), "conditions.0.p_vs.random: "),
    (put("conditions", 0, "p_vs_elsewhere", {"random": {"x": {}}}), "conditions.0.p_vs_elsewhere.random"),
    (put("block", -1), "block: "),
    (put("notes", "x"), "notes: "),
    (put("costs", {"target": 5}), "costs.target: "),
    (put("costs", {"target": {"rows": "x"}}), "costs.target.rows: "),
    (put("leak", {"evaluated": "x"}), "leak.evaluated: "),
    (put("rows", [1]), "rows: "),
    (put("tasks", {"a": 1}), "tasks.a: "),
    (put("identity", [1]), "identity: "),
    (put("conditions", [{"condition": "vector", "strength": 1, "metrics": {}}] * 5001), "conditions: 5,001"),
]


@pytest.mark.parametrize(("change", "said"), METRICS)
def test_metrics_of_another_form(
    change: Change, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed(folder / EVALUATION / "metrics.json", change)
    for command in ("report", "status", "inspect"):
        run(capsys, command, folder / EVALUATION).refused(f"metrics.json: {said}")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put("name", 5), "name: "),
        (put("stages", [5]), "stages.0: "),
        (put("stages", [{"name": "a", "seconds": "x"}]), "stages.0.seconds: "),
        (put("versions", ["a"]), "versions: "),
        (put("activations", ["a"]), "activations: "),
        *(
            (put("activations", {"a": place}), "activations.a: expected a folder in the common activations/")
            for place in ("/etc", "../../../../activations/a", "../activations/../x", "../activations/..",
                          "../elsewhere/x", "s3://bucket/activations/x", "activations/a/b", "../activations/")
        ),
    ],
)  # fmt: skip
def test_a_record_of_another_form_or_that_leads_elsewhere(change: Change, said: str, folder: Path) -> None:
    changed(folder / "run.json", change)
    finished = read_run(Location.parse(folder))
    assert any(f"run.json: {said}" in problem for problem in finished.problems), finished.problems
    assert finished.record == RunFile()


def test_common_activations_are_still_found(folder: Path) -> None:
    (folder / "activations").rename(folder.parent / "activations")
    changed(folder / "run.json", put("activations", {"contrast-target": "../activations/contrast-target"}))
    write_report(Location.parse(folder))
    assert "<h2>Harvests</h2>" in (folder / "report.html").read_text()


def answers(evaluation: Evaluation) -> Table | None:
    """As the page shows them at strength 1."""
    verdict = judge(evaluation, evaluation.metrics[0], 1.0)
    assert verdict is not None
    return answers_table(evaluation, verdict)


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("strength", ["strong"], "column 'strength': expected number values, found string"),
        ("concept", [[1]], "column 'concept': expected text values"),
        ("argmax_text", [5], "column 'argmax_text': expected text values"),
        ("kind", [b"\xff"], "column 'kind': expected text values"),
    ],
)
def test_rows_of_another_form(column: str, values: list[Any], said: str, folder: Path) -> None:
    path = folder / EVALUATION / "results.parquet"
    table = pq.read_table(path)
    place = table.schema.get_field_index(column)
    pq.write_table(table.set_column(place, column, pa.array(values * table.num_rows)), path)
    evaluation = read_evaluation(Location.parse(path.parent))
    refused(lambda: answers(evaluation), f"results.parquet: {said}")


def test_rows_with_gaps_and_without_columns(folder: Path) -> None:
    path = folder / EVALUATION / "results.parquet"
    rows = pq.read_table(path).to_pylist()
    for i, row in enumerate(rows):
        for name in ("concept", "argmax_text", "strength", "condition"):
            row[name] = None if i % 3 == 0 else row[name]
        row["strength"] = float("nan") if i % 5 == 0 else row["strength"]
    pq.write_table(pa.Table.from_pylist(rows), path)
    evaluation = read_evaluation(Location.parse(path.parent))
    table = answers(evaluation)
    assert table is not None
    assert [row[0].text for row in table.rows] == ["anger", "fear"]
    pq.write_table(pa.Table.from_pylist(rows).select(["concept"]), path)
    assert answers(evaluation) is None
    verdict = judge(evaluation, evaluation.metrics[0], 1.0)
    assert verdict is not None
    assert examples_of(evaluation, verdict) == []


def test_rows_that_expand_beyond_the_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / EVALUATION / "results.parquet"
    table = pq.read_table(path)
    place = table.schema.get_field_index("argmax_text")
    big = pa.array(["x" * 100_000] * table.num_rows)
    pq.write_table(table.set_column(place, "argmax_text", big), path, compression="zstd")
    assert path.stat().st_size < 200_000
    monkeypatch.setattr("contrans_dist.store.tables.RESULT_BYTES", 10 << 20)
    evaluation = read_evaluation(Location.parse(path.parent))
    refused(lambda: answers(evaluation), "results.parquet: ", "expected at most")


BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 10)}]\n" for i in range(9)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "values, expected at most"),
        ("a: &a [*a]\n", "an anchor that holds itself"),
        ("[" * 50_000, "expected YAML"),
        ("- " * 50_000, "expected YAML"),
        ("x" * 300_000, "bytes, expected at most"),
        ("evaluations: [1]\n", "evaluations: expected a mapping"),
        ("runs: {1: {}}\n", "runs"),
        ("published: {source: 1}\n", "published"),
        ("a: 2020-13-45\n", "expected YAML"),
        ("a: !!python/object/apply:os.system [id]\n", "expected YAML"),
        ('a: "\\ud800"\n', "expected whole characters"),
        ("x", "expected a mapping"),
    ],
    ids=range(12),
)
def test_a_recipe_in_a_run_that_is_hostile(
    text: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "recipe.yaml").write_text(text)
    run(capsys, "report", folder).refused("recipe.yaml: ", said)


def test_strange_names_stay_text_on_the_page_and_inside_the_folder(tmp_path: Path) -> None:
    strange = ("<script>alert(1)</script>", "../../outside", "a\x1b[31mb\x00", "{{ 7*7 }}", "</svg>&\"'")
    folder = write_run(tmp_path / "run", concepts=strange)
    before = set(tmp_path.rglob("*"))
    write_report(Location.parse(folder))
    page = (folder / "report.html").read_text()
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "{{ 7*7 }}" in page
    assert page.count("</svg>") == page.count("<svg")
    written = set(tmp_path.rglob("*")) - before
    assert all(path.is_relative_to(folder) for path in written)


def test_hundreds_of_conditions_make_a_page(folder: Path) -> None:
    score = {"value": 0.5, "n": 4}

    def more(content: dict[str, Any]) -> None:
        content["conditions"] += [
            {"condition": f"from:{i}", "strength": s, "metrics": {"token_acc_negative": score}}
            for i in range(200) for s in (0.5, 1.0)
        ]  # fmt: skip

    changed(folder / EVALUATION / "metrics.json", more)
    write_report(Location.parse(folder))
    assert "From 199" in (folder / "report.html").read_text()


def test_a_folder_that_links_to_itself(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in ("runs", "activations", "evaluations", "vectors", "analyses"):
        (folder / place).mkdir(exist_ok=True)
        os.symlink("..", folder / place / "up")
        os.symlink("loop", folder / place / "loop")
    assert run(capsys, "status", folder).code == 0
    for command in ("report", "inspect"):
        ended = run(capsys, command, folder)
        assert ended.code in (0, 2), ended
        assert "unexpected" not in ended.err
    assert status_of(Location.parse(folder))[f"{EVALUATION}"] == "complete"
