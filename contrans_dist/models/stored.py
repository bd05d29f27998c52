"""What a checkpoint's files say of themselves, held against each other before anything is allocated."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PretrainedConfig
from transformers.modeling_utils import load_state_dict

from contrans_dist.errors import UserError
from contrans_dist.limits import JSON_BYTES, check_size
from contrans_dist.models.blocks import text_config

NOT_TENSORS = "holds more than tensors, which could run code when read; expected safetensors"
_STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_DEPTH, _WIDTH = 2048, 1 << 24
"""Blocks or experts, and entries in any other size, that a configuration may name."""
_COUNTS = re.compile(r"^(n|num)_.*(layer|expert|block)")
_WIDTHS = re.compile(r"(size|dim|embd|d_model|heads?|positions|positions_embeddings)$")
_PER_BYTE = 16
"""Parameters that a byte on disk may stand for: quantised weights hold two to four, and some are shared."""


def read_config(name: str, source: str, revision: str | None, trust_remote_code: bool = False) -> Any:
    """The configuration of a model. Raises UserError for absurd sizes, and what transformers raises."""
    content, _ = PretrainedConfig.get_config_dict(source, revision=revision)
    for key, value in _numbers(content):
        most = _DEPTH if _COUNTS.search(key) else _WIDTH if _WIDTHS.search(key) else None
        if most is not None:
            check_size(f"--model {name}: config.json, {key}", value, most, "")
    return AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)


def _numbers(content: dict[str, Any]) -> Iterator[tuple[str, int]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _numbers(value)
        elif isinstance(value, int):
            yield str(key), value


def check_files(name: str, source: str, parameters: int) -> None:
    """Raise UserError where the weight files of a local folder cannot hold what its configuration says."""
    files = weight_files(Path(source))
    for path in files:
        if path.suffix == ".safetensors":
            check_shapes(path)
    there = sum(path.stat().st_size for path in files)
    if files and parameters > _PER_BYTE * there:
        raise UserError(
            f"--model {name}: config.json describes {parameters:,} parameters, its weight files hold "
            f"{there:,} bytes"
        )


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a folder, those in safetensors if there are any."""
    for pattern in ("*.safetensors", "*.bin"):
        files = sorted(folder.glob(pattern))
        if files:
            return files
    return []


def check_shapes(path: Path) -> None:
    """Raise UserError for a safetensors file with a shape that its bytes cannot fill."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size:
            return  # cut off: said where it is read
        check_size(f"{path}: header", length, JSON_BYTES)
        try:
            header = json.loads(file.read(length))
            shapes = {key: entry["shape"] for key, entry in header.items() if key != "__metadata__"}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return
    for key, shape in shapes.items():
        # A dimension of 0 makes any other cost nothing on disk.
        if any(not isinstance(n, int) or not 0 <= n <= size for n in shape):
            raise UserError(f"{path}: {key} has shape {shape}, the whole file {size:,} bytes")


def own_dtype(config: PretrainedConfig, source: str) -> str:
    """The checkpoint's precision, in which it is run: what its configuration says, else that of the first
    floating tensor in a local folder's files. Raises UserError for a file that holds more than tensors."""
    for part in (config, text_config(config)):
        if getattr(part, "dtype", None) is not None:
            kind = str(part.dtype).removeprefix("torch.")
            return kind if kind in _STORED.values() else "float32"
    for path in weight_files(Path(source)):
        found = _of_tensors(path) if path.suffix == ".safetensors" else _of_bin(path)
        if found is not None:
            return found
    return "float32"


def _of_tensors(path: Path) -> str | None:
    try:
        with safe_open(path, framework="numpy") as file:
            kinds = (file.get_slice(key).get_dtype() for key in file.keys())  # noqa: SIM118
            return next((_STORED[kind] for kind in kinds if kind in _STORED), None)
    except SafetensorError:
        return None  # damaged: said where it is read


def _of_bin(path: Path) -> str | None:
    try:
        tensors = load_state_dict(str(path), map_location="meta").values()
    except Exception as error:
        if type(error).__name__ == "UnpicklingError":
            raise UserError(f"{path}: {NOT_TENSORS}") from error
        return None
    kinds = (str(each.dtype).removeprefix("torch.") for each in tensors if each.is_floating_point())
    return next((kind for kind in kinds if kind in _STORED.values()), None)
