"""The steered scoring engine: next tokens, log-likelihoods and texts under many interventions at once."""

from contrans_dist.engine.scoring.changes import token_changes
from contrans_dist.engine.scoring.generation import generate
from contrans_dist.engine.scoring.interventions import BASE, Intervention, check_finite
from contrans_dist.engine.scoring.scores import (
    NextToken,
    TokenScores,
    continuation_logprobs,
    distributions,
    next_token,
)
from contrans_dist.engine.scoring.words import cues, split_behind

__all__ = [
    "BASE",
    "Intervention",
    "NextToken",
    "TokenScores",
    "check_finite",
    "continuation_logprobs",
    "cues",
    "distributions",
    "generate",
    "next_token",
    "split_behind",
    "token_changes",
]
