"""What somebody new gets wrong, and the one line that says what to do about it."""

import errno
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from contrans_dist.models import devices
from contrans_dist.store.location import Location
from contrans_dist.vectors.concept_vector import ConceptVector
from tests.commands import run
from tests.models import test_hub_failures
from tests.models.test_hub_failures import Hub
from tests.sets import make_set, write_lines

Capture = pytest.CaptureFixture[str]
folder, hub, waits = (getattr(test_hub_failures, name) for name in ("folder", "hub", "waits"))
"""Fixtures: a hub on this machine."""
HARVEST = ["harvest", "--model", "demo:source", "--out", "{out}", "--texts"]
SCORE = ["evaluate", "--model", "demo:source", "--vector", "{joy}", "--out", "{out}", "--block", "1"]
MISTAKES: list[tuple[list[str], str]] = [
    # -- texts
    ([*HARVEST, "{no}.jsonl"], "no.jsonl: no such file"),
    ([*HARVEST, "{no}.tx"], "no.tx: no such file"),
    ([*HARVEST, "{table.csv}"], "or .parquet file; pandas makes one of a table"),
    ([*HARVEST, "{columns.jsonl}"], "with a string `text`, found 'sentence'"),
    ([*HARVEST, "{empty.jsonl}"], "empty.jsonl: expected at least one text"),
    ([*HARVEST, "{latin.txt}"], "latin.txt, line 1: expected UTF-8, found byte 0xe9 at 3"),
    ([*HARVEST, "{utf16.txt}"], "this looks like UTF-16; save it as UTF-8"),
    ([*HARVEST, "{texts}", "--template", "no place"], "expected a place for the text, `{{text}}`"),
    # -- models
    (["generate", "--model", "demo:sorce", "x"], "no such bundled model; did you mean demo:source?"),
    (["generate", "--model", "./no", "x"], "--model ./no: no such folder"),
    (["generate", "--model", "{folder}", "x"], "no config.json in this folder; a Hugging Face model is exp"),
    (["generate", "--model", "demo:source", "--chat", "x"], "the tokenizer of demo:source has no chat templ"),
    ([*HARVEST, "{texts}", "--blocks", "9"], "this model has blocks 0 to 3"),
    ([*HARVEST, "{texts}", "--dtype", "int8"], "dtype: expected 'float32', 'bfloat16' or 'float16'"),
    ([*HARVEST, "{texts}", "--quantization", "q4"], "quantization: expected 'int8' or 'nf4', found 'q4'"),
    # -- vectors
    (["refine", "--activations", "{set}", "--out", "{out}"], "no column 'label'; it holds row"),
    (["refine", "--activations", "{set}", "--positive", "mood=happy", "--out", "{out}"],
     "no row has mood=happy; mood is joy (5), fear (5)"),
    (["generate", "--model", "demo:source", "--vector", "{joy}", "x"], "say which with --block"),
    (["generate", "--model", "demo:source", "--vector", "{joy}", "--block", "3", "x"], "it holds [1, 2]"),
    (["generate", "--model", "demo:target", "--vector", "{joy}", "--block", "1", "x"], "hidden size is 160"),
    (["transplant", "--vector", "{joy}", "--map", "{joy}", "--out", "{out}"], "this is a vector file"),
    # -- evaluations and recipes
    ([*SCORE, "--benchmark", "emotion", "--data", "{texts}"], "did you mean emotions?"),
    ([*SCORE, "--benchmark", "emotions", "--data", "{texts}", "--strengths", "1..3"], "such as 0,0.5,1"),
    ([*SCORE, "--benchmark", "emotions", "--data", "{texts}", "--controls", "randm"], "did you mean random?"),
    (["evaluate", "--model", "demo:source", "--benchmark", "emotions", "--data", "{texts}", "--out", "{out}",
      "--controls", "random"], "--controls random: expected --vector as well"),
    (["evaluate", "--model", "demo:source", "--benchmark", "emotions", "--data", "{texts}", "--out", "{out}",
      "--block", "3"], "--block 3: expected --vector as well"),
    (["run", "{no}.yaml"], "no.yaml: no such recipe"),
    (["run", "demmo"], "no such recipe; bundled are contrans-fig2a"),
    (["run", "demo", "--set", "evaluations.emotions.concepts=[hapiness]", "--out", "{out}"],
     "evaluations.emotions.concepts: no contrast texts of 'hapiness'; did you mean happiness?"),
    (["run", "demo", "--set", "target=demo:targt", "--out", "{out}"], "did you mean demo:target?"),
    (["run", "demo", "--set", "evaluations.emotions.strengths=many"], "evaluations.emotions.strengths: "),
    (["run", "demo", "--set", "map.protocl=paper"], "unknown key 'map.protocl'; did you mean protocol?"),
    # -- commands and places
    (["harvst"], "no command 'harvst'; did you mean harvest?"),
    (["report", "{folder}"], "nothing to report; expected a run folder"),
    (["report", "{folder}", "--out", "{out}"], "expected several runs to compare"),
    (["status", "{folder}"], "expected a harvest, an evaluation or a run"),
    ([*HARVEST[:3], "--texts", "{texts}", "--out", "{texts}/x"], "texts.jsonl/x: cannot be written"),
]  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the commands name."""
    parent = tmp_path_factory.mktemp("new")
    contents = {
        "table.csv": b"text,label\na,positive\n", "columns.jsonl": b'{"sentence": "a"}\n', "empty.jsonl": b"",
        "latin.txt": b"caf\xe9\n", "utf16.txt": "one\n".encode("utf-16"),
    }  # fmt: skip
    for name, content in contents.items():
        (parent / name).write_bytes(content)
    places = {name: parent / name for name in contents}
    places |= {name: parent / name for name in ("no", "out", "set", "joy", "texts", "folder")}
    places["folder"].mkdir()
    write_lines(places["texts"].with_suffix(".jsonl"), [{"text": "one", "concept": "joy"}])
    places["texts"] = places["texts"].with_suffix(".jsonl")
    make_set(places["set"], {1: np.ones((10, 4))}, 4, mood=["joy", "fear"] * 5)
    places["joy"] = parent / "joy.safetensors"
    values = np.zeros((4, 96), np.float32)
    values[1:3] = 1
    ConceptVector(values=values, concept="joy", model="demo:source").save(Location.parse(places["joy"]))
    return places


def filled(words: list[str], places: dict[str, Path]) -> list[str]:
    for name, place in places.items():
        words = [word.replace(f"{{{name}}}", str(place)) for word in words]
    return words


@pytest.mark.parametrize(("words", "said"), MISTAKES, ids=[" ".join(words[-9:]) for words, _ in MISTAKES])
def test_a_mistake_is_a_line_that_helps(
    words: list[str], said: str, places: dict[str, Path], capsys: Capture
) -> None:
    ended = run(capsys, *filled(words, places))
    assert ended.code == 2, ended
    last = ended.err.splitlines()[-1]
    assert said.replace("{{", "{").replace("}}", "}") in last, last
    assert "unexpected" not in ended.err
    assert not places["out"].exists() or not list(places["out"].glob("activations/*/shard-*"))


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (404, {"X-Error-Code": "RepoNotFound"}, "org/modell: the hub has no such model"),
        (403, {"X-Error-Code": "GatedRepo"}, "accept its terms at https://huggingface.co/org/modell and log"),
        (401, {}, "org/modell: the hub has no such model"),
        (404, {"X-Error-Code": "RevisionNotFound"}, "org/modell@v9: the hub has no such revision"),
    ],
)  # fmt: skip
def test_what_the_hub_refuses(
    hub: Hub,
    status: int,
    headers: dict[str, str],
    said: str,
    capsys: Capture,
) -> None:
    hub.answer, hub.headers = (lambda _: status), headers
    name = "org/modell@v9" if "revision" in said else "org/modell"
    run(capsys, "generate", "--model", name, "x").refused(said)


def test_without_the_network(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub.is_offline_mode", lambda: True)
    ended = run(capsys, "generate", "--model", "org/modell", "x")
    assert ended.code == 1
    assert "org/modell: not in the local cache, and the hub does not answer" in ended.err
    assert ended.err.count("\n") == 1


def test_a_driver_that_is_too_old(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch warns and says that there is no GPU, and counts it all the same, by the driver's own tools: the
    work goes on without one, and a line says why. Before, it asked for the memory of what was counted."""

    def old() -> bool:
        warnings.warn(
            "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040). Please "
            "update your GPU driver",
            stacklevel=2,
        )
        return False

    monkeypatch.setattr(torch.cuda, "is_available", old)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    devices.usual_device.cache_clear()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of those who ask torch themselves
            ended = run(capsys, "generate", "--model", "demo:source", "--max-new-tokens", "1", "x")
    finally:
        devices.usual_device.cache_clear()
    assert ended.code == 0
    assert "no GPU is used: CUDA initialization: The NVIDIA driver on your system is too old" in ended.err


@pytest.mark.slow
def test_too_little_disk(tmp_path: Path) -> None:
    """A limit of the system on the size of a file is met as a disk is that is full."""
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"This is the text of number {i}.\n" for i in range(600)))
    words = ["harvest", "--model", "demo:target", "--texts", str(texts), "--out", str(tmp_path / "set")]

    def harvest(blocks_of_512: str) -> subprocess.CompletedProcess[str]:
        limited = ["bash", "-c", f'ulimit -f {blocks_of_512}; exec "$@"', "bash"]
        command = [*limited, sys.executable, "-m", "contrans_dist", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    full = harvest("100")
    assert full.returncode == 1, full
    last = full.stderr.splitlines()[-1]
    assert "shard-0000" in last
    assert os.strerror(errno.EFBIG) in last
    assert "run the same command again" in last
    assert harvest("unlimited").returncode == 0
