"""What benchmarks share that score given continuations: which questions, asked how, and cut into tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from contrans_dist.benchmarks.calls import Ids
from contrans_dist.data.templates import template_fields
from contrans_dist.data.text_files import read_json, read_parquet
from contrans_dist.data.texts import records
from contrans_dist.errors import UserError
from contrans_dist.store.location import Location

if TYPE_CHECKING:
    from contrans_dist.models import LanguageModel


def question_template(template: str, *others: str) -> str:
    """A template as a benchmark fills it, a two-character `\\n` turned into a line break.

    Args:
        template: Has a place for `{text}`.
        others: Fields that it may name besides.

    Raises:
        UserError: For one that is malformed, lacks `{text}`, or names anything else.
    """
    template = template.replace("\\n", "\n")
    unknown = set(template_fields(template)) - {"text", *others}
    if unknown:
        known = " and ".join(("text", *others))
        raise UserError(f"template {template!r}: no field {min(unknown)!r}; expected {known} alone")
    return template


def read_questions(location: Location, fields: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """The questions of a file, each with where it stands, for messages.

    Args:
        location: A JSON list of objects, or a Parquet table.
        fields: The columns that such a table must have.

    Raises:
        UserError: For a file that is neither, or is empty.
    """
    if location.name.endswith(".parquet"):
        questions: Any = records(read_parquet(location, list(fields)), str(location), fields)
    else:
        questions = read_json(location)
    if not isinstance(questions, list) or not questions:
        raise UserError(f"{location}: expected a list of questions")
    numbered = [(f"{location}, question {number}", question) for number, question in enumerate(questions, 1)]
    for where, question in numbered:
        if not isinstance(question, dict):
            raise UserError(f"{where}: expected an object with {', '.join(fields)}")
    return numbered


def drawn(count: int, limit: int | None, seed: int | str) -> Sequence[int]:
    """Places of at most `limit` of `count` records, in order, drawn by the seed."""
    if limit is None or limit >= count:
        return range(count)
    return sorted(random.Random(seed).sample(range(count), limit))


def answer_ids(lm: LanguageModel, prompts: Sequence[str], answers: Sequence[str]) -> list[tuple[Ids, Ids]]:
    """Tokens of each prompt followed by its answer, with a space between them.

    Both are tokenised together, and the answer begins with the first token that begins at the space or later:
    so the space is the answer's, and a token that the prompt's last character shares with the space is the
    context's. Where the prompt alone has the same tokens as in front of the answer, this is what
    lm-evaluation-harness does.

    Args:
        lm: Needs no weights.
        prompts: There is no second space after one that ends on whitespace.
        answers: One for each prompt.

    Returns:
        (context, answer) for each of them, as token ids.
    """
    from contrans_dist.engine.scoring import split_behind

    texts = [p + ("" if p[-1:].isspace() else " ") + a for p, a in zip(prompts, answers, strict=True)]
    return split_behind(lm, [prompt.rstrip(" ") for prompt in prompts], texts)
