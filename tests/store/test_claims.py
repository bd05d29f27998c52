"""Two harvests with different settings on one folder: one works, the other is told; nothing is lost."""

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import pytest

from contrans_dist.config import CaptureSettings, ModelSettings
from contrans_dist.data.texts import text_table
from contrans_dist.errors import RunError, UserError
from contrans_dist.harvest.driver import harvest
from contrans_dist.store import claims
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.store.claims import Claim, claimed
from contrans_dist.store.location import Location
from tests.tiny import save_tiny
from tests.truth import read_all
from tests.waiting import until

LINES = ["one small text", "another one", "no", "the dog"]
CAPTURE = CaptureSettings(shard_size=2)

HOLDER = """
import sys, time
from contrans_dist.store.claims import Claim, claimed
from contrans_dist.errors import UserError
from contrans_dist.store.location import Location

uri, template, begin = sys.argv[1:]
sys.stdin.readline()
time.sleep(max(0.0, float(begin) - time.time()))
try:
    with claimed(Location.parse(uri), {"template": template}):
        print("held", flush=True)
        sys.stdin.readline()
except UserError as error:
    print(error, flush=True)
"""


@pytest.fixture(scope="module")
def bucket(new_bucket: Callable[[str], str]) -> str:
    return new_bucket("claims")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("model"), "llama", n_blocks=2, d=16))


def start(uri: str, template: str, begin: float = 0.0) -> "subprocess.Popen[str]":
    """A process that will claim a folder once it is told a line, and hold it to the next."""
    command = [sys.executable, "-c", HOLDER, uri, template, str(begin)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1)


def tell(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")


def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@contextmanager
def holder(uri: str, template: str) -> "Iterator[subprocess.Popen[str]]":
    with start(uri, template) as process:
        tell(process)
        assert said(process) == "held"
        yield process
        if process.poll() is None:
            tell(process)


def claims_in(folder: Location) -> list[str]:
    return [info.base_name for info in claims._claims_in(folder)]


@pytest.fixture(params=["disk", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if request.param == "disk":
        return Location.parse(tmp_path / "set")
    return Location.parse(request.getfixturevalue("bucket")) / tmp_path.name


def test_of_processes_that_ask_at_once_one_holds(folder: Location) -> None:
    """Real processes, all at one moment; and those of the winner's settings may work beside it."""
    with ExitStack() as stack:
        begin = time.time() + 2.5
        others = [stack.enter_context(start(folder.uri, f"{{text}} {i}", begin)) for i in range(3)]
        for process in others:
            tell(process)
        answers = [said(process) for process in others]
        assert answers.count("held") == 1
        winner = answers.index("held")
        for answer in answers[:winner] + answers[winner + 1 :]:
            assert "another run is at work there under other settings" in answer
            assert "template: found '{text}" in answer
            assert "hush" not in answer
        with claimed(folder, {"template": f"{{text}} {winner}"}) as claim:
            assert claim.shared()
            assert len(claims_in(folder)) == 2
            assert folder.names() == []
        with pytest.raises(UserError, match=f"process {others[winner].pid} on"), claimed(folder, {"a": 1}):
            pass
        tell(others[winner])
        others[winner].wait(60)
    assert claims_in(folder) == []
    with claimed(folder, {"a": 1}) as claim:
        assert not claim.shared()
        assert len(claims_in(folder)) == 1


def test_a_killed_one_is_taken_over_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Location.parse(tmp_path)
    with holder(folder.uri, "a") as process:
        process.kill()
        process.wait()
        assert len(claims_in(folder)) == 1
        with claimed(folder, {"template": "b"}):
            assert len(claims_in(folder)) == 1
    assert f"process {process.pid} on" in capsys.readouterr().err
    assert claims_in(folder) == []


def test_one_of_another_machine_is_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its process cannot be seen from here: what counts is when it last said that it is alive."""
    folder = Location.parse(tmp_path)
    theirs = tmp_path / ".claim-0.json"
    with claimed(folder, {"template": "a"}) as claim:
        content = json.loads(Path(claim.location.path).read_text())
    other = json.dumps({**content, "machine": "another", "host": "node7", "later": 1})
    theirs.write_text(other)
    with pytest.raises(UserError, match=r"on node7.*template: found 'a'.*if it was killed, wait 5 minutes"):
        claimed(folder, {"template": "b"}).__enter__()
    assert claims_in(folder) == [theirs.name]
    for seconds in (-1, 1):  # long ago; or ahead: the clock was set back since
        theirs.write_text(other)
        then = time.time() + seconds * (claims.LOST_SECONDS + 10)
        os.utime(theirs, (then, then))
        with claimed(folder, {"template": "b"}):
            assert len(claims_in(folder)) == 1
        assert "on node7" in capsys.readouterr().err


def test_one_of_another_machine_that_died_while_it_asked_is_waited_for_and_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says nothing more, nor does it hold the folder: before, it was waited for without an end."""
    monkeypatch.setattr(claims, "_RENEWED_SECONDS", 0.3)
    monkeypatch.setattr(claims, "LOST_SECONDS", 1.5)
    folder, theirs = Location.parse(tmp_path), tmp_path / ".claim-z.json"
    with claimed(folder, {"template": "a"}) as claim:
        content = json.loads(Path(claim.location.path).read_text())
    theirs.write_text(json.dumps({**content, "machine": "another", "holding": False}))
    with claimed(folder, {"template": "b"}) as claim:
        assert claims_in(folder) == [claim.name]


def test_a_claim_is_renewed_after_trouble_of_any_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "_RENEWED_SECONDS", 0.05)
    folder, tries, real = Location.parse(tmp_path), count(), Claim.write

    def write(claim: Claim, holding: bool) -> None:
        if holding and next(tries) in (1, 2):  # the first is no renewal
            raise OSError(errno.ECONNABORTED, os.strerror(errno.ECONNABORTED))
        real(claim, holding)

    monkeypatch.setattr(Claim, "write", write)
    with claimed(folder, {"template": "a"}) as claim:
        os.utime(claim.location.path, (0, 0))
        until(lambda: Path(claim.location.path).stat().st_mtime != 0)


def test_a_claim_is_renewed_and_its_loss_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_RENEWED_SECONDS", 0.05)
    folder = Location.parse(tmp_path)
    with claimed(folder, {"template": "a"}) as claim:
        path = Path(claim.location.path)
        os.utime(path, (0, 0))
        until(lambda: path.stat().st_mtime != 0)
        claim.check()
        path.unlink()
        with pytest.raises(RunError, match="and another took over"):
            claim.check()
    assert list(tmp_path.iterdir()) == []


def test_work_under_a_lost_claim_ends_when_that_is_seen(
    local: None, in_process: None, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when all is done, as what is made for a disk that is gone is made for nothing."""
    monkeypatch.setattr(claims, "_RENEWED_SECONDS", 0.02)
    out, lines = tmp_path / "set", LINES * 300

    def lose() -> None:
        until(lambda: list(out.glob("shard-*")), "a shard")
        for path in out.glob(".claim-*"):
            path.unlink()

    with ThreadPoolExecutor(1) as other:
        lost = other.submit(lose)
        with pytest.raises(RunError, match=r"claim on the folder is gone.*run the same command again"):
            harvest(ModelSettings(id=model), text_table({"text": lines}), str(out), CAPTURE)
        lost.result()
    assert 0 < len(list(out.glob("shard-*"))) < len(lines) / 4


def test_what_is_no_claim_is_named(tmp_path: Path) -> None:
    (tmp_path / ".claim-x.json").write_text('{"pid": "many"}')
    with pytest.raises(UserError, match=r"claim-x\.json: "):
        claimed(Location.parse(tmp_path), {}).__enter__()


def test_nothing_is_computed_in_a_folder_of_another(
    local: None, in_process: None, model: str, tmp_path: Path
) -> None:
    """And claims are gone after errors and interruptions."""
    out, texts = Location.parse(tmp_path / "set"), text_table({"text": LINES})
    with (
        holder(out.uri, "a"),
        pytest.raises(UserError, match=r"template: found 'a', asked for None"),
    ):
        harvest(ModelSettings(id=model), texts, out, CAPTURE)
    assert out.names() == []
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("contrans_dist.harvest.missing.run_tasks", interrupted)
        harvest(ModelSettings(id=model), texts, out, CAPTURE)
    assert claims_in(out) == []
    harvest(ModelSettings(id=model), texts, out, CAPTURE)
    assert claims_in(out) == []


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_shard_of_other_settings_is_never_in_a_manifest(
    local: None, in_process: None, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written by one who knows nothing of claims, when this run had written all of its own."""
    texts, settings = text_table({"text": LINES}), ModelSettings(id=model)
    other = CAPTURE.model_copy(update={"template": "{text} is"})
    harvest(settings, texts, str(tmp_path / "other"), other)
    from contrans_dist.harvest import driver

    compute = driver.compute_missing

    def overwritten(*arguments: Any) -> None:
        compute(*arguments)
        name = "shard-00001.parquet"
        (tmp_path / "set" / name).write_bytes((tmp_path / "other" / name).read_bytes())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "compute_missing", overwritten)
        with pytest.raises(RunError, match=r"1 of 2 shards.*shard-00001\.parquet: .*other settings"):
            harvest(settings, texts, str(tmp_path / "set"), CAPTURE)
    assert not (tmp_path / "set" / "manifest.json").exists()
    harvest(settings, texts, str(tmp_path / "set"), CAPTURE)
    activations = ActivationSet.open(str(tmp_path / "set"))
    assert activations.n_rows == len(LINES)


def test_a_folder_that_cannot_be_written_to(
    local: None, in_process: None, model: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(UserError, match=f"^{tmp_path}/file/set: cannot be written"),
    ):
        patch.setattr("contrans_dist.harvest.missing.place", interrupted)
        harvest(ModelSettings(id=model), text_table({"text": LINES}), str(tmp_path / "file" / "set"), CAPTURE)


def test_a_second_folder_that_another_holds_is_bad_input_as_a_first_is(tmp_path: Path) -> None:
    """Before, the first claim took it for what failed under it: run the same command again."""
    first, held = Location.parse(tmp_path / "first"), Location.parse(tmp_path / "held")
    with (
        claimed(held, {"template": "other"}),
        pytest.raises(UserError, match=f"^{held}: another run is at work there") as refused,
        claimed(first, {"template": "mine"}),
        claimed(held, {"template": "mine"}),
    ):
        pass
    assert "run the same command again" not in str(refused.value)
    assert claims_in(first) == []


@pytest.mark.slow
def test_two_commands_with_different_settings_at_once(model: str, tmp_path: Path) -> None:
    """Each a process of its own, with actors of its own."""
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"the dog and the cat number {i}\n" for i in range(60)))
    out = tmp_path / "set"
    command = [
        *(sys.executable, "-m", "contrans_dist", "harvest", "--model", model, "--texts", str(texts)),
        *("--out", str(out), "--shard-size", "2", "--actors", "1", "--cpus-per-actor", "1"),
        *("--address", "local", "--template"),
    ]
    pipe = subprocess.PIPE
    with ExitStack() as stack:
        both = [
            stack.enter_context(subprocess.Popen([*command, template], stderr=pipe, text=True))
            for template in ("{text} is", "{text} was")
        ]
        ended = [(process.communicate()[1], process.returncode) for process in both]
    assert sorted(code for _, code in ended) == [0, 2], ended
    (refused,) = [text for text, code in ended if code]
    assert "another run is at work there" in refused or "holds a harvest under other settings" in refused
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["rows"] == len(read_all(out)) == 60
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]
    assert not [child for child in psutil.Process().children() if child.pid in [p.pid for p in both]]
