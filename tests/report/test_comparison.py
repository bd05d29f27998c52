"""Several runs on one page: what is matched, what is drawn, what is linked, and that it stays small."""

import json
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml

from contrans_dist.benchmarks.statistics import wilson
from contrans_dist.errors import UserError
from contrans_dist.evaluation.analysis import run_folders
from contrans_dist.report import write_comparison, write_report
from contrans_dist.report.compare import (
    compare,
    differing_settings,
    improvements,
    pairs_of,
    positions,
)
from contrans_dist.store.location import Location
from tests.report.test_page import HOSTILE, Page
from tests.runextras import (
    MC1,
    PUBLISHED,
    SYSTEMS,
    write_perplexity,
    write_runs,
    write_toxigen,
    write_truthfulqa,
)
from tests.runfolder import CONCEPTS, HITS, figure_rows, write_evaluation, write_run


def place(path: Path) -> Location:
    return Location.parse(path)


def compared(folder: Path) -> Page:
    page = write_comparison(run_folders(place(folder)), place(folder))
    return Page(Path(page.path).read_text(encoding="utf-8"))


def planted(gain: float) -> dict:
    """TruthfulQA scores whose vector is best at strength 2, by `gain` over a base of 0.2."""
    return {**MC1, "vector": (0.2, 0.2 + gain, 0.2 + gain / 2)}


def test_runs_come_in_the_recipes_order_and_a_single_run_has_none(tmp_path: Path) -> None:
    names: dict[str, dict[str, Any]] = {"30": {}, "4": {}, "100": {}}
    folder = write_runs(tmp_path / "a", names, dict.fromkeys(names, MC1))
    (folder / "runs/begun").mkdir()
    assert [run.name for run in run_folders(place(folder))] == ["30", "4", "100"]
    assert run_folders(place(write_run(tmp_path / "single"))) == []


def test_table_has_every_run_and_condition_with_the_papers_value(tmp_path: Path) -> None:
    runs: dict[str, dict[str, Any]] = {"first": {}, "second": {}}
    published = {
        **PUBLISHED,
        "values": {"second": {"truthfulqa": {"vector": {"mc1": 0.41}, "base": {"mc1": 0.1}}}},
    }
    gains = {"first": planted(0.05), "second": planted(0.2)}
    folder = write_runs(tmp_path, runs, gains, published=published)
    words = compared(folder).words
    for expected in (
        "25.0 % [20.0, 30.0] at 2", "40.0 % [35.0, 45.0] at 2 paper 41.0 %, inside",
        "20.0 % [15.0, 25.0] paper 10.0 %, outside", f"{100 * SYSTEMS['align-training']:.1f} % [32.0, 42.0] ",
        "Clear effect 20 % → 40 %", "Nothing moved 20 % → 25 %", "The models here are small ones",
        "arXiv 0000.00000, Table 1", "The strength is not told.",
    ):  # fmt: skip
        assert expected in words
    table = figure_rows(folder, "truthfulqa-runs")
    assert len(table) == 2 * (1 + 3 + len(SYSTEMS))
    best = {
        row["run"]: (float(row["strength"]), float(row["value"]))
        for row in table
        if row["condition"] == "vector"
    }
    assert best == {"first": (2.0, pytest.approx(0.25)), "second": (2.0, pytest.approx(0.4))}


def test_a_papers_figures_are_shown_when_none_is_for_these_runs(tmp_path: Path) -> None:
    values = {"llama": {"toxigen": {"vector": {"toxic_share": 0.3}}}, "llama-2": PUBLISHED["values"]["all"]}  # type: ignore[index]
    folder = write_runs(
        tmp_path, {"a": {}, "b": {}}, dict.fromkeys("ab", MC1), published={**PUBLISHED, "values": values}
    )
    words = compared(folder).words
    assert "What the paper found" in words
    # No steering, the vector, its own, then the systems: a row of the paper above ours, judged by nothing.
    assert "Paper (llama-2) arXiv 0000.00000, Table 1 17.9 % 36.5 % – – – 90.0 % –" in words
    assert "paper 36.5" not in words
    assert ", inside" not in words
    assert words.count("Paper (llama-2)") == 1


def test_concepts_stand_beside_each_other_run_by_run(tmp_path: Path) -> None:
    """Of each concept 1 of 20 without steering, and 16 at the strength that the whole is read at."""
    runs = {"works": HITS["vector"], "fails": (1, 1, 1, 1)}
    for name, hits in runs.items():
        write_run(tmp_path / name, hits=HITS | {"vector": hits})
    written = write_comparison([place(tmp_path / name) for name in runs], place(tmp_path))
    words = Page(Path(written.path).read_text()).words
    low, high = wilson(16, 20)
    assert "By emotion Run" in words
    table = words[words.index("By emotion Run") :].split("Green: told apart")[0]
    assert f"80.0 % [{100 * low:.1f}, {100 * high:.1f}] from 5.0 %" in table
    assert table.count("from 5.0 %") == 2 * len(CONCEPTS)
    assert table.count("80.0 %") == len(CONCEPTS)


def test_costs_are_read_where_each_run_reports_its_conditions(tmp_path: Path) -> None:
    folder = write_runs(tmp_path, {"a": {}, "b": {}}, {"a": MC1, "b": {**MC1, "vector": (0.5, 0.2, 0.2)}})
    for name in "ab":
        write_perplexity(folder / "runs" / name / "evaluations/perplexity")
    words = compared(folder).words
    assert "Each condition at the strength that truthfulqa reports." in words
    at = {
        (row["run"], row["condition"]): (float(row["strength"]), float(row["value"]))
        for row in figure_rows(folder, "perplexity-runs")
    }
    assert (at["a", "vector"], at["b", "vector"]) == ((2.0, 14.0), (1.0, 13.0))
    assert at["a", "self-align"] == at["b", "self-align"] == (2.0, 13.0)
    assert "12.00 → 14.00" in words
    assert "12.00 → 13.00" in words


def test_what_differs_between_recipes_is_listed_and_nothing_else(tmp_path: Path) -> None:
    runs: dict[str, dict[str, Any]] = {
        "a": {"map": {"blocks": "3:4", "norm": "match"}, "concepts": {"limit": 20}},
        "b": {"map": {"blocks": "3:4", "norm": "keep"}, "concepts": {}, "cluster": {"actors": 2}},
    }
    folder = write_runs(tmp_path, runs, dict.fromkeys(runs, MC1))
    found = compare(run_folders(place(folder)), place(folder))
    assert differing_settings(found.runs) == {
        "map.norm": {"a": "match", "b": "keep"},
        "concepts.limit": {"a": "20", "b": ""},
    }
    assert "What differs between the runs" in compared(folder).words


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["10", "358", "50"], [10, 358, 50]),
        (["step 500", "step 1,000"], [500, 1000]),
        (["14M", "1.4B", "70M"], [14e6, 1.4e9, 70e6]),
        (["20 pairs", "0.5 pairs"], [20, 0.5]),
        (["step500", "step2k"], [500, 2000]),
        (["1e3", "2e4"], [1000, 20000]),
        (["first", "second"], None),
        (["7b to 13b", "7b to 65b"], None),
        (["10", "10.0"], None),
    ],
)
def test_positions_of_runs_along_an_axis(names: list[str], expected: list[float] | None) -> None:
    assert positions(names) == expected


def test_runs_along_an_axis_are_a_curve(tmp_path: Path) -> None:
    runs: dict[str, dict[str, Any]] = {"10": {}, "1000": {}, "100": {}}
    gains = {"10": planted(0.02), "1000": planted(0.3), "100": planted(0.1)}
    page = compared(write_runs(tmp_path, runs, gains, axis="training steps"))
    assert page.tags.count("svg") == 1
    assert "MC1 over training steps." in page.words
    assert {"10", "100", "1000"} <= set(page.text)


def test_sources_and_targets_make_heat_maps(tmp_path: Path) -> None:
    gain = {("s", "t"): 0.3, ("s", "u"): -0.1, ("v", "t"): 0.1}
    runs: dict[str, dict[str, Any]] = {f"{a} -> {b}": {} for a, b in gain}
    folder = write_runs(tmp_path, runs, {f"{a} -> {b}": planted(value) for (a, b), value in gain.items()})
    assert compared(folder).tags.count("svg") == 2
    table = {(row["source"], row["target"]): row for row in figure_rows(folder, "truthfulqa-improvement")}
    for pair, value in gain.items():
        best = max(0.0, value, value / 2)  # of the three strengths
        assert float(table[pair]["improvement"]) == pytest.approx(best, abs=1e-9)
        assert float(table[pair]["improvement_ratio"]) == pytest.approx(best / 0.2, abs=1e-9)


def test_pairs_by_models_and_no_pairs_without_a_grid(tmp_path: Path) -> None:
    def pairs(*ends: tuple[str, str]) -> object:
        runs = {
            f"run{i}": {"source": {"id": f"org/{a}"}, "target": {"id": f"org/{b}"}}
            for i, (a, b) in enumerate(ends)
        }
        folder = write_runs(tmp_path / str(len(list(tmp_path.iterdir()))), runs, dict.fromkeys(runs, MC1))
        return pairs_of(compare(run_folders(place(folder)), place(folder)).runs)

    found = pairs(("a", "b"), ("c", "b"), ("a", "d"))
    assert found is not None
    assert (found.sources, found.targets) == (["org/a", "org/c"], ["org/b", "org/d"])  # type: ignore[attr-defined]
    assert pairs(("a", "b"), ("a", "c")) is None
    assert pairs(("a", "b"), ("c", "d"), ("a", "b")) is None
    assert pairs(("a", "b"), ("b", "a")) is None  # half of the grid would be empty
    both = pairs(("a", "b"), ("a", "a"), ("b", "a"))
    assert both.sources == both.targets  # type: ignore[attr-defined]


def test_a_metric_that_should_fall_improves_downwards(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_toxigen(tmp_path / name / "evaluations/toxigen")
    found = compare([place(tmp_path / "a"), place(tmp_path / "b")], place(tmp_path))
    gain, ratio = improvements(found.evaluations[0], "toxic_share")["a"]
    assert (gain, ratio) == (pytest.approx(0.6), pytest.approx(0.6 / 0.9))


@pytest.mark.parametrize(("base", "known"), [(0.0, False), (0.01, False), (0.1, True)])
def test_no_part_of_next_to_nothing(tmp_path: Path, base: float, known: bool) -> None:
    """Of 100 questions, one right is .01 with an interval from .0018; ten right are .1, from .055."""
    scores = {"base": base, "vector": (0.5, 0.5, 0.5)}
    folder = write_runs(tmp_path, {"a": {}, "b": {}}, {"a": scores, "b": scores})
    found = compare(run_folders(place(folder)), place(folder))
    gain, ratio = improvements(found.evaluations[0], "mc1")["a"]
    assert gain == pytest.approx(0.5 - base)
    assert ratio == (pytest.approx((0.5 - base) / base) if known else None)


def test_any_runs_can_be_compared_matched_by_name_and_benchmark(tmp_path: Path) -> None:
    one, two = write_run(tmp_path / "x/run"), write_run(tmp_path / "y/run")
    write_truthfulqa(one / "evaluations/extra")
    write_perplexity(two / "evaluations/extra")
    for run in (one, two):
        (run / "recipe.yaml").unlink()  # it does not name them
    single = write_evaluation(tmp_path / "emotions")
    target = tmp_path / "page"
    page = Page(
        Path(write_comparison([place(one), place(two), place(single)], place(target)).path).read_text()
    )
    words = page.words
    assert "3 runs compared" in words
    assert "x/run" in words
    assert "y/run" in words
    assert words.count("Clear effect") == 4
    assert {"extra", "extra-2"} <= set(page.values("id"))  # two benchmarks, two sections
    with pytest.raises(UserError, match="nothing to compare"):
        write_comparison([place(tmp_path)], place(target))


def test_each_run_is_linked_where_its_page_lies_below(tmp_path: Path) -> None:
    runs: dict[str, dict[str, Any]] = {"a b#1": {}, "c": {}}
    folder = write_runs(tmp_path, runs, dict.fromkeys(runs, MC1))
    write_report(place(folder / "runs/a b#1"))
    page = compared(folder)
    links = [v for v in page.values("href") if not v.startswith("#")]
    assert [unquote(link) for link in links] == ["runs/a b#1/report.html"]
    assert (folder / unquote(links[0])).is_file()


def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    bad = '"><img src=x onerror=alert(1)>'
    runs: dict[str, dict[str, Any]] = {
        bad: {"source": {"id": HOSTILE}},
        "$x^2$ & <b>": {"map": {HOSTILE: bad}},
    }
    top = {"name": HOSTILE, "description": HOSTILE, "axis": HOSTILE,
           "published": {"source": HOSTILE, "remarks": HOSTILE, "values": {}}}  # fmt: skip
    folder = tmp_path / "all"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"runs": {name: {} for name in runs}, **top}))
    for index, (name, recipe) in enumerate(runs.items()):
        run = folder / "runs" / name.replace("/", "_")
        write_truthfulqa(run / "evaluations" / f"{bad} {index}")
        content = json.loads((run / "evaluations" / f"{bad} {index}" / "metrics.json").read_text())
        content["conditions"].append({**content["conditions"][1], "condition": f"from:{HOSTILE}"})
        content["costs"] = {HOSTILE: {"rows": 1}}
        (run / "evaluations" / f"{bad} {index}" / "metrics.json").write_text(json.dumps(content))
        (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        (run / "run.json").write_text("{}")
    page = compared(folder)
    assert not {"script", "img", "b"} & set(page.tags)
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert page.tags.count("style") == 1
    assert HOSTILE in page.words


def test_thirty_runs_of_six_evaluations_stay_small(tmp_path: Path) -> None:
    runs: dict[str, dict[str, Any]] = {
        f"a longer name of run {index}": {"concepts": {"limit": index}} for index in range(30)
    }
    folder = write_runs(tmp_path / "all", runs, {name: planted(0.01 * i) for i, name in enumerate(runs)})
    more = tmp_path / "more"
    write_toxigen(more / "toxigen")
    write_perplexity(more / "perplexity")
    write_truthfulqa(more / "second")
    write_evaluation(more / "emotions")
    write_evaluation(more / "held-out")
    for name in runs:
        shutil.copytree(more, folder / "runs" / name / "evaluations", dirs_exist_ok=True)
    page = compared(folder)
    assert (folder / "report.html").stat().st_size < 5_000_000
    assert page.tags.count("svg") == 6
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)


def test_published_figures_of_groups_stand_beside_ours(tmp_path: Path) -> None:
    values = {
        "emotions": {"vector": {"fear/token_acc_negative": 0.79}, "base": {"fear/token_acc_negative": 0.5}}
    }
    published = {"source": "s", "values": {"a": values}}
    folder = write_runs(tmp_path, {"a": {}, "b": {}}, dict.fromkeys("ab", MC1), published=published)
    for name in "ab":
        write_evaluation(folder / "runs" / name / "evaluations/emotions")
    words = compared(folder).words
    title = "fear: Token Acc on negative scenarios"
    assert f"a Transplanted vector {title} 79.0 % 80.0 % best strength 2 [58.4, 91.9] yes" in words
    assert f"a No steering {title} 50.0 % 5.0 % [0.9, 23.6] no, ours is lower" in words
