"""A plan as plain values."""

from dataclasses import asdict
from typing import Any

from contrans_dist.plan.parts import Nodes, Stage


def as_content(stages: list[Stage], nodes: Nodes, rate: str) -> dict[str, Any]:
    """The plan as plain values, with what limits it."""
    actors = {(stage.actors.model, stage.actors.use): stage.actors for stage in stages}
    return {
        "cluster": asdict(nodes),
        "actors": [asdict(each) for each in actors.values()],
        "stages": [
            {
                "name": stage.name,
                "model": stage.actors.model,
                "texts": len(stage.seen.pieces),
                "tokens": stage.seen.tokens,
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
    found = [f"time: {longest.name} takes {longest.seconds / total:.0%} of it"] if longest.seconds else []
    for stage in stages:
        actors = stage.actors
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
