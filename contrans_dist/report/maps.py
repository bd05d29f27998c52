"""A map's part of the page: its fit, and the heat maps by block pair."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

from contrans_dist.benchmarks import Metric, metric_of
from contrans_dist.evaluation.analysis import (
    BlockTable,
    Evaluation,
    MapSummary,
    block_rows,
)
from contrans_dist.report.heatmaps import grid_figure
from contrans_dist.report.parts import Drawing, Studio, Table
from contrans_dist.report.tables import trials_table

_R2_CAPTION = "How much of the target's variance at a block the map explains from a block of the source."
_CHOICE_CAPTION = "The best score at any strength tried. The pair was chosen here, not on scored items."
CONTRAST_CAPTION = " The vectors are made from these prompts: they choose a block, and show nothing."


@dataclass
class MapView:
    """One map's part of the page."""

    name: str
    facts: list[tuple[str, str]]
    drawings: list[Drawing]
    candidates: Table | None


def map_view(summary: MapSummary, evaluations: Sequence[Evaluation], studio: Studio) -> MapView:
    """One map: what is known of its fit, heat maps by block pair, and the pairs that were tried.

    `evaluations`: of the run, which tell how the metric is read that the pair was chosen by.
    """
    kind = metric_in(summary.criterion, evaluations)
    tried, choice, selection = summary.candidates, summary.choice, summary.header.selection
    drawings = []
    if _drawable(summary.r2):
        drawings.append(_grid(summary, summary.r2, "r2", "R² on held-out rows", _R2_CAPTION, False, studio))
    if _drawable(choice):
        title = f"{kind.title} on {summary.tried_on}"
        drawings.append(_grid(summary, choice, "score", title, _CHOICE_CAPTION, kind.percent, studio))
    blocks = f"{summary.chosen[0]} → {summary.chosen[1]}" if summary.chosen else ""
    facts = [("Protocol", summary.header.protocol), ("Blocks", blocks)]
    for key, title in (
        ("n_fit", "Rows fitted on"), ("n_effective", "Of them that count"), ("side", "Solved"),
        ("rank", "Rank"), ("ridge", "Ridge"),
        ("condition_number", "Condition number"), ("r2_validation", "R², validation"),
        ("r2_test", "R², test"),
    ):  # fmt: skip
        value = getattr(summary.pair, key, None)
        if value is not None:
            facts.append((title, f"{value:.3g}" if isinstance(value, float) else str(value)))
    candidates = None
    if selection is not None and tried:
        best = [(f"{pair.source} → {pair.target}", pair) for pair in tried[:10]]
        caption = f"The best {len(best)} of {len(tried)} candidates on {summary.tried_on}."
        caption += CONTRAST_CAPTION if summary.tried_on == "contrast prompts" else ""
        candidates = trials_table(
            selection, best, lambda pair: pair == selection.best, kind, "Blocks", caption
        )
    return MapView(summary.name, [fact for fact in facts if fact[1]], drawings, candidates)


def metric_in(name: str, evaluations: Sequence[Evaluation]) -> Metric:
    """How a metric is read in a run's evaluations; an empty name is that of any score."""
    if not name:
        return Metric("score", "Score")
    metrics = (evaluation.metric(name) for evaluation in evaluations if name in evaluation.metrics)
    return next(metrics, metric_of(name))


def _drawable(grid: BlockTable | None) -> TypeGuard[BlockTable]:
    """Whether there is more than one pair to compare."""
    return grid is not None and len(grid.source) * len(grid.target) > 1 and bool(grid.known)


def _grid(
    summary: MapSummary, grid: BlockTable, key: str, title: str, caption: str, percent: bool, studio: Studio
) -> Drawing:
    framed = " Framed: the pair that is used." if summary.chosen else ""
    return studio.draw(
        ("map", summary.name, key),
        lambda: grid_figure(grid, title, summary.chosen, percent),
        block_rows(grid, key),
        caption + framed,
    )
