"""What evaluations found, read from artefacts and judged: one evaluation, a run, and a paper beside it."""

from contrans_dist.evaluation.analysis.maps import BlockTable, MapSummary, block_rows, read_map
from contrans_dist.evaluation.analysis.names import number, strength_text
from contrans_dist.evaluation.analysis.points import best_point, main_condition
from contrans_dist.evaluation.analysis.published import Beside, Figures, Published, beside, companion_scores
from contrans_dist.evaluation.analysis.run import (
    Run,
    companions_of,
    left_out,
    read_in_run,
    read_run,
    run_folders,
    sweep_of,
)
from contrans_dist.evaluation.analysis.scores import Evaluation, read_evaluation, score_table
from contrans_dist.evaluation.analysis.verdict import Rival, Verdict, judge, rule, sentence

__all__ = [
    "Beside", "BlockTable", "Evaluation", "Figures", "MapSummary", "Published", "Rival", "Run", "Verdict",
    "beside", "best_point", "block_rows", "companion_scores", "companions_of", "judge", "left_out",
    "main_condition", "number", "read_evaluation", "read_in_run", "read_map", "read_run", "rule",
    "run_folders", "score_table", "sentence", "strength_text", "sweep_of",
]  # fmt: skip
