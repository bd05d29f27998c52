"""cluster/grafana.json: what Grafana cannot say until somebody looks; figures by Prometheus' own tool."""

import json
import re
import shutil
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.heads import REPOSITORY
from tests.waiting import until

DASHBOARD: dict[str, Any] = json.loads((REPOSITORY / "cluster/grafana.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
EXPRESSIONS = {
    f"{panel['title']} {target['refId']}": target["expr"]
    for panel in PANELS
    for target in panel.get("targets", [])
}
# The labels that a sample has beside those of Ray itself.
LABELS = {
    "ray_contrans_items_done": {"stage", "model"},
    "ray_contrans_items_wanted": {"stage", "model"},
    "ray_contrans_actors": {"stage", "model"},
    "ray_contrans_tokens_total": {"stage", "model"},
    "ray_contrans_tasks_total": {"stage", "model", "outcome"},
    "ray_contrans_task_seconds_bucket": {"stage", "model", "le"},
}
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian's package prometheus)"
)


def test_panels_are_told_apart_and_do_not_overlap() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in PANELS)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    for panel in PANELS:
        letters = [target["refId"] for target in panel.get("targets", [])]
        assert len(set(letters)) == len(letters)
        assert panel["type"] == "row" or letters


def test_every_metric_of_ours_is_shown_by_labels_that_it_has() -> None:
    text = " ".join(EXPRESSIONS.values())
    assert set(re.findall(r"ray_contrans_\w+", text)) == set(LABELS)
    for name, labels in LABELS.items():
        for selector in re.findall(rf"{name}\{{(.*?)\}}", text):
            assert set(re.findall(r"(\w+)=~", selector)) <= labels | {"SessionName"}
    variables = {each["name"] for each in DASHBOARD["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD))) - {"__all"} == variables


def rules(folder: Path) -> dict[str, str]:
    """A file of rules for promtool, one an expression: their names by panel."""
    names = {title: f"panel:number_{number}" for number, title in enumerate(EXPRESSIONS)}
    recorded = [
        {"record": names[title], "expr": re.sub(r"\$\w+", ".*", expression)}
        for title, expression in EXPRESSIONS.items()
    ]
    content = {"groups": [{"name": "panels", "interval": "1m", "rules": recorded}]}
    (folder / "rules.yaml").write_text(yaml.safe_dump(content))
    return names


@needs_promtool
def test_prometheus_reads_every_expression(tmp_path: Path) -> None:
    rules(tmp_path)
    checked = subprocess.run(
        ["promtool", "check", "rules", str(tmp_path / "rules.yaml")], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr
    assert f"{len(EXPRESSIONS)} rules found" in checked.stdout


@needs_promtool
def test_panels_show_what_is_going_on(tmp_path: Path) -> None:
    """A harvest of 1,000 texts after half an hour, 10 a minute in five tasks; one more a minute is lost."""
    names = rules(tmp_path)
    ours = 'SessionName="s", WorkerId="w", stage="harvest", model="org/m"'
    node = 'SessionName="s", instance="one"'
    series = {
        f"ray_contrans_items_done{{{ours}}}": "0+10x40",
        f"ray_contrans_items_wanted{{{ours}}}": "1000+0x40",
        f"ray_contrans_actors{{{ours}}}": "3+0x40",
        f"ray_contrans_tokens_total{{{ours}}}": "0+600x40",
        f'ray_contrans_tasks_total{{{ours}, outcome="done"}}': "0+5x40",
        f'ray_contrans_tasks_total{{{ours}, outcome="lost"}}': "0+1x40",
        f'ray_contrans_task_seconds_bucket{{{ours}, le="1.0"}}': "0+0x40",
        f'ray_contrans_task_seconds_bucket{{{ours}, le="10.0"}}': "0+5x40",
        f'ray_contrans_task_seconds_bucket{{{ours}, le="+Inf"}}': "0+5x40",
        f'ray_node_gpus_utilization{{{node}, GpuIndex="0"}}': "50+0x40",
        f'ray_node_gpus_utilization{{{node}, GpuIndex="1"}}': "100+0x40",
        f'ray_node_gram_used{{{node}, GpuIndex="0"}}': "10+0x40",
        f'ray_node_gram_available{{{node}, GpuIndex="0"}}': "30+0x40",
        f"ray_node_cpu_utilization{{{node}}}": "40+0x40",
        f"ray_node_mem_used_host{{{node}}}": "1+0x40",
        f"ray_node_mem_total_host{{{node}}}": "4+0x40",
    }
    work = '{stage="harvest", model="org/m"}'
    wanted = {
        "Share done A": (work, 0.3),
        "Time left A": (work, 4200),
        "Items per second A": (work, 1 / 6),
        "Tokens per second A": (work, 10),
        "Actors A": (work, 3),
        "Failures and losses A": ('{stage="harvest", model="org/m", outcome="lost"}', 5),
        "Seconds of a task A": (work, 5.5),
        "Seconds of a task B": (work, 9.1),
        "Seconds of a task C": (work, 9.91),
        "GPUs A": ('{instance="one"}', 75),
        "GPU memory A": ('{instance="one"}', 0.25),
        "Processors A": ('{instance="one"}', 40),
        "Memory A": ('{instance="one"}', 0.25),
    }
    assert set(wanted) == set(names)
    tests = [
        {
            "expr": f"round({names[title]}, 0.0001)",
            "eval_time": "30m",
            "exp_samples": [{"labels": labels, "value": round(value, 4)}],
        }
        for title, (labels, value) in wanted.items()
    ]
    inputs = [{"series": name, "values": values} for name, values in series.items()]
    content = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": inputs, "promql_expr_test": tests}],
    }
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(content))
    done = subprocess.run(
        ["promtool", "test", "rules", "tests.yaml"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_ray_writes_metrics_under_these_names(local: None) -> None:
    """Ray puts `ray_` before a name, and `_total` or `_bucket` behind; a node's own metrics are Ray's."""
    import ray
    from ray.util.metrics import Counter, Gauge, Histogram

    tags = {"stage": "harvest", "model": "org/m"}
    keys = tuple(tags)
    kept: list[Any] = [
        Gauge(f"contrans_{name}", tag_keys=keys) for name in ("items_done", "items_wanted", "actors")
    ]
    for gauge in kept:
        gauge.set(1, tags)
    tokens, tasks = (
        Counter("contrans_tokens", tag_keys=keys),
        Counter("contrans_tasks", tag_keys=(*keys, "outcome")),
    )
    tokens.inc(1, tags)
    tasks.inc(1, {**tags, "outcome": "done"})
    seconds = Histogram("contrans_task_seconds", boundaries=[1, 10], tag_keys=keys)
    seconds.observe(5, tags)
    node = ray.nodes()[0]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    shown = set(re.findall(r"ray_\w+", " ".join(EXPRESSIONS.values())))
    wanted = {name for name in shown if not re.search("gpu|gram", name)}

    def samples() -> dict[str, str]:
        with urllib.request.urlopen(address, timeout=10) as answer:
            return dict(re.findall(r"(?m)^(ray_\w+)\{(.*)\}", answer.read().decode()))

    until(lambda: wanted <= set(samples()), lambda: str(wanted - set(samples())), pause=2)
    found = samples()
    for name, labels in LABELS.items():
        assert labels | {"SessionName"} <= set(re.findall(r'(\w+)="', found[name]))
    assert 'model="org/m"' in found["ray_contrans_tokens_total"]
