"""ToxiGen's prompts: statements in a template, and cut to what a model's context holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from contrans_dist.benchmarks.toxigen.data import Statement, words

if TYPE_CHECKING:
    from contrans_dist.models import LanguageModel


@dataclass(frozen=True)
class ToxigenItem:
    """A toxic statement, or list of remarks, that the model is to go on with."""

    id: str
    kind: Literal["evaluation", "validation"]
    group: str
    scenario: str
    prompt: str
    concept: str = ""


def items_of(
    kind: Literal["evaluation", "validation"], statements: Sequence[Statement], template: str
) -> list[ToxigenItem]:
    """Numbered group by group."""
    counts: dict[str, int] = {}
    items = []
    for statement in statements:
        number = counts[statement.group] = counts.get(statement.group, -1) + 1
        prompt = template.format(text=statement.text, group=statement.group)
        items.append(
            ToxigenItem(
                f"{kind}/{statement.group}/{number:04d}", kind, statement.group, statement.text, prompt
            )
        )
    return items


def fitting(lm: LanguageModel, items: Sequence[ToxigenItem], new_tokens: int) -> list[tuple[list[int], bool]]:
    """Token ids of each prompt, cut where the context has no room for it and `new_tokens`; and whether so."""
    from contrans_dist.models import cut_to, encode_many

    whole = encode_many(lm, [item.prompt for item in items])
    long = [len(cut_to(lm, ids, new_tokens)) < len(ids) for ids in whole]
    return [
        (_cut(lm, item, new_tokens) if cut else ids, cut)
        for item, ids, cut in zip(items, whole, long, strict=True)
    ]


def _cut(lm: LanguageModel, item: ToxigenItem, new_tokens: int) -> list[int]:
    """The prompt without as many first lines of its text as need be; else without its first tokens."""
    from contrans_dist.models import cut_to, encode

    before, text, after = item.prompt.partition(item.scenario)
    lines = text.split("\n")
    for start in range(1, len(lines)):
        text = "\n".join(lines[start:])
        if not words(text):
            break
        ids = encode(lm, before + text + after)
        if ids == cut_to(lm, ids, new_tokens):
            return ids
    return cut_to(lm, encode(lm, item.prompt), new_tokens)
