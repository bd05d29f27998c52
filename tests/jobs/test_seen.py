"""What is to be seen of a submitted job: how far it is, to whoever looks from elsewhere, and no secret."""

import json
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import parse_qsl

import boto3
import pytest
from transformers import AutoTokenizer

from tests.faults.world import save_paced
from tests.heads import RAY, REPOSITORY, UPLOAD, Head, environment, ray_head
from tests.jobs.test_submit import Submitter
from tests.prometheus import asked, prometheus
from tests.sets import write_lines
from tests.test_secrets import PIECE, PLANTED
from tests.waiting import until

pytestmark = pytest.mark.slow

SECRETS = {name: value for name, value in PLANTED.items() if name != "RAY_AUTH_TOKEN"}
"""In the environment of the head and of the shell that submits; Ray's token is the head's own."""
N_TEXTS, SHARD = 64, 2
PACE = 0.6
"""Seconds that the model waits at each pass, so that there is time to look."""
TOLD = re.compile(
    rf"s3://seen/set: harvest: (?P<done>\d+) of {N_TEXTS} texts, [\d.]+ texts/(s|min), [\d.]+ tokens/s, "
    r"\d+ (s|min) left, 1 actor; process \d+ on \S+, heard of \d+ s ago; (?P<shards>\d+) shards? finished"
)


class Store:
    """The bucket of an S3 server, and the address of a folder in it, for who has keys in the environment."""

    def __init__(self, uri: str) -> None:
        """`uri`: of `new_bucket`."""
        self.uri = re.sub("user:hush@(.*)/runs", r"\1/set", uri)
        server = dict(parse_qsl(uri.partition("?")[2]))["endpoint_override"]
        keys = {"aws_access_key_id": "user", "aws_secret_access_key": "hush"}
        self.client = boto3.client("s3", endpoint_url=f"http://{server}", region_name="us-east-1", **keys)

    def objects(self, prefix: str = "set/") -> dict[str, bytes]:
        """By key; one that is deleted meanwhile is left out."""
        found = {}
        for each in self.client.list_objects_v2(Bucket="seen", Prefix=prefix).get("Contents", []):
            with suppress(self.client.exceptions.NoSuchKey):
                answer = self.client.get_object(Bucket="seen", Key=each["Key"])
                found[each["Key"]] = answer["Body"].read()
        return found


@dataclass(frozen=True)
class Seen:
    """A harvest into a store, as it was seen while it ran and when it had ended."""

    head: Head
    job: str
    told: list[str]
    """What `contrans status` said meanwhile, by another process."""
    ended: str
    """What it said in the end."""
    beside: dict[str, bytes]
    """What lay beside the shards meanwhile."""
    objects: dict[str, bytes]
    """What the store held in the end."""
    tokens: int
    """Of all texts, counted by the tokenizer itself."""
    prometheus: int | None
    """Its port."""

    @property
    def manifest(self) -> dict[str, Any]:
        return dict(json.loads(self.objects["set/manifest.json"]))


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, new_bucket: Callable[[str], str]) -> Iterator[Seen]:
    folder, store = tmp_path_factory.mktemp("seen"), Store(new_bucket("seen"))
    model = str(save_paced(folder / "model"))
    texts = [f"The boy number {i} was happy" for i in range(N_TEXTS)]
    corpus = write_lines(folder / "corpus.jsonl", [{"text": text} for text in texts])
    with ray_head(folder, FAULTS_PACE=str(PACE), **SECRETS) as head:
        found = f"files: [{head.scratch}/prom_metrics_service_discovery.json], refresh_interval: 5s"
        here = shutil.which("prometheus") is not None
        with prometheus(folder, f"file_sd_configs: [{{{found}}}]") if here else nullcontext() as port:
            submitter = Submitter(head, REPOSITORY, {"excludes": UPLOAD["excludes"]})
            submitter.environment |= SECRETS
            _, printed, errors = submitter.run(
                *("jobs/harvest.py", "--model", model, "--texts", corpus, "--out", store.uri),
                *("--blocks", "1", "--shard-size", str(SHARD), "--actors", "1", "--trust-remote-code"),
                no_wait=True,
            )
            job, told, beside = printed.strip(), list[str](), dict[str, bytes]()
            assert job, errors
            while json.loads(got(head, f"/api/jobs/{job}"))["status"] in ("PENDING", "RUNNING"):
                told.append(status(head, store.uri))
                beside |= store.objects("set/.")
                time.sleep(1)
            ended, tokenizer = status(head, store.uri), AutoTokenizer.from_pretrained(model)
            tokens = sum(len(tokenizer(text)["input_ids"]) for text in texts)
            yield Seen(head, job, told, ended, beside, store.objects(), tokens, port)


def status(head: Head, uri: str) -> str:
    """What `contrans status` prints."""
    command = [sys.executable, "-m", "contrans_dist", "status", uri]
    done = subprocess.run(command, env=environment(head.token, **SECRETS), capture_output=True, text=True)
    return done.stdout.strip() or done.stderr.strip()


def got(head: Head, path: str) -> bytes:
    """What the dashboard answers."""
    request = urllib.request.Request(
        f"{head.dashboard}{path}", headers={"Authorization": f"Bearer {head.token.read_text()}"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return bytes(answer.read())


# -- how far it is -----------------------------------------------------------------------------------


def test_status_says_how_far_it_is_and_then_that_it_is_whole(seen: Seen) -> None:
    said = [match for told in seen.told if (match := TOLD.fullmatch(told))]
    done = [int(match["done"]) for match in said]
    assert len(set(done)) > 1, seen.told
    assert done == sorted(done)
    assert 0 < done[0] < N_TEXTS
    # The shards are counted first, so those texts may be done that its actor had in hand.
    assert all((int(match["shards"]) + 2) * SHARD >= texts for match, texts in zip(said, done, strict=True))
    assert seen.ended == f"s3://seen/set: complete, {N_TEXTS} rows in {N_TEXTS // SHARD} shards"


def test_the_log_has_one_line_of_json_for_each_shard(seen: Seen) -> None:
    log = json.loads(got(seen.head, f"/api/jobs/{seen.job}/logs"))["logs"]
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    shards = [f"s3://seen/set/{shard['name']}" for shard in seen.manifest["shards"]]
    assert len(shards) == N_TEXTS // SHARD
    assert sorted(line.pop("name") for line in lines) == shards
    assert all(line.pop("seconds") >= PACE for line in lines)
    node = json.loads(got(seen.head, f"/api/jobs/{seen.job}"))["driver_node_id"]
    assert all(line == {"stage": "harvest", "outcome": "done", "node": node} for line in lines)


def test_prometheus_has_the_totals_of_the_manifest(seen: Seen) -> None:
    port = seen.prometheus
    if port is None:
        pytest.skip("no prometheus here (Debian's package of that name)")
    manifest = seen.manifest
    assert (manifest["rows"], manifest["tokens"]) == (N_TEXTS, seen.tokens)
    wanted = {
        "items_done": N_TEXTS,
        "items_wanted": N_TEXTS,
        "tokens_total": seen.tokens,
        "tasks_total": len(manifest["shards"]),
        "task_seconds_count": len(manifest["shards"]),
        "actors": 1,
    }

    def most() -> dict[str, float]:
        """Of each metric that has one series: the job's gauges end with it."""
        answers = {name: asked(port, f"max_over_time(ray_contrans_{name}[1h])") for name in wanted}
        return {name: float(one[0]["value"][1]) for name, one in answers.items() if len(one) == 1}

    until(lambda: most() == wanted, lambda: f"{most()}, not {wanted}", seconds=120, pause=1)
    (finished,) = asked(port, "max_over_time(ray_contrans_tasks_total[1h])")
    assert finished["metric"]["outcome"] == "done"
    (changes,) = asked(port, "changes(ray_contrans_items_done[1h])")
    assert float(changes["value"][1]) > 1  # it was seen to grow


# -- secrets -----------------------------------------------------------------------------------------


def places(head: Head, *jobs: str) -> dict[str, bytes]:
    """Where Ray shows what it runs, or writes of it."""
    listed = subprocess.run(
        [RAY, "job", "list"], env=environment(head.token, RAY_ADDRESS=head.dashboard),
        capture_output=True, check=True,
    )  # fmt: skip
    found = {"ray job list": listed.stdout + listed.stderr}
    paths = ["/api/jobs/", *(f"/api/jobs/{job}/logs" for job in jobs)]
    paths += [f"/api/v0/{kind}?detail=1" for kind in ("actors", "jobs", "runtime_envs", "tasks", "workers")]
    found |= {path: got(head, path) for path in paths}
    for group in json.loads((head.scratch / "prom_metrics_service_discovery.json").read_text()):
        for target in group["targets"]:
            # Ray names one place that nobody answers at where another Ray of the machine has taken its port.
            with suppress(URLError), urllib.request.urlopen(f"http://{target}/metrics", timeout=60) as answer:
                found[f"metrics of {target}"] = answer.read()
    files = (path for path in head.scratch.rglob("*") if path.is_file() and not path.is_symlink())
    return found | {str(path): path.read_bytes() for path in files}


def test_no_secret_of_an_environment_is_to_be_seen(seen: Seen) -> None:
    """Neither of the head's, nor of the shell's, nor the head's token, in Ray or in the store."""
    shown = places(seen.head, seen.job)
    for name in ("ray job list", "/api/jobs/"):
        assert seen.job.encode() in shown[name]
    assert b"ray_contrans_tokens_total" in b"".join(shown.values())
    assert any(f"job-driver-{seen.job}.log" in name for name in shown)
    kinds = {key.partition("/.")[2].partition("-")[0] for key in seen.beside}
    assert kinds >= {"claim", "running"}
    shown |= seen.beside | seen.objects | {"contrans status": "\n".join(seen.told).encode()}
    token = seen.head.token.read_bytes()
    assert [name for name, content in shown.items() if PIECE in content.lower() or token in content] == []


def test_ray_shows_what_a_runtime_environment_brings(seen: Seen, tmp_path: Path) -> None:
    """As docs/security.md says, and the submitter. A place that shows it is one that is looked at."""
    (tmp_path / "nothing.py").write_text("")
    submitter = Submitter(seen.head, tmp_path, {"env_vars": {"OTHER_TOKEN": "shown-by-ray"}})
    code, _, errors = submitter.run("nothing.py")
    assert code == 0, errors
    assert "env_vars OTHER_TOKEN: Ray shows their values" in errors
    assert "shown-by-ray" not in errors
    showing = [name for name, content in places(seen.head).items() if b"shown-by-ray" in content]
    assert {"ray job list", "/api/jobs/"} <= set(showing)
    assert any("/logs/" in name for name in showing)
