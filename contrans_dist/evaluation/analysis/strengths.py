"""How the strength of each condition was chosen: what was tried on validation items, and what it cost."""

from dataclasses import dataclass

from contrans_dist.store.location import Location
from contrans_dist.store.results import SEARCH, SearchFile, read_file


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
    location = folder / SEARCH
    if not location.exists():
        return None
    found = read_file(location, SearchFile)
    return Search(
        found.criterion,
        found.higher,
        found.budget,
        found.base_perplexity,
        [
            Candidate(each.condition, each.strength, each.score, each.perplexity)
            for each in found.candidates
            if each.score is not None
        ],
        found.chosen,
    )
