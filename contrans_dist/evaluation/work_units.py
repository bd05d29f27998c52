"""Which items are scored, by which system and under whose vectors; and their rows put together again."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from contrans_dist.benchmarks import Benchmark, ScoredItem
from contrans_dist.config import EvaluationSettings
from contrans_dist.data.contamination import overlap
from contrans_dist.data.spread import spread
from contrans_dist.errors import UserError
from contrans_dist.evaluation.actors import WorkUnit
from contrans_dist.evaluation.baselines import TARGET
from contrans_dist.evaluation.steering import Steering

ITEMS_PER_UNIT = 48


def scored_items(benchmark: Benchmark, settings: EvaluationSettings, steering: Steering) -> list[ScoredItem]:
    """The items that an evaluation scores, in the benchmark's order.

    Those of the steered concepts (of all when nothing is steered) that the benchmark scores and, with
    `only_unseen`, that were not seen before; with `sample` some of these. Raises UserError when none is left.
    """
    items = _of_concepts(benchmark, settings, steering)
    if settings.only_unseen:
        items = _unseen(items, steering, settings.texts or benchmark.name)
    return [items[i] for i in spread(len(items), settings.sample or len(items))]


def _of_concepts(benchmark: Benchmark, settings: EvaluationSettings, steering: Steering) -> list[ScoredItem]:
    # The other concepts stay in the benchmark: they give the scenarios and the labels to tell apart.
    items = benchmark.items()
    known = {item.concept for item in items}
    missing = [concept for concept in steering.concepts if concept not in known]
    if missing and "" not in known:
        there = ", ".join(sorted(known))
        raise UserError(f"{settings.texts}: no scenarios of {missing[0]!r}; there are {there}")
    concepts = {*steering.concepts, ""} if steering.concepts else known
    return [item for item in items if item.concept in concepts and benchmark.scores(item)]


def _unseen(items: list[ScoredItem], steering: Steering, where: str) -> list[ScoredItem]:
    """The items whose texts neither vectors nor map have seen."""
    seen = np.concatenate([steering.vector_texts, steering.map_texts])
    leaked = set(overlap([item.scenario for item in items], seen))
    kept = [item for item in items if item.scenario not in leaked]
    if not kept:
        raise UserError(
            f"{where}: only_unseen leaves nothing: every scenario was seen by the vectors or the map"
        )
    return kept


def plan_units(
    items: Sequence[ScoredItem], concepts: Sequence[str] = (), system: str = TARGET
) -> list[WorkUnit]:
    """Items cut into runs that are steered to one concept each: a pure function of its arguments.

    Items of no concept are scored under each of `concepts`; where nothing is steered (another system) once,
    for all of them.
    """
    units: list[WorkUnit] = []
    for of_items in dict.fromkeys(item.concept for item in items):
        chosen = [item for item in items if item.concept == of_items]
        steered = [of_items] if of_items else list(concepts) if system == TARGET else list(concepts)[:1]
        for concept in steered or [""]:
            for start in range(0, len(chosen), ITEMS_PER_UNIT):
                some = chosen[start : start + ITEMS_PER_UNIT]
                units.append(WorkUnit(len(units), concept, some, system))
    return units


def joined(units: Sequence[WorkUnit], tables: dict[str, pa.Table], concepts: Sequence[str]) -> pa.Table:
    """All rows. What another system answered to items of no concept stands for every concept."""
    joint = []
    for unit in units:
        table = tables[unit.name].replace_schema_metadata(None)
        joint.append(table)
        if unit.system == TARGET or any(item.concept for item in unit.items):
            continue
        place = table.schema.get_field_index("concept")
        joint += [
            table.set_column(place, "concept", pa.array([concept] * table.num_rows))
            for concept in concepts
            if concept != unit.concept
        ]
    return pa.concat_tables(joint)
