"""Move concepts between language models, and measure honestly what it did.

The engines as a library, without Ray:

    import contrans_dist as ct

    model = ct.load_model("path-or-hub-id", dtype="bfloat16")
    rows = ct.capture(model, texts, blocks=[24])              # {block: float32 [n_texts, d]}
    vector = ct.concept_vector(rows_positive, rows_negative)  # float32 [d]
    mapping = ct.fit_map(source_rows, target_rows)
    with ct.steer(target, ct.transplant(vector, mapping), block=30, strength=1.0):
        ...                                                   # any Hugging Face call
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contrans_dist.config.map_options import MapOptions
    from contrans_dist.engine.capture import Activations, capture
    from contrans_dist.engine.scoring import Intervention, generate, next_token
    from contrans_dist.engine.steer import steer
    from contrans_dist.errors import RunError, UserError
    from contrans_dist.mapping.library import fit_map, map_vectors
    from contrans_dist.mapping.linear_map import AffineMap
    from contrans_dist.mapping.transplant import cosine, transplant
    from contrans_dist.models import LanguageModel, load_model, wrap_model
    from contrans_dist.store.activation_set import ActivationSet
    from contrans_dist.vectors.concept_vector import ConceptVector
    from contrans_dist.vectors.extract import concept_vector

_HOMES = {
    "ActivationSet": "store.activation_set",
    "Activations": "engine.capture",
    "AffineMap": "mapping.linear_map",
    "ConceptVector": "vectors.concept_vector",
    "Intervention": "engine.scoring",
    "LanguageModel": "models",
    "MapOptions": "config.map_options",
    "RunError": "errors",
    "UserError": "errors",
    "capture": "engine.capture",
    "concept_vector": "vectors.extract",
    "cosine": "mapping.transplant",
    "fit_map": "mapping.library",
    "generate": "engine.scoring",
    "load_model": "models",
    "map_vectors": "mapping.library",
    "next_token": "engine.scoring",
    "steer": "engine.steer",
    "transplant": "mapping.transplant",
    "wrap_model": "models",
}

__all__ = [
    "ActivationSet",
    "Activations",
    "AffineMap",
    "ConceptVector",
    "Intervention",
    "LanguageModel",
    "MapOptions",
    "RunError",
    "UserError",
    "capture",
    "concept_vector",
    "cosine",
    "fit_map",
    "generate",
    "load_model",
    "map_vectors",
    "next_token",
    "steer",
    "transplant",
    "wrap_model",
]


def __getattr__(name: str) -> Any:
    """Names are fetched when asked for: `import contrans_dist` and `contrans --help` must not load torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
