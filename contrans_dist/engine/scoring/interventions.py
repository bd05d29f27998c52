"""What is done to a model while it is scored: vectors at blocks, times a strength."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from contrans_dist.engine.steer import check_row
from contrans_dist.errors import OverflowedError, UserError
from contrans_dist.models import LanguageModel, unusable


@dataclass(frozen=True)
class Intervention:
    """What is done to a model: `strength * vectors[k]` is added to block k's output at every position.

    Args:
        name: What it is called in tables.
        vectors: By block, float32 `[d]`, or `[P, d]` with a row for each of P prompts.
        strength: The vectors' coefficient; 0 leaves the model as it is.
    """

    name: str
    vectors: Mapping[int, np.ndarray] = field(default_factory=dict)
    strength: float = 0.0

    def offsets(self) -> dict[int, Tensor]:
        """Block -> float32 `[d]` or `[P, d]` to add; empty when nothing is added."""
        if self.strength == 0:
            return {}
        rows = {k: torch.as_tensor(np.asarray(v, dtype=np.float32)) for k, v in self.vectors.items()}
        return {k: self.strength * row for k, row in rows.items() if bool(row.any())}

    @property
    def block(self) -> int | None:
        """The lowest block that something is added to; None for the base."""
        return min(self.vectors, default=None) if self.strength != 0 else None

    @property
    def per_item(self) -> bool:
        """Whether it has a vector for each prompt."""
        return any(np.ndim(vector) == 2 for vector in self.vectors.values())

    @property
    def columns(self) -> dict[str, Any]:
        """What a benchmark's rows say of it: `condition`, `strength`, `block`."""
        return {"condition": self.name, "strength": float(self.strength), "block": self.block}


BASE = Intervention("base")


def checked_offsets(
    lm: LanguageModel,
    interventions: Sequence[Intervention],
    prompts: Sequence[Sequence[int]],
    new_tokens: int = 0,
) -> list[dict[int, Tensor]]:
    """The offsets of each intervention.

    Raises UserError where one does not fit the model or the prompts (token ids), and for a prompt that is
    empty, has a token without an embedding, or with `new_tokens` is longer than the context.
    """
    for i, prompt in enumerate(prompts):
        why, length = unusable(lm, prompt), len(prompt) + new_tokens
        if why is not None:
            raise UserError(f"prompt {i}: {why}")
        if lm.context is not None and length > lm.context:
            raise UserError(f"prompt {i} needs {length} tokens, the model's context holds {lm.context}")
    offsets = [intervention.offsets() for intervention in interventions]
    for rows in offsets:
        for k, row in rows.items():
            if row.ndim == 2 and len(row) != len(prompts):
                raise UserError(f"vectors for block {k}: {len(row)} rows for {len(prompts)} prompts")
            # All rows at once; the first that is not finite, else any, stands for them.
            vectors = row if row.ndim == 2 else row.unsqueeze(0)
            finite = torch.isfinite(vectors).reshape(len(vectors), -1).all(dim=1)
            check_row(k, vectors[int(finite.int().argmin())], len(lm.blocks), lm.d)
    return offsets


def check_finite(interventions: Sequence[Intervention], values: np.ndarray) -> None:
    """Raise OverflowedError, naming the first intervention of whose values `[C, ...]` one is no number."""
    check_sound(interventions, [bool(np.isfinite(scores).all()) for scores in values])


def check_sound(interventions: Sequence[Intervention], sound: Sequence[bool]) -> None:
    """Raise OverflowedError, naming the first intervention under which logits are not sound."""
    lost = [each for each, fine in zip(interventions, sound, strict=True) if not fine]
    if lost:
        first, wider = lost[0], "bfloat16 or float32"
        error = OverflowedError(
            f"condition {first.name} at strength {first.strength:g}: the model's logits overflow; use "
            + (wider if first.block is None else f"smaller strengths, or {wider}")
        )
        error.lost = frozenset((each.name, each.strength) for each in lost)
        raise error


def per_prompt(vectors: Mapping[int, Tensor]) -> bool:
    """Whether offsets hold a row for each prompt."""
    return any(row.ndim == 2 for row in vectors.values())


def same_rows(offsets: Sequence[Mapping[int, Tensor]]) -> list[int] | None:
    """A number for each prompt, the same for those to which all of these interventions add the same: the
    choices of a question, say. None where they add the same to all prompts."""
    rows = [row for vectors in offsets for row in vectors.values() if row.ndim == 2]
    if not rows:
        return None
    keys = zip(*([vector.tobytes() for vector in row.numpy()] for row in rows), strict=True)
    numbers: dict[tuple[bytes, ...], int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]


def by_lowest_block(offsets: Sequence[Mapping[int, Tensor]]) -> dict[int, list[int]]:
    """Interventions (by index) grouped by the block below which their runs are the same.

    The base joins the highest group, where least is left to run; with nothing steered at all the result is
    empty.
    """
    groups: dict[int, list[int]] = {}
    for i, rows in enumerate(offsets):
        if rows:
            groups.setdefault(min(rows), []).append(i)
    if groups:
        groups[max(groups)].extend(i for i, rows in enumerate(offsets) if not rows)
    return dict(sorted(groups.items()))
