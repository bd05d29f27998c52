"""One evaluation as a section of the page: verdict, tables, figures, leak check."""

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from contrans_dist.analysis import (
    Evaluation,
    Leak,
    Run,
    Vector,
    Verdict,
    concept_states,
    frequent_answers,
    judge,
    metric,
    number,
    picture,
    picture_table,
    read_vectors,
    score_table,
    sentence,
    strength_text,
)
from contrans_dist.report.figures import concepts_figure, strength_figure
from contrans_dist.report.parts import Bar, Cell, Drawing, Studio, Table, score_cell
from contrans_dist.report.pictures import picture_figure, pictures_figure
from contrans_dist.report.tables import condition_table, verdict_bars

STATUS_WORDS = {
    "clear": "Clear effect",
    "partly": "Partly shared with a control",
    "shared": "The controls do the same",
    "none": "Nothing moved",
    "unchecked": "Without controls",
}
_FIRST_PICTURE = "fear"
"""The concept that the paper's Fig. 2b shows."""


@dataclass
class Section:
    """What the page shows of one evaluation; empty parts are left out."""

    name: str
    anchor: str
    benchmark: str
    model: str
    block: int | None
    status: str = ""
    status_word: str = ""
    sentence: str = ""
    concepts_told_apart: str = ""
    bars: list[Bar] = field(default_factory=list)
    headline: Table | None = None
    headline_title: str = ""
    strength: Drawing | None = None
    other_tables: list[tuple[str, Table]] = field(default_factory=list)
    concept_table: Table | None = None
    concepts: Drawing | None = None
    answers: Table | None = None
    picture: Drawing | None = None
    pictures: Drawing | None = None
    leak: Leak | None = None
    notes: list[str] = field(default_factory=list)
    throughput: list[tuple[str, str]] = field(default_factory=list)


def build_section(run: Run, evaluation: Evaluation, studio: Studio) -> Section:
    """Everything the page shows of one evaluation."""
    anchor = studio.name(evaluation.name)
    section = Section(evaluation.name, anchor, evaluation.benchmark, evaluation.model, evaluation.block)
    section.leak, section.notes = evaluation.leak, evaluation.notes
    section.throughput = [
        (str(key).replace("_", " "), _plain(value)) for key, value in evaluation.throughput.items()
    ]
    if not evaluation.metrics:
        return section
    key = evaluation.metrics[0]
    section.headline_title, section.headline = metric(key).title, condition_table(evaluation, key)
    section.other_tables = [(metric(k).title, condition_table(evaluation, k)) for k in evaluation.metrics[1:]]
    verdict = judge(evaluation, key)
    if verdict is None:
        return section
    section.status, section.status_word = verdict.status, STATUS_WORDS[verdict.status]
    if evaluation.leak and evaluation.leak.seen:
        section.status, section.status_word = "leaked", f"{section.status_word}, but on scenarios seen before"
    section.sentence = sentence(verdict, _pair_text(run, evaluation))
    section.bars = verdict_bars(verdict)
    table = score_table(evaluation)
    section.strength = studio.draw(
        studio.name(anchor, "strength"),
        lambda: strength_figure(evaluation, key),
        table.filter(pc.and_(pc.equal(table["concept"], ""), pc.equal(table["metric"], key))),
        f"{metric(key).title} over steering strength. Bands: 95\u202f% intervals.",
    )
    vectors = _vectors(run, evaluation, verdict)
    if evaluation.concepts:
        _add_concepts(section, run, evaluation, verdict, vectors, studio)
    _add_pictures(section, run, verdict, vectors, studio)
    return section


def _pair_text(run: Run, evaluation: Evaluation) -> str:
    chosen = run.main_map.chosen if run.main_map else None
    if chosen and (evaluation.block is None or chosen[1] == evaluation.block):
        return f"block {chosen[0]} → {chosen[1]}"
    blocks = evaluation.content.get("blocks") or [evaluation.block]
    if blocks == [None]:
        return ""
    return f"block{'s' if len(blocks) > 1 else ''} {', '.join(str(block) for block in blocks)}"


def _vectors(run: Run, evaluation: Evaluation, verdict: Verdict) -> dict[str, Vector]:
    if evaluation.block is None:
        return {}
    return read_vectors(run.location / "vectors" / verdict.effect.key, evaluation.block)


def _add_concepts(
    section: Section,
    run: Run,
    evaluation: Evaluation,
    verdict: Verdict,
    vectors: dict[str, Vector],
    studio: Studio,
) -> None:
    key, percent = verdict.metric, metric(verdict.metric).percent
    pair = run.main_map.pair if run.main_map else None
    cosines = dict((pair or {}).get("cosines") or {})
    rows, apart, judged = [], 0, 0
    for concept in evaluation.concepts:
        own = judge(evaluation, f"{concept}/{key}", verdict.strength)
        if own is None:
            continue
        judged += 1
        apart += own.status in ("clear", "partly")
        most = max(own.controls, key=lambda control: control.score.value, default=None)
        reference = next((r for r in own.references if r.name.key == "self-align"), None)
        cosine, vector = cosines.get(concept), vectors.get(concept)
        share = vector.share(verdict.strength) if vector else None
        rows.append(
            [
                Cell(concept),
                Cell(number(own.base.value, percent) if own.base else "–"),
                score_cell(own.score, percent, False, "apart" if own.status in ("clear", "partly") else ""),
                Cell(number(most.score.value, percent), most.name.title) if most else Cell("–"),
                Cell(number(reference.score.value, percent)) if reference else Cell("–"),
                Cell("–" if cosine is None else f"{cosine:.2f}"),
                Cell("–" if share is None else number(share, True, 0)),
            ]
        )
    at = strength_text(verdict.strength)
    head = ["Concept", "No steering", f"{verdict.effect.title}, {at}", "Best control", "Own vector",
            "Cosine to own", "Length"]  # fmt: skip
    caption = (
        f"{metric(key).title} at strength {at}. Green: told apart from no steering and from every control. "
        "Cosine: between the transplanted and the target's own vector. "
        "Length: of what is added, as a share of the median residual norm at the block."
    )
    section.concept_table = Table(head, rows, caption)
    if judged:
        section.concepts_told_apart = f"{apart} of {judged} concepts stand apart on their own"
    table = score_table(evaluation)
    section.concepts = studio.draw(
        studio.name(section.anchor, "concepts"),
        lambda: concepts_figure(evaluation, key),
        table.filter(pc.and_(pc.not_equal(table["concept"], ""), pc.equal(table["metric"], key))),
        f"{metric(key).title} over strength, concept by concept. Colours as above.",
    )
    answers = frequent_answers(evaluation, verdict.effect.key, verdict.strength)
    if answers:
        section.answers = Table(
            ["Concept", "Answers without steering", f"Answers at strength {at}"],
            [[Cell(a.concept), Cell(_shares(a.before)), Cell(_shares(a.after))] for a in answers],
            "The most frequent first tokens on negative scenarios.",
            numbers=False,
        )


def _shares(answers: list[tuple[str, float]]) -> str:
    return ", ".join(f"“{text.strip()}” {number(share, True, 0)}" for text, share in answers)


def _add_pictures(
    section: Section, run: Run, verdict: Verdict, vectors: dict[str, Vector], studio: Studio
) -> None:
    states = run.harvests.get("contrast-target")
    found = concept_states(states, section.block) if states and section.block is not None else None
    if found is None or section.block is None:
        return
    values, labels = found
    shown = [
        picture(values, labels, vectors[concept], section.block, verdict.strength)
        for concept in sorted(vectors)
        if concept in labels
    ]
    if not shown:
        return
    first = next((one for one in shown if one.concept == _FIRST_PICTURE), shown[0])
    at = strength_text(first.strength)
    section.picture = studio.draw(
        studio.name(section.anchor, "pca"),
        lambda: picture_figure(first),
        picture_table(first),
        f"The target's states at block {first.block}, in the plane of their two main directions. Filled: "
        f"before. Hollow: after adding {at} × the vector of {first.concept}; arrows join the centres. Of the "
        f"other concepts' states, {number(first.near_before, True, 0)} lie nearest to {first.concept} before "
        f"and {number(first.near_after, True, 0)} after (in full width).",
    )
    if len(shown) > 1:
        lines = [
            picture_table(one).add_column(0, "steered_to", [[one.concept] * len(labels)]) for one in shown
        ]
        section.pictures = studio.draw(
            studio.name(section.anchor, "pca-all"),
            lambda: pictures_figure(shown),
            pa.concat_tables(lines),
            f"The same for every concept, each in its own plane, at strength {at}. In brackets: share of the "
            "other concepts' states that lie nearest to the concept, before → after.",
        )


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
