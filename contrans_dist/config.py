"""The typed, frozen description of what is to be run; YAML in, validated, fingerprint out."""

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, field_validator

Dtype = Literal["float32", "bfloat16", "float16"]
Quantization = Literal["int8", "nf4"]
Placement = Literal["auto", "device-map", "stream"]
Protocol = Literal["default", "paper", "lcross"]
Position = Literal["last", "mean"] | Annotated[int, Field(strict=True)]

Condition = Literal[
    "vector",
    "random",
    "shuffled-map",
    "other-concept",
    "self-align",
    "self-modulation",
    "lcross-own",
    "lcross-unrelated",
    "no-map",
    "random-map",
]


class Settings(BaseModel):
    """Base of every settings class: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ModelSettings(Settings):
    """Which model, and how it is loaded."""

    id: str
    """Hub id, with `@revision` if wanted, a local directory, or `demo:source` / `demo:target`."""
    dtype: Dtype | None = None
    """Precision of the weights; None is the checkpoint's own."""
    quantization: Quantization | None = None
    """bitsandbytes weights instead."""
    trust_remote_code: bool = False
    """Run code that comes with the checkpoint. Off unless asked for."""


class CaptureSettings(Settings):
    """Which rows are taken from a text."""

    blocks: str = "all"
    """Decoder blocks, counted from 0: `all`, `24`, `8:16`, `3,5`, or a fraction of the depth, `0.75`."""
    position: Position = "last"
    """Token the row is taken from: `last`, `mean` over all tokens, or an offset such as -2."""
    template: str | None = None
    """Prompt around each text, with `{text}`; other columns may be named as well."""
    chat: bool = False
    """Wrap each prompt as a user's turn of the model's own chat template."""
    batch_tokens: int = Field(4096, ge=1)
    """Tokens in one forward pass, padding included."""
    shard_size: int | None = Field(None, ge=1)
    """Rows a shard; None aims at 128 MB."""


class ClusterSettings(Settings):
    """Where it runs."""

    address: str | None = None
    """`local`, `auto` or `ray://...`; None follows RAY_ADDRESS, else starts locally."""
    actors: int | None = Field(None, ge=1)
    """Model replicas; None is one for each `gpus_per_actor` GPUs of a node, or one on a machine without."""
    gpus_per_actor: float | None = Field(None, ge=0)
    """GPUs of one node each replica gets; None is 1 where there are GPUs, else 0."""
    cpus_per_actor: float | None = Field(None, gt=0)
    """Cores each replica gets, which also sets its threads; None shares a node's cores out."""
    placement: Placement = "auto"
    """`device-map` spreads a replica over its GPUs, `stream` reads block after block from the checkpoint,
    `auto` finds out which of them is needed, if any."""


class CorpusSettings(Settings):
    """Texts the map is fitted on."""

    texts: str
    cut: Literal["none", "end", "random", "after"] = "none"
    """`end` drops 2 to 4 words as the ConTrans authors do; `random` keeps random prefixes; `after` keeps each
    prefix that ends on one of `words`."""
    words: tuple[str, ...] = ()
    """For `cut: after`: the words that the prompts end on."""
    source_template: str | None = None
    """For the source alone: `"{text} "` suits a tokenizer without a token for space and word together."""
    per_text: int = Field(1, ge=1)
    """Prefixes cut from each text (`cut: random`)."""
    limit: int | None = Field(None, ge=1)
    """Use only the first texts."""
    seed: int = 42


class ConceptSettings(Settings):
    """The contrast sets that make the concept vectors."""

    texts: str | dict[str, str]
    """A file with columns `text` and `concept`, or a folder of `<concept>.json` lists (each concept against
    the others); or, for each concept, a ConTrans file of positive and negative texts."""
    template: str | None = None
    source_template: str | None = None
    """Another template for the source, where its tokenizer wants one; None is the same."""
    chat: bool = False
    position: Position = "last"
    method: Literal["mean", "pca"] = "mean"
    seed: int = 0
    limit: int | None = Field(None, ge=2)
    """Use only so many pairs a concept."""


class MapSettings(Settings):
    """The map from the source's residual stream to the target's."""

    protocol: Literal["default", "paper"] = "default"
    blocks: str = "depth"
    """`depth` (three quarters of both models), `24:30`, or `best` (chosen on the validation scenarios)."""
    norm: Literal["keep", "match"] = "match"
    """`match` gives the mapped vector the share of the target's residual norm that it had in the source."""


class EvaluationSettings(Settings):
    """One evaluation of the steered target."""

    benchmark: Literal["emotions"] = "emotions"
    texts: str
    """Scenarios to score: a file with columns `text` and `concept`, or a folder of `<concept>.json`."""
    validation: str | None = None
    """Scenarios on which the block pair is chosen (`map.blocks: best`)."""
    shots: str | None = None
    """Scenarios that may serve as few-shot examples; None asks without examples."""
    protocol: Literal["default", "paper"] = "default"
    template: str | None = None
    strengths: tuple[FiniteFloat, ...] = (0.0, 0.5, 1.0, 1.5, 2.0)
    conditions: tuple[Condition, ...] = ("vector", "random", "shuffled-map", "other-concept", "self-align")
    kinds: tuple[Literal["positive", "negative"], ...] = ("positive", "negative")
    """Scenarios that are about the steered concept, and scenarios that are not."""
    per_concept: int | None = Field(None, ge=1)
    """Positive and negative scenarios a concept; None takes all."""
    only_unseen: bool = False
    """Leave out scenarios that the vectors or the map have seen, so that the rest is held out."""
    labels: dict[str, str] = Field(default_factory=dict)
    """The word the model should answer, where it is not the concept's own name."""
    seed: int = 0


class Recipe(Settings):
    """A whole run: from texts to the report."""

    name: str
    description: str = ""
    source: ModelSettings
    target: ModelSettings
    corpus: CorpusSettings
    concepts: ConceptSettings
    map: MapSettings = MapSettings()
    evaluations: dict[str, EvaluationSettings] = Field(min_length=1)
    batch_tokens: int = Field(4096, ge=1)
    cluster: ClusterSettings = ClusterSettings()

    @field_validator("source", "target", mode="before")
    @classmethod
    def _id_alone(cls, value: Any) -> Any:
        return {"id": value} if isinstance(value, str) else value


def fingerprint(identity: dict[str, Any]) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of an identity.

    Raises TypeError for a value without a stable JSON form.
    """
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def differing(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """One line for each field in which two identities differ: `dtype: found float32, asked for bfloat16`."""
    names = [*wanted, *(name for name in found if name not in wanted)]
    return [
        f"{name}: found {found.get(name)!r}, asked for {wanted.get(name)!r}"
        for name in names
        if found.get(name) != wanted.get(name)
    ]
