"""What a recipe harvests: its texts, and how rows are taken from them."""

from pathlib import Path

import pyarrow as pa

from contrans_dist import demo
from contrans_dist.benchmarks.scenarios import read_scenarios
from contrans_dist.config import CaptureSettings, EvaluationSettings, Recipe
from contrans_dist.corpus import prepare_corpus
from contrans_dist.errors import UserError
from contrans_dist.selection import harvested_blocks
from contrans_dist.texts import read_texts, text_table

_BUNDLED = "demo:"


class RecipeTexts:
    """The texts of a recipe; bundled ones are made in `folder` when first asked for."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder

    def place(self, path: str) -> str:
        """Where a text file of the recipe is. Raises UserError for bundled texts that there are not."""
        if not path.startswith(_BUNDLED):
            return path
        if not any(self.folder.iterdir()):
            demo.write_texts(self.folder)
        found = self.folder / path.removeprefix(_BUNDLED)
        if not found.exists():
            known = ", ".join(f"{_BUNDLED}{each.name}" for each in sorted(self.folder.iterdir()))
            raise UserError(f"{path}: no such bundled texts; there are {known}")
        return str(found)

    def corpus(self) -> pa.Table:
        """The texts that the map is fitted on, cut."""
        settings = self.recipe.corpus
        table = read_texts(self.place(settings.texts))
        return prepare_corpus(
            table, settings.cut, settings.per_text, settings.seed, settings.limit, settings.words
        )

    def contrast(self) -> pa.Table:
        """The contrast texts of all concepts."""
        given = self.recipe.concepts.texts
        if isinstance(given, str):
            rows = read_scenarios(self.place(given))
            return text_table({name: [row[name] for row in rows] for name in rows[0]}, given)
        parts = []
        for concept, path in given.items():
            table = read_texts(self.place(path))
            if "label" not in table.column_names:
                raise UserError(f"{path}: expected positive and negative texts (a column `label`)")
            parts.append(table.append_column("concept", pa.array([concept] * table.num_rows)))
        # A template may name any column that all the files have.
        names = [name for name in parts[0].column_names if all(name in part.column_names for part in parts)]
        return text_table(pa.concat_tables([part.select(names) for part in parts]), "concepts.texts")

    def placed(self, settings: EvaluationSettings) -> EvaluationSettings:
        """The settings with the places of their files."""
        shots = None if settings.shots is None else self.place(settings.shots)
        return settings.model_copy(update={"texts": self.place(settings.texts), "shots": shots})


def captures(recipe: Recipe, side: str, n_blocks: int) -> tuple[CaptureSettings, CaptureSettings]:
    """How one side (`source` or `target`) is harvested: on the corpus, and on the contrast texts."""
    settings, own = recipe.concepts, side == "source"
    plain = CaptureSettings(
        blocks=harvested_blocks(recipe.map.blocks, side, n_blocks),
        batch_tokens=recipe.batch_tokens,
        template=recipe.corpus.source_template if own else None,
    )
    template = (settings.source_template if own else None) or settings.template
    return plain, plain.model_copy(
        update={"template": template, "chat": settings.chat, "position": settings.position}
    )
