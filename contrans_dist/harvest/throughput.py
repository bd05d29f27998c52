"""How fast a harvest was, as manifests say it."""

import math
import time
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from contrans_dist.distributed.cluster import Replicas
from contrans_dist.distributed.pool import Outcome
from contrans_dist.harvest.shards import MadeShards, Timing
from contrans_dist.models.placement import Placement


def throughput_of(
    made: MadeShards, began: float, outcome: Outcome, size: Replicas, placement: Placement
) -> dict[str, Any]:
    """What the manifests of all sets say of speed."""
    seconds = time.monotonic() - outcome.began
    tokens = sum(report.facts.tokens for report in made.reports.values())
    timings = [report.timing for report in made.reports.values() if report.timing is not None]
    capturing = sum(map(covered, _by_process(timings)))
    return {
        "seconds": round(seconds, 3),
        "seconds_starting": round(outcome.began - began, 3),
        "tokens_per_second": round(tokens / seconds, 1),
        "seconds_capturing": round(capturing, 3),
        "seconds_waiting_for_writes": round(_at_work(timings) - capturing, 3),
        "actors": min(size.actors, len(made.reports)),
        "cpus_per_actor": size.cpus,
        "gpus_per_actor": size.gpus,
        "lost_actors": outcome.lost_actors,
        "placement": placement.kind,
        "placement_reason": placement.reason,
    }


def _at_work(timings: Iterable[Timing]) -> float:
    """Seconds from each process' first shard to its last, summed: it has several at a time."""
    spans = _by_process(timings)
    return sum(max(timing.ended for timing in span) - min(timing.began for timing in span) for span in spans)


def covered(timings: Sequence[Timing]) -> float:
    """Seconds in which a process' model had work: devices have that of several shards before them at once."""
    seconds, until = 0.0, -math.inf
    for began, ended in sorted(span for timing in timings for span in timing.captured):
        seconds += max(0.0, ended - max(began, until))
        until = max(until, ended)
    return seconds


def _by_process(timings: Iterable[Timing]) -> list[list[Timing]]:
    by_process = groupby(sorted(timings, key=lambda timing: timing.process), lambda timing: timing.process)
    return [list(of_process) for _, of_process in by_process]
