"""The emotion benchmark's items: scenarios in a template, with or without examples before them."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from contrans_dist.data.templates import template_fields
from contrans_dist.data.texts import read_texts, records
from contrans_dist.errors import UserError
from contrans_dist.store.location import Location

ProtocolName = Literal["default", "paper"]
Record = dict[str, Any]  # `text`, `concept`, and whatever else a template may name

TEMPLATE = "Scenario: {text}\nThe emotion of the above scenario is"
_PAPER_SHOT = (
    "Scenario: {text}\nThe emotion ({concepts}) of the above scenario is"  # only the examples list them
)
_OFFICIAL = "eval_"


@dataclass(frozen=True)
class Item:
    """A scenario as it is asked: does the model, steered to `concept`, name it?"""

    id: str
    concept: str
    kind: Literal["positive", "negative"]  # whether the scenario really is of `concept`
    scenario: str
    prompt: str


def is_official(location: Location) -> bool:
    """Whether a folder holds the files of ConTrans's authors, `eval_<concept>.json`."""
    return any(name.startswith(_OFFICIAL) and name.endswith(".json") for name in location.names())


def official_items(location: Location, per_concept: int | None = None) -> list[Item]:
    """The authors' own prompts as they are: `pos` and `neg` of each `eval_<concept>.json`, in file order."""
    items = []
    for concept in _stems(location, _OFFICIAL):
        file = location / f"{_OFFICIAL}{concept}.json"
        rows = records(read_texts(file), str(file), ["label"])
        for kind in ("positive", "negative"):
            prompts = [row["text"] for row in rows if row["label"] == kind][:per_concept]
            items += [
                Item(f"{concept}/{kind}/{i:04d}", concept, kind, _scenario_in(prompt), prompt)  # type: ignore[arg-type]
                for i, prompt in enumerate(prompts)
            ]
    return items


def read_scenarios(source: Location | str) -> list[Record]:
    """Scenarios with their concept.

    Args:
        source: A file with columns `text` and `concept`; or a folder of `<concept>.json`, each a list of
            texts, or of the authors' `eval_<concept>.json`, of which the positive scenarios are taken out of
            their prompts.

    Returns:
        For each scenario `text`, `concept`, and what other columns the file has.

    Raises:
        UserError: For anything else.
    """
    location = Location.parse(source)
    names = location.names() if not location.name.endswith((".jsonl", ".parquet", ".json", ".txt")) else []
    if not names:
        return _of_concepts(read_texts(location), str(location))
    if is_official(location):
        items = official_items(location)
        return [{"text": i.scenario, "concept": i.concept} for i in items if i.kind == "positive"]
    concepts = _stems(location, "")
    if not concepts:
        raise UserError(f"{location}: expected files <concept>.json or eval_<concept>.json, found {names[0]}")
    texts = {
        concept: read_texts(location / f"{concept}.json").column("text").to_pylist() for concept in concepts
    }
    return [{"text": text, "concept": concept} for concept in concepts for text in texts[concept]]


def _of_concepts(table: pa.Table, where: str) -> list[Record]:
    """Rows with their concept as text. Raises UserError for one without."""
    rows = records(table, where, ["text", "concept"])
    for number, row in enumerate(rows, 1):
        if not isinstance(row["concept"], str | int | float) or row["concept"] == "":
            raise UserError(f"{where}, row {number}: expected a concept, found {row['concept']!r}")
        row["concept"] = str(row["concept"])
    return rows


def build_items(
    scenarios: Sequence[Record],
    concepts: Sequence[str],
    *,
    protocol: ProtocolName = "default",
    template: str = TEMPLATE,
    shots: int = 0,
    shot_scenarios: Sequence[Record] = (),
    per_concept: int | None = None,
    seed: int = 0,
    labels: Mapping[str, str] | None = None,
) -> list[Item]:
    """Items of every concept: its own scenarios, and as many of the others in equal parts, drawn by `seed`.

    `default` puts `shots` examples with their right labels first, from `shot_scenarios`. `paper` gives them
    labels in alphabetical order, none of them right, as the authors' prefix does (without `shot_scenarios` it
    draws the examples from `scenarios`). No scenario is both example and item. Raises UserError for a concept
    without scenarios.
    """
    fields = template_fields(template)
    words = {concept: (labels or {}).get(concept, concept) for concept in concepts}
    pool = list(shot_scenarios) or (list(scenarios) if protocol == "paper" else [])
    examples = _examples(pool, concepts, shots, protocol, random.Random(f"{seed} examples"))
    prefix = "".join(_shot(record, words, label, template, protocol) for record, label in examples)
    shown = {record["text"] for record, _ in examples}
    by_concept = {concept: _distinct(scenarios, concept, shown) for concept in concepts}
    items: list[Item] = []
    for concept in concepts:
        draw = random.Random(f"{seed} {concept}")
        positive = draw.sample(by_concept[concept], len(by_concept[concept]))[:per_concept]
        others = [draw.sample(by_concept[c], len(by_concept[c])) for c in concepts if c != concept]
        negative = _in_turn(others, len(positive))
        for kind, chosen in (("positive", positive), ("negative", negative)):
            for i, record in enumerate(chosen):
                prompt = prefix + _filled(template, record, fields)
                items.append(Item(f"{concept}/{kind}/{i:04d}", concept, kind, record["text"], prompt))  # type: ignore[arg-type]
    return items


def _examples(
    pool: Sequence[Record], concepts: Sequence[str], shots: int, protocol: ProtocolName, draw: random.Random
) -> list[tuple[Record, str]]:
    """Scenarios and the concept that each is labelled with."""
    if shots and not pool:
        raise UserError(f"{shots} examples asked for: give the scenarios that they may be taken from (shots)")
    labels = sorted(concepts) if protocol == "paper" else draw.sample(list(concepts), len(concepts))
    examples: list[tuple[Record, str]] = []
    for i in range(shots):
        label = labels[i % len(labels)]
        used = [record for record, _ in examples]
        fitting = [
            r
            for r in pool
            if r["concept"] in concepts and (r["concept"] == label) == (protocol != "paper") and r not in used
        ]
        if not fitting:
            raise UserError(f"not enough example scenarios for {label!r}: {shots} examples asked for")
        examples.append((draw.choice(fitting), label))
    return examples


def _shot(record: Record, words: Mapping[str, str], label: str, template: str, protocol: ProtocolName) -> str:
    """One example: the question, its label and a full stop."""
    if protocol == "paper" and template == TEMPLATE:
        listed = ", ".join(f'"{word}"' for word in words.values())
        question = _PAPER_SHOT.format(text=record["text"], concepts=listed)
    else:
        question = _filled(template, record, template_fields(template)).removesuffix(" ")
    return f"{question} {words[label]}.\n"


def _filled(template: str, record: Record, fields: Sequence[str]) -> str:
    missing = [name for name in fields if record.get(name) is None]
    if missing:
        raise UserError(
            f"template {template!r}: the scenario {record['text']!r} has no value {missing[0]!r}"
            if missing[0] in record
            else f"template {template!r}: the scenarios have no column {missing[0]!r}"
        )
    return template.format(**record)


def _distinct(scenarios: Sequence[Record], concept: str, without: set[str]) -> list[Record]:
    """A concept's scenarios, each text once, in order."""
    distinct = {r["text"]: r for r in scenarios if r["concept"] == concept and r["text"] not in without}
    if not distinct:
        known = ", ".join(sorted({str(r["concept"]) for r in scenarios})) or "none"
        raise UserError(f"no scenarios of concept {concept!r}; there are: {known}")
    return list(distinct.values())


def _in_turn(lists: Sequence[list[Record]], count: int) -> list[Record]:
    """`count` records taken from the lists one after the other, each list from its front."""
    longest = max(map(len, lists), default=0)
    return [records[i] for i in range(longest) for records in lists if i < len(records)][:count]


def _stems(location: Location, prefix: str) -> list[str]:
    names = [n for n in location.names() if n.startswith(prefix) and n.endswith(".json")]
    return [name.removeprefix(prefix).removesuffix(".json") for name in names]


def _scenario_in(prompt: str) -> str:
    """The last scenario of one of the authors' prompts."""
    return prompt.rpartition("Scenario: ")[2].partition("\n")[0]
