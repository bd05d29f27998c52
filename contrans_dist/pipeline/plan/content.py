"""A plan as plain values."""

from dataclasses import asdict
from typing import Any

from contrans_dist.pipeline.plan.parts import Nodes, Stage


def as_content(stages: list[Stage], nodes: Nodes, rate: str) -> dict[str, Any]:
    """The plan as plain values, with what limits it."""
    by_memory = sorted((stage.actors for stage in stages), key=lambda each: each.memory + each.activations)
    largest = {(each.model, each.use, each.gpus): each for each in by_memory}
    actors = {key: largest[key] for key in ((e.actors.model, e.actors.use, e.actors.gpus) for e in stages)}
    return {
        "cluster": asdict(nodes),
        "actors": [asdict(each) for each in actors.values()],
        "stages": [
            {
                "run": stage.run,
                "name": stage.name,
                "model": stage.actors.model,
                "texts": stage.texts,
                "tokens": stage.tokens,
                "tokens_in_passes": stage.passed,
                "disk": stage.disk,
                "seconds": round(stage.seconds, 3),
            }
            for stage in stages
        ],
        "disk": sum(stage.disk for stage in stages),
        "hours": sum(stage.seconds for stage in stages) / 3600,
        "rate": rate,
        "limits": limits(stages, nodes),
    }


def limits(stages: list[Stage], nodes: Nodes) -> list[str]:
    """What holds the run back, the longest stage first."""
    longest = max(stages, key=lambda stage: stage.seconds)
    total = sum(stage.seconds for stage in stages) or 1.0
    name = f"{longest.name} of {longest.run}" if longest.run else longest.name
    found = [f"time: {name} takes {longest.seconds / total:.0%} of it"] if longest.seconds else []
    for stage in stages:
        actors = stage.actors
        taken, room = actors.weights + actors.activations, actors.gpus * nodes.gpu_memory
        if actors.use == "generate" and actors.gpus and taken > room:
            found.append(
                f"memory: {stage.name} takes {taken / 1e9:.1f} GB with a batch of texts, an actor of "
                f"{actors.model} has {room / 1e9:.1f} GB of GPU memory"
            )
        if actors.placement == "stream":
            found.append(f"memory: {actors.model} is streamed: {actors.why}")
        elif actors.memory * actors.count > nodes.memory * nodes.count:
            found.append(
                f"memory: {actors.count} actors of {actors.model} take {actors.memory / 1e9:.1f} GB each, a "
                f"node has {nodes.memory / 1e9:.1f} GB"
            )
        elif actors.gpus and nodes.gpus % actors.gpus:
            found.append(
                f"GPUs: {actors.model} takes {actors.gpus:g} of a node's {nodes.gpus}; the rest stay idle"
            )
    return list(dict.fromkeys(found))
