"""How the strength of each condition was chosen: what was tried on validation items, and what it cost."""

from dataclasses import dataclass
from typing import Any

from contrans_dist.errors import UserError
from contrans_dist.storage import Location

SEARCH_FILE = "search.json"


@dataclass(frozen=True)
class Candidate:
    """A strength that was tried: its score on the validation items, and the perplexity under it."""

    condition: str
    strength: float
    score: float
    perplexity: float | None


@dataclass(frozen=True)
class Search:
    """The content of an evaluation's `search.json`."""

    criterion: str
    higher: bool
    budget: float | None
    """Most that the perplexity may grow, as a factor."""
    base_perplexity: float | None
    candidates: list[Candidate]
    chosen: dict[str, float]
    """condition -> strength"""

    @property
    def limit(self) -> float | None:
        """The highest perplexity that was allowed; None without a budget."""
        if self.budget is None or self.base_perplexity is None:
            return None
        return self.budget * self.base_perplexity


def read_search(folder: Location) -> Search | None:
    """The search of an evaluation; None where none was made. Raises UserError for a file of another form."""
    location = folder / SEARCH_FILE
    if not location.exists():
        return None
    content = location.read_json()
    try:
        return Search(
            str(content["criterion"]),
            bool(content["higher"]),
            _number(content.get("budget")),
            _number(content.get("base_perplexity")),
            [
                Candidate(
                    str(entry["condition"]),
                    float(entry["strength"]),
                    float(entry["score"]),
                    _number(entry.get("perplexity")),
                )
                for entry in content["candidates"]
                if entry["score"] is not None
            ],
            {str(name): float(strength) for name, strength in content["chosen"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{location}: expected criterion, candidates and chosen ({error!r})") from error


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
