"""Tokens whose probability rises and falls most under steering (Table 8 of ConTrans)."""

from dataclasses import dataclass

from contrans_dist.errors import UserError
from contrans_dist.evaluation.analysis.scores import Evaluation
from contrans_dist.store.results import TOKENS, Kind, read_columns

_COLUMNS: dict[str, Kind] = {
    "concept": "text", "condition": "text", "strength": "number", "direction": "text", "token_text": "text",
    "count": "whole", "n_prompts": "whole",
}  # fmt: skip


@dataclass(frozen=True)
class Moved:
    """Tokens that are most often among those that rise, or fall, most: (text, number of prompts)."""

    concept: str
    condition: str
    strength: float
    n_prompts: int
    up: list[tuple[str, int]]
    down: list[tuple[str, int]]


def read_tokens(evaluation: Evaluation, condition: str, strength: float, most: int = 10) -> list[Moved]:
    """Tokens of every concept, the most frequent first; empty where none were counted.

    At the given strength where it was counted, else at the greatest; of the given condition where it is
    there, else of the first. Raises UserError for a damaged file.
    """
    location = evaluation.location / TOKENS
    if not location.exists():
        return []
    table = read_columns(location, _COLUMNS)
    if table is None:
        raise UserError(f"{location}: expected columns {', '.join(_COLUMNS)}")
    numbers = ("strength", "count", "n_prompts")
    rows = [row for row in table.to_pylist() if all(row[name] is not None for name in numbers)]
    conditions = list(dict.fromkeys(row["condition"] or "" for row in rows))
    if not conditions:
        return []
    own = condition if condition in conditions else conditions[0]
    rows = [row for row in rows if (row["condition"] or "") == own]
    strengths = {row["strength"] for row in rows}
    at = strength if strength in strengths else max(strengths, key=abs)
    rows = [row for row in rows if row["strength"] == at]
    found = []
    for concept in sorted({row["concept"] or "" for row in rows}):
        mine = [row for row in rows if (row["concept"] or "") == concept]
        up, down = (
            sorted(
                ((str(row["token_text"]), int(row["count"])) for row in mine if row["direction"] == way),
                key=lambda token: (-token[1], token[0]),
            )[:most]
            for way in ("up", "down")
        )
        found.append(Moved(concept, own, float(at), max(int(row["n_prompts"]) for row in mine), up, down))
    return found
