"""From a name to a loaded model, no deeper than needed."""

import logging
import warnings
from dataclasses import dataclass
from typing import Any, get_args

import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from contrans_dist.config import ModelSettings, Quantization
from contrans_dist.config.limits import BUFFER_BYTES, check_size
from contrans_dist.errors import RunError, UserError, one_line
from contrans_dist.models.blocks import LOADED, find_blocks, text_config
from contrans_dist.models.devices import usual_device
from contrans_dist.models.hub import hub_errors
from contrans_dist.models.language_model import LanguageModel, wrap_model
from contrans_dist.models.model_files import ModelFiles
from contrans_dist.models.precision import DTYPES, computed_in, name_of, on_gpu
from contrans_dist.models.pretrained import SENSELESS, load_tokenizer, read_config, senseless
from contrans_dist.models.weight_files import check_weights, in_short, missing_weights, own_dtype
from contrans_dist.models.widening import narrowed, round_to, widen_as_run
from contrans_dist.store.patience import patiently


def _model_class(
    files: ModelFiles, config: PretrainedConfig, head: bool
) -> tuple[type[PreTrainedModel], int]:
    """The class for this configuration, and the number of its parameters, found by building it without
    weights; checks that it has blocks."""
    autos: list[Any] = [AutoModelForCausalLM, AutoModelForImageTextToText]
    # Code that comes with the model for its head alone would be left aside for a class of transformers' own.
    own = getattr(config, "auto_map", None) or {}
    if not head and (not files.trust_remote_code or "AutoModel" in own or not own):
        autos.insert(0, AutoModel)
    reason: Exception | None = None
    for auto in autos:
        try:
            with torch.device("meta"), warnings.catch_warnings(action="ignore"):
                model = auto.from_config(config, trust_remote_code=files.trust_remote_code)
        except ValueError as error:
            reason = reason or error
            continue
        except SENSELESS as error:
            raise senseless(f"--model {files.name}: config.json", error) from error
        kept = sum(buffer.nbytes for buffer in model.buffers())
        check_size(f"--model {files.name}: config.json: tables of positions and masks", kept, BUFFER_BYTES)
        find_blocks(model)
        return type(model), sum(parameter.numel() for parameter in model.parameters())
    raise UserError(
        f"model type '{config.model_type}' is no language model for transformers: {one_line(reason)}"
    )


def _cut(whole: type[PreTrainedModel], keep: int) -> type[PreTrainedModel]:
    """The same class, but without the blocks above the lowest `keep`.

    The configuration stays the whole model's: blocks take their kind (sliding window, expert layer, shared
    keys) from it, in ways that differ from one architecture to the next.
    """

    def init(self: Any, config: PretrainedConfig, *args: Any, **kwargs: Any) -> None:
        whole.__init__(self, config, *args, **kwargs)
        decoder, blocks = find_blocks(self)
        del blocks[keep:]
        setattr(self, LOADED, keep)
        setattr(decoder, LOADED, keep)

    return type(whole.__name__, (whole,), {"__init__": init, "__module__": whole.__module__})


def _quantization_config(quantization: str | None, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if quantization is None:
        return None
    # It warns at every call of every layer that it casts its input.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    if quantization == "nf4":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    raise UserError(f"--quantization {quantization}: expected one of {', '.join(get_args(Quantization))}")


def _device_map(device: str | dict[str, Any] | None, quantized: bool) -> Any:
    """What `from_pretrained` wants: nothing for the CPU, else a device map."""
    if device is None:
        device = usual_device()
    if device == "cpu" and not quantized:
        return None
    if isinstance(device, dict) or device == "auto":
        return device
    return {"": device}


def _check_complete(name: str, model: PreTrainedModel, info: dict[str, Any], head: bool) -> None:
    """RunError where a weight that is needed was not in the checkpoint, and so was made up at random."""
    if not head:
        decoder, _ = find_blocks(model)
        within = next(name for name, module in model.named_modules() if module is decoder)
        info = {**info, "missing_keys": [key for key in info["missing_keys"] if key.startswith(within)]}
    missing = missing_weights(info)
    if missing:
        raise RunError(f"{name}: weights missing or of another shape: {in_short(missing)}")


@dataclass(frozen=True)
class Described:
    """A model as its configuration describes it: what would be loaded, before anything is."""

    files: ModelFiles
    full: PretrainedConfig
    """The configuration as the checkpoint has it."""
    config: PretrainedConfig
    """That of what is loaded: the same, or its part for text."""
    whole: type[PreTrainedModel]
    parameters: int
    """Of `whole`."""
    loaded: type[PreTrainedModel]
    """The class that is loaded: `whole`, or the same without the blocks that are not wanted."""
    head: bool = True
    """Whether the language-model head is."""

    def dtype(self, dtype: str | None = None) -> str:
        """The precision of its weights: as asked, else the checkpoint's own (`own_dtype`). Raises UserError
        for one that no model is run in."""
        if dtype is not None:
            return dtype
        with hub_errors(self.files.name):
            stored = own_dtype(self.files, self.full)
        if stored not in DTYPES:
            raise UserError(
                f"--model {self.files.name}: its weights are of type {stored}; say by --dtype in which they "
                f"are to be run: {', '.join(DTYPES)}"
            )
        return stored

    def empty(self) -> PreTrainedModel:
        """The model on the meta device: modules and shapes, no weights."""
        with torch.device("meta"):
            return self.loaded(self.config)


@patiently
def describe(
    name: str,
    *,
    head: bool = True,
    highest_block: int | None = None,
    trust_remote_code: bool = False,
) -> Described:
    """What `load_model` with these options loads, from the configuration alone.

    Weight files that are on this machine are held against it.

    Args:
        name: As in `load_model`, like the others.
        head: Whether the language-model head is loaded.
        highest_block: Blocks above it are not.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        UserError: As `load_model`.
        RunError: As `load_model`.
    """
    files = ModelFiles.of(name, trust_remote_code)
    with hub_errors(name):
        full = read_config(files)
        n_blocks = text_config(full).num_hidden_layers
        keep = n_blocks if highest_block is None else highest_block + 1
        if not 0 < keep <= n_blocks:
            raise UserError(f"{name}: block {highest_block} asked for; it has blocks 0 to {n_blocks - 1}")
        whole, parameters = _model_class(files, full, head)
        check_weights(files, full, parameters)
    config = full if isinstance(full, whole.config_class or PretrainedConfig) else text_config(full)
    loaded = whole if keep == n_blocks else _cut(whole, keep)
    return Described(files, full, config, whole, parameters, loaded, head)


@patiently
def load_model(
    name: str,
    *,
    dtype: str | torch.dtype | None = None,
    compute_dtype: str | torch.dtype | None = None,
    quantization: str | None = None,
    device: str | dict[str, Any] | None = None,
    highest_block: int | None = None,
    head: bool = True,
    trust_remote_code: bool = False,
    narrow: bool = False,
) -> LanguageModel:
    """A decoder-only language model from its files, in evaluation mode, without gradients.

    Args:
        name: A hub model (`org/name`, or `org/name@revision`: a branch, tag or commit), a local folder, or
            `demo:source`.
        dtype: Precision of the weights: `float32`, `bfloat16`, `float16`, or None for the checkpoint's own.
        compute_dtype: Precision that is computed in. None: on a GPU that of the weights, if it computes in
            it, else float32; on a processor whichever of the two is the faster there, as measured and said.
        quantization: `int8` or `nf4` (bitsandbytes).
        device: None takes a GPU where there is one; `auto` or a dict is an accelerate device map.
        highest_block: Blocks above it, counted from 0, are not loaded.
        head: Whether the language-model head is.
        trust_remote_code: Whether code that comes with the model may run.
        narrow: Hold the blocks in `dtype` and widen each while it runs, where it is computed in a wider
            precision on a processor: half the memory, a little slower.

    Raises:
        UserError: For what is not a decoder-only language model, or not there.
        RunError: For missing weights, and for a hub that does not answer.

    Example:
        >>> model = load_model("demo:source", dtype="float32")
    """
    weights, asked = name_of(dtype), name_of(compute_dtype, "--compute-dtype")
    described = describe(name, head=head, highest_block=highest_block, trust_remote_code=trust_remote_code)
    given: dict[str, Any] = {"dtype": weights, "compute_dtype": asked, "quantization": quantization}
    settings = ModelSettings.model_construct(id=name, **given)
    weights, places = described.dtype(weights), _device_map(device, quantization is not None)
    quantizer = _quantization_config(quantization, DTYPES[weights])
    run, held = DTYPES[computed_in(described, settings, on_gpu(places), say_so=True)], DTYPES[weights]
    files, loaded, wider = described.files, described.loaded, held.itemsize < run.itemsize
    with hub_errors(name):
        check_weights(files, described.full, described.parameters, download=True)
        tokenizer = load_tokenizer(files)
        model, info = (narrowed(loaded, held) if narrow and wider else loaded).from_pretrained(
            files.place,
            config=described.config,
            revision=files.revision,
            dtype=run,
            quantization_config=quantizer,
            device_map=places,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told by name
        )
    _check_complete(name, model, info, head)
    if model.dtype != run:
        # Some quantised checkpoints run in one precision only, whatever is asked.
        dtype = str(model.dtype).removeprefix("torch.")
        raise UserError(f"--model {name}: it runs in {dtype} alone; say so by --dtype {dtype}")
    model.requires_grad_(False)
    if wider:
        round_to(model, held, files, described.full)
    if narrow and wider:
        widen_as_run(find_blocks(model)[1], run)
    lm = wrap_model(model, tokenizer, name)
    lm.weights_dtype = held
    return lm
