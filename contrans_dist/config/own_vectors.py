"""A recipe without a source: the target is steered with its own vectors, and no map is fitted."""

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contrans_dist.config.whole import Recipe

CONDITIONS = ("self-align", "random", "other-concept")
"""Of an evaluation that names none; the last only where there are several concepts."""
_OF_TWO_MODELS = ("source_base", "map_source", "map_target", "sources")
_BLOCKS = re.compile(r"depth|best|-?\d+|0?\.\d+")


def is_own(content: dict[str, Any]) -> bool:
    """Whether a recipe, as plain data, has neither source nor corpus."""
    return content.get("source") is None and content.get("corpus") is None


def completed(content: dict[str, Any]) -> dict[str, Any]:
    """Such a recipe with the conditions that can be had where an evaluation names none, and its block as
    text: a number can be nothing else here, as it could where a pair is expected."""
    content = dict(content)
    concepts, evaluations, mapping = (content.get(key) for key in ("concepts", "evaluations", "map"))
    if isinstance(evaluations, dict):
        texts = concepts.get("texts") if isinstance(concepts, dict) else None
        conditions = CONDITIONS[:-1] if isinstance(texts, dict) and len(texts) == 1 else CONDITIONS
        content["evaluations"] = {
            name: {"conditions": list(conditions), **settings} if isinstance(settings, dict) else settings
            for name, settings in evaluations.items()
        }
    if isinstance(mapping, dict) and type(mapping.get("blocks")) in (int, float):
        content["map"] = mapping | {"blocks": str(mapping["blocks"])}
    return content


def without_defaults(content: dict[str, Any], recipe: "Recipe") -> dict[str, Any]:
    """A recipe's plain data without conditions that are those of an evaluation that names none, so that a run
    of it that has a source where it has none, or none, gets its own."""
    evaluations = {}
    for name, settings in content["evaluations"].items():
        of_kind = type(recipe.evaluations[name]).model_fields["conditions"].default
        unnamed = tuple(settings["conditions"]) in (CONDITIONS, CONDITIONS[:-1], of_kind)
        evaluations[name] = {k: v for k, v in settings.items() if k != "conditions" or not unnamed}
    return content | {"evaluations": evaluations}


def without_source(content: dict[str, Any], recipe: "Recipe") -> dict[str, Any]:
    """The plain data of such a recipe without the keys that it cannot have."""
    unwanted = ("source", "corpus", *_OF_TWO_MODELS)
    return {key: value for key, value in content.items() if key not in unwanted} | (
        {"map": {"blocks": recipe.map.blocks}} if "map" in content else {}
    )


def refusal(recipe: "Recipe") -> str | None:
    """What is wrong with source and corpus, and with a recipe that has neither, in one line."""
    if (recipe.source is None) != (recipe.corpus is None):
        missing, there = ("source", "corpus") if recipe.source is None else ("corpus", "source")
        return f"missing key {missing!r}: expected beside {there}, or neither for the target's own vectors"
    if recipe.source is not None:
        return None
    named = [name for name in _OF_TWO_MODELS if getattr(recipe, name)]
    named += [
        f"map.{name}"
        for name in recipe.map.model_fields_set - {"blocks"}
        if getattr(recipe.map, name) is not None
    ]
    named += ["concepts.source_template"] if recipe.concepts.source_template is not None else []
    if named:
        return f"{sorted(named)[0]}: expected a source and a corpus beside it"
    if "map-similarity" in recipe.analyses:
        return "analyses: map-similarity: expected a source and a corpus beside it"
    blocks = recipe.blocks
    if not _BLOCKS.fullmatch(blocks):
        return f"map.blocks: expected depth, best, or a block of the target such as 18, found {blocks!r}"
    return None
