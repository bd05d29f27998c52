"""What is to be seen of a stage from elsewhere: its file, the log of a job, a real Prometheus."""

import json
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import ray

from contrans_dist.console import Progress
from contrans_dist.distributed import watch as watch_module
from contrans_dist.distributed.cluster import Replicas
from contrans_dist.distributed.in_process import InProcess
from contrans_dist.distributed.pool import Task, run_tasks
from contrans_dist.distributed.watch import watch, watched
from contrans_dist.errors import RunError, UserError
from contrans_dist.pipeline.status import status_of
from contrans_dist.store.location import Location
from contrans_dist.store.running import running_in
from tests.prometheus import asked, prometheus
from tests.waiting import until

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Worker:
    def run(self, payload: float) -> float:
        if payload < 0:
            raise RunError("it is below zero")
        time.sleep(payload)
        return payload


def test_a_folder_tells_of_what_is_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While it runs, as `contrans status` says it, which then sends nobody to run it again; in a job each
    part is a line of JSON."""
    monkeypatch.setattr(watch_module, "_TELL_SECONDS", 0.05)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    out, seen = Location.parse(tmp_path), list[Any]()

    def keep(task: Task, result: float) -> None:
        progress.finish(10, 50)
        seen_by.computed(1000)
        if task.name == "t2":
            until(lambda: (found := running_in(out)) and found[0].done >= 30)
            (tmp_path / "shard-00000.parquet").touch()
            seen.append((running_in(out)[0], status_of(out)[str(out)]))
            (tmp_path / "shard-00000.parquet").unlink()

    tasks = [Task(f"t{i}", 0.0) for i in range(4)] + [Task("bad", -1.0)]
    with (
        Progress("harvest", 50, "texts") as progress,
        watched("harvest", "some/model", progress, [out]) as seen_by,
    ):
        outcome = InProcess(Worker, ()).run(tasks, keep)
    assert outcome.failures == {"bad": "it is below zero"}
    ((running, said),) = seen
    assert (running.stage, running.model, running.unit) == ("harvest", "some/model", "texts")
    assert (running.done, running.wanted, running.finished, running.actors) == (30, 50, 3, 1)
    assert running.tokens > 0
    assert said.startswith("harvest: 30 of 50 texts, ")
    assert "1 actor; process " in said
    assert said.endswith(" ago; 1 shard finished")
    assert list(tmp_path.iterdir()) == []  # it is under way no more
    with pytest.raises(UserError, match="expected a harvest"):
        status_of(out)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    assert [(line["name"], line["outcome"]) for line in lines] == [
        *((f"t{i}", "done") for i in range(4)), ("bad", "failed"),
    ]  # fmt: skip
    assert lines[-1]["reason"] == "it is below zero"


def test_what_a_killed_process_said_is_told_as_silence(tmp_path: Path) -> None:
    out = Location.parse(tmp_path)
    with Progress("evaluate", 8, "items") as progress, watched("evaluate", "m", progress, [out]) as seen:
        seen.tell()
        (file,) = tmp_path.iterdir()
        told = json.loads(file.read_text())
    old = {**told, "told": "2026-01-01T00:00:00Z", "host": "elsewhere"}
    (tmp_path / ".running-elsewhere-1.json").write_text(json.dumps(old))
    (tmp_path / ".running-x-2.json").write_text("{")
    (tmp_path / "shard-00000.parquet").touch()
    assert status_of(out)[str(out)].endswith("1 shard finished, not complete: run the same harvest again")
    assert "nothing heard of process" in status_of(out)[str(out)]
    assert "on elsewhere for" in status_of(out)[str(out)]


def test_without_a_stage_nobody_is_told() -> None:
    watch().done("t", 1.0)
    watch().tell()


def _scraped(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


@pytest.mark.slow
def test_a_real_prometheus_has_the_numbers(local: None, tmp_path: Path) -> None:
    """Before, what was done until it told for the first time, ten seconds after it began, was missing."""
    target = ray.nodes()[0]["MetricsExportPort"]
    with prometheus(tmp_path, f"static_configs: [{{targets: ['127.0.0.1:{target}']}}]") as port:
        tasks = [Task(f"t{i}", 0.1) for i in range(20)]
        with Progress("harvest", 20, "texts") as progress, watched("harvest", "m", progress, []) as seen:
            one = Replicas(1, 0, 1)

            def keep(_task: Task, _result: float) -> None:
                progress.finish(1, 20)
                seen.computed(50)

            run_tasks(Worker, (), tasks, one, keep)
            run_tasks(Worker, (), [Task("bad", -1.0)], one, keep)
            last = ('ray_contrans_tasks_total{outcome="failed"} == 1', "ray_contrans_items_done == 20")
            until(
                lambda: all(asked(port, each) for each in last), lambda: _scraped(target)[-2000:], pause=0.5
            )
        values = {
            query: float(asked(port, query)[0]["value"][1])
            for query in ("ray_contrans_items_done", "ray_contrans_items_wanted",
                          "ray_contrans_tokens_total", "ray_contrans_task_seconds_count",
                          'ray_contrans_tasks_total{outcome="failed"}')
        }  # fmt: skip
        assert list(values.values()) == [20, 20, 1000, 20, 1]
        labels = asked(port, "ray_contrans_items_done")[0]["metric"]
        assert (labels["stage"], labels["model"]) == ("harvest", "m")
