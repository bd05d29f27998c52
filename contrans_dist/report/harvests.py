"""The activation sets of a run: sizes, pace, what was cut off, and how exact the rows are."""

import pyarrow as pa
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.filesize import decimal

from contrans_dist.console import count_of
from contrans_dist.evaluation.analysis import Run
from contrans_dist.report.figures import log_axis
from contrans_dist.report.parts import Cell, Drawing, Studio, Table, count_text, seconds_text
from contrans_dist.report.svg import label
from contrans_dist.store.activation_set import ActivationSet


def harvest_table(harvests: dict[str, ActivationSet]) -> Table:
    """One row an activation set."""
    head = ["Activation set", "Rows", "Blocks × width", "Tokens", "Tokens/s", "Time", "Actors", "Size",
            "Truncated", "Canary"]  # fmt: skip
    rows = []
    for name, harvest in harvests.items():
        manifest = harvest.manifest
        identity, pace, canary = manifest.identity, manifest.throughput, manifest.canary.worst_deviation
        kept = [identity.precision, identity.quantization, f"position {identity.position}"]
        rows.append(
            [
                Cell(name, f"{identity.model} · " + ", ".join(filter(None, kept))),
                Cell(count_text(harvest.n_rows)),
                Cell(f"{len(harvest.blocks)} × {harvest.d}"),
                Cell(count_text(manifest.tokens)),
                Cell(count_text(pace.tokens_per_second) if pace.tokens_per_second else "–"),
                Cell("–" if pace.seconds is None else seconds_text(pace.seconds)),
                Cell("–" if pace.actors is None else str(pace.actors)),
                Cell(decimal(sum(shard.bytes or 0 for shard in manifest.shards), separator="\u202f")),
                Cell(count_text(manifest.truncated), kind="warn" if manifest.truncated else ""),
                Cell(
                    "–" if canary is None else f"{canary:.1e}",
                    kind="warn" if manifest.depends_on_batch else "",
                ),
            ]
        )
    caption = "Canary: the worst relative deviation of a batched row from the same text run alone."
    return Table(head, rows, caption)


def harvest_warnings(name: str, harvest: ActivationSet) -> list[str]:
    """What a reader must know about an activation set before trusting it, one line each."""
    warnings = []
    if harvest.manifest.truncated:
        warnings.append(f"activations {name}: {count_of(harvest.manifest.truncated, 'text')} truncated")
    if harvest.manifest.depends_on_batch:
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
    block = run.evaluations[0].file.block if run.evaluations else None
    rows = [(side, block, norm) for side, values in norms.items() for block, norm in sorted(values.items())]
    data = pa.table(
        {name: [row[i] for row in rows] for i, name in enumerate(("model", "block", "median_norm"))}
    )
    return studio.draw(
        ("norms",),
        lambda: norms_figure(norms, block if "target" in norms else None),
        data,
        "Median length of the residual stream, block by block: the yardstick for a strength.",
    )


def norms_figure(norms: dict[str, dict[int, float]], marked: int | None) -> Figure:
    """Median residual norm over blocks: one line a model, one mark where a single block is known.

    The steered block of the target is marked.
    """
    figure = Figure(figsize=(6.4, 2.5), layout="constrained")
    axes = figure.add_subplot()
    looks = [("#d55e00", "s", "--"), ("#0072b2", "o", "-")]
    for index, (name, values) in enumerate(norms.items()):
        colour, marker, dash = looks[index % len(looks)]
        blocks = sorted(values)
        heights = [values[block] for block in blocks]
        axes.plot(blocks, heights, color=colour, marker=marker, linestyle=dash, markeredgecolor="white",
                  markersize=5 if len(blocks) <= 40 else 3, clip_on=False, zorder=3)  # fmt: skip
        axes.annotate(label(name), (blocks[-1], heights[-1]), xytext=(8, 0), textcoords="offset points",
                      color=colour, va="center", fontweight="bold", annotation_clip=False)  # fmt: skip
    if marked is not None:
        axes.axvline(marked, color="#999", linewidth=1, linestyle=":")
        axes.annotate("steered", (marked, 1), xycoords=("data", "axes fraction"), xytext=(-4, -2),
                      textcoords="offset points", ha="right", va="top", color="#555",
                      fontsize=8.5)  # fmt: skip
    if _spans(norms):
        log_axis(axes)
    else:
        axes.set_ylim(0, 1.15 * max(max(values.values()) for values in norms.values()))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("Block")
    axes.set_ylabel("Median residual norm")
    axes.grid(axis="x", visible=False)
    return figure


def _spans(norms: dict[str, dict[int, float]]) -> bool:
    values = [value for line in norms.values() for value in line.values() if value > 0]
    return bool(values) and max(values) > 20 * min(values)
