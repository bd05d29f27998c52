"""The recipe that a run leaves in its folder, `recipe.yaml`, read as plain data."""

from typing import Any

from contrans_dist.config import FileModel, PublishedSettings
from contrans_dist.config.limits import RECIPE_BYTES
from contrans_dist.config.recipe import validated
from contrans_dist.config.yamlfiles import parse_yaml
from contrans_dist.store.location import Location

RECIPE = "recipe.yaml"


class RunRecipe(FileModel):
    """What is read of a recipe once its run is done; the rest is shown as it stands."""

    name: str | None = None
    description: str | None = None
    axis: str | None = None
    published: PublishedSettings | None = None
    runs: dict[str, dict[str, Any]] | None = None
    sources: dict[str, Any] | None = None
    evaluations: dict[str, dict[str, Any]] | None = None
    small: dict[str, Any] | None = None


def read_run_recipe(folder: Location) -> dict[str, Any]:
    """A folder's recipe as plain data; empty where there is none. Raises UserError for a damaged one."""
    file = folder / RECIPE
    if not file.exists():
        return {}
    content = parse_yaml(file.read_bytes(RECIPE_BYTES), str(file))
    if content is None:
        return {}
    validated(RunRecipe, content, str(file))
    return dict(content)
