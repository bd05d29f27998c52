"""What a checkpoint says of its model: configuration and tokenizer, held against limits before transformers
makes anything of them."""

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig
from transformers.utils import GENERATION_CONFIG_NAME

from contrans_dist.config.limits import BLOCKS, LABELS, TOKENIZER_BYTES, TOKENS, check_size
from contrans_dist.errors import UserError, one_line
from contrans_dist.models.model_files import ModelFiles, read_settings

_EXPERTS, _SIZE = 4096, 1 << 24
_LIMITS = (
    (re.compile(r"^(n|num)_.*expert"), _EXPERTS),
    (re.compile(r"^(n|num)_.*(layer|block)"), BLOCKS),
    (re.compile(r"labels$"), LABELS),
    (
        re.compile(
            r"(size|dim|embd|inner|width|rank|kernel|d_model|d_ff|d_kv|heads?|positions?|position_embeddings|"
            r"ctx|seq_len|window)$"
        ),
        _SIZE,
    ),
)
"""What the fields of configurations are called that decide how much is built, and the most that is honest."""
_NEEDED = {
    "hidden_size", "n_embd", "d_model", "vocab_size", "num_hidden_layers", "n_layer", "num_attention_heads",
    "n_head", "max_position_embeddings", "n_positions",
}  # fmt: skip
"""Those that are at least 1; -1 says in others that there is none."""
_DEEPEST = 32
SENSELESS = (
    ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError,
    ValueError, StrictDataclassError,
)  # fmt: skip
"""What transformers raises where a configuration makes no sense."""
_TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model")
_SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model")


def read_config(files: ModelFiles) -> PretrainedConfig:
    """The configuration of a model.

    Raises UserError, with file and field, for absurd sizes and for what is no configuration, and what
    transformers raises for one that is not there.
    """
    path = files.config_file()
    _check_config(files, path)
    _check_tokens(files)
    try:
        return AutoConfig.from_pretrained(
            files.place, revision=files.revision, trust_remote_code=files.trust_remote_code
        )
    except ValueError as error:  # of types that it does not know, and code that it would have to run
        raise UserError(f"--model {files.name}: config.json: {one_line(error)}") from error
    except SENSELESS as error:
        raise senseless(path, error) from error


def senseless(path: Path | str, error: BaseException) -> UserError:
    """For a configuration of which transformers can make no model."""
    return UserError(f"{path}: no model can be made of it ({type(error).__name__}: {one_line(error)})")


def _check_config(files: ModelFiles, path: Path) -> None:
    content = read_settings(path)
    _check_sizes(path, content)
    versions = content.get("configuration_files")
    for file in versions if isinstance(versions, list) else ():
        # For later releases of transformers, which takes one of them instead.
        if not isinstance(file, str) or Path(file).name != file:
            raise UserError(f"{path}: configuration_files: expected names of files beside it")
        _check_sizes(path.with_name(file), files.settings(file))
    if content.get("model_type") is not None and not isinstance(content["model_type"], str):
        raise UserError(f"{path}: model_type: expected a name")


def _check_sizes(path: Path, content: dict[str, Any]) -> None:
    for key, value in _numbers(path, content):
        most = next((most for pattern, most in _LIMITS if pattern.search(key)), None)
        if most is None:
            continue
        check_size(f"{path}: {key}", int(min(value, 1e30)), most, "")
        least = 1 if key in _NEEDED else -1
        if value < least:
            raise UserError(f"{path}: {key}: expected at least {least}, found {value}")


def _check_tokens(files: ModelFiles) -> None:
    """Of the settings for generation, those that are used: the tokens that begin and end a text."""
    content = files.settings(GENERATION_CONFIG_NAME)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = content.get(key)
        tokens = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(token) is int and -1 <= token < 1 << 31 for token in tokens):
            path = files.find(GENERATION_CONFIG_NAME)
            raise UserError(f"{path}: {key}: expected a token id or a list of them")


def _numbers(path: Path, content: dict[str, Any], depth: int = 0) -> Iterator[tuple[str, float]]:
    if depth > _DEEPEST:
        raise UserError(f"{path}: expected a configuration, found one in another {depth} deep")
    for key, value in content.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict):
                yield from _numbers(path, item, depth + 1)
            elif isinstance(item, int | float) and not isinstance(item, bool):
                yield key, item


def load_tokenizer(files: ModelFiles) -> Any:
    """The tokenizer of a model. Raises UserError where a package is missing or a file is none of a
    tokenizer's, and what transformers raises."""
    for file in _TOKENIZER_FILES:
        content = files.settings(file)
        kind, added = content.get("tokenizer_class"), content.get("added_tokens_decoder", {})
        if kind is not None and not isinstance(kind, str):
            raise UserError(f"{files.find(file)}: tokenizer_class: expected a name")
        if not isinstance(added, dict) or not all(
            key.isdecimal() and isinstance(token, dict) for key, token in added.items()
        ):
            raise UserError(f"{files.find(file)}: added_tokens_decoder: expected a token by each number")
    vocabularies = {file: files.find(file) for file in _VOCABULARIES}
    for path in vocabularies.values():
        if path is not None:
            check_size(str(path), path.stat().st_size, TOKENIZER_BYTES)
            check_size(f"{path}: vocabulary", path.read_bytes().count(b'":'), TOKENS, "tokens")
    whole = vocabularies["tokenizer.json"]
    if whole is None:
        _check_sentencepiece(files)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            files.place, revision=files.revision, trust_remote_code=files.trust_remote_code
        )
    except Exception as error:
        fault = None if whole is None else _fault(whole)
        if fault is None:
            raise
        raise UserError(f"{whole}: no tokenizer ({fault})") from error
    try:
        tokenizer("a")
    except Exception as error:  # some settings are first looked at when a text is read
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"--model {files.name}: its tokenizer reads no text ({reason})") from error
    return tokenizer


def _fault(path: Path) -> str | None:
    """What is wrong with a tokenizer.json by itself; None for nothing."""
    try:
        Tokenizer.from_file(str(path))
    except Exception as error:  # what reads it is not written in Python and raises nothing narrower
        return one_line(error)
    return None


def _check_sentencepiece(files: ModelFiles) -> None:
    """Raise UserError where the tokenizer is a sentencepiece file alone and that package is not there."""
    if find_spec("sentencepiece") is not None:
        return
    for file in _SENTENCEPIECE:
        path = files.find(file)
        # A message of protobuf begins so; tiktoken's files, which may be called the same, are text.
        if path is not None and path.read_bytes()[:1] == b"\n":
            raise UserError(
                f"--model {files.name}: its tokenizer is a {file} alone, which needs sentencepiece: "
                "pip install sentencepiece"
            )
