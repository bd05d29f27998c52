"""How a map is fitted: what each protocol fixes, and the options that a fit may choose for itself.

Every option stands alone: `paper` is all of them off, and each can be turned on, or off again, by itself.
"""

from dataclasses import dataclass
from typing import Literal

Centre = bool | Literal["token"]
Regularise = Literal["ridge", "rank", "none"]

REGULARISE: tuple[Regularise, ...] = ("ridge", "rank", "none")
CENTRE: Centre = "token"
"""Of the default protocol. Measured on two pairs of trained models (jobs/MAPS.md): where a corpus ends on
tokens of all kinds, the mean Token Acc goes from .75 to .96 by this alone; where it ends on one, nothing
changes. With fewer rows than dimensions too, though many of them are then the only ones of their token."""
WHITEN = 0.5
"""Half helps on one pair and costs nothing on the other, where the whole of it costs .05."""
SOURCE_BLOCKS = 2
"""With the block below, .82 becomes .97 on one pair and .77 .91 on the other."""


@dataclass(frozen=True)
class Fitting:
    """The options of a fit.

    centre: True fits about the rows' means, "token" about the mean of the rows that were taken from the same
    token, False about the origin, without a bias. regularise: "ridge" or "rank" (the source's leading
    principal directions alone), each chosen on validation rows, or "none", the pseudo-inverse. rank: that
    many directions, without choosing. whiten, 0 to 1: the share of the fit's shrinkage that is undone, see
    `spectral`.
    """

    centre: Centre
    regularise: Regularise
    rank: int | None
    whiten: float


def fitting(
    protocol: str,
    centre: Centre | None = None,
    regularise: Regularise | None = None,
    rank: int | None = None,
    whiten: float | None = None,
) -> Fitting:
    """The options of a protocol ("default", "paper", "lcross"), with those that are not None in their place.

    ValueError, in one line, for an option of no such value, or one that contradicts the protocol or another.
    """
    if centre not in (None, True, False, "token"):
        raise ValueError(f"centre {centre!r}: expected true, false or token")
    if regularise not in (None, *REGULARISE):
        raise ValueError(f"regularise {regularise!r}: expected one of {', '.join(REGULARISE)}")
    if whiten is not None and not 0.0 <= whiten <= 1.0:
        raise ValueError(f"whiten {whiten}: expected a share from 0 to 1")
    if rank is not None and rank < 1:
        raise ValueError(f"rank {rank}: expected a number of directions, at least 1")
    if rank is not None and regularise not in (None, "rank"):
        raise ValueError(f"rank {rank} contradicts regularise {regularise!r}: expected regularise 'rank'")
    if protocol != "default":
        asked = {
            "centre": centre,
            "regularise": regularise not in (None, "none"),
            "rank": rank,
            "whiten": whiten,
        }
        for name, value in asked.items():
            if value:
                raise ValueError(
                    f"protocol {protocol!r} takes no {name}: expected protocol 'default' for that"
                )
        return Fitting(centre=False, regularise="none", rank=None, whiten=0.0)
    chosen: Regularise = regularise or ("rank" if rank is not None else "ridge")
    return Fitting(
        centre=CENTRE if centre is None else centre,
        regularise=chosen,
        rank=rank,
        whiten=WHITEN if whiten is None else float(whiten),
    )


def check_source_blocks(protocol: str, source_blocks: int | None) -> None:
    """ValueError, in one line, for a number of source blocks that is none, or contradicts the protocol."""
    if source_blocks is not None and source_blocks < 1:
        raise ValueError(f"source_blocks {source_blocks}: expected a number of blocks, at least 1")
    if protocol != "default" and source_blocks not in (None, 1):
        raise ValueError(f"protocol {protocol!r} reads one source block: expected source_blocks 1")


def blocks_below(block: int, protocol: str, source_blocks: int | None) -> list[int]:
    """The source blocks that a map from `block` reads: it and those right below it, ascending.

    Without a number, that of the protocol. Block 0 has none below, so fewer are read there.
    """
    count = source_blocks or (SOURCE_BLOCKS if protocol == "default" else 1)
    return list(range(max(block - count + 1, 0), block + 1))
