"""The papers' tables and figures as data: read from artefacts, judged, and handed on to be drawn."""

from contrans_dist.analysis.answers import Answers, frequent_answers
from contrans_dist.analysis.maps import Grid, MapSummary, grid_table, read_map
from contrans_dist.analysis.names import condition_name, metric, number, strength_text
from contrans_dist.analysis.run import Run, read_run
from contrans_dist.analysis.scores import (
    Evaluation,
    Leak,
    Row,
    Score,
    read_evaluation,
    score_table,
)
from contrans_dist.analysis.states import (
    Picture,
    Vector,
    concept_states,
    picture,
    picture_table,
    read_vectors,
)
from contrans_dist.analysis.verdict import RULE, Verdict, best_point, judge, main_condition, sentence

__all__ = [
    "RULE", "Answers", "Evaluation", "Grid", "Leak", "MapSummary", "Picture", "Row", "Run", "Score", "Vector",
    "Verdict", "best_point", "concept_states", "condition_name", "frequent_answers", "grid_table", "judge",
    "main_condition", "metric", "number", "picture", "picture_table", "read_evaluation", "read_map",
    "read_run", "read_vectors", "score_table", "sentence", "strength_text",
]  # fmt: skip
