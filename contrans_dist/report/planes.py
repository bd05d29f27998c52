"""The target's states before and after steering, as drawings for an evaluation's section."""

import pyarrow as pa

from contrans_dist.evaluation.analysis import (
    Run,
    Vector,
    Verdict,
    concept_states,
    number,
    picture,
    picture_table,
    strength_text,
)
from contrans_dist.report.parts import Drawing, Studio
from contrans_dist.report.pictures import picture_figure, pictures_figure

_FIRST_PICTURE = "fear"
"""The concept that the paper's Fig. 2b shows."""


def plane_drawings(
    run: Run, block: int | None, verdict: Verdict, vectors: dict[str, Vector], anchor: str, studio: Studio
) -> list[Drawing]:
    """One large picture and, with several concepts, one of all; none without states or vectors."""
    states = run.harvests.get("contrast-target")
    found = concept_states(states, block) if states and block is not None else None
    if found is None or block is None:
        return []
    values, labels = found
    shown = [
        picture(values, labels, vectors[concept], block, verdict.strength)
        for concept in sorted(vectors)
        if concept in labels
    ]
    if not shown:
        return []
    first = next((one for one in shown if one.concept == _FIRST_PICTURE), shown[0])
    at = strength_text(first.strength)
    drawings = [
        studio.draw(
            studio.name(anchor, "pca"),
            lambda: picture_figure(first),
            picture_table(first),
            f"The target's states at block {first.block}, in the plane of their two main directions. "
            f"Filled: before. Hollow: after adding {at} × the vector of {first.concept}; arrows join the "
            f"centres. Of the other concepts' states, {number(first.near_before, True, 0)} lie nearest to "
            f"{first.concept} before and {number(first.near_after, True, 0)} after (in full width).",
        )
    ]
    if len(shown) > 1:
        lines = [
            picture_table(one).add_column(0, "steered_to", [[one.concept] * len(labels)]) for one in shown
        ]
        drawings.append(
            studio.draw(
                studio.name(anchor, "pca-all"),
                lambda: pictures_figure(shown),
                pa.concat_tables(lines),
                f"The same for every concept, each in its own plane, at strength {at}. In brackets: share of "
                "the other concepts' states that lie nearest to the concept, before → after.",
            )
        )
    return drawings
