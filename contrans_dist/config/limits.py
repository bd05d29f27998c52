"""Sizes beyond which a file is taken for a mistake or an attack.

Files from strangers are opened every day: each limit is far above what is honestly made, and checked while
reading. `contrans --limits 10` (or CONTRANS_LIMITS=10) raises all of them tenfold.
"""

import os

from contrans_dist.errors import UserError

VARIABLE = "CONTRANS_LIMITS"

JSON_BYTES = 32 << 20
"""Of metrics, a header, and of texts in one JSON value."""
TEXT_FILE_BYTES = 1 << 30
"""Of a file of texts, and of what it holds when it is unpacked."""
TEXT_BYTES = 16 << 20
"""Of one text, and of the line that it stands in: more than any model reads."""
TEXTS = 4 << 20
COLUMNS = 1024
"""Of a table of texts."""
CELLS = 64 << 20
"""Rows times columns of a table of texts, those inside its lists included."""
RECIPE_BYTES = 256 << 10
RECIPE_NODES = 100_000
"""Keys and values of a recipe, each as often as an anchor repeats it."""

RESULT_BYTES = 256 << 20
PART_BYTES = 1 << 30
"""Of a table of results that is shown, and of a part of one that an evaluation goes on with, as they are in
memory."""

CONDITION_ROWS = 5_000
"""Of conditions at strengths in one evaluation's metrics."""

MANIFEST_BYTES = 16 << 20
SHARDS = 50_000
"""Of one activation set."""
BLOCKS = 1_000
WIDTH = 1 << 20
"""Of a model: its blocks, and the numbers in one row of its residual stream."""
VECTOR_FILE_BYTES = 256 << 20
"""Of a vector that another tool wrote: 128 blocks of 16,384 numbers take 8 MB."""
LABELS = 1 << 16
MODEL_JSON_BYTES = 8 << 20
TOKENIZER_BYTES = 64 << 20
TOKENS = 1 << 19
"""Of a model: the classes of a classifier, its configurations, and each file of its vocabulary."""
HEADER_BYTES = 8 << 20
TENSORS = 10_000
WEIGHT_FILES = 2_000
"""Of a checkpoint: the header of a safetensors file, its tensors beside one for a thousand parameters, its
files."""
BUFFER_BYTES = 512 << 20
"""Of what a model keeps beside its weights, such as tables of positions and masks."""
FOOTER_BYTES = 8 << 20
CHUNKS = 65_536
"""Of a shard: its footer, and columns times row groups, of which a footer tells."""
EXPANDING = 50
SMALL_BYTES = 64 << 20
"""A shard may unfold to so many times its size, and to so many bytes in any case."""


def raised(most: int) -> int:
    """A limit as it holds in this process."""
    try:
        factor = float(os.environ.get(VARIABLE, "1"))
    except ValueError as error:
        raise UserError(f"{VARIABLE}: expected a number such as 10") from error
    return int(most * max(factor, 1.0))


def check_size(what: str, size: int, most: int, unit: str = "bytes") -> None:
    """Raise UserError when `size` is more than the limit `most`; `what` names file and field."""
    if size > raised(most):
        more = "`contrans --limits 10 ...` allows more"
        measured = f"{size:,} {unit}".strip()
        raise UserError(f"{what}: {measured}, expected at most {raised(most):,}; {more}")
