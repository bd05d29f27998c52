"""A recipe: everything that one run, or several, are made of."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    FiniteFloat,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from contrans_dist.config import own_vectors
from contrans_dist.config.base import Settings
from contrans_dist.config.defaults import BATCH_TOKENS
from contrans_dist.config.evaluations import AnyEvaluation, EvaluationSettings
from contrans_dist.config.parts import (
    ClusterSettings,
    ConceptSettings,
    CorpusSettings,
    MapSettings,
    ModelSettings,
    SourceSettings,
)


def _file_name(name: str) -> str:
    if re.fullmatch(r"\w[\w.-]{0,99}", name) is None:
        raise ValueError("a name of letters, digits, `_`, `.` and `-`")
    return name


FileName = Annotated[str, AfterValidator(_file_name)]
"""What becomes the name of a folder."""


class PublishedSettings(Settings):
    """What a paper found, to be set beside what a run finds."""

    source: str
    """Where the figures stand, such as `arXiv 2405.13578, Table 1`."""
    values: dict[str, dict[str, dict[str, dict[str, FiniteFloat]]]]
    """run -> evaluation -> condition -> metric -> value; a recipe of one run is called `all`."""
    remarks: str = ""
    """Why ours may differ: what the paper does not tell, chance level, leaks."""


class Recipe(Settings):
    """A whole run, or several that differ in a few settings: from texts to the report."""

    name: FileName
    """Of the run; its folder, unless `--out` says another, is `runs/<name>`."""
    description: str = ""
    """A sentence for the report."""
    published: PublishedSettings | None = None
    runs: dict[FileName, dict[str, Any]] = Field(default_factory=dict)
    """Several runs in one: name to the settings that differ, such as `{target: b, concepts.limit: 20}`. They
    share their harvests, and are compared on a page."""
    axis: str = ""
    """What the runs' names are along an axis, such as `training steps`: they are then drawn as a curve."""
    small: dict[str, Any] | None = None
    """Settings that take the place of those above with `--small`: the same on bundled models."""
    source: ModelSettings | None = None
    """The model that the vectors come from. Without it and `corpus` they are the target's own, and no map is
    fitted; of `map` there is then `blocks` alone."""
    target: ModelSettings
    """The model that is steered."""
    corpus: CorpusSettings | None = None
    concepts: ConceptSettings
    map: MapSettings = MapSettings()
    sources: dict[FileName, SourceSettings] = Field(default_factory=dict)
    """Further models that vectors come from: the conditions `from:<name>`, and their mean."""
    source_base: ModelSettings | None = None
    """The source before its alignment training, for a baseline that takes the difference."""
    target_instruct: ModelSettings | None = None
    """The target after alignment training: scored as a baseline. With a source its vector is what the
    transplanted one is compared with; without, the target's own is steered."""
    map_source: ModelSettings | None = None
    """Model whose states of the corpus the map is fitted from, where it is not the source: the papers fit it
    between base models."""
    map_target: ModelSettings | None = None
    """The same on the target's side."""
    evaluations: dict[FileName, AnyEvaluation] = Field(min_length=1)
    analyses: tuple[Literal["states", "differences", "map-similarity"], ...] = ()
    """Pictures of the harvested states by t-SNE, of the differences of contrast pairs, and how alike the maps
    are that are fitted on each concept's own prompts."""
    batch_tokens: int = Field(BATCH_TOKENS, ge=1)
    """Tokens in one forward pass of a harvest, padding included."""
    max_tokens: int | None = Field(None, ge=1)
    """Tokens of a harvested prompt, of which the end is kept; None is the model's positions."""
    skip_bad: bool = False
    """Leave out texts that a model cannot run, and say which; without, they end the run."""
    cluster: ClusterSettings = ClusterSettings()

    @property
    def blocks(self) -> str:
        """`map.blocks`, with its default filled in."""
        if self.map.blocks is not None:
            return self.map.blocks
        return "best" if self.map.protocol == "default" and self.chosen_on is not None else "depth"

    @property
    def chosen_on(self) -> EvaluationSettings | None:
        """The evaluation on whose validation items blocks are chosen: the first that has any."""
        return next((settings for settings in self.evaluations.values() if settings.has_validation), None)

    @field_validator(
        "source", "target", "source_base", "target_instruct", "map_source", "map_target", mode="before"
    )
    @classmethod
    def _id_alone(cls, value: Any) -> Any:
        return {"id": value} if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _of_its_own(cls, content: Any) -> Any:
        own = isinstance(content, dict) and own_vectors.is_own(content)
        return own_vectors.completed(content) if own else content

    @model_validator(mode="after")
    def _whole(self) -> Self:
        refusal = own_vectors.refusal(self)
        if refusal is not None:
            raise PydanticCustomError("recipe", "{why}", {"why": refusal})
        return self

    @model_serializer(mode="wrap")
    def _without_source(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = plain(self)
        return content if self.source is not None else own_vectors.without_source(content, self)
