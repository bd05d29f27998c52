"""Strength curves with what steering costs below them, and how strengths were chosen."""

from dataclasses import dataclass

import pyarrow as pa

from contrans_dist.benchmarks import Metric
from contrans_dist.evaluation.analysis import (
    Evaluation,
    main_condition,
    number,
    score_table,
    strength_text,
    sweep_of,
)
from contrans_dist.evaluation.analysis.names import COST, VALIDATION
from contrans_dist.evaluation.conditions import condition_of
from contrans_dist.report.figures import strength_figure
from contrans_dist.report.parts import Cell, Drawing, Studio, Table
from contrans_dist.store.results import SearchFile


@dataclass(frozen=True)
class Choice:
    """How the strengths of an evaluation were chosen."""

    text: str
    curves: Drawing | None
    candidates: Table


def strength_drawing(
    evaluation: Evaluation, key: str, companions: list[Evaluation], anchor: str, studio: Studio
) -> Drawing | None:
    """The metric over strength, perplexity below it where it is known; None where nothing was swept."""
    if not evaluation.is_sweep:
        return None
    companion = _same_steering(evaluation, companions) if not evaluation.metric(key).cost else None
    below = " Below: perplexity under the same steering." if companion else ""
    caption = f"{evaluation.metric(key).title} over steering strength.{below} Bands: 95\u202f% intervals."
    return studio.draw(
        (anchor, "strength"),
        lambda: strength_figure(evaluation, key, companion),
        _data(evaluation, key, companion),
        caption + _levels(evaluation),
    )


def choice_of(evaluation: Evaluation, anchor: str, studio: Studio) -> Choice | None:
    """The search for strengths; None where there was none."""
    search = evaluation.search
    if search is None:
        return None
    within = (
        f", among those under which the perplexity stays within {search.budget:g} times the base's "
        f"({search.base_perplexity:.4g})"
        if search.budget is not None and search.base_perplexity is not None
        else ""
    )
    kind = evaluation.metric(search.criterion)
    best, main = "highest" if search.higher else "lowest", main_condition(evaluation)
    followed = condition_of(main).phrase if main else "the condition under test"
    text = (
        f"Each condition takes the strength with the {best} {kind.title} on validation "
        f"items{within}. Controls take that of {followed}."
    )
    return Choice(text, _validation_drawing(evaluation, search, anchor, studio), _candidates(search, kind))


def _validation_drawing(
    evaluation: Evaluation, search: SearchFile, anchor: str, studio: Studio
) -> Drawing | None:
    validation = sweep_of(evaluation, VALIDATION)
    if validation is None or not validation.is_sweep:
        return None
    wanted = (f"validation_{search.criterion}", search.criterion)
    key = next((name for name in wanted if name in validation.metrics), None)
    if key is None:
        return None
    costs = sweep_of(evaluation, COST)
    return studio.draw(
        (anchor, "validation"),
        lambda: strength_figure(validation, key, costs, search.limit, search.chosen),
        _data(validation, key, costs),
        f"{evaluation.metric(search.criterion).title} on validation items over strength, by which the "
        "strengths were chosen (ringed)."
        + (" Below: perplexity, with the most that was allowed." if costs else ""),
    )


def _candidates(search: SearchFile, kind: Metric) -> Table:
    percent, costed = kind.percent, any(trial.perplexity is not None for trial in search.candidates)
    rows = []
    for trial in search.candidates:
        if trial.strength == 0:
            continue
        taken = search.chosen.get(trial.condition) == trial.strength
        over = search.limit is not None and trial.perplexity is not None and trial.perplexity > search.limit
        cells = [
            Cell(condition_of(trial.condition).title),
            Cell(strength_text(trial.strength)),
            Cell(number(trial.score, percent, 1 if percent else 2), kind="best" if taken else ""),
        ]
        if costed:
            text = "–" if trial.perplexity is None else f"{trial.perplexity:.2f}"
            cells.append(Cell(text, "over the budget" if over else "", "warn" if over else ""))
        rows.append([*cells, Cell("chosen" if taken else "", kind="apart" if taken else "")])
    head = ["Condition", "Strength", kind.title, *(["Perplexity"] if costed else []), ""]
    return Table(head, rows, "Every strength that was tried, on validation items.", compact=True)


def _same_steering(evaluation: Evaluation, companions: list[Evaluation]) -> Evaluation | None:
    """The first companion that was swept over one of the evaluation's own conditions."""
    for companion in companions:
        if companion.is_sweep and set(companion.conditions) & set(evaluation.conditions):
            return companion
    return None


def _levels(evaluation: Evaluation) -> str:
    names = [condition_of(condition) for condition in evaluation.conditions]
    systems = [name.title for name in names if name.no_vector]
    return f" Level lines: {', '.join(systems)}, which have no strength." if systems else ""


def _data(evaluation: Evaluation, key: str, companion: Evaluation | None) -> pa.Table:
    """The rows behind the panels, by metric."""
    tables = [score_table(evaluation, key, groups=False)]
    return pa.concat_tables(tables + ([score_table(companion, COST, groups=False)] if companion else []))
