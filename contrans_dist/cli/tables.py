"""Results of an evaluation as a table for the terminal."""

from typing import Any


def metrics_lines(metrics: dict[str, Any]) -> list[str]:
    """One line a condition and strength with every overall metric and its interval, then the leak check."""
    names = [name for name in metrics["conditions"][0]["metrics"] if "/" not in name]
    width = max(len(entry["condition"]) for entry in metrics["conditions"]) + 2
    lines = ["".join(["condition".ljust(width), "strength", *(name.rjust(26) for name in names)])]
    for entry in metrics["conditions"]:
        cells = [_cell(entry["metrics"].get(name)).rjust(26) for name in names]
        lines.append("".join([entry["condition"].ljust(width), f"{entry['strength']:8g}", *cells]))
    leak = metrics["leak"]
    lines.append(
        f"leak check: of {leak['evaluated']} scenarios, {leak['overlap_vector']} were seen by the vectors "
        f"and {leak['overlap_map']} by the map"
    )
    return [*lines, *metrics.get("notes", [])]


def _cell(metric: dict[str, Any] | None) -> str:
    if metric is None:
        return "-"
    return f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"
