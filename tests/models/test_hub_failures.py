"""What the hub answers, from a real server on this machine: who is to blame, and what is tried again."""

import json
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
import transformers.utils.hub
from safetensors.torch import load_file, save_file

from contrans_dist.benchmarks.hub import dataset_file
from contrans_dist.errors import RunError, UserError
from contrans_dist.models import load_model, model_facts
from contrans_dist.models.streaming import open_streamed
from contrans_dist.store import patience
from tests.commands import run
from tests.inprocess import ray_here
from tests.tiny import save_tiny

_COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """A hub with one model, which first fails so many times."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.answer: Callable[[int], int] = lambda _: 200
        """The status, by how many requests came before; 0 resets the connection."""
        self.headers: dict[str, str] = {}
        self.asked: Counter[str] = Counter()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.rpartition("/")[2]
                path, status = hub.folder / name, 404
                if path.is_file():
                    status = hub.answer(hub.asked.total())
                hub.asked[name] += 1
                if status == 0:
                    self.connection.close()
                    return
                body = path.read_bytes() if status == 200 else b""
                self.send_response(status)
                for key, value in ({"X-Repo-Commit": _COMMIT, "ETag": f'"{name}"'} | hub.headers).items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("hub") / "model", "llama", n_blocks=2, d=16)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that are made; none is waited for, neither ours nor those of the hub's client."""
    made: list[float] = []
    monkeypatch.setattr("time.sleep", lambda _: None)
    pause = patience.pause

    def told(tries: int) -> float:
        made.append(pause(tries))
        return made[-1]

    monkeypatch.setattr(patience, "pause", told)
    return made


@pytest.fixture
def hub(folder: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    hub = Hub(folder)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(transformers.utils.hub, "is_offline_mode", lambda: False)
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


@pytest.mark.parametrize("status", [429, 503, 0])
def test_a_busy_hub_is_asked_again(hub: Hub, waits: list[float], status: int) -> None:
    """More failures than its own client puts up with, then it works."""
    hub.answer = lambda before: status if before < (14 if status else 3) else 200
    assert model_facts("org/model").weights == f"commit:{_COMMIT}"
    assert waits
    assert load_model("org/model").n_blocks == 2
    assert waits == sorted(waits)


def test_harvests_and_evaluations_name_the_commit(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A branch is followed once: what it was then stands in the identity, and another commit is refused."""
    (tmp_path / "texts.txt").write_text("one text\nanother text of more words\n")
    name, out = "org/model@main", tmp_path / "set"
    asked = ["harvest", "--model", name, "--texts", tmp_path / "texts.txt", "--blocks", "1", "--out", out]
    with ray_here():  # a process of its own would not know this hub
        assert run(capsys, *asked).code == 0
        identity = json.loads((out / "manifest.json").read_text())["identity"]
        assert (identity["model"], identity["weights"]) == (name, f"commit:{_COMMIT}")
        scored = ["evaluate", "--model", name, "--benchmark", "perplexity", "--data", tmp_path / "texts.txt"]
        assert run(capsys, *scored, "--out", tmp_path / "scored").code == 0
        metrics = json.loads((tmp_path / "scored/metrics.json").read_text())
        assert metrics["identity"]["weights"] == f"commit:{_COMMIT}"
        assert f"commit:{_COMMIT}" in run(capsys, "inspect", out).out
        later = "f" * 40
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "another"))
        hub.headers = {"X-Repo-Commit": later}
        run(capsys, *asked).refused(f"weights: found 'commit:{_COMMIT}', asked for 'commit:{later}'")


def test_a_hub_that_stays_busy_is_a_failure(hub: Hub, waits: list[float], capsys: Any) -> None:
    hub.answer = lambda _: 429
    for ask in (lambda: load_model("org/model"), lambda: dataset_file("org/model", "config.json", "main")):
        with pytest.raises(RunError, match=r"429.*tried 4 times: run the same command again") as caught:
            ask()
        assert "\n" not in str(caught.value)
    assert len(waits) == 2 * len(patience.PAUSES)
    said = capsys.readouterr().err
    assert said.count("status 429") == len(waits)
    assert "trying again in" in said


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (404, {"X-Error-Code": "RepoNotFound"}),
        (404, {"X-Error-Code": "RevisionNotFound"}),
        (404, {"X-Error-Code": "EntryNotFound"}),
        (403, {"X-Error-Code": "GatedRepo"}),
        (401, {}),
    ],
)
def test_what_is_not_there_or_not_allowed_is_the_users(
    hub: Hub, waits: list[float], status: int, headers: dict[str, str]
) -> None:
    hub.answer, hub.headers = (lambda _: status), headers
    for ask in (lambda: load_model("org/model"), lambda: dataset_file("org/model", "config.json", "main")):
        with pytest.raises(UserError, match="org/model"):
            ask()
    assert not waits


def test_a_fault_of_a_library_is_not_the_users(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise TypeError("unsupported operand")

    monkeypatch.setattr("contrans_dist.models.pretrained.AutoTokenizer.from_pretrained", fails)
    with pytest.raises(RunError, match="cannot be loaded: TypeError: unsupported operand"):
        load_model(str(folder))
    monkeypatch.setattr("contrans_dist.models.pretrained.AutoTokenizer.from_pretrained", _full)
    with pytest.raises(RunError, match="No space left"):
        load_model(str(folder))


def _full(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


def test_a_malformed_configuration_is_the_users(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "llama", "num_hidden_layers": "three"}')
    with pytest.raises(UserError, match="num_hidden_layers") as caught:
        load_model(str(tmp_path))
    assert "\n" not in str(caught.value)


def _edit(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | fields
    kept = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))


@pytest.mark.parametrize("end", ["safetensors", "bin"])
def test_the_precision_of_a_model_that_says_none(hub: Hub, tmp_path: Path, end: str) -> None:
    """By the weights themselves, of which, if safetensors, nothing but the beginning is fetched."""
    hub.folder = shutil.copytree(hub.folder, tmp_path / "half")
    path = hub.folder / "model.safetensors"
    state = {name: tensor.half() for name, tensor in load_file(path).items()}
    path.unlink()
    if end == "bin":
        torch.save(state, hub.folder / "pytorch_model.bin")
        hub.headers = {"X-Error-Code": "EntryNotFound"}
    else:
        save_file(state, path, metadata={"format": "pt"})
    _edit(hub.folder, dtype=None)
    assert model_facts("org/model").dtype == "float16"
    assert not [path for path in (tmp_path / "cache").rglob("*.safetensors") if path.stat().st_size]
    assert load_model("org/model").weights_dtype == torch.float16
    assert model_facts("org/model").dtype == "float16"


def test_what_is_downloaded_is_checked_as_a_folder_is(hub: Hub, tmp_path: Path) -> None:
    honest = hub.folder
    for number, (spoil, said) in enumerate(
        {
            lambda f: _edit(f, vocab_size=10**12): r"config\.json: vocab_size: 1,000,000,000,000",
            lambda f: _edit(f, vocab_size=10**6): r"config\.json describes \d+,004,688 parameters",
            lambda f: (f / "tokenizer.json").write_text("{}"): r"tokenizer\.json: no tokenizer",
            lambda f: (f / "model.safetensors").write_bytes(b"x" * 99): r"model\.safetensors: damaged",
            _elsewhere: r"index\.json: weight_map: .* found '\.\./\.\./x\.safetensors'",
        }.items()
    ):
        hub.folder = shutil.copytree(honest, tmp_path / str(number))
        spoil(hub.folder)
        for ask in (load_model, open_streamed):
            with pytest.raises(UserError, match=said) as caught:
                ask(f"org/model{number}")
            assert "\n" not in str(caught.value)


def _elsewhere(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    content = {"metadata": {}, "weight_map": {"a": "../../x.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
