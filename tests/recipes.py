"""A whole experiment that takes seconds: two tiny random models, texts, and a recipe."""

from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.sets import write_lines
from tests.tiny import save_tiny

CONCEPTS = {"joy": ("won a prize", "met a friend"), "fear": ("saw a ghost", "heard a scream")}
PEOPLE = ("Ann", "Bob", "Cleo", "Dan", "Eve", "Finn")


@dataclass(frozen=True)
class World:
    """Two tiny random models, their texts, and a recipe."""

    source: str
    target: str
    corpus: str
    contrast: str
    scenarios: str
    recipe: str


def tiny_world(folder: Path) -> World:
    """Write all of it into a folder."""
    contrast, scenarios = (
        [
            {"text": f"{person} {event} {place}.", "concept": concept}
            for concept, events in CONCEPTS.items()
            for event in events
            for person in PEOPLE
        ]
        for place in ("in the old town", "down by the sea")
    )
    corpus = [
        {"text": f"One {day} {person} went to the {place} and then came home"}
        for day in ("day", "night")
        for person in PEOPLE
        for place in ("park", "forest", "market", "school", "river")
    ]
    found = {
        "source": str(save_tiny(folder / "source", "gpt_neox", n_blocks=4, d=16, seed=1)),
        "target": str(save_tiny(folder / "target", "llama", n_blocks=4, d=32, seed=2)),
        "corpus": write_lines(folder / "corpus.jsonl", corpus),
        "contrast": write_lines(folder / "contrast.jsonl", contrast),
        "scenarios": write_lines(folder / "scenarios.jsonl", scenarios),
    }
    evaluation = {
        "texts": found["scenarios"],
        "strengths": [0, 1],
        "conditions": ["vector", "random"],
        "per_concept": 3,
    }
    recipe = {
        "name": "tiny",
        "source": found["source"],
        "target": found["target"],
        "corpus": {"texts": found["corpus"]},
        "concepts": {"texts": found["contrast"]},
        "map": {"blocks": "1:2"},
        "evaluations": {"emotions": evaluation},
        "cluster": {"actors": 1},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return World(**found, recipe=str(folder / "recipe.yaml"))
