"""How far a quantised model's rows are from the same model's unquantised ones: measured, not assumed."""

import numpy as np
import pyarrow as pa

from contrans_dist.config import ModelSettings
from contrans_dist.engine.capture import capture_ids
from contrans_dist.harvest.runnable import token_ids
from contrans_dist.harvest.shards import HarvestSpec
from contrans_dist.models.placed import load_placed
from contrans_dist.models.placement import choose_placement
from contrans_dist.store import schema
from contrans_dist.store.location import Location
from contrans_dist.store.manifest import QuantizationCheck
from contrans_dist.store.patience import patiently
from contrans_dist.store.shard_file import block_values
from contrans_dist.store.shard_reader import opened

SAMPLE_TEXTS = 32


def quantization_check(model: ModelSettings, spec: HarvestSpec) -> QuantizationCheck:
    """Cosine of the harvested rows to those of the unquantised model, on the first texts of the harvest.

    Runs the unquantised model here; `texts` is 0, with the reason, where it does not fit.
    """
    plain, highest = model.model_copy(update={"quantization": None}), max(spec.blocks)
    placement = choose_placement(
        plain, highest_block=highest, head=False, batch_tokens=spec.capture.batch_tokens
    )
    if placement.kind == "stream":
        return QuantizationCheck(texts=0, reason=f"not measured: {placement.reason}")
    stored = _first_rows(spec.out / schema.shard_name(0))
    if not stored.num_rows:
        return QuantizationCheck(texts=0, reason="not measured: no text of the first shard can be run")
    lm = load_placed(plain, placement, highest_block=highest, head=False)
    settings = spec.capture
    ids, _ = token_ids(lm, stored, settings)
    exact = capture_ids(lm, ids, spec.blocks, settings.position, settings.batch_tokens)
    cosines = {
        block: _cosines(block_values(stored, schema.block_column(block)), exact[block])
        for block in spec.blocks
    }
    return QuantizationCheck(
        texts=stored.num_rows,
        worst_cosine=round(float(min(values.min() for values in cosines.values())), 6),
        mean_cosine={str(block): round(float(values.mean()), 6) for block, values in cosines.items()},
    )


@patiently
def _first_rows(shard: Location) -> pa.Table:
    with opened(shard) as file:
        return file.file.read_row_group(0).slice(0, SAMPLE_TEXTS)


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float64 [n]: cosine of each row of a [n, d] to the same row of b."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return np.einsum("ij,ij->i", a, b) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
