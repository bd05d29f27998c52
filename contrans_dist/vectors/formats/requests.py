"""What servers are sent as JSON: vllm-lens, EasySteer, Neuronpedia."""

import base64
import json

import numpy as np

from contrans_dist.errors import UserError
from contrans_dist.store.location import Location
from contrans_dist.vectors.formats.addition import KEY, Addition, write_beside
from contrans_dist.vectors.formats.foreign import Asked
from contrans_dist.vectors.formats.gguf_file import write_rows

HOOKS = ("hook_resid_pre", "hook_resid_post")
"""What Neuronpedia calls the stream before and behind a block."""
_WIDEST, _STRONGEST = 24_576, 300.0
"""Of what Neuronpedia takes."""


def write_vllm_lens(addition: Addition, location: Location, _asked: Asked) -> list[Location]:
    """Publish a `SteeringVector`, the strength as its scale."""
    rows = addition.rows()
    values = np.stack(list(rows.values())).astype("<f4")
    location.write_json(
        {
            "activations": {
                "data": base64.b64encode(values.tobytes()).decode("ascii"),
                "dtype": "float32",
                "original_dtype": "torch.float32",
                "shape": list(values.shape),
            },
            "layer_indices": list(rows),
            "scale": addition.strength,
            # Theirs measures each token's own state; what is exported is one length for all of them.
            "norm_match": False,
            "position_indices": None,
            KEY: json.loads(addition.said("scale")),
        }
    )
    return [location]


def write_easysteer(addition: Addition, location: Location, asked: Asked) -> list[Location]:
    """Publish a request, the strength as its scale; beside it the GGUF file that it names, at strength 1."""
    stem = location.name.rpartition(".")[0]
    vectors = location.parent / f"{stem}.gguf"
    write_rows(Addition(addition.vector, addition.blocks), addition.rows(), vectors, asked, "values")
    apply = {"prompt": "all", "generation": "all"}
    request = {
        "source": vectors.path if vectors.is_local else vectors.name,
        "algorithm": "direct",
        "scale": addition.strength,
        "layers": list(addition.blocks),
        "normalize": False,
        "apply": apply,
    }
    location.write_json({"steering": {"vectors": [request]}})
    return [location, vectors, write_beside(addition, location, "scale")]


def write_neuronpedia(addition: Addition, location: Location, asked: Asked) -> list[Location]:
    """Publish the body of a request for a new vector; what it is, beside it, so that none of that is sent."""
    block, vector = addition.only("Neuronpedia"), addition.vector
    hook = asked.hook or HOOKS[0]
    if asked.model_id is None:
        raise UserError("--model-id is missing: Neuronpedia's name of the model, such as gpt2-small")
    if hook not in HOOKS:
        raise UserError(f"--hook {hook}: expected one of {', '.join(HOOKS)}")
    if hook == HOOKS[0] and block == vector.n_blocks - 1:
        raise UserError(
            f"--block {block}: the last block cannot be said as {hook}, which is before a block; "
            f"a server that takes {HOOKS[1]} is told so by --hook {HOOKS[1]}"
        )
    if vector.d > _WIDEST:
        raise UserError(f"--vector: {vector.d:,} wide, Neuronpedia takes at most {_WIDEST:,}")
    if abs(addition.strength) > _STRONGEST:
        raise UserError(f"--strength {addition.strength:g}: Neuronpedia takes at most {_STRONGEST:g}")
    location.write_json(
        {
            "modelId": asked.model_id,
            # The stream before block k + 1 is what block k returned.
            "layerNumber": block + 1 if hook == HOOKS[0] else block,
            "hookType": hook,
            "vector": vector.at(block).tolist(),
            "vectorDefaultSteerStrength": addition.strength,
            "vectorLabel": vector.concept,
        }
    )
    return [location, write_beside(addition, location, "vectorDefaultSteerStrength")]
