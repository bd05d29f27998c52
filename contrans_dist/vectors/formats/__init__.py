"""The files of other tools: one entry each in a registry, with who writes it and who reads it."""

from collections.abc import Callable
from dataclasses import dataclass

from contrans_dist.errors import UserError, meant
from contrans_dist.store.location import Location
from contrans_dist.vectors.formats import arrays, gguf_file, lm_eval_file, requests
from contrans_dist.vectors.formats.addition import Addition
from contrans_dist.vectors.formats.foreign import Asked, Foreign


@dataclass(frozen=True)
class Format:
    """A format of another tool."""

    name: str
    suffixes: tuple[str, ...]
    """How the names of its files end."""
    write: Callable[[Addition, Location, Asked], list[Location]]
    """Publishes an addition; returns every file that it wrote, the one asked for first."""
    read: Callable[[Location, Asked], Foreign] | None = None
    is_table: bool = False
    """Whether it holds rows of blocks, and no word on where they are added: then all are written."""


FORMATS = {
    entry.name: entry
    for entry in (
        Format("gguf", (".gguf",), gguf_file.write, gguf_file.read),
        Format("lm-eval", (".pt", ".pth"), lm_eval_file.write, lm_eval_file.read),
        Format("vllm-lens", (".json",), requests.write_vllm_lens),
        Format("easysteer", (".json",), requests.write_easysteer),
        Format("neuronpedia", (".json",), requests.write_neuronpedia),
        Format("npy", (".npy",), arrays.write_npy, arrays.read_npy, is_table=True),
        Format("safetensors", (".safetensors",), arrays.write_safetensors, is_table=True),
    )
}


def format_named(name: str) -> Format:
    """The entry of `--format`. Raises UserError for an unknown name."""
    if name not in FORMATS:
        raise UserError(f"--format {name}: {meant(name, list(FORMATS))}")
    return FORMATS[name]


def readable(location: Location, name: str | None) -> Format:
    """The entry that reads a file, by `--format` or by its name. Raises UserError where none does."""
    reading = [entry for entry in FORMATS.values() if entry.read is not None]
    if name is not None:
        entry = format_named(name)
        if entry.read is None:
            names = ", ".join(entry.name for entry in reading)
            raise UserError(f"--format {name}: is not read; expected one of {names}")
        return entry
    for entry in reading:
        if location.name.endswith(entry.suffixes):
            return entry
    suffixes = ", ".join(suffix for entry in reading for suffix in entry.suffixes)
    raise UserError(f"{location}: expected a name that ends in {suffixes}, or --format")
