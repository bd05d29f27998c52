"""The flags that say how a map is fitted."""

from typing import Annotated, Any

import typer

from contrans_dist.config.map_options import Fitting, fitting
from contrans_dist.errors import UserError

Centring = Annotated[
    str | None, typer.Option(help="true, false, or token: about the mean of the rows of one token.")
]
Regularising = Annotated[
    str | None, typer.Option(help="ridge or rank (both chosen on held-out rows), or none.")
]
Rank = Annotated[int | None, typer.Option(help="Keep so many principal directions of the source.")]
Whitening = Annotated[
    float | None, typer.Option(help="Share of the fit's shrinkage that is undone, 0 to 1. Default: 0.5.")
]
SourceBlocks = Annotated[
    int | None,
    typer.Option(help="Source blocks the map reads: its own and those below. Default: 2 where harvested."),
]


def centring(text: str | None) -> Any:
    """What `--centre` says: True, False, or the text as it is."""
    return {"true": True, "false": False}.get((text or "").lower(), text)


def fit_options(
    protocol: str, centre: str | None, regularise: str | None, rank: int | None, whiten: float | None
) -> Fitting:
    """The options of a fit. Raises UserError for a value that there is not, or that contradicts another."""
    try:
        return fitting(protocol, centring(centre), regularise, rank, whiten)  # type: ignore[arg-type]
    except ValueError as error:
        raise UserError(f"--{error}") from error
