"""Checkpoints of many kinds, and folders of strangers: what is run, and what is refused in a line."""

import json
import resource
import shutil
import struct
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from contrans_dist.config import CHAT_DATE, ModelSettings
from contrans_dist.data.texts import text_table
from contrans_dist.errors import RunError, UserError
from contrans_dist.harvest import actors as harvesters
from contrans_dist.harvest.driver import harvest
from contrans_dist.models import LanguageModel, classifier, load_model, model_facts, weights_identity
from contrans_dist.models.classifier import Classifier, classifier_identity, load_classifier
from contrans_dist.models.loading import describe
from contrans_dist.models.model_files import ModelFiles
from contrans_dist.models.placed import load_placed
from contrans_dist.models.pretrained import read_config
from contrans_dist.models.streaming import open_streamed
from contrans_dist.models.tokens import chat_prompts
from contrans_dist.models.weight_files import header
from tests.commands import run
from tests.models.test_classifier import TEXTS as JUDGED
from tests.models.test_classifier import by_pipeline, classifier_model, save_classifier
from tests.sets import write_lines
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

HARVESTED = text_table({"text": ["one", "two"]})


def edit(folder: Path, **fields: Any) -> None:
    """Change fields of a model's configuration; None takes one away."""
    config = json.loads((folder / "config.json").read_text()) | fields
    kept = {name: value for name, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))


def checkpoint(
    folder: Path, kind: torch.dtype, said: str | None = None, end: str = "safetensors", shards: int = 1
) -> Path:
    """A tiny model stored in a precision, all but its norms, and a configuration that says `said` of it."""
    save_tiny(folder, n_blocks=2, d=16)
    (folder / "model.safetensors").unlink()
    tensors = {
        name: tensor.to(kind if tensor.ndim > 1 or shards == 1 else torch.float32).clone()
        for name, tensor in tiny_model(n_blocks=2, d=16).state_dict().items()
    }
    stem = "pytorch_model" if end == "bin" else "model"
    names = [f"{stem}.{end}"] if shards == 1 else [f"{stem}-{i}.{end}" for i in range(shards)]
    placed = {key: names[i % shards] for i, key in enumerate(sorted(tensors))}
    for name in names:
        part = {key: each for key, each in tensors.items() if placed[key] == name}
        if end == "bin":
            torch.save(part, folder / name)
        else:
            save_file(part, folder / name, metadata={"format": "pt"})
    if shards > 1:
        index = {"metadata": {}, "weight_map": placed}
        (folder / f"{stem}.{end}.index.json").write_text(json.dumps(index))
    edit(folder, dtype=said)
    return folder


# -- the precision that is run -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"kind": torch.float16}, "float16"),
        ({"kind": torch.bfloat16, "shards": 3}, "bfloat16"),
        ({"kind": torch.float16, "end": "bin"}, "float16"),
        ({"kind": torch.bfloat16, "end": "bin", "shards": 2}, "bfloat16"),
        ({"kind": torch.float32, "said": "bfloat16"}, "bfloat16"),
        ({"kind": torch.float16, "said": "float32", "end": "bin"}, "float32"),
    ],
)
def test_what_is_run_is_what_is_said(options: dict[str, Any], expected: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, **options)
    by_transformers = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype
    assert str(by_transformers) == f"torch.{expected}"
    name = str(folder)
    assert model_facts(name).dtype == describe(name).dtype() == expected
    assert load_model(name).weights_dtype == by_transformers
    assert load_model(name, highest_block=0, head=False).weights_dtype == by_transformers
    if options.get("end") != "bin":
        assert open_streamed(name).lm.weights_dtype == by_transformers
    assert model_facts(name, dtype="bfloat16").dtype == "bfloat16"
    assert load_model(name, dtype="bfloat16").weights_dtype == torch.bfloat16


def test_a_wrapped_models_outer_configuration_decides(tmp_path: Path) -> None:
    save_tiny(tmp_path, "llava", n_blocks=2)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"].pop("dtype", None)
    edit(tmp_path, **config | {"dtype": "bfloat16"})
    for head in (True, False):
        lm = load_model(str(tmp_path), head=head)
        assert describe(str(tmp_path), head=head).dtype() == "bfloat16"
        assert lm.weights_dtype == torch.bfloat16
    assert model_facts(str(tmp_path)).dtype == "bfloat16"


def test_a_quantised_checkpoint_runs_as_it_says(tmp_path: Path) -> None:
    save_tiny(tmp_path / "plain", n_blocks=2, d=64)
    lm = load_model(str(tmp_path / "plain"), device="cpu", quantization="nf4", dtype="bfloat16")
    lm.model.save_pretrained(tmp_path / "nf4")
    lm.tokenizer.save_pretrained(tmp_path / "nf4")
    for said in ("bfloat16", None):
        edit(tmp_path / "nf4", dtype=said)
        name = str(tmp_path / "nf4")
        assert str(load_model(name, device="cpu").dtype) == f"torch.{model_facts(name).dtype}"


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"kind": torch.float64}, "float64"),
        ({"kind": torch.float64, "end": "bin"}, "float64"),
        ({"kind": torch.float32, "said": "float64"}, "float64"),
        ({"kind": torch.float8_e4m3fn}, "F8_E4M3"),
        ({"kind": torch.float8_e4m3fn, "end": "bin"}, "float8_e4m3fn"),
    ],
)
def test_a_precision_that_is_not_run_is_asked_for(options: Any, found: str, tmp_path: Path) -> None:
    name = str(checkpoint(tmp_path, **options))
    calls: list[Callable[[str], Any]] = [model_facts, load_model]
    for call in [*calls, open_streamed] if options.get("end") != "bin" else calls:
        with pytest.raises(UserError, match=f"weights are of type {found}; say by --dtype"):
            call(name)
    assert load_model(name, dtype="float32").dtype == torch.float32


def test_a_manifest_names_the_precision_of_its_rows(in_process: None, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", torch.float16, end="bin")
    made = harvest(ModelSettings(id=str(folder)), HARVESTED, str(tmp_path / "set"))
    assert made.manifest.identity.dtype == "float16"


def test_a_model_that_runs_otherwise_on_a_node_is_refused(
    in_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny(tmp_path / "model", n_blocks=2, d=16)

    def halved(model: ModelSettings, *args: Any, **options: Any) -> LanguageModel:
        return load_placed(model.model_copy(update={"dtype": "float16"}), *args, **options)

    monkeypatch.setattr(harvesters, "load_placed", halved)
    with pytest.raises(RunError, match=r"runs in float16 here, and in float32.*by --dtype"):
        harvest(ModelSettings(id=str(folder)), HARVESTED, str(tmp_path / "set"))


def test_the_files_that_are_loaded_make_the_identity(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, torch.float32, end="bin")
    save_file({"an.adapter": torch.ones(2)}, folder / "adapter_model.safetensors")
    before = weights_identity(str(folder))
    torch.save(tiny_model(n_blocks=2, d=16, seed=1).state_dict(), folder / "pytorch_model.bin")
    assert weights_identity(str(folder)) != before


# -- the judge -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["roberta", "gpt2"])
@pytest.mark.parametrize("pad", ["beyond the embeddings", "another than the model's", "unknown to the model"])
def test_a_judge_needs_no_padding_token(kind: str, pad: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of every length, several of each, against transformers, which runs one after the other."""
    monkeypatch.setattr(classifier, "BATCH_SIZE", 4)
    model, tokenizer = classifier_model(kind), tiny_tokenizer(pad=False)
    texts = [*JUDGED, *(f"{text} </s>" for text in JUDGED), *reversed(JUDGED)]
    if kind == "gpt2" and pad == "another than the model's":
        model.config.pad_token_id = 7
    expected = by_pipeline(model, tiny_tokenizer(pad=False), texts)
    if pad == "beyond the embeddings":
        tokenizer.add_special_tokens({"pad_token": "<new pad>"})
        assert tokenizer.pad_token_id >= 300
    else:
        tokenizer.pad_token = "</s>"
    got = Classifier(model, tokenizer, kind).probabilities(texts)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_a_judge_runs_in_its_own_precision(tmp_path: Path) -> None:
    name = save_classifier(tmp_path / "judge")
    before = classifier_identity(name)
    edit(tmp_path / "judge", dtype="bfloat16")
    assert load_classifier(name).model.dtype == torch.bfloat16
    assert classifier_identity(name) != before
    edit(tmp_path / "judge", dtype="float64")
    for call in (load_classifier, classifier_identity):
        with pytest.raises(
            UserError, match=r"^classifier .*: its weights are of type float64; expected one of"
        ):
            call(name)


# -- folders of strangers ------------------------------------------------------------------------------

EMBEDDING = "model.embed_tokens.weight"
DEEP = "[" * 100_000 + "]" * 100_000


def _tensors(folder: Path, entries: Any, body: bytes = b"", length: int | None = None) -> None:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    begin = struct.pack("<Q", len(text) if length is None else length)
    (folder / "model.safetensors").write_bytes(begin + text + body)


def _binary(folder: Path, content: Any) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")


def _packed(folder: Path) -> None:
    """A .bin of a few megabytes that unpacks to half a gigabyte."""
    _binary(folder, {EMBEDDING: torch.zeros(1)})
    path = folder / "pytorch_model.bin"
    with zipfile.ZipFile(path) as parts:
        content = {name: parts.read(name) for name in parts.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as parts:
        for name, data in content.items():
            with parts.open(name, "w") as part:
                for _ in range(64 if "data/" in name else 0):
                    part.write(bytes(4 << 20))
                part.write(data)


def _index(folder: Path, names: Any, end: str = "safetensors") -> None:
    stem = {"safetensors": "model", "bin": "pytorch_model"}[end]
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    weight_map = {f"t{i}": name for i, name in enumerate(names)} if isinstance(names, list) else names
    (folder / f"{stem}.{end}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _deep_index(folder: Path) -> None:
    _index(folder, [])
    (folder / "model.safetensors.index.json").write_text(DEEP)


def _write(file: str, content: str | bytes) -> Callable[[Path], Any]:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / file).write_bytes(data)


def _one(dtype: str, shape: Any, places: Any) -> dict[str, Any]:
    return {EMBEDDING: {"dtype": dtype, "shape": shape, "data_offsets": places}}


class Calls:
    """What a stranger's file may hold: a call."""

    def __reduce__(self) -> Any:
        return print, ("code has run",)


HOSTILE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no bytes": (lambda f: _tensors(f, _one("F32", [2**33, 0], [0, 0])), r"model.safetensors: \S+ has shape"),
    "offsets": (lambda f: _tensors(f, _one("F32", [300, 16], [0, 10**12]), bytes(9)), "safetensors: damaged"),
    "negative": (lambda f: _tensors(f, _one("F32", [300, 16], [-8, 100]), bytes(9)), "safetensors: damaged"),
    "no shape": (lambda f: _tensors(f, _one("F32", 5, [0, 8]), bytes(8)), "model.safetensors: damaged"),
    "no type": (lambda f: _tensors(f, _one("X9", [1], [0, 4]), bytes(4)), "model.safetensors: damaged"),
    "length": (lambda f: _tensors(f, {}, length=10**15), "model.safetensors: damaged"),
    "header": (lambda f: _tensors(f, b'{"a":"' + bytes(100 << 20) + b'"}'), "model.safetensors: header: "),
    "deep header": (lambda f: _tensors(f, DEEP.encode()), "model.safetensors: damaged"),
    "many tensors": (
        lambda f: _tensors(f, {f"t{i}": _one("F32", [0], [0, 0])[EMBEDDING] for i in range(20_000)}),
        "its weight files: 20,000 tensors",
    ),
    "empty": (_write("model.safetensors", b""), "model.safetensors: damaged"),
    "code": (lambda f: _binary(f, {"x": Calls()}), "pytorch_model.bin: holds more than tensors"),
    "packed": (_packed, "pytorch_model.bin: unpacks to 536,871,"),
    "a list": (lambda f: _binary(f, [1]), "pytorch_model.bin: expected tensors by name"),
    "no tensors": (lambda f: _binary(f, {"a": 1}), "pytorch_model.bin: expected tensors by name"),
    "above": (lambda f: _index(f, ["../../x.safetensors"]), "weight_map: .*'../../x.safetensors'"),
    "absolute": (lambda f: _index(f, ["/etc/passwd"]), "index.json: weight_map: .*'/etc/passwd'"),
    "above, bin": (lambda f: _index(f, ["../x.bin"], "bin"), "model.safetensors|index.json: weight_map: "),
    "many files": (lambda f: _index(f, [f"{i}.safetensors" for i in range(200_000)]), "map: 200,000 files"),
    "no names": (lambda f: _index(f, [5]), "index.json: damaged"),
    "no map": (lambda f: _index(f, None), "index.json: damaged"),
    "empty map": (lambda f: _index(f, []), "index.json: weight_map: it names no file"),
    "not there": (lambda f: _index(f, ["b.safetensors"]), "weight_map: b.safetensors is not there"),
    "deep index": (_deep_index, "index.json: damaged"),
    "deep config": (_write("config.json", '{"model_type": "llama", "a": ' + DEEP + "}"), "config.json: exp"),
    "config list": (_write("config.json", "[1]"), "config.json: expected a JSON object"),
    "large config": (_write("config.json", bytes(100 << 20)), "config.json: 104,857,600 bytes"),
    "nested": (
        _write("config.json", '{"model_type": "llama", "a": ' + '{"a":' * 900 + "1" + "}" * 901),
        "config.json: expected a configuration, found one in another",
    ),
    "versions": (lambda f: edit(f, configuration_files=["config.../x.json"]), "configuration_files"),
    "weights": (lambda f: edit(f, transformers_weights="../../etc/passwd"), "transformers_weights: expected"),
    "type": (lambda f: edit(f, model_type=["llama"]), "config.json: model_type"),
    "dtype": (lambda f: edit(f, dtype="float31"), r"config.json: no model .*float31"),
    "labels": (lambda f: edit(f, num_labels=10**9), "config.json: num_labels: 1,000,000,000"),
    "names": (lambda f: edit(f, id2label="x"), "config.json: no model can be made of it"),
    "rope": (lambda f: edit(f, rope_parameters={"rope_type": "no", "rope_theta": 1.0}), "config.json: no"),
    "pad": (lambda f: edit(f, pad_token_id=10**12), "config.json: no model can be made of it"),
    "tokenizer": (_write("tokenizer.json", bytes(range(256))), "tokenizer.json: no tokenizer"),
    "deep tokenizer": (_write("tokenizer.json", DEEP), "tokenizer.json: no tokenizer"),
    "large tokenizer": (_write("tokenizer.json", bytes(150 << 20)), "tokenizer.json: 157,286,400 bytes"),
    "many tokens": (
        _write("tokenizer.json", json.dumps({"model": {"vocab": {f"t{i}": i for i in range(600_000)}}})),
        "tokenizer.json: vocabulary: 600,00. tokens",
    ),
    "no tokenizer": (_write("tokenizer.json", "{}"), "tokenizer.json: no tokenizer"),
    "settings": (_write("tokenizer_config.json", DEEP), "tokenizer_config.json: expected a valid"),
    "class": (_write("tokenizer_config.json", '{"tokenizer_class": [1]}'), "json: tokenizer_class: expected"),
    "added": (_write("tokenizer_config.json", '{"added_tokens_decoder": {"x": 1}}'), "added_tokens_decoder"),
    "generation": (_write("generation_config.json", "x"), "generation_config.json: expected a valid"),
    "ends": (_write("generation_config.json", '{"eos_token_id": "x"}'), "generation_config.json: eos_token_"),
    "large generation": (_write("generation_config.json", bytes(100 << 20)), "generation_config.json: 104,"),
}  # fmt: skip


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("honest") / "model", n_blocks=2, d=16)


def refused_at_once(said: str, *calls: Callable[[], Any]) -> None:
    """One line, within seconds, without much memory, and nothing else that is printed."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    for call in calls:
        with pytest.raises(UserError, match=said) as caught, warnings.catch_warnings(action="error"):
            call()
        assert "\n" not in str(caught.value)
    assert time.process_time() - start < 20 * len(calls)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_folder_is_refused_at_once(
    case: str, honest: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(honest, tmp_path / "model")
    spoil, said = HOSTILE[case]
    spoil(folder)
    name = str(folder)
    refused_at_once(said, lambda: model_facts(name), lambda: load_model(name), lambda: open_streamed(name))
    assert capfd.readouterr() == ("", "")


FIELDS = ("hidden_size", "num_hidden_layers", "vocab_size", "max_position_embeddings", "num_attention_heads",
          "num_key_value_heads", "intermediate_size", "head_dim")  # fmt: skip


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_that_no_model_has_is_refused_at_once(field: str, honest: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(honest, tmp_path / "model")
    for value in (10**12, 1e300, -3, "many", [1, 10**12]):
        edit(folder, **{field: value})
        refused_at_once(f"config.json: .*{field}|{field}.*config.json", lambda: describe(str(folder)))


def test_masks_of_absurd_size_are_refused_at_once(tmp_path: Path) -> None:
    """Not weights but tables, which are made when a model is built: no file needs to hold them."""
    folder = save_tiny(tmp_path / "model", "gpt_neo", n_blocks=2, d=16)
    for value in (10**5, 10**6, 10**7, 10**12):
        edit(folder, max_position_embeddings=value)
        refused_at_once("config.json", lambda: load_model(str(folder)))


def test_a_hostile_judge_is_refused_at_once(tmp_path: Path) -> None:
    name, folder = save_classifier(tmp_path / "judge"), tmp_path / "judge"
    weights = (folder / "model.safetensors").read_bytes()
    for spoil, said in (
        (lambda: edit(folder, num_labels=10**9, id2label=None), "config.json: num_labels"),
        (lambda: edit(folder, num_labels=2, hidden_size=-3), "config.json: hidden_size"),
        (lambda: edit(folder, hidden_size=1 << 20), "config.json describes"),
        (lambda: edit(folder, hidden_size=32, num_attention_heads=5), "config.json: .*(heads|multiple)"),
    ):  # fmt: skip
        spoil()
        refused_at_once(said, lambda: load_classifier(name), lambda: classifier_identity(name))
    edit(folder, num_attention_heads=4)
    _tensors(folder, {"a": 1})
    refused_at_once("safetensors: damaged", lambda: load_classifier(name), lambda: classifier_identity(name))
    (folder / "model.safetensors").write_bytes(weights)
    assert load_classifier(name).labels == ["LABEL_0", "LABEL_1"]


@pytest.mark.parametrize(
    "body", ["{{ 1 // 0 }}", "{{ messages[5].x.y }}", "{% for i in range(10**10) %}{% endfor %}"]
)
def test_a_chat_template_that_fails_is_a_line(body: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = body
    refused_at_once(
        "--chat: the chat template of m fails", lambda: chat_prompts(tokenizer, ["a"], CHAT_DATE, "m")
    )


def test_what_honest_models_have_is_taken(tmp_path: Path) -> None:
    """Infinities, -1 for none, files of a hub's cache, which are links, and a list of files of one's own."""
    folder = save_tiny(tmp_path / "model", n_blocks=2, d=16)
    edit(folder, time_step_limit=[0.0, float("inf")], max_relative_positions=-1, sliding_window=None)
    (folder / "model.safetensors").rename(tmp_path / "blob")
    (folder / "own.safetensors").symlink_to(tmp_path / "blob")
    edit(folder, transformers_weights="own.safetensors")
    assert read_config(ModelFiles.of(str(folder))).max_relative_positions == -1
    assert load_model(str(folder)).n_blocks == open_streamed(str(folder)).lm.n_blocks == 2
    assert set(header(folder / "own.safetensors")) == set(load_file(tmp_path / "blob"))


def test_weights_of_other_shapes_are_named(honest: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(honest, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.zeros(17)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for call in (load_model, open_streamed):
        with pytest.raises(RunError, match=r"of another shape: (model\.)?norm\.weight"):
            call(str(folder))


def test_the_commands_refuse_in_one_line(
    honest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before any process is started."""
    folder = shutil.copytree(honest, tmp_path / "model")
    _tensors(folder, _one("F32", [2**33, 0], [0, 0]))
    texts = write_lines(tmp_path / "texts.jsonl", [{"text": "one", "concept": c} for c in ("a", "b")])
    recipe = {
        "name": "x", "source": str(folder), "target": str(honest), "corpus": {"texts": str(texts)},
        "concepts": {"texts": str(texts)}, "map": {"blocks": "1:1"},
        "evaluations": {"seen": {"texts": str(texts), "strengths": [0.0]}},
    }  # fmt: skip
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    harvested = ["harvest", "--model", folder, "--texts", texts, "--out", tmp_path / "out"]
    for command in (
        harvested, [*harvested, "--placement", "stream"], ["generate", "--model", folder, "one"],
        ["plan", tmp_path / "r.yaml"],
    ):  # fmt: skip
        run(capsys, *command).refused(f"{folder}/model.safetensors: {EMBEDDING} has shape")
