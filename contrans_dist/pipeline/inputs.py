"""What a recipe harvests: its texts, and how rows are taken from them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from contrans_dist import demo
from contrans_dist.benchmarks.registry import about, ours
from contrans_dist.benchmarks.scenarios import read_scenarios
from contrans_dist.config import (
    CaptureSettings,
    ContrastSettings,
    CorpusSettings,
    EvaluationSettings,
    ModelSettings,
    Recipe,
    fingerprint,
)
from contrans_dist.data.corpus import prepare_corpus
from contrans_dist.data.table_hash import table_hash
from contrans_dist.data.templates import frames, template_fields
from contrans_dist.data.texts import read_texts, text_table
from contrans_dist.errors import UserError, one_line
from contrans_dist.evaluation.block_search import harvested_blocks
from contrans_dist.evaluation.conditions import further_sources
from contrans_dist.store.location import Location

READS = ("corpus", "contrast")
"""The texts of a recipe: those the map is fitted on, and those that make the concept vectors."""
SIDES = ("source", "target")
_BUNDLED = "demo:"
_FRAMED = "{before}{text}{after}"


class RecipeTexts:
    """The texts of a recipe; bundled ones are made in `folder` when first asked for."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder

    def place(self, path: str) -> str:
        """Where a text file of the recipe is. Raises UserError for bundled texts that there are not."""
        if not path.startswith(_BUNDLED):
            return path
        if not any(self.folder.iterdir()):
            demo.write_texts(self.folder)  # made once a run, when first asked for
        there = self.folder / path.removeprefix(_BUNDLED)
        if not there.exists():
            known = ", ".join(f"{_BUNDLED}{path.name}" for path in sorted(self.folder.iterdir()))
            raise UserError(f"{path}: no such bundled texts; there are {known}")
        return str(there)

    def tables(self) -> dict[str, pa.Table]:
        """The texts of each of `READS`; without a corpus those of the others."""
        corpus = self.recipe.corpus
        return ({} if corpus is None else {"corpus": self.corpus(corpus)}) | {"contrast": self.contrast()}

    def corpus(self, settings: CorpusSettings) -> pa.Table:
        """The texts that the map is fitted on, cut."""
        table = read_texts(self.place(settings.texts))
        return prepare_corpus(
            table, settings.cut, settings.per_text, settings.seed, settings.limit, settings.words
        )

    def contrast(self) -> pa.Table:
        """The contrast texts of all concepts."""
        settings = self.recipe.concepts
        if isinstance(settings.texts, str):
            rows = read_scenarios(self.place(settings.texts))
            return text_table({name: [row[name] for row in rows] for name in rows[0]}, settings.texts)
        parts = []
        for concept, given in settings.texts.items():
            texts = ContrastSettings(texts=given) if isinstance(given, str) else given
            table = self._contrast_of(texts)
            if settings.framed:
                table = self._framed(table, texts)
            parts.append(table.append_column("concept", pa.array([concept] * table.num_rows)))
        # A template may name any column that all the files have.
        names = [name for name in parts[0].column_names if all(name in part.column_names for part in parts)]
        return text_table(_together([part.select(names) for part in parts]), "concepts.texts")

    def _contrast_of(self, given: ContrastSettings) -> pa.Table:
        """One concept's texts as they are; of a folder of a benchmark's data those that none scores."""
        place = Location.parse(self.place(given.texts))
        if place.names():
            settings = self._scoring(given.texts)
            table = text_table(about(settings.benchmark).contrast_texts(place, settings), given.texts)
        else:
            table = read_texts(place)
            both = given.positive or (self.recipe.concepts.positive and not given.template)
            if "label" not in table.column_names and not both:
                raise UserError(f"{given.texts}: expected positive and negative texts (a column `label`)")
        return table.drop_columns([name for name in ("concept",) if name in table.column_names])

    def _scoring(self, folder: str) -> EvaluationSettings:
        """The evaluation that scores what it draws from a folder, for what it leaves; where none does, one
        with the defaults of the first of our benchmarks whose data hold contrast texts."""
        scoring = {
            name: settings
            for name, settings in self.recipe.evaluations.items()
            if settings.texts == folder and about(settings.benchmark).contrast_by
        }
        if not scoring:
            return next(one for one in ours() if one.contrast_by).settings_class()  # type: ignore[call-arg]
        first = next(iter(scoring.values()))
        fields = ("benchmark", *about(first.benchmark).contrast_by)
        if (
            len({tuple(getattr(settings, name, None) for name in fields) for settings in scoring.values()})
            > 1
        ):
            same = f"{', '.join(fields[1:-1])} and {fields[-1]}"
            raise UserError(
                f"evaluations {', '.join(scoring)}: expected the same {same}, since what they leave of "
                f"{folder} refines the concept"
            )
        return first

    def _framed(self, table: pa.Table, given: ContrastSettings) -> pa.Table:
        """The texts with what stands around each, by the concept's own templates or the common ones."""
        common, where = self.recipe.concepts, given.texts
        template = given.template or common.template
        positive, negative = given.positive or common.positive, given.negative or common.negative
        if "label" in table.column_names:
            if given.positive or (positive and template is None):
                raise UserError(
                    f"{where}: has labels (a column `label`), and `positive` and `negative` would label its "
                    "texts themselves: expected one of them"
                )
            return around(table, template or "{text}", where)
        return both_ways(table, str(positive), str(negative), where)

    def placed(self, settings: EvaluationSettings) -> EvaluationSettings:
        """The settings with the places of their files."""
        names = [name for name in settings.files if getattr(settings, name) is not None]
        changes: dict[str, Any] = {name: self.place(getattr(settings, name)) for name in names}
        if settings.search is not None and settings.search.perplexity is not None:
            text = self.place(settings.search.perplexity)
            changes["search"] = settings.search.model_copy(update={"perplexity": text})
        return settings.model_copy(update=changes)

    def placed_recipe(self) -> Recipe:
        """The recipe with the places of its evaluations' files."""
        evaluations = {name: self.placed(settings) for name, settings in self.recipe.evaluations.items()}
        return self.recipe.model_copy(update={"evaluations": evaluations})


def _together(parts: list[pa.Table]) -> pa.Table:
    """Tables of the same columns as one, numbers and texts widened as need be. Raises UserError for a column
    that has values of different kinds."""
    try:
        return pa.concat_tables(parts, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise UserError(
            f"concepts.texts: expected columns of one type in all files ({one_line(error)})"
        ) from error


def around(table: pa.Table, template: str, where: str) -> pa.Table:
    """The texts with what a template puts before and after each, in the columns `before` and `after`.

    The text stays as it is, so that the leak check knows it. Raises UserError for a template without `{text}`
    or with a column that is missing.
    """
    missing = [name for name in template_fields(template) if name not in table.column_names]
    if missing:
        raise UserError(f"{where}: the template names a column {missing[0]!r} that is not there")
    before, after = frames(table, template)
    table = table.drop_columns([name for name in ("before", "after") if name in table.column_names])
    table = table.append_column("before", pa.array(before, pa.string()))
    return table.append_column("after", pa.array(after, pa.string()))


def both_ways(table: pa.Table, positive: str, negative: str, where: str) -> pa.Table:
    """Each text twice: under the positive and under the negative template (`around`), labelled by them."""
    parts = []
    for label, template in (("positive", positive), ("negative", negative)):
        part = around(table, template, where).select(["text", "before", "after"])
        part = part.append_column("label", pa.array([label] * part.num_rows))
        parts.append(part.append_column("pair_id", pa.array(range(part.num_rows), pa.int64())))
    return text_table(pa.concat_tables(parts), where)


@dataclass(frozen=True)
class Harvested:
    """A model that a recipe harvests, and what it reads."""

    name: str
    """Its activation sets are `<what>-<name>`."""
    side: str
    """The side of the map, `source` or `target`, as which it is harvested."""
    model: ModelSettings
    reads: tuple[str, ...]
    """Of `READS`."""


def harvested(recipe: Recipe) -> list[Harvested]:
    """Every model whose states a recipe needs: of both sides of the map, and of further sources; without a
    source of the target alone."""
    models = []
    mapped = recipe.source is not None
    for side, model, other in (
        ("source", recipe.source, recipe.map_source),
        ("target", recipe.target, recipe.map_target),
    ):
        if model is None:
            continue
        models.append(Harvested(side, side, model, READS if mapped and other is None else ("contrast",)))
        if other is not None:
            models.append(Harvested(side, side, other, ("corpus",)))
    for name, (model, mapped) in further_sources(recipe).items():
        side, reads = ("source", READS) if mapped else ("target", ("contrast",))
        models.append(Harvested(name, side, model, reads))
    return models


def harvest_key(model: ModelSettings, capture: CaptureSettings, table: pa.Table) -> str:
    """What an activation set holds, as a fingerprint: sets for which it is the same are shared by runs."""
    # Which precision is computed in belongs to what a set holds where it was set; else the set itself tells.
    kept = model.model_dump(mode="json", exclude=set() if model.compute_dtype else {"compute_dtype"})
    held = [kept, capture.model_dump(mode="json"), table_hash(table)]
    return fingerprint({"of": held})


def captures(recipe: Recipe, side: str, n_blocks: int) -> dict[str, CaptureSettings]:
    """How one side (`source` or `target`) is harvested on each of `READS`."""
    corpus, settings, is_source = recipe.corpus, recipe.concepts, side == "source"
    plain = CaptureSettings(
        blocks=harvested_blocks(recipe, side, n_blocks),
        batch_tokens=recipe.batch_tokens,
        max_tokens=recipe.max_tokens,
    )
    by_text = {}
    if corpus is not None:
        around_corpus = (corpus.source_template if is_source else None) or corpus.template
        by_text["corpus"] = plain.model_copy(update={"template": around_corpus})
    template = (settings.source_template if is_source else None) or settings.template
    if settings.framed:
        template = _FRAMED
    by_text["contrast"] = plain.model_copy(
        update={
            "template": template,
            "chat": settings.chat,
            "chat_date": settings.chat_date,
            "position": settings.position,
        }
    )
    return by_text
