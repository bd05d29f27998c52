"""The flags that say how a map is fitted."""

from typing import Annotated, Any

import typer

from contrans_dist.config.map_options import MapOptions
from contrans_dist.errors import UserError

Centring = Annotated[
    str | None, typer.Option(help="true, false, or token: about the mean of the rows of one token.")
]
Regularising = Annotated[str | None, typer.Option(help="ridge (chosen on held-out rows), or none.")]
SourceBlocks = Annotated[
    int | None,
    typer.Option(help="Source blocks the map reads: its own and those below. Default: 2 where harvested."),
]


def centring(text: str | None) -> Any:
    """What `--centre` says: True, False, or the text as it is."""
    return {"true": True, "false": False}.get((text or "").lower(), text)


def map_options(
    protocol: str, centre: str | None, regularise: str | None, source_blocks: int | None
) -> MapOptions:
    """The options of a fit. Raises UserError for a value that there is not, or that contradicts another."""
    try:
        return MapOptions(protocol, centring(centre), regularise, source_blocks)  # type: ignore[arg-type]
    except ValueError as error:
        raise UserError(f"--{error}") from error
