"""How a map is fitted: one object, which a recipe, the command line and a notebook hand to a fit alike.

`protocol: paper` is every option off. Of `default`, each option can be turned off by itself; what each is
worth was measured on two pairs of trained models (jobs/MAPS.md).
"""

from dataclasses import dataclass
from typing import Literal, get_args

MapProtocol = Literal["default", "paper", "lcross"]
Centre = bool | Literal["token"]
Regularise = Literal["ridge", "none"]

PROTOCOLS: tuple[MapProtocol, ...] = get_args(MapProtocol)
SOURCE_BLOCKS = 2
"""Of the default protocol: the block below as well, which matters more than any other option."""


@dataclass(frozen=True)
class MapOptions:
    """The options of a fit; None is the protocol's own.

    Attributes:
        protocol: "default"; "paper", equation 2 of ConTrans over the first 80 % of the rows; or "lcross", the
            same over all rows. The last two take no other option.
        centre: True fits about the rows' means, "token" about the mean of the rows that were taken from the
            same token, False about the origin, without a bias. Default: "token" where tokens are known.
        regularise: "ridge", chosen on validation rows, or "none", the pseudo-inverse. Default: "ridge".
        source_blocks: how many source blocks a map reads, its own and those right below. Default: 2.
        ridges: the ridges that are tried, relative to the largest eigenvalue. Default: `solver.RIDGES`.

    Raises:
        ValueError: In one line that begins with the option's name, for a value that there is not, or one that
            contradicts another.
    """

    protocol: MapProtocol = "default"
    centre: Centre | None = None
    regularise: Regularise | None = None
    source_blocks: int | None = None
    ridges: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol {self.protocol}: expected one of {', '.join(PROTOCOLS)}")
        if self.centre not in (None, True, False, "token"):
            raise ValueError(f"centre {self.centre!r}: expected true, false or token")
        if self.regularise not in (None, *get_args(Regularise)):
            raise ValueError(f"regularise {self.regularise!r}: expected one of ridge, none")
        if self.source_blocks is not None and self.source_blocks < 1:
            raise ValueError(f"source_blocks {self.source_blocks}: expected a number of blocks, at least 1")
        if self.ridges is not None and not self.has_ridge:
            chosen = f"regularise {self.regularise!r}" if self.regularise else f"protocol {self.protocol!r}"
            raise ValueError(f"{chosen} has no ridge")
        if self.protocol == "default":
            return
        for name, given in (("centre", self.centre), ("regularise", self.regularise == "ridge")):
            if given:
                raise ValueError(
                    f"protocol {self.protocol!r} takes no {name}: expected protocol 'default' for that"
                )
        if self.source_blocks not in (None, 1):
            raise ValueError(f"protocol {self.protocol!r} reads one source block: expected source_blocks 1")

    @property
    def has_ridge(self) -> bool:
        """Whether the fit is a ridge regression; else it is the pseudo-inverse."""
        return self.protocol == "default" and self.regularise != "none"

    def centring(self, tokens_known: bool) -> Centre:
        """What the rows are centred about, where their tokens are known or not."""
        if self.protocol != "default":
            return False
        if self.centre is None:
            return "token" if tokens_known else True
        return self.centre

    def blocks_below(self, block: int) -> list[int]:
        """The source blocks that a map from `block` reads, ascending; near block 0 there are fewer."""
        count = self.source_blocks or (SOURCE_BLOCKS if self.protocol == "default" else 1)
        return list(range(max(block - count + 1, 0), block + 1))
