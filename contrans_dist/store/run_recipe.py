"""The recipe that a run leaves in its folder, `recipe.yaml`, as far as it is read again."""

from typing import Any

from pydantic import PrivateAttr

from contrans_dist.config import FileModel, PublishedSettings
from contrans_dist.config.limits import RECIPE_BYTES
from contrans_dist.config.recipe import validated
from contrans_dist.config.yamlfiles import parse_yaml
from contrans_dist.store.location import Location

RECIPE = "recipe.yaml"


class RunEvaluation(FileModel):
    """An evaluation as a run's recipe has it."""

    benchmark: str | None = None
    conditions: list[str] | None = None
    concepts: list[str] | None = None


class RunRecipe(FileModel):
    """What is read of a recipe once its run is done; the rest is shown as it stands (`content`)."""

    name: str | None = None
    description: str | None = None
    axis: str | None = None
    published: PublishedSettings | None = None
    runs: dict[str, dict[str, Any]] | None = None
    sources: dict[str, Any] | None = None
    evaluations: dict[str, RunEvaluation] | None = None
    analyses: list[str] | None = None
    _content: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def content(self) -> dict[str, Any]:
        """All of it, in the order of the file; empty where there is none."""
        return self._content

    @property
    def without_source(self) -> bool:
        """Whether the recipe steers its target with the target's own vectors."""
        return bool(self._content) and not self._content.get("source")

    def evaluation(self, name: str) -> RunEvaluation:
        """The settings of an evaluation; of one that the recipe does not name, empty ones."""
        return (self.evaluations or {}).get(name, RunEvaluation())

    def model(self, role: str) -> str:
        """Id of the model in a role, such as `source`; empty where it is not said."""
        given = self.content.get(role)
        return str((given.get("id") if isinstance(given, dict) else given) or "")


def read_run_recipe(folder: Location) -> RunRecipe:
    """A folder's recipe; empty where there is none. Raises UserError for a damaged one."""
    file = folder / RECIPE
    content = parse_yaml(file.read_bytes(RECIPE_BYTES), str(file)) if file.exists() else None
    recipe = validated(RunRecipe, {} if content is None else content, str(file))
    recipe._content = content or {}
    return recipe
