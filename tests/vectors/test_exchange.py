"""Vectors as files of other tools: read back by others' readers or by the documented layout, and imported."""

import base64
import contextlib
import json
import struct
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from typer.main import get_command

import contrans_dist as ct
from contrans_dist.cli import app
from contrans_dist.errors import UserError
from contrans_dist.store.location import Location
from contrans_dist.vectors.exchange import export_vector, import_vector
from contrans_dist.vectors.formats import FORMATS
from contrans_dist.vectors.formats.foreign import Asked
from tests.commands import run
from tests.sets import make_set
from tests.store.test_fuzz_files import spoilt
from tests.tiny import save_tiny

N, D, BLOCK, STRENGTH = 4, 32, 2, 1.5
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("model"), "llama", n_blocks=N, d=D))


def made(model: str, *blocks: int) -> ct.ConceptVector:
    """A vector at these blocks."""
    values = np.zeros((N, D), np.float32)
    values[list(blocks)] = np.random.default_rng(3).normal(size=(len(blocks), D))
    norms = {block: 10.0 + block for block in range(N)}
    return ct.ConceptVector(values=values, concept="fear", model=model, norms=norms)


@pytest.fixture
def vector(model: str, tmp_path: Path) -> Path:
    """One that carries every block."""
    path = tmp_path / "fear.safetensors"
    made(model, *range(N)).save(Location.parse(path))
    return path


@pytest.fixture
def row(vector: Path) -> np.ndarray:
    return ct.ConceptVector.load(str(vector)).at(BLOCK)


def export(capsys: Capture, vector: Path, name: str, out: Path, *more: Any) -> dict[str, Any]:
    """What `contrans export --json` says of a file at BLOCK and STRENGTH."""
    arguments = ["--format", name, "--out", out, "--block", BLOCK, "--strength", STRENGTH, "--json", *more]
    ended = run(capsys, "export", "--vector", vector, *arguments)
    assert ended.code == 0, ended.err
    return dict(json.loads(ended.out))


def check_said(said: Any, model: str, row: np.ndarray, strength: float = STRENGTH, **others: Any) -> None:
    """What a file says of itself."""
    said = json.loads(said) if isinstance(said, str) else said
    expected = {
        "operation": "add", "site": "the residual stream as the block returns it", "blocks": [BLOCK],
        "strength": strength, "strength_unit": "times the concept vector", "positions": "all",
        "concept": "fear", "model": model, "n_blocks": N, "residual_norms": {str(BLOCK): 10.0 + BLOCK},
        **others,
    }  # fmt: skip
    assert {key: said[key] for key in expected} == expected
    share = strength * np.linalg.norm(row.astype(np.float64)) / (10.0 + BLOCK)
    assert said["share_of_residual_norm"][str(BLOCK)] == pytest.approx(share)
    assert {"contrans_dist", "created"} <= set(said)


# -- out -------------------------------------------------------------------------------------------------


def test_gguf(model: str, vector: Path, row: np.ndarray, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "fear.gguf"
    told = export(capsys, vector, "gguf", out)
    assert told["files"] == [str(out)]
    reader = GGUFReader(out)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "controlvector"
    assert fields["controlvector.model_hint"] == "llama"
    assert fields["controlvector.layer_count"] == 1
    assert fields["controlvector.method"] == "mean"
    check_said(fields["contrans"], model, row, strength_in="values")
    (tensor,) = reader.tensors
    assert (tensor.name, tensor.tensor_type.name, tensor.shape.tolist()) == (f"direction.{BLOCK}", "F32", [D])
    np.testing.assert_array_equal(tensor.data, np.float32(STRENGTH) * row)


def test_gguf_of_several_blocks(model: str, vector: Path, tmp_path: Path) -> None:
    whole = ct.ConceptVector.load(str(vector))
    export_vector(whole, Location.parse(tmp_path / "v.gguf"), "gguf", "1:")
    tensors = {tensor.name: tensor.data for tensor in GGUFReader(tmp_path / "v.gguf").tensors}
    assert list(tensors) == ["direction.1", "direction.2", "direction.3"]
    for block in range(1, N):
        np.testing.assert_array_equal(tensors[f"direction.{block}"], whole.at(block))


def test_lm_eval(model: str, vector: Path, row: np.ndarray, tmp_path: Path, capsys: Capture) -> None:
    """That the harness itself steers with it as our engine does is shown in benchmarks/test_lm_eval."""
    out = tmp_path / "fear.pt"
    export(capsys, vector, "lm-eval", out)
    content = torch.load(out, weights_only=True)
    (entry,) = content.values()
    assert list(content) == [f"layers.{BLOCK}"]
    assert entry["steering_vector"].dtype is torch.float32
    np.testing.assert_array_equal(entry["steering_vector"].numpy(), row)
    assert (entry["steering_coefficient"], entry["action"]) == (STRENGTH, "add")
    assert entry["bias"] is None
    assert entry["head_index"] is None
    check_said(entry["contrans"], model, row, strength_in="steering_coefficient")


@pytest.mark.parametrize(
    ("architecture", "named"),
    [("gpt2", "h.2"), ("opt", "decoder.layers.2"), ("llava", "language_model.layers.2")],
)
def test_hook_points_are_named_as_the_architecture_names_its_blocks(
    architecture: str, named: str, tmp_path: Path
) -> None:
    model = str(save_tiny(tmp_path / "model", architecture, n_blocks=N, d=D))
    export_vector(made(model, BLOCK), Location.parse(tmp_path / "v.pt"), "lm-eval")
    assert list(torch.load(tmp_path / "v.pt", weights_only=True)) == [named]


def test_vllm_lens(model: str, vector: Path, row: np.ndarray, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "fear.json"
    export(capsys, vector, "vllm-lens", out)
    content = json.loads(out.read_text())
    check_said(content.pop("contrans"), model, row, strength_in="scale")
    values = content.pop("activations")
    data = np.frombuffer(base64.b64decode(values.pop("data")), "<f4")
    np.testing.assert_array_equal(data.reshape(values["shape"]), row[None])
    assert values == {"dtype": "float32", "original_dtype": "torch.float32", "shape": [1, D]}
    assert content == {
        "layer_indices": [BLOCK], "scale": STRENGTH, "norm_match": False, "position_indices": None,
    }  # fmt: skip


def test_easysteer(model: str, vector: Path, row: np.ndarray, tmp_path: Path, capsys: Capture) -> None:
    out, named = tmp_path / "fear.json", tmp_path / "fear.gguf"
    told = export(capsys, vector, "easysteer", out)
    assert told["files"] == [str(out), str(named), f"{out}.about.json"]
    apply = {"prompt": "all", "generation": "all"}
    assert json.loads(out.read_text()) == {"steering": {"vectors": [{
        "source": str(named), "algorithm": "direct", "scale": STRENGTH, "layers": [BLOCK],
        "normalize": False, "apply": apply,
    }]}}  # fmt: skip
    reader = GGUFReader(named)
    np.testing.assert_array_equal(reader.tensors[0].data, row)  # the request has a field for the strength
    check_said(reader.fields["contrans"].contents(), model, row, 1.0, strength_in="values")
    check_said((tmp_path / "fear.json.about.json").read_text(), model, row, strength_in="scale")


@pytest.mark.parametrize(("hook", "layer"), [("hook_resid_pre", BLOCK + 1), ("hook_resid_post", BLOCK)])
def test_neuronpedia(
    hook: str, layer: int, model: str, vector: Path, row: np.ndarray, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "fear.json"
    more = [] if hook == "hook_resid_pre" else ["--hook", hook]
    export(capsys, vector, "neuronpedia", out, "--model-id", "tiny", *more)
    content = json.loads(out.read_text())
    np.testing.assert_array_equal(np.asarray(content.pop("vector"), np.float32), row)
    assert content == {
        "modelId": "tiny", "layerNumber": layer, "hookType": hook, "vectorLabel": "fear",
        "vectorDefaultSteerStrength": STRENGTH,
    }  # fmt: skip
    said = (tmp_path / "fear.json.about.json").read_text()
    check_said(said, model, row, strength_in="vectorDefaultSteerStrength")


def test_npy_and_safetensors(
    model: str, vector: Path, row: np.ndarray, tmp_path: Path, capsys: Capture
) -> None:
    export(capsys, vector, "npy", tmp_path / "fear.npy")
    table = np.load(tmp_path / "fear.npy")
    assert (table.dtype, table.shape) == (np.float32, (N, D))
    np.testing.assert_array_equal(table[BLOCK], np.float32(STRENGTH) * row)
    assert np.flatnonzero(table.any(axis=1)).tolist() == [BLOCK]
    check_said((tmp_path / "fear.npy.about.json").read_text(), model, row, strength_in="values")
    export(capsys, vector, "safetensors", tmp_path / "plain.safetensors")
    with safe_open(tmp_path / "plain.safetensors", "numpy") as file:
        assert list(file.keys()) == [f"block.{BLOCK}"]
        np.testing.assert_array_equal(file.get_tensor(f"block.{BLOCK}"), np.float32(STRENGTH) * row)
        check_said(file.metadata()["contrans"], model, row, strength_in="values")


def test_a_table_of_rows_has_all_of_them_unless_some_are_chosen(vector: Path, tmp_path: Path) -> None:
    whole = ct.ConceptVector.load(str(vector))
    export_vector(whole, Location.parse(tmp_path / "all.npy"), "npy")
    np.testing.assert_array_equal(np.load(tmp_path / "all.npy"), whole.values)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--format", "gguf", "--out", "v.gguf", "--block", "0"], "block 0 cannot be said in a GGUF"),
        (["--format", "gguf", "--out", "v.gguf", "--block", "all"], "block 0 cannot be said in a GGUF"),
        (["--format", "easysteer", "--out", "v.json", "--block", "0"], "block 0 cannot be said in a GGUF"),
        (["--format", "gguf", "--out", "v.gguf"], "carries blocks [0, 1, 2, 3]; say which with --block"),
        (["--format", "gguf", "--out", "v.gguf", "--block", "4"], "carries nothing at block 4"),
        (["--format", "gguf", "--out", "v.gguf", "--block", "x"], "--block x: expected all, a block"),
        (["--format", "gguf", "--out", "v.bin", "--block", "1"], "v.bin: expected a name that ends in .gguf"),
        (["--format", "ggu", "--out", "v.gguf"], "--format ggu: did you mean gguf?"),
        (["--format", "npy", "--out", "v.npy", "--strength", "0"], "--strength 0: expected a finite number"),
        (["--format", "npy", "--out", "v.npy", "--strength", "nan"], "--strength nan: expected a finite"),
        (["--format", "npy", "--out", "v.npy", "--strength", "1e39"], "--strength 1e+39: times block 0"),
        (["--format", "neuronpedia", "--out", "v.json", "--block", "1"], "--model-id is missing"),
        (["--format", "neuronpedia", "--out", "v.json", "--block", "3", "--model-id", "m"],
         "the last block cannot be said as hook_resid_pre"),
        (["--format", "neuronpedia", "--out", "v.json", "--block", "1,2", "--model-id", "m"],
         "--block: Neuronpedia takes one block, found 1, 2"),
        (["--format", "neuronpedia", "--out", "v.json", "--block", "1", "--model-id", "m", "--hook", "x"],
         "--hook x: expected one of hook_resid_pre, hook_resid_post"),
        (["--format", "neuronpedia", "--out", "v.json", "--block", "1", "--model-id", "m",
          "--strength", "301"], "--strength 301: Neuronpedia takes at most 300"),
        (["--format", "lm-eval", "--out", "v.pt", "--block", "1", "--model", "demo:source"],
         "--model demo:source: it has 4 blocks of 96, the vector is for 4 of 32"),
    ],
)  # fmt: skip
def test_what_a_format_cannot_say_is_refused(
    arguments: list[str], said: str, vector: Path, tmp_path: Path, capsys: Capture
) -> None:
    with contextlib.chdir(tmp_path):
        run(capsys, "export", "--vector", vector, *arguments).refused(said)
    assert [path.name for path in tmp_path.iterdir()] == ["fear.safetensors"]


def test_the_last_block_of_a_gguf_file_and_the_only_one_of_a_vector(model: str, tmp_path: Path) -> None:
    addition, _ = export_vector(made(model, N - 1), Location.parse(tmp_path / "v.gguf"), "gguf")
    assert addition.blocks == (N - 1,)
    assert GGUFReader(tmp_path / "v.gguf").tensors[0].name == f"direction.{N - 1}"


def test_the_help_names_every_format() -> None:
    command = get_command(app).commands["export"]  # type: ignore[attr-defined]
    told = next(option.help for option in command.params if "--format" in option.opts)
    assert [name for name in FORMATS if name not in told] == []


def test_formats_that_name_no_part_of_a_model_need_no_torch(vector: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from contrans_dist.vectors.concept_vector import ConceptVector\n"
        "from contrans_dist.vectors.exchange import export_vector, import_vector\n"
        "from contrans_dist.vectors.formats.foreign import Asked\n"
        "from contrans_dist.store.location import Location\n"
        f"vector, folder = ConceptVector.load({str(vector)!r}), Location.parse({str(tmp_path)!r})\n"
        "for name, end in [('npy', 'npy'), ('vllm-lens', 'json'), ('neuronpedia', 'json')]:\n"
        "    export_vector(vector, folder / f'x.{end}', name, '1', 2.0, Asked(model_id='m'))\n"
        "assert import_vector(folder / 'x.npy').blocks == [1]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- in --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fear.gguf", "fear.npy", "fear.pt"])
def test_what_was_exported_comes_back_as_what_it_does_at_strength_1(
    name: str, model: str, vector: Path, row: np.ndarray, tmp_path: Path, capsys: Capture
) -> None:
    kind = {".gguf": "gguf", ".npy": "npy", ".pt": "lm-eval"}[Path(name).suffix]
    export(capsys, vector, kind, tmp_path / name)
    ended = run(capsys, "import", tmp_path / name, "--out", tmp_path / "back.safetensors")
    assert ended.code == 0, ended.err
    back = ct.ConceptVector.load(str(tmp_path / "back.safetensors"))
    assert (back.concept, back.model, back.n_blocks, back.blocks) == ("fear", model, N, [BLOCK])
    np.testing.assert_array_equal(back.at(BLOCK), np.float32(STRENGTH) * row)
    assert back.norms == {BLOCK: 10.0 + BLOCK}
    assert back.method == "imported"
    assert back.steps == ("exported at strength 1.5 from fear", f"imported from {name} ({kind})")


def repengs(path: Path, rows: dict[int, np.ndarray], hint: str = "llama") -> Path:
    """A file as repeng writes it."""
    writer = GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", hint)
    writer.add_uint32("controlvector.layer_count", len(rows))
    for layer, values in rows.items():
        writer.add_tensor(f"direction.{layer}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_files_of_others_are_asked_for_what_they_do_not_say(
    model: str, vector: Path, tmp_path: Path, capsys: Capture
) -> None:
    rows = np.random.default_rng(0).normal(size=(2, D)).astype(np.float32)
    file = repengs(tmp_path / "joy.gguf", {1: rows[0], 3: rows[1].astype(np.float16)})
    command = ["import", file, "--out", tmp_path / "joy.safetensors"]
    run(capsys, *command).refused("--model is missing")
    run(capsys, *command, "--model", model).refused("--norms is missing: ", "joy.gguf does not say")
    ended = run(capsys, *command, "--model", model, "--norms", vector)
    assert ended.code == 0, ended.err
    joy = ct.ConceptVector.load(str(tmp_path / "joy.safetensors"))
    assert (joy.concept, joy.blocks, joy.n_blocks, joy.model) == ("joy", [1, 3], N, model)
    np.testing.assert_array_equal(joy.at(1), rows[0])
    np.testing.assert_array_equal(joy.at(3), rows[1].astype(np.float16).astype(np.float32))
    assert joy.norms == ct.ConceptVector.load(str(vector)).norms
    assert "the contamination check cannot look for them" in ended.err
    run(capsys, *command, "--model", model, "--block", 1).refused("says itself: [1, 3]")


def test_an_array_of_one_row_is_asked_for_its_block(model: str, tmp_path: Path, capsys: Capture) -> None:
    values = np.random.default_rng(1).normal(size=D)
    np.save(tmp_path / "row.npy", values)
    command = ["import", tmp_path / "row.npy", "--out", tmp_path / "row.safetensors", "--model", model]
    run(capsys, *command).refused("--block is missing")
    ended = run(capsys, *command, "--block", BLOCK, "--norms", "none", "--concept", "calm")
    assert ended.code == 0, ended.err
    calm = ct.ConceptVector.load(str(tmp_path / "row.safetensors"))
    assert (calm.concept, calm.blocks, calm.norms) == ("calm", [BLOCK], {})
    np.testing.assert_array_equal(calm.at(BLOCK), values.astype(np.float32))


def test_norms_come_from_an_activation_set(model: str, tmp_path: Path) -> None:
    np.save(tmp_path / "all.npy", np.asfortranarray(np.random.default_rng(1).normal(size=(N, D))))
    states = {block: np.random.default_rng(2).normal(size=(5, D)) for block in (0, 2)}
    rows = make_set(tmp_path / "set", states, n_blocks=N)
    back = import_vector(
        Location.parse(tmp_path / "all.npy"), Asked(model=model), norms=str(tmp_path / "set")
    )
    assert back.norms == rows.norms
    np.testing.assert_array_equal(back.values, np.load(tmp_path / "all.npy").astype(np.float32))


def hook_point(values: Any = None, **others: Any) -> dict[str, Any]:
    values = torch.ones(D) if values is None else values
    return {"steering_vector": values, "steering_coefficient": 2.0, "action": "add", **others}


def test_hook_points_of_others_become_blocks(model: str, tmp_path: Path) -> None:
    content = {"layers.1": hook_point(), "layers.3": hook_point(torch.ones(D, dtype=torch.bfloat16))}
    torch.save(content, tmp_path / "v.pt")
    back = import_vector(Location.parse(tmp_path / "v.pt"), Asked(model=model), norms="none")
    assert back.blocks == [1, 3]
    assert np.unique(back.values[[1, 3]]).tolist() == [2.0]


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("read",))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"layers.1": hook_point(Evil())}, "holds more than tensors and plain values (__builtin__ print)"),
        ({"layers.1": hook_point(bytearray(9))}, "holds more than tensors and plain values"),
        ({"layers.1": hook_point(torch.ones(3).to_sparse())}, "holds more than tensors and plain values"),
        ({"layers.1": hook_point(torch.ones(2, D))}, "steering_vector: expected one axis"),
        ({"layers.1": hook_point(torch.ones(1).expand(1 << 40))}, "steering_vector: expected one axis"),
        ({"layers.1": hook_point(torch.ones(D, dtype=torch.int64))}, "holds more than tensors"),
        ({"layers.1": hook_point(torch.ones(7))}, "it is 32 wide"),
        ({"layers.1": hook_point(torch.full([D], torch.inf))}, "block 1: expected finite numbers"),
        ({"layers.1": hook_point(action="clamp")}, "action: expected add, found 'clamp'"),
        ({"layers.1": hook_point(bias=torch.ones(D))}, "bias: expected none"),
        ({"layers.1": hook_point(head_index=1)}, "head_index: expected none"),
        ({"layers.1.mlp": hook_point()}, "'layers.1.mlp': no decoder block of"),
        ({"layers.1": 3}, "expected a dictionary with a steering_vector"),
        ({"layers.1": hook_point(contrans="x")}, "contrans: expected JSON"),
        ([1, 2], "expected hook points"),
        (OrderedDict(), "expected hook points"),
    ],
)
def test_hook_points_that_are_no_additions_are_refused(
    content: Any, said: str, model: str, tmp_path: Path, capsys: Capture
) -> None:
    torch.save(content, tmp_path / "v.pt")
    command = ["import", tmp_path / "v.pt", "--out", tmp_path / "v.safetensors"]
    ended = run(capsys, *command, "--model", model, "--norms", "none")
    ended.refused(said)
    assert "read" not in ended.out
    assert not (tmp_path / "v.safetensors").exists()


def test_archives_that_unfold_are_refused(model: str, tmp_path: Path, capsys: Capture) -> None:
    torch.save({"layers.1": hook_point(torch.zeros(1 << 20))}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as source, zipfile.ZipFile(tmp_path / "v.pt", "w") as packed:
        for name in source.namelist():
            packed.writestr(name, source.read(name), zipfile.ZIP_DEFLATED)
    command = ["import", tmp_path / "v.pt", "--out", tmp_path / "v.safetensors", "--model", model]
    run(capsys, *command).refused("expected a file that torch.save wrote")


def gguf_bytes(*fields: bytes, n_tensors: int = 0, n_fields: int | None = None) -> bytes:
    """A GGUF file's head, byte by byte."""
    count = len(fields) if n_fields is None else n_fields
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, count) + b"".join(fields)


def key(name: str, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + value


NAMED = key("general.architecture", 8, struct.pack("<Q", 13) + b"controlvector")


def one_tensor(d: int, kind: int) -> bytes:
    """The head of a file with one tensor, and nothing behind it."""
    return gguf_bytes(NAMED, key("direction.1", 1, struct.pack("<QIQ", d, kind, 0)), n_tensors=1, n_fields=1)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "ends within its head"),
        (b"GGML" + bytes(40), "expected a GGUF file"),
        (gguf_bytes(n_fields=1 << 60), "its keys: 1,152,921,504,606,846,976"),
        (gguf_bytes(n_tensors=1 << 60), "its tensors: 1,152,921,504,606,846,976"),
        (gguf_bytes(key("x", 9, struct.pack("<IQ", 0, 1 << 62))), "ends within its head"),
        (gguf_bytes(key("x", 9, struct.pack("<IQ", 8, 1 << 62))), "ends within its head"),
        (gguf_bytes(key("x", 9, struct.pack("<IQ", 9, 1))), "a key of a kind that is not known"),
        (gguf_bytes(key("x", 8, struct.pack("<Q", 1 << 40))), "ends within its head"),
        (gguf_bytes(key("general.architecture", 8, struct.pack("<Q", 5) + b"llama")), "is 'llama'"),
        (gguf_bytes(NAMED), "found none but zeros"),
        (gguf_bytes(key("general.alignment", 4, struct.pack("<I", 0)), NAMED), "general.alignment"),
        (one_tensor(1 << 40, 0), "expected one axis of float32"),
        (one_tensor(32, 2), "expected one axis of float32 or float16, found [32] of type 2"),
        (one_tensor(32, 0), "lies behind the end of the file"),
    ],
)
def test_gguf_files_that_lie_are_refused_at_once(
    data: bytes, said: str, model: str, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "v.gguf").write_bytes(data)
    began = time.process_time()
    command = ["import", tmp_path / "v.gguf", "--out", tmp_path / "v.safetensors", "--model", model]
    run(capsys, *command, "--norms", "none").refused(said)
    assert time.process_time() - began < 30


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.ones((N + 1, D)), "rows for 5 blocks, "),
        (np.ones((N, D + 1)), "it is 32 wide"),
        (np.ones((N, D), np.int64), "expected an array of floating-point numbers"),
        (np.ones((N, D, 1)), "expected an array of floating-point numbers"),
        (np.zeros((N, D)), "found none but zeros"),
        (np.full((N, D), np.nan), "block 0: expected finite numbers"),
    ],
)
def test_arrays_that_are_no_vectors_are_refused(
    array: np.ndarray, said: str, model: str, tmp_path: Path, capsys: Capture
) -> None:
    np.save(tmp_path / "v.npy", array)
    command = ["import", tmp_path / "v.npy", "--out", tmp_path / "v.safetensors", "--model", model]
    run(capsys, *command, "--norms", "none").refused(said)


def test_an_array_that_names_more_than_it_holds_is_refused(
    model: str, tmp_path: Path, capsys: Capture
) -> None:
    header = {"descr": "<f8", "fortran_order": False, "shape": (4, 1 << 18)}
    with (tmp_path / "v.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
    command = ["import", tmp_path / "v.npy", "--out", tmp_path / "v.safetensors", "--model", model]
    run(capsys, *command).refused("the file is damaged")


def test_files_for_another_model_and_of_no_known_kind_are_refused(
    model: str, vector: Path, tmp_path: Path, capsys: Capture
) -> None:
    file = repengs(tmp_path / "joy.gguf", {1: np.ones(D, np.float32)}, "qwen2")
    out = ["--out", tmp_path / "v.safetensors"]
    run(capsys, "import", file, *out, "--model", model).refused("of type llama, ", "is for qwen2")
    beyond = repengs(tmp_path / "far.gguf", {9: np.ones(D, np.float32)})
    more = [*out, "--model", model, "--norms", "none"]
    run(capsys, "import", beyond, *more).refused("block 9: the model has blocks 0 to 3")
    run(capsys, "import", vector, *out).refused("expected a name that ends in .gguf, .pt, .pth, .npy")
    run(capsys, "import", vector, *out, "--format", "easysteer").refused("--format easysteer: is not read")
    run(capsys, "import", tmp_path / "no.gguf", *out).refused("no such file")
    near = repengs(tmp_path / "near.gguf", {1: np.ones(D, np.float32)})
    other = tmp_path / "other.safetensors"
    ct.ConceptVector(values=np.ones((N, 8), np.float32), concept="x", model="m").save(Location.parse(other))
    ended = run(capsys, "import", near, *out, "--model", model, "--norms", other)
    ended.refused("of a model of 4 blocks of 8, this vector is for 4 of 32")


@pytest.fixture(scope="module")
def exported(model: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exported")
    for name, kind in [("v.gguf", "gguf"), ("v.pt", "lm-eval"), ("v.npy", "npy")]:
        export_vector(made(model, 1, BLOCK), Location.parse(folder / name), kind, "all")
    (folder / "spoilt-v.npy.about.json").write_bytes((folder / "v.npy.about.json").read_bytes())
    return {name: folder / name for name in ("v.gguf", "v.pt", "v.npy")}


@pytest.mark.parametrize("name", ["v.gguf", "v.pt", "v.npy"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_spoilt_files_are_refused_in_one_line_or_give_a_vector(
    name: str, exported: dict[str, Path], data: st.DataObject
) -> None:
    path = exported[name].with_name(f"spoilt-{name}")
    path.write_bytes(data.draw(spoilt(exported[name].read_bytes())))
    with contextlib.suppress(UserError):
        assert np.isfinite(import_vector(Location.parse(path), norms="none").values).all()
