"""The parts of a run: models, how rows are taken, where it runs, texts, and the map."""

from datetime import date
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from contrans_dist.config.base import Settings
from contrans_dist.config.defaults import BATCH_TOKENS, CHAT_DATE
from contrans_dist.config.labels import parse_selector
from contrans_dist.config.map_options import Centre, MapOptions, Regularise

Dtype = Literal["float32", "bfloat16", "float16"]
Quantization = Literal["int8", "nf4"]
PlacementChoice = Literal["auto", "device-map", "stream", "pipeline"]
Cut = Literal["none", "end", "random", "after"]
Method = Literal["mean", "pca"]
Norm = Literal["keep", "match"]
Position = Literal["last", "mean"] | Annotated[int, Field(strict=True)]


class ModelSettings(Settings):
    """Which model, and how it is loaded."""

    id: str
    """Hub id, with `@revision` if wanted, a local directory, or a bundled one such as `demo:source`."""
    dtype: Dtype | None = None
    """Precision of the weights; None is the checkpoint's own."""
    compute_dtype: Dtype | None = None
    """Precision that is computed in; None is that of the weights on a GPU that computes in it, and on a
    processor that one or float32, whichever is the faster there."""
    quantization: Quantization | None = None
    """bitsandbytes weights instead."""
    trust_remote_code: bool = False
    """Run code that comes with the checkpoint. Off unless asked for."""

    @model_validator(mode="after")
    def _quantised_as_it_is(self) -> Self:
        if self.compute_dtype is not None and self.quantization is not None:
            told = "compute_dtype or quantization, not both: quantised weights are computed with in `dtype`"
            raise PydanticCustomError("compute_dtype", told)  # type: ignore[arg-type]
        return self


class SourceSettings(ModelSettings):
    """A further model that vectors come from."""

    map: bool = True
    """Send its vectors through a map of its own; without, they are added as they are (equal widths)."""


class CaptureSettings(Settings):
    """Which rows are taken from a text."""

    blocks: str = "all"
    """Decoder blocks, from 0: `all`, `24`, `8:16` (8 to 15), `3,5`, or a share of the depth, `0.75`."""
    position: Position = "last"
    """Token the row is taken from: `last`, `mean` over all tokens, or an offset such as -2."""
    template: str | None = None
    """Prompt around each text, with `{text}`; other columns may be named as well."""
    chat: bool = False
    """Wrap each prompt as a user's turn of the model's own chat template."""
    chat_date: date = CHAT_DATE
    """The day that it is for a chat template that asks."""
    max_tokens: int | None = Field(None, ge=1)
    """Tokens of a prompt, of which the end is kept; None is as many as the model has positions for."""
    batch_tokens: int = Field(BATCH_TOKENS, ge=1)
    """Tokens in one forward pass, padding included."""
    shard_size: int | None = Field(None, ge=1)
    """Rows a shard; None aims at 128 MB."""


class ClusterSettings(Settings):
    """Where it runs."""

    address: str | None = None
    """`local`, `auto` or `ray://...`; None follows RAY_ADDRESS, else stays on this machine."""
    actors: int | None = Field(None, ge=1)
    """Model replicas; None is one for each `gpus_per_actor` GPUs of a node, or one on a machine without."""
    gpus_per_actor: float | None = Field(None, ge=0)
    """GPUs of one node each replica gets; None is the fewest of 1, 2, 4, 8, 16 that hold the model."""
    cpus_per_actor: float | None = Field(None, gt=0)
    """Cores each replica gets, which also sets its threads; None shares a node's cores out."""
    label_selector: str | None = None
    """Nodes that actors may be on, by their Ray labels: `ray.io/accelerator-type=H100`, `market-type=!spot`,
    `ray.io/accelerator-type=in(A100, H100)`, several with commas between."""
    placement: PlacementChoice = "auto"
    """`device-map` spreads a replica over its GPUs, `stream` reads block after block from the checkpoint,
    `pipeline` gives each of several nodes a run of blocks, `auto` finds out which of the first two is needed,
    if any. `stream` and `pipeline` are for harvests: what is steered is placed by `auto`."""

    @field_validator("label_selector")
    @classmethod
    def _labels(cls, text: str | None) -> str | None:
        try:
            parse_selector(text)
        except ValueError as error:
            raise PydanticCustomError("label_selector", "{why}", {"why": str(error)}) from error
        return text

    @property
    def selector(self) -> dict[str, str]:
        """`label_selector` by label."""
        return parse_selector(self.label_selector)

    def for_steering(self) -> "ClusterSettings":
        """The same for models that are steered, which takes the whole model."""
        harvests_only = self.placement in ("stream", "pipeline")
        return self.model_copy(update={"placement": "auto"}) if harvests_only else self

    def one_gpu_each(self) -> "ClusterSettings":
        """The same for a classifier: it fits one GPU, over however many the judged model is spread."""
        if self.gpus_per_actor is None or self.gpus_per_actor <= 1:
            return self
        return self.model_copy(update={"gpus_per_actor": 1.0})


class CorpusSettings(Settings):
    """Texts the map is fitted on."""

    texts: str
    """A file of texts, or bundled ones such as `demo:corpus.jsonl`."""
    cut: Cut = "none"
    """`end` drops 2 to 4 words as the ConTrans authors do; `random` keeps random prefixes; `after` keeps each
    prefix that ends on one of `words`."""
    words: tuple[str, ...] = ()
    """For `cut: after`: the words that the prompts end on."""
    template: str | None = None
    """What is put around each text, with `{text}`: `"{text} Tom was very"` makes a corpus of any texts end as
    prompts do that end so, which matters more than any option of the map."""
    source_template: str | None = None
    """Another for the source: `"{text} "` suits a tokenizer without a token for space and word together."""
    per_text: int = Field(1, ge=1)
    """Prefixes cut from each text (`cut: random`)."""
    limit: int | None = Field(None, ge=1)
    """Use only the first texts."""
    seed: int = 42
    """Of the cuts."""

    @model_validator(mode="after")
    def _cut_that_is_made(self) -> Self:
        if (self.cut == "after") != bool(self.words):
            raise ValueError("`words` and `cut: after` together, or neither")
        if self.per_text > 1 and self.cut != "random":
            raise ValueError("`per_text` with `cut: random` alone")
        return self


class PromptSettings(Settings):
    """What stands around contrast texts."""

    template: str | None = None
    """Prompt with `{text}`; other columns may be named as well."""
    positive: str | None = None
    """With `negative`: two templates. Each text is then asked under both, and labelled by them: an honest and
    a dishonest instruction, or the two answers of an A/B question."""
    negative: str | None = None
    """The other template; see `positive`."""

    @model_validator(mode="after")
    def _in_pairs(self) -> Self:
        if (self.positive is None) != (self.negative is None):
            raise ValueError("a value for `positive` and `negative` together, or for neither")
        return self


class ContrastSettings(PromptSettings):
    """The contrast texts of one concept, with prompts of their own."""

    texts: str
    """A file of positive and negative texts."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.template is not None and self.positive is not None:
            raise ValueError("`template`, or `positive` and `negative`")
        return self


class ConceptSettings(PromptSettings):
    """The contrast sets that make the concept vectors."""

    texts: str | dict[str, str | ContrastSettings]
    """A file with columns `text` and `concept`, or a folder of `<concept>.json` lists (each concept against
    the others); or, for each concept, a file of positive and negative texts (a ConTrans file, a column
    `label`, or a folder of a benchmark's data), with prompts of its own if need be."""
    source_template: str | None = None
    """Another template for the source, where its tokenizer wants one; None is the same."""
    chat: bool = False
    """Wrap each prompt as a user's turn of the model's own chat template."""
    chat_date: date = CHAT_DATE
    """The day that it is for a chat template that asks."""
    position: Position = "last"
    """Token the row is taken from: `last`, `mean` over all tokens, or an offset such as -2."""
    method: Method = "mean"
    """`mean` of the differences (equation 1), or their first principal component."""
    seed: int = 0
    """Draws the other concepts' rows, where each concept stands against the others."""
    limit: int | None = Field(None, ge=2)
    """Use only so many pairs a concept."""

    @property
    def framed(self) -> bool:
        """Whether texts have prompts that differ from row to row."""
        single = self.texts.values() if isinstance(self.texts, dict) else ()
        return self.positive is not None or any(not isinstance(given, str) for given in single)

    @model_validator(mode="after")
    def _prompts_that_are_used(self) -> Self:
        if self.positive is not None and isinstance(self.texts, str):
            raise ValueError("`texts` by concept, where `positive` and `negative` are given")
        if self.source_template is not None and self.framed:
            raise ValueError("no `source_template` where texts are asked under prompts of their own")
        return self


class MapSettings(Settings):
    """The map from the source's residual stream to the target's."""

    protocol: Literal["default", "paper"] = "default"
    """`paper` is equation 2 as the authors' code has it; `default` is centred, with a ridge."""
    blocks: str | None = None
    """`depth` (three quarters of both models), `24:30`, `best` (of some pairs in the upper part of both
    models the one whose vectors steer validation items best, or where no evaluation has any, move negative
    contrast prompts best to what follows positive ones), or `r2` (the highest held-out R2 of all pairs, which
    may be one that does not steer). None: `best` under `default` where an evaluation has validation items,
    else `depth`. In a recipe without a source it is of the target alone: `depth`, `best`, or a block such as
    `18`."""
    norm: Norm = "match"
    """`match` gives the mapped vector the share of the target's residual norm that it had in the source."""
    centre: Centre | None = None
    """Fit about the rows' means (`true`), about the means of the rows taken from the same token (`token`, as
    `default` does), or about the origin (`false`). This and what follows: None is the protocol's own."""
    regularise: Regularise | None = None
    """`ridge`, chosen on held-out rows, or `none`, the pseudo-inverse."""
    source_blocks: int | None = Field(None, ge=1)
    """Source blocks that the map reads: the pair's own and those below. None: 2 under `default`, else 1."""

    @field_validator("blocks", mode="before")
    @classmethod
    def _no_number(cls, value: Any) -> Any:
        if isinstance(value, int):
            raise PydanticCustomError("blocks", "a pair such as 24:30")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        try:
            self.options()
        except ValueError as error:
            told = "options that agree ({why})"
            raise PydanticCustomError("map_options", told, {"why": str(error)}) from error
        return self

    def options(self) -> MapOptions:
        """The options of the fit."""
        return MapOptions(self.protocol, self.centre, self.regularise, self.source_blocks)
