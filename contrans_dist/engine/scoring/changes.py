"""Which tokens become likelier and less likely after a prompt (ConTrans, B.3)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from contrans_dist.engine.scoring.forward import run_all
from contrans_dist.engine.scoring.interventions import BASE, Intervention, checked_offsets
from contrans_dist.models import LanguageModel

_TOGETHER = 64
"""Prompts whose whole distributions are held at a time."""


@dataclass(frozen=True)
class Changes:
    """Of each prompt, the tokens whose next-token probability changes most, largest change first."""

    up: np.ndarray  # int64 [P, k]
    down: np.ndarray  # int64 [P, k]
    up_by: np.ndarray  # float32 [P, k]: steered minus unsteered probability
    down_by: np.ndarray  # float32 [P, k]


@torch.inference_mode()
def token_changes(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    intervention: Intervention,
    *,
    k: int = 10,
    batch_tokens: int = 4096,
) -> Changes:
    """The `k` tokens that an intervention raises most after each prompt (token ids), and that it lowers most.

    By the difference of probabilities over the whole vocabulary. Raises UserError for an empty or too long
    prompt, or a vector that does not fit.
    """
    interventions = [BASE, intervention]
    checked_offsets(lm, interventions, prompts)
    parts = []
    for start in range(0, len(prompts), _TOGETHER):
        some = prompts[start : start + _TOGETHER]
        distributions: list[list[torch.Tensor | None]] = [[None] * len(some) for _ in interventions]
        for members, batch, logits in run_all(lm, some, [1] * len(some), interventions, batch_tokens):
            chances = logits.softmax(dim=2)[:, batch.index.to(logits.device)].cpu()
            for row, c in enumerate(members):
                for place, p in enumerate(batch.texts):
                    distributions[c][p] = chances[row, place]
        before, after = (
            torch.stack([chance for chance in row if chance is not None]) for row in distributions
        )
        change = after - before
        up, down = change.topk(k, dim=1), change.topk(k, dim=1, largest=False)
        parts.append((up.indices, down.indices, up.values, down.values))
    columns = [torch.cat(column).numpy() for column in zip(*parts, strict=True)]
    return Changes(*columns)
