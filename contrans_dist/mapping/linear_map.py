"""A fitted map, what is known of how it was fitted, and a random one of its size."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from contrans_dist.config.map_options import Centre

_RANDOM_MAP = [0x72616E646F6D54, 0]
"""A stream of its own: callers who drew their data with a small seed must not meet it again here."""


@dataclass(frozen=True)
class AffineMap:
    """A fitted map, and how it was come by.

    Row vectors throughout: y ~ x F + b. The bias maps points (rows of activations); a concept vector is a
    difference of points, so only F applies to it. Figures are None where there were no rows for them; with
    centre "token" they are about the tokens' means. R2 = 1 - SSE / SST, SST about the fit rows' mean.

    Attributes:
        weight: F, float32 [d_source, d_target].
        bias: b, float32 [d_target].
        protocol: see `MapOptions`, as of `centre` and `regularise`.
        side: "primal" (d_source unknowns a column) or "dual" (one a row, for fewer rows than columns).
        n_fit: rows that were fitted on.
        rank: of the source rows fitted on (centred under "default"), before any ridge.
        condition_number: of the same.
        ridge: relative to the largest eigenvalue; None where there is none.
        r2_validation: R2 over all columns, on the rows that the ridge was chosen on.
        r2_test: R2 over all columns, on rows that nothing else saw.
        r2_test_column: the median of the columns' R2, which a few of huge variance cannot rule.
        mse_test: mean squared error per number.
        held_out: False where the "test" figures are in-sample.
        warnings: one line each.
        centre: None in files older than the option.
        regularise: None in files older than the option.
        source_blocks: where a map reads several, they in the order of its rows, d_source / len of them each.
        n_effective: with centre "token", the rows of `n_fit` that count; the others are the only ones of
            their token.
    """

    weight: np.ndarray
    bias: np.ndarray
    protocol: str
    side: str
    n_fit: int
    rank: int
    condition_number: float
    ridge: float | None = None
    r2_validation: float | None = None
    r2_test: float | None = None
    r2_test_column: float | None = None
    mse_test: float | None = None
    held_out: bool = True
    warnings: list[str] = field(default_factory=list)
    centre: Centre | None = None
    regularise: str | None = None
    source_blocks: list[int] | None = None
    n_effective: int | None = None

    def header(self) -> dict[str, Any]:
        """Everything but the arrays, as JSON takes it (an infinite condition number becomes None)."""
        facts = {name: value for name, value in vars(self).items() if name not in ("weight", "bias")}
        condition = self.condition_number if np.isfinite(self.condition_number) else None
        return {**facts, "condition_number": condition, "warnings": list(self.warnings)}

    @classmethod
    def from_header(cls, weight: np.ndarray, bias: np.ndarray, header: dict[str, Any]) -> "AffineMap":
        """The inverse of `header`; keys it does not know are left alone."""
        known = {name: value for name, value in header.items() if name in cls.__dataclass_fields__}
        if known.get("condition_number") is None:
            known["condition_number"] = float("inf")
        return cls(weight=weight, bias=bias, **known)


def random_map(like: AffineMap) -> AffineMap:
    """The control "random T": normal draws with the shape and the Frobenius norm of `like`, and no bias."""
    draw = np.random.default_rng(_RANDOM_MAP).standard_normal(like.weight.shape)
    draw *= np.linalg.norm(like.weight.astype(np.float64)) / np.linalg.norm(draw)
    return AffineMap(
        weight=draw.astype(np.float32),
        bias=np.zeros_like(like.bias),
        protocol="random",
        side="none",
        n_fit=0,
        rank=min(draw.shape),
        condition_number=float("inf"),
        source_blocks=like.source_blocks,
    )
