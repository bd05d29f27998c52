"""The papers' tables and figures as data: read from artefacts, judged, and handed on to be drawn."""

from contrans_dist.evaluation.analysis.compare import (
    Comparison,
    Matched,
    Pairs,
    compare,
    comparison_table,
    differing_settings,
    improvements,
    pairs_of,
    positions,
)
from contrans_dist.evaluation.analysis.maps import BlockTable, MapSummary, block_rows, read_map
from contrans_dist.evaluation.analysis.names import metric, number, strength_text
from contrans_dist.evaluation.analysis.points import best_point, main_condition, way_of
from contrans_dist.evaluation.analysis.published import Beside, Figures, Published, beside, companion_scores
from contrans_dist.evaluation.analysis.run import (
    Run,
    companions_of,
    left_out,
    read_in_run,
    read_run,
    runs_of,
    sweep_of,
)
from contrans_dist.evaluation.analysis.samples import (
    Answers,
    Example,
    Moved,
    frequent_answers,
    read_examples,
    read_tokens,
)
from contrans_dist.evaluation.analysis.scores import Evaluation, Reported, read_evaluation, score_table
from contrans_dist.evaluation.analysis.states import (
    Picture,
    Vector,
    concept_states,
    picture,
    picture_table,
    read_vectors,
)
from contrans_dist.evaluation.analysis.verdict import Rival, Verdict, judge, rule, sentence

__all__ = [
    "Answers", "Beside", "BlockTable", "Comparison", "Evaluation", "Example", "Figures", "MapSummary",
    "Matched", "Moved", "Pairs", "Picture", "Published", "Reported", "Rival",
    "Run", "Vector", "Verdict", "beside", "best_point", "block_rows", "companion_scores",
    "companions_of",
    "compare", "comparison_table", "concept_states", "differing_settings", "frequent_answers",
    "improvements", "judge", "left_out", "main_condition", "metric", "number", "pairs_of",
    "picture", "picture_table", "positions", "read_evaluation", "read_examples", "read_in_run",
    "read_map", "read_run", "read_tokens", "read_vectors", "rule",
    "runs_of", "score_table", "sentence", "strength_text", "sweep_of", "way_of",
]  # fmt: skip
