"""The parts of a plan: the nodes, the actors, the stages."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from contrans_dist.models import CPU_TOKENS
from contrans_dist.models.devices import host_memory
from contrans_dist.pipeline.plan.calls import Call
from contrans_dist.pipeline.plan.sides import Judge, Side


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
    """What one actor of a stage takes, and how many fit. Bytes; of all models that it loads."""

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

    def batch(self, tokens: int) -> int:
        """Tokens of a batch where so many are asked for."""
        return tokens if self.gpus else min(tokens, CPU_TOKENS)


@dataclass
class Stage:
    """One pool of actors, or a part of what it does."""

    name: str
    sides: Sequence[Side | Judge]
    """The models that run, each for every call."""
    texts: int
    tokens: int
    """Of the texts."""
    calls: Sequence[Call]
    tasks: int
    """Pieces that the work comes in: more actors are of no use."""
    actors: Actors
    run: str = ""
    """Of a recipe with several."""
    key: str = ""
    """What a harvest holds: runs share those that hold the same."""
    begins: bool = True
    """Whether its actors are started for it, not left by the stage before."""
    disk: int = 0
    """Bytes of Parquet."""
    seconds: float = 0.0

    @property
    def passed(self) -> int:
        """Tokens in the forward passes of all its models."""
        return len(self.sides) * sum(call.tokens for call in self.calls)

    @property
    def rounds(self) -> float:
        """Seconds that it takes for a second of work of one actor."""
        return -(-self.tasks // self.actors.count) / max(1, self.tasks)


def actor_memory() -> int:
    """Bytes of a process that has what an actor needs and no model: this one has it too."""
    return int(psutil.Process().memory_info().rss)
