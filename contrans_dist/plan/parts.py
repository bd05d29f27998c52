"""The parts of a plan: the nodes, a recipe's models and texts, the actors, the stages."""

import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import AutoTokenizer

from contrans_dist.config import ModelSettings
from contrans_dist.models import encode_many, split_name
from contrans_dist.models.facts import own_dtype
from contrans_dist.models.loading import Described, describe, hub_errors
from contrans_dist.models.placement import host_memory
from contrans_dist.prefixes.groups import common

TOKENS_A_WORD = 1.35
"""Of English in the vocabularies of Llama and its like; for models whose tokenizer is not on this machine."""
_USUAL_MEMORY = 480 << 20


@dataclass(frozen=True)
class Nodes:
    """The cluster to plan for: so many nodes of one kind. Memory in bytes."""

    count: int
    cpus: float
    memory: int
    gpus: int = 0
    gpu_memory: int = 0

    @classmethod
    def here(cls) -> "Nodes":
        """This machine."""
        import torch

        gpus = torch.cuda.device_count()
        room = torch.cuda.get_device_properties(0).total_memory if gpus else 0
        return cls(1, float(os.cpu_count() or 1), host_memory(), gpus, room)


@dataclass(frozen=True)
class Actors:
    """What one actor of a stage takes, and how many fit. Bytes."""

    model: str
    use: str
    placement: str
    why: str
    weights: int
    activations: int
    memory: int
    """Of the node, by its process at the peak."""
    gpus: float
    count: int
    threads: int
    """Of each, where it runs on the CPU."""


@dataclass(frozen=True)
class Texts:
    """Texts as sequences of tokens, or of words where the tokenizer is not here."""

    pieces: list[list[Hashable]]
    scale: float = 1.0

    @property
    def tokens(self) -> int:
        return round(self.scale * sum(map(len, self.pieces)))

    @property
    def distinct(self) -> float:
        """Tokens left when what texts begin with in common is counted once."""
        ordered = sorted(self.pieces, key=lambda piece: list(map(str, piece)))
        total = 0
        before: list[Hashable] = []
        for piece in ordered:
            total, before = total + len(piece) - common(piece, before), piece
        return self.scale * total

    def distinct_by(self, rows: int) -> float:
        """The same where so many consecutive texts run together, and share nothing with others."""
        starts = range(0, len(self.pieces), rows)
        return sum(Texts(self.pieces[start : start + rows], self.scale).distinct for start in starts)


class Side:
    """One model of a recipe."""

    def __init__(self, model: ModelSettings) -> None:
        self.model = model
        self.config = describe(model.id, head=False, trust_remote_code=model.trust_remote_code)
        self.dtype = model.dtype or own_dtype(self.config.config, self.config.source)
        shape = self.config.config.get_text_config()
        self.n_blocks, self.d = shape.num_hidden_layers, shape.hidden_size
        self.tokenizer = self._tokenizer()

    def _tokenizer(self) -> Any:
        source, _ = split_name(self.model.id)
        if not (Path(source) / "tokenizer_config.json").exists():
            return None
        with hub_errors(self.model.id):
            return AutoTokenizer.from_pretrained(source, trust_remote_code=self.model.trust_remote_code)

    def texts(self, given: Sequence[str], chat: bool = False) -> Texts:
        """The texts as this model sees them."""
        if self.tokenizer is None:
            return Texts([["", *text.split()] for text in given], TOKENS_A_WORD)
        encoder: Any = SimpleNamespace(tokenizer=self.tokenizer, name=self.model.id)
        return Texts([list(ids) for ids in encode_many(encoder, list(given), chat)])

    def described(self, head: bool, highest: int) -> Described:
        return describe(
            self.model.id, head=head, highest_block=highest, trust_remote_code=self.model.trust_remote_code
        )


@dataclass
class Stage:
    """One pass of a model over texts."""

    name: str
    side: Side
    seen: Texts
    work: float
    """Tokens times blocks that run, common beginnings once."""
    actors: Actors
    disk: int = 0
    """Bytes of Parquet."""
    seconds: float = 0.0


def actor_memory() -> int:
    """Bytes of a process that has what an actor needs and no model: this one has it too."""
    status = Path("/proc/self/status")
    if not status.exists():
        return _USUAL_MEMORY
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024
