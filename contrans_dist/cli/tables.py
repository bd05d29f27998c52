"""Results of an evaluation as a table for the terminal."""

from typing import Any


def metrics_lines(metrics: dict[str, Any]) -> list[str]:
    """For each overall metric a line a condition and strength (value, 95 % interval, n); then the leak check.

    Where a benchmark has numbers by group alone, those are listed.
    """
    entries = metrics["conditions"]
    every = list(dict.fromkeys(name for entry in entries for name in entry["metrics"]))
    names = [name for name in every if "/" not in name] or every
    width = max(len("condition"), *(len(entry["condition"]) for entry in entries))
    lines = []
    for name in names:
        lines.append(
            f"{name}\n  {'condition':<{width}} {'strength':>8} {'value':>9}  {'95 % interval':<20} {'n':>6}"
        )
        lines += [
            f"  {entry['condition']:<{width}} {entry['strength']:>8g} {_numbers(entry['metrics'][name])}"
            for entry in entries
            if name in entry["metrics"]
        ]
    leak = metrics["leak"]
    lines.append(
        f"leak check: of {leak['evaluated']} texts, {leak['overlap_vector']} were seen by the vectors "
        f"and {leak['overlap_map']} by the map"
        + (f" ({leak['in_part']} of them in part)" if leak.get("in_part") else "")
    )
    return [*lines, *metrics.get("notes", [])]


def _numbers(metric: dict[str, Any]) -> str:
    low, high = metric["low"], metric["high"]
    interval = "no interval" if low is None or high is None else f"[{low:.3f}, {high:.3f}]"
    return f"{metric['value']:9.3f}  {interval:<20} {metric['n']:>6}"
