"""What transformers calls a model's decoder blocks, for tools that hook them by name."""

from dataclasses import dataclass

from contrans_dist.models.blocks import find_blocks, text_config
from contrans_dist.models.loading import describe


@dataclass(frozen=True)
class ModelNames:
    """A model as other tools name it."""

    model_type: str
    """Of its configuration, such as `llama`."""
    d: int
    """Width of its residual stream."""
    blocks: tuple[str, ...]
    """Its decoder blocks in `model.base_model.named_modules()`, lowest first: `layers.0`, ..."""


def model_names(name: str, *, trust_remote_code: bool = False) -> ModelNames:
    """The names of a model's parts, from its configuration alone.

    Args:
        name: A hub model, a local folder, or a bundled model.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        UserError: As `load_model`.
        RunError: As `load_model`.
    """
    described = describe(name, trust_remote_code=trust_remote_code)
    model = described.empty()
    names = {module: path for path, module in model.base_model.named_modules()}
    return ModelNames(
        model_type=described.full.model_type,
        d=int(text_config(described.full).hidden_size),
        blocks=tuple(names[block] for block in find_blocks(model)[1]),
    )
