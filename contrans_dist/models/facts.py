"""What can be known of a model without loading its weights, and what tells two models apart."""

import hashlib
import json
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig
from transformers.utils.hub import extract_commit_hash

from contrans_dist.config import ModelSettings
from contrans_dist.console import without_credentials
from contrans_dist.errors import RunError, UserError, one_line
from contrans_dist.models.blocks import text_config
from contrans_dist.models.hub import hub_errors, hub_failure
from contrans_dist.models.language_model import positions, tokenizer_limit
from contrans_dist.models.loading import describe
from contrans_dist.models.model_files import ModelFiles, file_hash
from contrans_dist.models.pretrained import load_tokenizer
from contrans_dist.models.tokens import chat_prompts
from contrans_dist.models.weight_files import weight_files
from contrans_dist.store.patience import patiently
from contrans_dist.store.provenance import versions

FULL_LIMIT = 4 * 2**30
"""Bytes of weight files of which all is read."""
_SAMPLES = 256
_SAMPLE_BYTES = 2**16
_CHUNK = 2**22


@dataclass(frozen=True)
class ModelFacts:
    """Shape and identity of a model."""

    name: str
    model_type: str
    n_blocks: int
    d: int
    """Width of the residual stream."""
    parameters: int
    dtype: str
    """The precision of its weights: as asked, else the checkpoint's own."""
    weights: str
    """See `weights_identity`."""
    tokenizer: str
    """See `tokenizer_hash`."""
    config: str
    """SHA-256 of the configuration: rotary settings and the like change rows, not weights."""
    context: int | None
    """Tokens for which the model has positions; None where nothing limits them."""
    tokenizer_limit: int | None
    """What the tokenizer's own files say of the length of texts, by which nothing is cut."""
    reads: Any = field(repr=False, compare=False)
    """The tokenizer itself."""

    def prompts(self, texts: list[str], chat: bool, chat_date: date) -> list[str]:
        """Texts as they are cut into tokens: in the chat template, if asked. Raises UserError where the
        tokenizer has none."""
        return chat_prompts(self.reads, texts, chat_date, self.name) if chat else texts


@patiently
def model_facts(name: str, *, dtype: str | None = None, trust_remote_code: bool = False) -> ModelFacts:
    """Shape and identity of a model, from its configuration, its tokenizer and its weight files.

    Args:
        name: A hub model, a local folder, or a bundled model.
        dtype: The precision of the weights; None for the checkpoint's own.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        UserError: As `load_model`.
        RunError: As `load_model`.
    """
    described = describe(name, head=False, trust_remote_code=trust_remote_code)
    files, config = described.files, described.full
    with hub_errors(name):
        tokenizer = load_tokenizer(files)
    text = text_config(config)
    return ModelFacts(
        name=name,
        model_type=config.model_type,
        n_blocks=text.num_hidden_layers,
        d=text.hidden_size,
        parameters=described.parameters,
        dtype=described.dtype(dtype),
        weights=weights_identity(name),
        tokenizer=tokenizer_hash(tokenizer),
        config=config_hash(config),
        context=positions(text),
        tokenizer_limit=tokenizer_limit(tokenizer),
        reads=tokenizer,
    )


def model_identity(model: ModelSettings, facts: ModelFacts) -> dict[str, Any]:
    """What a model's numbers depend on: its weights, how they are loaded, and the libraries that run them.

    `model`: with the precision that it is computed in, as `settled` gives it.
    """
    installed = versions()
    identity: dict[str, Any] = {
        "model": without_credentials(model.id),
        "weights": facts.weights,
        "config": facts.config,
        "dtype": facts.dtype,
        "compute_dtype": model.compute_dtype or facts.dtype,
        "quantization": model.quantization,
        "tokenizer": facts.tokenizer,
        "torch": installed["torch"],
        "transformers": installed["transformers"],
    }
    if model.quantization is not None:
        identity["bitsandbytes"] = installed["bitsandbytes"]
    return identity


def config_hash(config: PretrainedConfig) -> str:
    """SHA-256 (hex) of a configuration, without what changes no number."""
    passing = ("transformers_version", "_name_or_path", "dtype", "torch_dtype")
    content = {key: value for key, value in config.to_dict().items() if key not in passing}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


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


def weights_identity(name: str) -> str:
    """What tells a model's weights from any others.

    Args:
        name: A hub model, a local folder, or a bundled model.

    Returns:
        `commit:<hash>` for a hub model, `gguf-sha256:<hex>` of a GGUF file, `sha256:<hex>` over the weight
        files of a folder, or `sha256-sampled:<hex>` (headers and evenly spaced samples) where they are larger
        than `FULL_LIMIT`.

    Raises:
        UserError: For a folder without weights.
        RunError: Where the hub cannot be asked.
    """
    files = ModelFiles.of(name)
    if files.gguf is not None:
        return f"gguf-sha256:{file_hash(files.gguf)}"
    if not files.in_folder:
        try:
            commit = extract_commit_hash(str(files.config_file()), None)
        except OSError as error:
            raise hub_failure(name, error) from error
        except ValueError as error:
            raise RunError(f"{name}: its commit is not known: {one_line(error)}") from error
        return f"commit:{commit}"
    paths = _weights_in(files)
    sampled = sum(path.stat().st_size for path in paths) > FULL_LIMIT
    digest = hashlib.sha256()
    for path in paths:
        _update(digest, path, _sampled_ranges(path) if sampled else [(0, path.stat().st_size)])
    return f"sha256{'-sampled' if sampled else ''}:{digest.hexdigest()}"


def _weights_in(files: ModelFiles) -> list[Path]:
    """The weight files of a folder."""
    folder, loaded = Path(files.place), weight_files(files)
    # Beside a .bin there may be safetensors of something else, such as an adapter.
    bins = bool(loaded) and loaded[0].suffix == ".bin"
    for pattern in ("*.bin",) if bins else ("*.safetensors", "*.bin"):
        paths = sorted(folder.glob(pattern))
        if paths:
            return paths
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
