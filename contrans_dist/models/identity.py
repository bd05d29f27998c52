"""What tells two models and two tokenizers apart, for manifests and fingerprints."""

import hashlib
import json
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file, extract_commit_hash

from contrans_dist.errors import RunError, UserError
from contrans_dist.models.hub import hub_failure, one_line
from contrans_dist.models.stored import weight_files

_FULL_LIMIT = 4 * 2**30
_SAMPLES = 256
_SAMPLE_BYTES = 2**16
_CHUNK = 2**22


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 (hex) over all that decides which ids a text becomes: the tokenizer's definition, its special
    tokens and its chat template; not over padding and truncation, which calls to it switch on and off."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        definition = json.loads(backend.to_str())
        definition = {k: v for k, v in definition.items() if k not in ("padding", "truncation")}
    else:
        definition = {"class": type(tokenizer).__name__, "vocab": tokenizer.get_vocab()}
        definition["example"] = tokenizer("An example, 3.5 of it.")["input_ids"]
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    template = getattr(tokenizer, "chat_template", None)
    text = json.dumps([definition, special, template], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _weight_files(folder: Path) -> list[Path]:
    loaded = weight_files(str(folder))
    # Beside a .bin there may be safetensors of something else, such as an adapter.
    bins = bool(loaded) and loaded[0].suffix == ".bin"
    for pattern in ("*.bin",) if bins else ("*.safetensors", "*.bin"):
        files = sorted(folder.glob(pattern))
        if files:
            return files
    raise UserError(f"{folder}: no weights there (*.safetensors)")


def _sampled_ranges(path: Path) -> list[tuple[int, int]]:
    """(offset, length) of the safetensors header and of evenly spaced samples, the very end included."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header = (
            int.from_bytes(file.read(8), "little") + 8 if path.suffix == ".safetensors" else _SAMPLE_BYTES
        )
    last = max(size - _SAMPLE_BYTES, 0)
    return [(0, min(header, size))] + [(last * i // (_SAMPLES - 1), _SAMPLE_BYTES) for i in range(_SAMPLES)]


def _update(digest: Any, path: Path, ranges: list[tuple[int, int]]) -> None:
    digest.update(f"{path.name} {path.stat().st_size}\n".encode())
    with path.open("rb") as file:
        for offset, length in ranges:
            file.seek(offset)
            while length > 0 and (chunk := file.read(min(length, _CHUNK))):
                digest.update(chunk)
                length -= len(chunk)


def weights_identity(name: str, revision: str | None = None, full_limit: int = _FULL_LIMIT) -> str:
    """Identity of a model's weights: `commit:<hash>` for a hub model, `sha256:<hex>` over the weight files of
    a local folder, or `sha256-sampled:<hex>` (headers and evenly spaced samples) where they are larger than
    `full_limit` bytes together.

    Raises UserError for a folder without weights, RunError where the hub cannot be asked.
    """
    if not Path(name).is_dir():
        if "@" in name and revision is None:
            name, _, revision = name.rpartition("@")
        try:
            commit = extract_commit_hash(cached_file(name, "config.json", revision=revision), None)
        except OSError as error:
            raise hub_failure(name, error) from error
        except ValueError as error:
            raise RunError(f"{name}: its commit is not known: {one_line(error)}") from error
        return f"commit:{commit}"
    files = _weight_files(Path(name))
    sampled = sum(path.stat().st_size for path in files) > full_limit
    digest = hashlib.sha256()
    for path in files:
        _update(digest, path, _sampled_ranges(path) if sampled else [(0, path.stat().st_size)])
    return f"sha256{'-sampled' if sampled else ''}:{digest.hexdigest()}"
