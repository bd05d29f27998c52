"""llama.cpp's files (GGUF): taken out of their quantisation once, into a Hugging Face folder."""

import io
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stderr
from math import prod
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock
from gguf import GGMLQuantizationType
from huggingface_hub import cached_assets_path

from contrans_dist.config.limits import BLOCKS, TENSORS, check_size
from contrans_dist.console import note
from contrans_dist.errors import RunError, UserError, one_line
from contrans_dist.models.hub import silent
from contrans_dist.models.model_files import file_hash
from contrans_dist.store.gguf_head import HeldTensor, read_head

_MADE_FROM = "made_from.json"
_WIDTHS: dict[int, torch.dtype] = {
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}
_UNREADABLE = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError,
    TypeError, ValueError,
)  # fmt: skip
"""What transformers and gguf raise for files that they cannot read. NotImplementedError is among them."""


def cached_folder(path: Path) -> Path:
    """The Hugging Face folder of a GGUF file, made at first use, in the cache of the hub (`HF_HOME`).

    Raises UserError for a file that is none, and for one that transformers cannot read.
    """
    folder = cached_assets_path("contrans_dist", "gguf", file_hash(path)[:32])
    with FileLock(f"{folder}.lock"):
        if not (folder / _MADE_FROM).is_file():
            shutil.rmtree(folder, ignore_errors=True)
            unpack(path, folder)
    return folder


def unpack(path: Path, folder: Path) -> None:
    """Write the model in a GGUF file as a Hugging Face folder: configuration, tokenizer, float weights.

    Args:
        path: The GGUF file. One in float16 or bfloat16 stays in that precision; what is quantised becomes
            float32, which holds every value exactly.
        folder: Must not exist; it is there when all of it is.

    Raises:
        UserError: For a file that transformers cannot read.
        RunError: Where there is no room for the folder.
    """
    precision = _precision(_tensors(path))
    note(f"{path}: taking its weights out of their quantisation once, into {folder}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))
    try:
        try:
            model, tokenizer = _read(path, precision)
        except _UNREADABLE as error:
            raise UserError(
                f"--model {path}: transformers cannot read this GGUF file: {one_line(error)}"
            ) from error
        try:
            with silent():
                model.save_pretrained(made)
                tokenizer.save_pretrained(made)
            (made / _MADE_FROM).write_text(json.dumps({"sha256": file_hash(path)}))
            made.chmod(0o755)  # as any folder of the cache; a temporary one is closed to others
            os.replace(made, folder)
        except OSError as error:
            raise RunError(f"{folder}: cannot be written: {one_line(error)}") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _read(path: Path, precision: torch.dtype) -> tuple[Any, Any]:
    """Model and tokenizer, as transformers reads them, on the CPU."""
    place, file = str(path.parent), path.name
    options = {}
    if hasattr(transformers, "GgufConfig"):  # earlier releases always take weights out of their quantisation
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    with silent(), redirect_stderr(io.StringIO()):  # one of its bars cannot be switched off
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            place, gguf_file=file, dtype=precision, output_loading_info=True, **options
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, gguf_file=file)
    if info["missing_keys"] or info["mismatched_keys"]:
        raise ValueError(f"weights missing: {', '.join(sorted(info['missing_keys'])[:5])}")
    # What is saved is plain weights; marked as quantised, transformers refuses to save them.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model, tokenizer


def _precision(infos: Mapping[str, HeldTensor]) -> torch.dtype:
    """That of most numbers where it is a half precision, else float32."""
    numbers: dict[torch.dtype, int] = {}
    for info in infos.values():
        width = _WIDTHS.get(info.kind, torch.float32)
        numbers[width] = numbers.get(width, 0) + prod(info.shape)
    return max(numbers, key=lambda width: numbers[width], default=torch.float32)


def _tensors(path: Path) -> dict[str, HeldTensor]:
    """What tensors a file says it holds. Raises UserError for what is no GGUF file, not whole, or of
    absurdly many blocks: transformers would build each of them."""
    where = f"--model {path}"
    if not path.stat().st_size:
        raise UserError(f"{where}: expected a GGUF file, it is empty")
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        fields, infos, _ = read_head(data, where, TENSORS)
    for name, value in fields.items():
        if name.endswith(".block_count") and isinstance(value, int):
            check_size(f"{where}: {name}", value, BLOCKS, "")
    return infos
