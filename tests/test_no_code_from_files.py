"""No file that the program reads runs code: nothing in the sources could, and files made to do so do not."""

import ast
import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import contrans_dist
from contrans_dist.store.location import Location
from tests.commands import run
from tests.mapping.test_map_set import fitted, vector
from tests.sets import make_set
from tests.tiny import save_tiny

PACKAGE = Path(contrans_dist.__file__).parent
SOURCES = [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "jobs").rglob("*.py")]
LM_EVAL = "vectors/formats/lm_eval_file.py"
"""The only exception: written with torch.save, read as tensors and plain values alone."""
IMPORTS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle"}
CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.save", "torch.hub.load",
    "yaml.load", "yaml.full_load", "yaml.unsafe_load", "yaml.load_all", "runpy.run_path", "runpy.run_module",
    "pd.read_pickle", "pandas.read_pickle", "np.fromregex",
}  # fmt: skip
WORDS = ("shell=True", "allow_pickle=True", "weights_only=False")


def told(path: Path) -> Iterator[tuple[str, str]]:
    """What a source imports and calls, and the call as it is written."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module), ""
        elif isinstance(node, ast.Call):
            yield f"{ast.unparse(node.func)}()", ast.unparse(node)


def faults(path: Path) -> list[str]:
    found = []
    for name, call in told(path):
        called = name.removesuffix("()")
        imported = not call and name.partition(".")[0] in IMPORTS
        careless = called == "torch.load" and "weights_only=True" not in call
        if imported or careless or (call and called in CALLS) or any(word in call for word in WORDS):
            found.append(call or name)
    return found


def test_no_source_runs_what_a_file_says() -> None:
    assert len(SOURCES) > 200
    there = {str(path.relative_to(PACKAGE.parent)): faults(path) for path in SOURCES}
    assert {name: calls for name, calls in there.items() if calls} == {
        f"contrans_dist/{LM_EVAL}": ["torch.save(content, file)"]
    }
    text = (PACKAGE / LM_EVAL).read_text()
    assert text.count("torch.load(") == text.count("torch.save(") == 1


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from joblib import load", "eval(x)", "torch.load(x)", "os.system(x)",
        "torch.load(x, weights_only=False)", "np.load(x, allow_pickle=True)", "yaml.load(x, Loader=y)",
        "subprocess.run(x, shell=True)",
    ],
)  # fmt: skip
def test_the_walk_sees_it(line: str, tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text(line)
    assert faults(tmp_path / "x.py")


# -- crafted files ---------------------------------------------------------------------------------


class Runs:
    """Makes a folder when it is read back by what believes it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def crafted(folder: Path, mark: Path) -> dict[str, Path]:
    """Files that would run code, by what they are called."""
    data = pickle.dumps({"text": Runs(mark)})
    folder.mkdir()
    names = ("pt", "npy", "safetensors", "parquet", "jsonl", "gguf")
    for end in names:
        (folder / f"raw.{end}").write_bytes(data)
    np.save(folder / "object.npy", np.array([Runs(mark)], dtype=object), allow_pickle=True)
    torch.save({"layers.1": {"steering_vector": Runs(mark), "action": "add"}}, folder / "torch.pt")
    torch.save(Runs(mark), folder / "old.pt", _use_new_zipfile_serialization=False)
    (folder / "tag.yaml").write_text(f"name: !!python/object/apply:os.mkdir [{json.dumps(str(mark))}]\n")
    return {path.name: path for path in sorted(folder.iterdir())}


def test_the_files_are_what_they_should_be(tmp_path: Path) -> None:
    """They run code in what believes them; else nothing would be shown below."""
    files = crafted(tmp_path / "files", tmp_path / "mark")
    for read in (
        lambda: pickle.loads(files["raw.pt"].read_bytes()),
        lambda: np.load(files["object.npy"], allow_pickle=True),
        lambda: torch.load(files["torch.pt"], weights_only=False),
        lambda: torch.load(files["old.pt"], weights_only=False),
    ):
        read()
        (tmp_path / "mark").rmdir()


def commands(file: Path, folder: Path) -> list[list[Any]]:
    """Every command that reads a file, given this one."""
    out = ["--out", folder / "out.safetensors"]
    rows, made = folder / "set", folder / "joy.safetensors"
    scored = ["evaluate", "--model", "demo:target", "--benchmark", "emotions", "--out", folder / "e"]
    sides = ["--target-contrast", rows, "--source-corpus", rows, "--target-corpus", rows]
    return [
        ["inspect", file], ["status", file], ["status", "--verify", file], ["report", file],
        ["import", file, "--model", "demo:target", *out], ["import", file, "--format", "lm-eval", *out],
        ["import", file, "--format", "npy", *out], ["import", file, "--format", "gguf", *out],
        ["export", "--vector", file, "--format", "npy", "--out", folder / "o.npy"],
        ["transplant", "--vector", file, "--map", folder / "map.safetensors", *out],
        ["transplant", "--vector", made, "--map", file, *out],
        ["refine", "--activations", file, *out], ["fit", "--source", file, "--target", rows, *out],
        ["reduce", "--source-contrast", file, *sides, "--out", folder / "r"],
        ["generate", "--model", "demo:target", "--vector", file, "x"], ["generate", "--model", file, "x"],
        [*scored, "--data", file, "--vector", made], [*scored, "--data", made, "--vector", file],
        ["harvest", "--model", file, "--texts", folder / "t.txt", "--out", folder / "h"],
        ["run", file, "--out", folder / "run"], ["plan", file],
    ]  # fmt: skip


def test_files_that_would_run_code_do_not_whatever_they_are_called(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = tmp_path / "mark"
    files = crafted(tmp_path / "files", mark)
    make_set(tmp_path / "set", {0: np.ones((5, 4))}, 1)
    vector().save(Location.parse(tmp_path / "joy.safetensors"))
    fitted().save(Location.parse(tmp_path / "map.safetensors"))
    (tmp_path / "t.txt").write_text("one\n")
    for path in files.values():
        for command in commands(path, tmp_path):
            ended = run(capsys, *command)
            assert not mark.exists(), command
            assert ended.code in (1, 2), (command, ended)
            assert ended.err.splitlines()[-1].startswith("contrans: "), (command, ended.err)
            assert "unexpected" not in ended.err, (command, ended.err)
            assert "Traceback" not in ended.err
        taken = ["harvest", "--model", "demo:source", "--texts", path, "--out", tmp_path / f"of {path.name}"]
        if path.suffix not in (".jsonl", ".json", ".txt", ".parquet"):
            run(capsys, *taken).refused(str(path))


def test_models_that_bring_code_do_not_run_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mark, folder = tmp_path / "mark", save_tiny(tmp_path / "model", n_blocks=2, d=16)
    code = f"import os\nos.mkdir({str(mark)!r})\nclass Own: pass\n"
    for name in ("configuration_own.py", "modeling_own.py", "tokenization_own.py"):
        (folder / name).write_text(code)
    parts = {"AutoConfig": "configuration_own.Own", "AutoModelForCausalLM": "modeling_own.Own"}
    config = json.loads((folder / "config.json").read_text())
    tokens = json.loads((folder / "tokenizer_config.json").read_text())
    told: tuple[dict[str, Any], ...] = ({"model_type": "own", "auto_map": parts}, {"auto_map": parts}, {})
    for number, more in enumerate(told):
        (folder / "config.json").write_text(json.dumps(config | more))
        auto = {"auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]}, "tokenizer_class": "Own"}
        (folder / "tokenizer_config.json").write_text(json.dumps(tokens | auto))
        for command in (
            ["generate", "--model", folder, "x"], ["inspect", folder],
            ["harvest", "--model", folder, "--texts", __file__, "--out", tmp_path / "h"],
        ):  # fmt: skip
            ended = run(capsys, *command)
            assert not mark.exists(), (number, command)
            assert "unexpected" not in ended.err, ended.err


def test_a_chat_template_reaches_nothing_outside_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_tiny(tmp_path / "model", n_blocks=2, d=16)
    for body in (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.mkdir('" + str(tmp_path / "mark") + "') }}",
        "{{ messages.__init__.__globals__ }}",
        "{% include '/etc/passwd' %}",
    ):
        (folder / "chat_template.jinja").write_text(body)
        run(capsys, "generate", "--model", folder, "--chat", "x").refused("--chat: the chat template of")
    assert not (tmp_path / "mark").exists()
