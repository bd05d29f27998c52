"""Which tokens become likelier and less likely after a prompt (ConTrans, B.3)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from contrans_dist.console import one_by_one
from contrans_dist.engine.scoring.interventions import BASE, Intervention, check_finite, checked_offsets
from contrans_dist.engine.scoring.scores import distributions
from contrans_dist.models import LanguageModel

_EACH_WAY = 10
"""Tokens."""
_TOGETHER = 64
"""Prompts whose whole distributions are held at a time."""


@dataclass(frozen=True)
class Changes:
    """Of each prompt, the tokens whose next-token probability changes most, largest change first."""

    up: np.ndarray  # int64 [P, 10]
    down: np.ndarray  # int64 [P, 10]


@torch.inference_mode()
def token_changes(lm: LanguageModel, prompts: Sequence[Sequence[int]], intervention: Intervention) -> Changes:
    """The tokens that an intervention raises most after each prompt, and those that it lowers most.

    Args:
        lm: The model, with its head.
        prompts: Token ids of each of P prompts.
        intervention: What is done to the model.

    Returns:
        The tokens, int64 `[P, 10]` each way.

    Raises:
        UserError: For an empty or too long prompt, or a vector that does not fit.
        RunError: Where a probability is no number.
    """
    interventions = [BASE, intervention]
    checked_offsets(lm, interventions, prompts)
    parts = []
    for start in one_by_one(range(0, len(prompts), _TOGETHER)):
        some = prompts[start : start + _TOGETHER]
        chances = distributions(lm, some, interventions)
        check_finite(interventions, chances)
        before, after = torch.from_numpy(chances)
        change = after - before
        parts.append([change.topk(_EACH_WAY, dim=1, largest=up).indices for up in (True, False)])
    columns = [torch.cat(column).numpy() for column in zip(*parts, strict=True)]
    return Changes(*columns)
