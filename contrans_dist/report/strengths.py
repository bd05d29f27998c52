"""Strength curves with what steering costs below them, and how strengths were chosen."""

from dataclasses import dataclass

import pyarrow as pa

from contrans_dist.benchmarks import Metric
from contrans_dist.evaluation.analysis import (
    Evaluation,
    main_condition,
    score_table,
    sweep_of,
)
from contrans_dist.evaluation.analysis.names import COST, VALIDATION
from contrans_dist.evaluation.conditions import condition_of
from contrans_dist.report.figures import strength_figure
from contrans_dist.report.parts import Drawing, Studio, Table
from contrans_dist.report.tables import trials_table
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
    steered = [trial for trial in search.candidates if trial.strength != 0]
    return trials_table(
        search,
        [(condition_of(trial.condition).title, trial) for trial in steered],
        lambda trial: search.chosen.get(trial.condition) == trial.strength,
        kind,
        "Condition",
        "Every strength that was tried, on validation items.",
    )


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
