"""What an activation set says of itself: its identity, and the manifest that is written last."""

from typing import Any

import numpy as np
import pyarrow as pa

from contrans_dist.config import CaptureSettings, ModelSettings
from contrans_dist.console import count_of, note
from contrans_dist.data.table_hash import table_hash
from contrans_dist.harvest.shards import HarvestSpec, ShardReport
from contrans_dist.models import ModelFacts, around
from contrans_dist.models.facts import model_identity
from contrans_dist.store import schema
from contrans_dist.store.identity import Identity
from contrans_dist.store.location import Location
from contrans_dist.store.manifest import Canary, Manifest, QuantizationCheck, ShardEntry, Throughput
from contrans_dist.store.provenance import made_by, versions


def identity_of(
    model: ModelSettings,
    facts: ModelFacts,
    capture: CaptureSettings,
    blocks: list[int],
    shard_rows: int,
    texts: pa.Table,
    prompts: str = "",
) -> Identity:
    """What the bytes of a set depend on, of this model, these settings and texts."""
    return Identity(
        **model_identity(model, facts),
        template=capture.template,
        chat=capture.chat,
        chat_date=capture.chat_date.isoformat() if capture.chat else None,
        prompts=prompts,
        max_tokens=capture.max_tokens,
        position=capture.position,
        blocks=blocks,
        batch_tokens=capture.batch_tokens,
        shard_size=shard_rows,
        rows=texts.num_rows,
        texts=table_hash(texts),
    )


def manifest_of(
    spec: HarvestSpec,
    facts: ModelFacts,
    texts: pa.Table,
    reports: list[ShardReport],
    throughput: Throughput,
    quantization: QuantizationCheck | None = None,
) -> Manifest:
    """The manifest of a set whose shards are all there."""
    norms = [report.norms for report in reports if report.norms is not None]
    medians = np.median(np.concatenate(norms), axis=0)
    skipped = [text for report in reports for text in report.facts.skipped]
    further: dict[str, Any] = {**made_by()}
    if skipped:
        further["skipped"] = skipped
    if quantization is not None:
        further["quantization_check"] = quantization
    return Manifest(
        format=schema.FORMAT_VERSION,
        kind="activations",
        fingerprint=spec.fingerprint,
        identity=spec.identity,
        rows=sum(report.entry.rows for report in reports),
        d=spec.d,
        n_blocks=facts.n_blocks,
        blocks=spec.blocks,
        columns=[
            *schema.KEY_COLUMNS,
            *(name for name in texts.column_names if name not in schema.KEY_COLUMNS),
        ],
        norms={str(block): float(norm) for block, norm in zip(spec.blocks, medians, strict=True)},
        tokens=sum(report.facts.tokens for report in reports),
        truncated=sum(report.facts.truncated for report in reports),
        context=facts.context,
        tokenizer_limit=facts.tokenizer_limit,
        special_tokens=around(facts.reads, spec.capture.chat, spec.capture.chat_date),
        canary=Canary(worst_deviation=max(report.facts.canary for report in reports)),
        shards=[_entry(report, spec.fingerprint) for report in reports],
        throughput=throughput,
        devices=sorted({report.device for report in reports if report.device}),
        versions=versions(),
        **further,
    ).sealed()


def _entry(report: ShardReport, fingerprint: str) -> ShardEntry:
    """What the manifest of the set of this fingerprint says of the shard."""
    made_as = report.facts.fingerprint
    if made_as == fingerprint:
        return report.entry
    return report.entry.model_copy(update={"fingerprint": made_as})


def warn(manifest: Manifest, out: Location) -> None:
    """Note what a user would want to know of a finished set: texts cut, rows that depend on their batch."""
    if manifest.truncated:
        limit, context = manifest.identity.max_tokens, manifest.context
        by = f"--max-tokens {limit}" if limit and limit < (context or limit + 1) else "the model's context"
        note(f"{out}: {count_of(manifest.truncated, 'text')} longer than {by}, cut at the start")
    limit = manifest.tokenizer_limit
    if limit and limit < (manifest.context or limit + 1):
        note(
            f"{out}: the tokenizer's own limit, {limit} tokens, is below the model's; texts are cut at the "
            f"model's (--max-tokens {limit} would cut them there)"
        )
    if manifest.depends_on_batch:
        worst = manifest.canary.worst_deviation
        note(f"{out}: a text in a batch and alone differ by {worst:.1e}; look at the model's padding")
