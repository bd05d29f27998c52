"""Concept vectors from an activation set: which rows are positive and negative, block by block."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from contrans_dist.artifacts import ActivationSet
from contrans_dist.concepts import concept_vector, one_vs_rest
from contrans_dist.errors import UserError
from contrans_dist.leak import unit_hashes
from contrans_dist.vectors import ConceptVector


def select_rows(activations: ActivationSet, condition: str) -> NDArray[np.int64]:
    """Rows that meet `column=value` (several, joined by commas, must all hold): int64 `[n]`.

    Raises UserError for a condition without `=`, a column that is not there, or no row that meets it.
    """
    pieces = [piece.partition("=") for piece in condition.split(",")]
    if not all(mark and name for name, mark, _ in pieces):
        raise UserError(f"{condition!r}: expected column=value, such as label=positive")
    table = activations.read_columns([name for name, _, _ in pieces])
    mask = np.ones(table.num_rows, bool)
    for name, _, value in pieces:
        mask &= np.array(pc.equal(table.column(name).cast(pa.string()), value).fill_null(False))
    rows = np.flatnonzero(mask)
    if not rows.size:
        raise UserError(f"{activations.location}: no row has {condition}")
    return rows


def refine(
    activations: ActivationSet,
    positive: NDArray[np.int64],
    negative: NDArray[np.int64],
    concept: str,
    method: str = "mean",
) -> ConceptVector:
    """The concept vector of two groups of rows, at every harvested block (equation 1, or PCA)."""
    values = np.zeros((activations.n_blocks, activations.d), np.float32)
    for block in activations.blocks:
        rows = activations.read_block(block)
        try:
            values[block] = concept_vector(rows[positive], rows[negative], method)
        except ValueError as error:
            raise UserError(f"{activations.location}, concept {concept}: {error}") from error
    texts = np.array(activations.read_columns(["text"]).column("text").to_pylist(), dtype=object)
    return ConceptVector(
        values=values,
        concept=concept,
        model=activations.manifest["identity"]["model"],
        method=method,
        n_positive=len(positive),
        n_negative=len(negative),
        norms=activations.norms,
        text_hashes=unit_hashes(texts[np.concatenate([positive, negative])]),
        steps=(
            f"{method} over {len(positive)} + {len(negative)} rows of {activations.manifest['fingerprint']}",
        ),
    )


def concept_rows(
    activations: ActivationSet, concept: str, seed: int = 0, limit: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positive and negative rows of one concept.

    With a `label` column: the rows labelled positive and negative of that concept. Without: its own rows
    against as many drawn from the other concepts (seeded). `limit` keeps the first pairs.
    """
    if "label" in activations.columns:
        positive = select_rows(activations, f"concept={concept},label=positive")
        negative = select_rows(activations, f"concept={concept},label=negative")
        if activations.facts.skipped and "pair_id" in activations.columns:
            # Pairs are taken by their order: one that has lost a text would shift all behind it.
            pairs = np.array(
                activations.read_columns(["pair_id"]).column("pair_id").to_pylist(), dtype=object
            )
            positive, negative = (
                mine[np.isin(pairs[mine], pairs[other])]
                for mine, other in ((positive, negative), (negative, positive))
            )
    else:
        labels = activations.read_columns(["concept"]).column("concept").to_pylist()
        try:
            positive, negative = one_vs_rest(labels, concept, seed)
        except ValueError as error:
            raise UserError(f"{activations.location}: {error}") from error
    return positive[:limit], negative[:limit]


def concepts_in(activations: ActivationSet) -> list[str]:
    """The concepts of a contrast set, in order of appearance. Raises UserError without a `concept` column."""
    found = activations.read_columns(["concept"]).column("concept").to_pylist()
    return list(dict.fromkeys(concept for concept in found if concept is not None))
