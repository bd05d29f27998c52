"""Figures and tables of a page, read back: limits, marks, legends, the data beside them, what is cleared."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from contrans_dist.benchmarks.statistics import wilson
from contrans_dist.evaluation.analysis import Picture, read_evaluation
from contrans_dist.report import write_comparison
from contrans_dist.report.figures import concept_look, concepts_figure
from contrans_dist.report.harvests import norms_figure
from contrans_dist.report.states import picture_figure, pictures_figure
from contrans_dist.store.location import Location
from tests.report.test_page import Page, report
from tests.runextras import write_runs
from tests.runfolder import (
    CONCEPTS,
    HITS,
    ITEMS,
    SOURCE,
    STRENGTHS,
    figure_rows,
    write_activations,
    write_evaluation,
    write_run,
)

KEY = "token_acc_negative"


def settle(folder: Path, **changes: Any) -> Path:
    """Change keys of a run's recipe."""
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text()) | changes
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def seen_concepts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_small_multiples_have_the_same_limits_and_ticks(tmp_path: Path) -> None:
    figure = concepts_figure(read_evaluation(Location.parse(write_evaluation(tmp_path))), KEY)
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert len(panels) == len(CONCEPTS)
    figure.draw_without_rendering()
    assert {tuple(axes.get_ylim()) for axes in panels} == {(0.0, 1.0)}
    assert {tuple(axes.get_yticks()) for axes in panels} == {(0.0, 0.25, 0.5, 0.75, 1.0)}


def picture(concepts: tuple[str, ...] = CONCEPTS) -> Picture:
    """Three states a concept, all of one centre, so that names at the centres would cover each other."""
    labels = [concept for concept in concepts for _ in range(3)]
    before = np.tile([[0.0, 0.0], [1.0, 0.1], [0.0, 1.0]], (len(concepts), 1))
    return Picture(concepts[2], 4, 2.0, labels, before, before + np.array([5.0, 0.0]), (0.7, 0.2), 0.0, 1.0)


@pytest.mark.parametrize("draw", [picture_figure, lambda one: pictures_figure([one, one])])
def test_concepts_are_named_in_a_legend_and_nowhere_among_the_states(draw: Any) -> None:
    figure = draw(picture())
    assert seen_concepts(figure) == sorted(CONCEPTS)
    notes = [child for axes in figure.axes for child in axes.get_children() if isinstance(child, Annotation)]
    assert notes
    assert all(note.get_text() == "" for note in notes)  # arrows
    heads = [note.arrow_patch for note in notes]
    assert all(head is not None and head.get_path_effects() for head in heads)  # with a rim


def test_marks_of_many_concepts_differ() -> None:
    looks = [concept_look(index) for index in range(64)]
    assert len(set(looks)) == 64
    assert len({marker for _, marker in looks[:8]}) == len({colour for colour, _ in looks[:8]}) == 8


def test_norms_of_a_single_block_are_a_mark_below_the_top() -> None:
    axes = norms_figure({"source": {2: 5.0}, "target": {0: 3.0, 1: 24.0}}, 1).axes[0]
    marks = {tuple(np.ravel(line.get_xdata())): line for line in axes.lines}
    assert marks[(2,)].get_marker() not in ("", "None", None)
    assert axes.get_ylim()[1] > 24.0 * 1.1


@pytest.mark.usefixtures("undrawn")
def test_a_side_of_one_block_is_among_the_norms(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    for kind in ("contrast", "corpus"):
        write_activations(
            folder / f"activations/{kind}-source", SOURCE | {"n_blocks": 1}, "demo:source", CONCEPTS
        )
    report(folder)
    blocks = [(row["model"], row["block"]) for row in figure_rows(folder, "norms")]
    assert blocks == [("source", "0"), *(("target", str(block)) for block in range(6))]


@pytest.mark.usefixtures("undrawn")
def test_folded_metrics_have_curves_and_groups(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    html = report(folder)
    rows = figure_rows(folder, "emotions-logit-acc-negative-strength")
    vector = {float(row["strength"]): float(row["value"]) for row in rows if row["condition"] == "vector"}
    expected = dict(zip(STRENGTHS, [min(hits + 2, ITEMS) / ITEMS for hits in HITS["vector"]], strict=True))
    assert vector == pytest.approx(expected)
    panels = figure_rows(folder, "emotions-logit-acc-negative-concepts")
    assert {row["concept"] for row in panels} == set(CONCEPTS)
    assert {row["metric"] for row in panels} == {"logit_acc_negative"}
    folded = html[html.index("<summary>Logit Acc on negative scenarios</summary>") :]
    folded = Page(folded[: folded.index("</details>")]).words
    # 18 of 20 logit hits at strength 2, where the best control, the shuffled map, has 4.
    assert "fear 15.0 % [5.2, 36.0] 90.0 % [69.9, 97.2] 20.0 % [8.1, 41.6] Shuffled map strength" in folded


@pytest.mark.usefixtures("undrawn")
def test_every_number_by_group_has_its_interval_and_strength(tmp_path: Path) -> None:
    words = Page(report(write_run(tmp_path))).words

    def shown(hits: int) -> str:
        low, high = wilson(hits, ITEMS)
        return f"{100 * hits / ITEMS:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"

    best = STRENGTHS[max(range(4), key=HITS["shuffled-map"].__getitem__)]
    expected = (
        f"fear {shown(1)} {shown(16)} {shown(2)} Shuffled map strength {best:g} {shown(20)} strength 2 0.60"
    )
    assert expected in words
    assert "Emotion No steering Transplanted vector, strength 2 Best control Own vector" in words


def test_figures_of_an_earlier_page_go_and_other_files_stay(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    report(folder)
    figures = folder / "figures"
    ours = {path.name for path in figures.iterdir()}
    (figures / "mine.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    (figures / "mine.csv").write_text("a,b\n")
    (figures / "copy.svg").write_bytes((figures / "norms.svg").read_bytes())
    (figures / "notes.txt").write_text("norms")
    content = json.loads((folder / "evaluations/emotions/metrics.json").read_text())
    content["conditions"] = [each for each in content["conditions"] if each["strength"] in (0, 2)]
    (folder / "evaluations/emotions/metrics.json").write_text(json.dumps(content))
    report(folder)
    left = {path.name for path in figures.iterdir()}
    gone = {name for name in ours if "-strength." in name or "-concepts." in name}
    assert len(gone) == 16
    assert left == ours - gone | {"mine.svg", "mine.csv", "copy.svg", "notes.txt"}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("name", "model", "said"),
    [
        ("contrans-fig6", "demo:strong", True),
        ("lcross-maps", "demo:strong", True),
        ("contrans-fig6", "org/target", False),
        ("demo", "demo:strong", False),
        ("mine", "demo:strong", False),
    ],
)
def test_stand_ins_for_a_papers_models_are_told(tmp_path: Path, name: str, model: str, said: bool) -> None:
    folder = settle(write_run(tmp_path / "run", source=model, target=model), name=name)
    words = Page(report(folder)).words
    assert ("The models here are small ones that come with the program" in words) == said
    # Beside the paper's figures or not: there are none here to speak of.
    assert "The paper's figures show" not in words
    one: dict[str, dict[str, Any]] = {"a": {"name": name, "source": {"id": model}, "target": {"id": model}}}
    both = write_runs(tmp_path / "both", one, {"a": {"base": 0.2, "vector": (0.2, 0.3, 0.4)}})
    runs = [Location.parse(both / "runs/a")]
    page = Path(write_comparison(runs, Location.parse(both)).path).read_text()
    assert ("The models here are small ones" in page) == said


@pytest.mark.usefixtures("undrawn")
def test_conditions_that_were_asked_for_and_not_run_are_told(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    assert "Asked for and not run" not in report(folder)
    settings = {"emotions": {"conditions": [*HITS, "no-map", "averaged"]}}
    words = Page(report(settle(folder, evaluations=settings))).words
    assert (
        "Asked for and not run: no-map, averaged (no-map needs models of one width; these have 12 and 16)."
        in words
    )
    settings = {"emotions": {"conditions": [*HITS, "averaged"]}}
    assert "Asked for and not run: averaged." in Page(report(settle(folder, evaluations=settings))).words


def test_a_comparison_tells_what_runs_lack(tmp_path: Path) -> None:
    asked = {"evaluations": {"truthfulqa": {"conditions": ["vector", "no-map"]}}}
    planted = {"base": 0.2, "vector": (0.2, 0.3, 0.4)}
    folder = write_runs(tmp_path, {"a": asked, "b": asked, "c": {}}, dict.fromkeys("abc", planted))
    runs = [Location.parse(folder / "runs" / name) for name in "abc"]
    html = Path(write_comparison(runs, Location.parse(folder)).path).read_text()
    assert "a, b: asked for and not run: no-map." in Page(html).words
