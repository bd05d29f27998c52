"""What the bytes of an activation set depend on, and how it grew: the identity in its manifest and shards."""

from typing import Annotated

from pydantic import ConfigDict, Field, PositiveInt, model_validator
from pydantic_core import PydanticCustomError

from contrans_dist.config import FileModel, fingerprint
from contrans_dist.store.results import plain

Count = Annotated[int, Field(ge=0)]


class Facts(FileModel):
    """What a file of ours says of itself: keys that a later version adds are left alone."""

    model_config = ConfigDict(strict=True)


class Part(Facts):
    """The fields in which the identity of a set changes when texts are appended."""

    rows: PositiveInt
    """Of the input, up to the part's end."""
    texts: str
    prompts: str
    """Both are hashes over the rows up to the part's end."""
    shard_size: PositiveInt
    """Of this part alone."""


class Identity(Facts):
    """What the bytes of a set depend on. A field that differs refuses a resume, so nothing else belongs here.

    Only the model is always there; what else sets of others say is kept as it is.
    """

    model_config = ConfigDict(extra="allow")

    model: str
    weights: str | None = None
    config: str | None = None
    dtype: str | None = None
    """Precision of the weights."""
    compute_dtype: str | None = None
    """Precision that was computed in."""
    quantization: str | None = None
    tokenizer: str | None = None
    torch: str | None = None
    transformers: str | None = None
    bitsandbytes: str | None = None
    template: str | None = None
    chat: bool | None = None
    chat_date: str | None = None
    prompts: str = ""
    max_tokens: int | None = None
    position: str | int | None = None
    blocks: list[Count] = Field(default_factory=list)
    batch_tokens: int | None = None
    shard_size: Count = 0
    rows: Count = 0
    texts: str = ""
    earlier: list[Part] = Field(default_factory=list)
    """The parts that the set was harvested in before texts were appended the last time."""

    @model_validator(mode="after")
    def _check_parts(self) -> "Identity":
        ends = [part.rows for part in self.earlier] + [self.rows]
        if self.earlier and ends != sorted(set(ends)):
            raise PydanticCustomError("parts", "parts that each end behind the one before")
        return self

    @property
    def precision(self) -> str | None:
        """That of the weights, and the one that was computed in where it is another, in words."""
        same = self.compute_dtype in (None, self.dtype)
        return self.dtype if same else f"{self.dtype}, computed in {self.compute_dtype}"

    @property
    def fingerprint(self) -> str:
        return fingerprint(plain(self))

    def stages(self) -> list["Identity"]:
        """The identities that the set had, from one time that texts were appended to the next, and this."""
        content, stages = plain(self), []
        for number, part in enumerate(self.earlier):
            stage = {**content, **plain(part), "earlier": content["earlier"][:number]}
            if not number:
                del stage["earlier"]
            stages.append(Identity.model_validate(stage))
        return [*stages, self]
