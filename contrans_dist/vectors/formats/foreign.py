"""What the files of other tools hold, and what a user is asked for that they do not say."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from contrans_dist.errors import UserError
from contrans_dist.vectors.concept_vector import ConceptVector
from contrans_dist.vectors.formats.addition import Row, Said

if TYPE_CHECKING:
    from contrans_dist.models.naming import ModelNames


@dataclass(frozen=True)
class Asked:
    """What the user says beside the files, by flag."""

    model: str | None = None
    """`--model`: the one the file is for."""
    block: int | None = None
    """`--block` of an import: where the file's only row belongs."""
    model_id: str | None = None
    """`--model-id`: the name that a web service has for the model."""
    hook: str | None = None
    """`--hook`: what a web service calls the place."""
    trust_remote_code: bool = False

    @cached_property
    def names(self) -> "ModelNames":
        """The names in `--model`. Raises UserError where it was not given, or is no model."""
        from contrans_dist.models.naming import model_names  # torch is loaded where names are asked for

        if self.model is None:
            raise UserError("--model is missing: the file does not say which model it is for")
        return model_names(self.model, trust_remote_code=self.trust_remote_code)

    def names_for(self, vector: ConceptVector) -> "ModelNames":
        """The same, held against a vector. Raises UserError where they do not fit each other."""
        names = self.names
        if (len(names.blocks), names.d) != vector.values.shape:
            raise UserError(
                f"--model {self.model}: it has {len(names.blocks)} blocks of {names.d}, the vector is for "
                f"{vector.n_blocks} of {vector.d}"
            )
        return names


@dataclass(frozen=True)
class Foreign:
    """What a file of another tool holds, ready to be added at strength 1."""

    rows: dict[int, Row]
    """Block, from 0, to its row."""
    said: Said | None = None
    """What it says of itself, where this program wrote it."""
    n_blocks: int | None = None
    """Of the model, where the file says it by its shape."""
    model_type: str | None = None
    concept: str | None = None
