"""The files that hold a checkpoint's weights: which they are, what they say of themselves, and the precision
they are in. Looked at before anything is allocated."""

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile, is_zipfile

from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError, SafetensorsParsingError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PretrainedConfig
from transformers.modeling_utils import load_state_dict
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from contrans_dist.config.limits import HEADER_BYTES, JSON_BYTES, TENSORS, WEIGHT_FILES, check_size
from contrans_dist.errors import UserError, one_line
from contrans_dist.models.model_files import ModelFiles

NOT_TENSORS = "holds more than tensors, which could run code when read, or is damaged; expected safetensors"
_STORED = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_KINDS = ((SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME))
"""One file, or the list of several: what is there first is loaded, as transformers does."""
_OWN_NAMES = (".safetensors", ".safetensors.index.json")
_PER_BYTE, _QUANTISED_PER_BYTE = 4, 16
"""Parameters that a byte on disk may stand for: some are tied, and quantised weights hold several."""
_PARAMETERS = 1000
"""Of each tensor, beyond those that any checkpoint may have, so that their number says nothing absurd."""


# -- which they are ------------------------------------------------------------------------------------


def weight_files(
    files: ModelFiles, config: PretrainedConfig | None = None, download: bool = False
) -> list[Path]:
    """The files that transformers loads, none where there are none; of a hub model, without `download`, those
    that are on this machine.

    Raises UserError for a damaged list of them, OSError as transformers does for a hub that does not answer.
    """
    for single, several in _kinds(config):
        path = files.find(single, download) if single else None
        if path is not None:
            return [path]
        index = files.find(several, download)
        if index is not None:
            paths = [(file, files.find(file, download)) for file in _listed(index)]
            missing = next((file for file, path in paths if path is None), None)
            if missing is not None and (download or files.in_folder):
                raise UserError(f"{index}: weight_map: {missing} is not there")
            return [path for _, path in paths if path is not None]
    return []


def _kinds(config: PretrainedConfig | None) -> tuple[tuple[str, str], ...]:
    """The single file and the list to look for. A configuration may name one of its own, which transformers
    keeps inside the folder."""
    chosen = getattr(config, "transformers_weights", None)
    if chosen is None:
        return _KINDS
    if not isinstance(chosen, str) or ".." in chosen or not chosen.endswith(_OWN_NAMES):
        raise UserError(
            "config.json: transformers_weights: expected a .safetensors file in its folder, found "
            f"{str(chosen)[:80]!r}"
        )
    return (("", chosen),) if chosen.endswith(".index.json") else ((chosen, f"{chosen}.index.json"),)


def _listed(index: Path) -> list[str]:
    """The names of the files in a list of them."""
    check_size(str(index), index.stat().st_size, JSON_BYTES)
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
        check_size(f"{index}: weight_map", len(names), WEIGHT_FILES, "files")
        parts = {name: PurePosixPath(name).parts for name in sorted(names)}
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{index}: damaged ({one_line(error)}): weight_map: expected file names") from error
    if not parts:
        raise UserError(f"{index}: weight_map: it names no file")
    for name, pieces in parts.items():
        if ".." in pieces or pieces[:1] == ("/",) or "\0" in name:
            raise UserError(
                f"{index}: weight_map: expected names of files in its folder, found {name[:80]!r}"
            )
    return list(parts)


# -- what they say of themselves -----------------------------------------------------------------------


def check_weights(
    files: ModelFiles, config: PretrainedConfig, parameters: int, download: bool = False
) -> None:
    """Raise UserError where the weight files are none, or cannot hold what the configuration says.

    Of a hub model without `download`: those that are on this machine.
    """
    paths = weight_files(files, config, download)
    held = tensors = 0
    for path in paths:
        if path.suffix == ".safetensors":
            entries = header(path)
            tensors += len(entries)
            held += sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in entries.values())
        else:
            tensors += len(_of_bin(path))
            held += path.stat().st_size
    check_size(
        f"--model {files.name}: its weight files", tensors, TENSORS + parameters // _PARAMETERS, "tensors"
    )
    if paths and parameters > (_QUANTISED_PER_BYTE if is_quantised(config) else _PER_BYTE) * held:
        raise UserError(
            f"--model {files.name}: config.json describes {parameters:,} parameters, its weight files hold "
            f"{held:,} bytes"
        )


def missing_weights(info: Mapping[str, Any]) -> list[str]:
    """The weights that a checkpoint did not have for a model, or in another shape, by what transformers says
    of loading it: they were made up at random."""
    missing = [*sorted(info["missing_keys"]), *(str(entry[0]) for entry in info["mismatched_keys"])]
    return missing + [str(message) for message in info.get("error_msgs") or ()]


def in_short(names: Sequence[str]) -> str:
    """The first five names, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def is_quantised(config: PretrainedConfig) -> bool:
    """Whether a checkpoint's own weights are quantised."""
    return getattr(config, "quantization_config", None) is not None


def header(path: Path) -> dict[str, Any]:
    """What a safetensors file says of each of its tensors: `dtype`, `shape`, `data_offsets`.

    Raises UserError for a file that is none or not whole, and for a shape that its bytes cannot fill.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length <= size:
            check_size(f"{path}: header", length, HEADER_BYTES)
        try:
            with safe_open(path, framework="numpy"):  # looks at each tensor's type, size and place
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: damaged or not whole ({one_line(error)}); download it again") from error
        entries: dict[str, Any] = json.loads(file.read(length))
    entries.pop("__metadata__", None)
    for key, entry in entries.items():
        # A dimension of 0 makes any other cost nothing on disk.
        if any(n > size for n in entry["shape"]):
            raise UserError(f"{path}: {key} has shape {entry['shape']}, the whole file {size:,} bytes")
    return entries


def _of_bin(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a .bin file, without their content. Raises UserError for one that holds anything else,
    or unpacks to more than itself, as torch's own never do."""
    try:
        if is_zipfile(path):
            with ZipFile(path) as parts:
                infos = parts.infolist()
            unpacked = sum(info.file_size for info in infos)
            if unpacked > path.stat().st_size or any(info.compress_type != ZIP_STORED for info in infos):
                raise UserError(f"{path}: unpacks to {unpacked:,} bytes; a .bin of torch is not packed")
            listed = sum(info.file_size for info in infos if info.filename.endswith(".pkl"))
            check_size(f"{path}: its list of tensors", listed, JSON_BYTES)
        with warnings.catch_warnings(action="ignore"):
            tensors = load_state_dict(str(path), map_location="meta")
    except (BadZipFile, EOFError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged or not whole ({one_line(error)}); download it again") from error
    except Exception as error:
        if type(error).__name__ == "UnpicklingError":
            raise UserError(f"{path}: {NOT_TENSORS}") from error
        raise
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise UserError(f"{path}: expected tensors by name")
    return tensors


# -- the precision they are in -------------------------------------------------------------------------


def own_dtype(files: ModelFiles, config: PretrainedConfig) -> str:
    """The precision of a checkpoint, as transformers would run it: what its configuration says, else that of
    the first floating tensor in its files. It may be one that no model is run in.

    Raises UserError for a file that is none of weights, OSError for a hub that does not answer.
    """
    for part in (config, config.get_text_config(decoder=True)):
        if getattr(part, "dtype", None) is not None:
            return str(part.dtype).removeprefix("torch.")
    paths = weight_files(files, config)
    if not paths and not files.in_folder:
        kinds: Iterable[str] = _on_the_hub(files)
    else:
        kinds = (kind for path in paths for kind in _kinds_in(path))
    first = ""
    for kind in kinds:
        if kind in _STORED.values():
            return kind
        first = first or kind
    return first or "float32"


def stored_dtypes(files: ModelFiles, config: PretrainedConfig) -> set[str]:
    """The precisions that the floating tensors in a checkpoint's files have."""
    kinds = (kind for path in weight_files(files, config) for kind in _kinds_in(path))
    return {kind for kind in kinds if kind in _STORED.values()}


def _kinds_in(path: Path) -> list[str]:
    if path.suffix == ".safetensors":
        kinds = (entry["dtype"] for _, entry in sorted(header(path).items()))  # as transformers goes through
        return [_STORED.get(kind, kind) for kind in kinds]
    return [str(tensor.dtype).removeprefix("torch.") for tensor in _of_bin(path).values()]


def _on_the_hub(files: ModelFiles) -> Iterator[str]:
    """The types of the tensors in a hub model's files, of which the beginnings alone are fetched; a .bin has
    to be fetched whole."""
    index = files.find(SAFE_WEIGHTS_INDEX_NAME)
    for file in [SAFE_WEIGHTS_NAME] if index is None else _listed(index):
        try:
            metadata = HfApi().parse_safetensors_file_metadata(files.place, file, revision=files.revision)
        except EntryNotFoundError:
            break
        except SafetensorsParsingError as error:
            raise UserError(f"--model {files.place}: {file}: {one_line(error)}") from error
        yield from (_STORED.get(tensor.dtype, tensor.dtype) for _, tensor in sorted(metadata.tensors.items()))
    else:
        return
    for path in weight_files(files, download=True):
        yield from _kinds_in(path)
