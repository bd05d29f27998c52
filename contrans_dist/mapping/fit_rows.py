"""The rows a map is fitted on: checked, split, and about their tokens' means where that is asked for."""

from dataclasses import dataclass, field

import numpy as np

from contrans_dist.config.map_options import Fitting
from contrans_dist.mapping.heldout import FIT, about_tokens, default_split, effective_rows, paper_split
from contrans_dist.mapping.linear_map import Protocol
from contrans_dist.mapping.moments import check_finite


@dataclass(frozen=True)
class Rows:
    """Rows to fit on: x [n, d_s], y [n, d_t], the part of each; and the means of the fit rows as they were
    given, where x and y are about their tokens' means; then also how many fit rows count
    (`effective_rows`), and warnings of it.
    """

    x: np.ndarray
    y: np.ndarray
    parts: np.ndarray
    means: tuple[np.ndarray, np.ndarray] | None = None
    effective: int | None = None
    warnings: list[str] = field(default_factory=list)

    def of(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        """(x, y) of one part, float64."""
        chosen = self.parts == part
        return self.x[chosen].astype(np.float64), self.y[chosen].astype(np.float64)


def prepared(
    source: np.ndarray,
    target: np.ndarray,
    protocol: Protocol,
    split: np.ndarray | None,
    options: Fitting,
    tokens: np.ndarray | None,
) -> Rows:
    """The rows as they are fitted on, checked; those of a token without fit rows belong to no part."""
    x, y = check_finite(source, "source"), check_finite(target, "target")
    if len(x) != len(y):
        raise ValueError(f"source has {len(x)} rows, target {len(y)}: expected the same texts in both")
    parts = _parts(len(x), protocol, split)
    if options.centre != "token":
        return Rows(x, y, parts)
    if tokens is None or np.shape(tokens) != (len(x),):
        raise ValueError(f"centre 'token': expected tokens, a label for each of {len(x)} rows")
    fit = parts == FIT
    means = x[fit].mean(axis=0, dtype=np.float64), y[fit].mean(axis=0, dtype=np.float64)
    about = about_tokens(x, tokens, parts), about_tokens(y, tokens, parts)
    known = np.isfinite(about[0][:, 0])
    return Rows(about[0][known], about[1][known], parts[known], means, *effective_rows(tokens, parts))


def _parts(n: int, protocol: str, split: np.ndarray | None) -> np.ndarray:
    """The part of every row, str [n]; ValueError for a split that does not fit the protocol."""
    if protocol != "default":
        if split is not None:
            raise ValueError(f"protocol {protocol!r} takes the rows in input order: it has no split")
        parts = paper_split(n) if protocol == "paper" else np.full(n, FIT)
    else:
        parts = default_split(n) if split is None else np.asarray(split)
    if parts.shape != (n,):
        raise ValueError(f"the split has shape {list(parts.shape)}, expected one part for each of {n} rows")
    if not (parts == FIT).any():
        raise ValueError("the split leaves no rows to fit on")
    return parts
