"""The recipe that a run leaves in its folder, `recipe.yaml`, read as plain data."""

from typing import Any

import yaml

from contrans_dist.config import FileModel, Published
from contrans_dist.errors import UserError
from contrans_dist.limits import RUN_RECIPE_BYTES, RUN_RECIPE_VALUES, check_size
from contrans_dist.recipe import validated
from contrans_dist.storage import Location

RECIPE = "recipe.yaml"


class RunRecipe(FileModel):
    """What is read of a recipe once its run is done; the rest is shown as it stands."""

    name: str | None = None
    description: str | None = None
    axis: str | None = None
    published: Published | None = None
    runs: dict[str, dict[str, Any]] | None = None
    sources: dict[str, Any] | None = None
    evaluations: dict[str, dict[str, Any]] | None = None
    small: dict[str, Any] | None = None


def read_run_recipe(folder: Location) -> dict[str, Any]:
    """A folder's recipe as plain data; empty where there is none. Raises UserError for a damaged one."""
    file = folder / RECIPE
    if not file.exists():
        return {}
    data = file.read_bytes(RUN_RECIPE_BYTES)
    try:
        # The parser in C is faster, but deep nesting overflows its stack.
        loader = yaml.SafeLoader(data)
        node = loader.get_single_node()
        if node is None:
            return {}
        check_size(str(file), _count(node, {}), RUN_RECIPE_VALUES, "values")
        content = loader.construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: expected YAML ({' '.join(str(error).split())[:200]})") from error
    validated(RunRecipe, content, str(file))
    return dict(content)


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Values in a node; what an anchor stands for counts wherever it is named.

    Raises ValueError for an anchor that holds itself, and for half of a surrogate pair.
    """
    if id(node) not in known:
        known[id(node)] = 0
        if isinstance(node, yaml.ScalarNode):
            node.value.encode()
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        inner = [each for part in parts for each in (part if isinstance(part, tuple) else (part,))]
        known[id(node)] = 1 + sum(_count(each, known) for each in inner)
    elif not known[id(node)]:
        raise ValueError("an anchor holds itself")
    return known[id(node)]
