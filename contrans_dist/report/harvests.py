"""The activation sets of a run: sizes, pace, what was cut off, and how exact the rows are."""

from typing import Any

import pyarrow as pa

from contrans_dist.evaluation.analysis import Run
from contrans_dist.report.parts import Cell, Drawing, Studio, Table, count_text, seconds_text, size_text
from contrans_dist.report.pictures import norms_figure
from contrans_dist.store.activation_set import ActivationSet

_WORST_CANARY = 1e-4
"""Relative deviation of a float32 row from the same text alone, above which something is wrong."""


def harvest_table(harvests: dict[str, ActivationSet]) -> Table:
    """One row an activation set."""
    head = ["Activation set", "Rows", "Blocks × width", "Tokens", "Tokens/s", "Time", "Actors", "Size",
            "Truncated", "Canary"]  # fmt: skip
    rows = []
    for name, harvest in harvests.items():
        manifest = harvest.manifest
        identity, pace = manifest.get("identity") or {}, manifest.get("throughput") or {}
        canary = (manifest.get("canary") or {}).get("worst_deviation")
        truncated = int(manifest.get("truncated") or 0)
        kept = [identity.get("dtype"), identity.get("quantization"), f"position {identity.get('position')}"]
        rows.append(
            [
                Cell(name, f"{identity.get('model', '')} · " + ", ".join(str(part) for part in kept if part)),
                Cell(count_text(harvest.n_rows)),
                Cell(f"{len(harvest.blocks)} × {harvest.d}"),
                Cell(count_text(manifest.get("tokens") or 0)),
                Cell(count_text(pace["tokens_per_second"]) if pace.get("tokens_per_second") else "–"),
                Cell(seconds_text(pace["seconds"]) if pace.get("seconds") is not None else "–"),
                Cell(str(pace.get("actors", "–"))),
                Cell(size_text(sum(int(shard.get("bytes") or 0) for shard in manifest["shards"]))),
                Cell(count_text(truncated), kind="warn" if truncated else ""),
                Cell("–" if canary is None else f"{canary:.1e}", kind=_canary_kind(manifest)),
            ]
        )
    caption = "Canary: the worst relative deviation of a batched row from the same text run alone."
    return Table(head, rows, caption)


def harvest_warnings(name: str, harvest: ActivationSet) -> list[str]:
    """What a reader must know about an activation set before trusting it, one line each."""
    warnings = []
    if harvest.manifest.get("truncated"):
        warnings.append(f"activations {name}: {harvest.manifest['truncated']} texts were truncated")
    if _canary_kind(harvest.manifest):
        warnings.append(f"activations {name}: batched rows differ from the same texts run alone")
    return warnings


def norms_drawing(run: Run, studio: Studio) -> Drawing | None:
    """Median norms of both models by block; None where neither has several blocks."""
    norms = {}
    for side in ("source", "target"):
        harvest = run.harvests.get(f"contrast-{side}") or run.harvests.get(f"corpus-{side}")
        if harvest and harvest.norms:
            norms[side] = harvest.norms
    if not any(len(values) > 1 for values in norms.values()):
        return None
    block = run.evaluations[0].block if run.evaluations else None
    rows = [(side, block, norm) for side, values in norms.items() for block, norm in sorted(values.items())]
    data = pa.table(
        {name: [row[i] for row in rows] for i, name in enumerate(("model", "block", "median_norm"))}
    )
    return studio.draw(
        studio.name("norms"),
        lambda: norms_figure(norms, block if "target" in norms else None),
        data,
        "Median length of the residual stream, block by block: the yardstick for a strength.",
    )


def _canary_kind(manifest: dict[str, Any]) -> str:
    worst = (manifest.get("canary") or {}).get("worst_deviation")
    exact = (manifest.get("identity") or {}).get("dtype") == "float32"
    return "warn" if worst is not None and exact and worst > _WORST_CANARY else ""
