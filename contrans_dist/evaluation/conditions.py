"""The conditions an evaluation compares: the transplanted vector, its controls, and other ways to steer."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from contrans_dist.config import Condition
from contrans_dist.engine.scoring import BASE, Intervention
from contrans_dist.errors import UserError
from contrans_dist.mapping.transplant import random_like
from contrans_dist.vectors.concept_vector import ConceptVector

Row = NDArray[np.float32]
DERIVED: tuple[Condition, ...] = ("random", "shuffled-map", "other-concept")
"""Controls that follow from the vectors themselves."""
RANDOM = "random"
"""A direction of its own for every item: a single one proves little. Where transplanted emotions reached a
mean Token Acc of .85, single directions reached 0 to .85 (two trained models, TinyStories 656k to 3M)."""


@dataclass(frozen=True)
class Steering:
    """What is added where: for each concept, for each condition, a row `[d]` at a block."""

    rows: dict[str, dict[str, dict[int, Row]]] = field(default_factory=dict)
    """concept -> condition -> block -> row"""
    vector_texts: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """Units of the texts behind the vectors, and behind the map (`leak.unit_hashes`)."""
    map_texts: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    seed: int = 0
    """Of the control `random`, whose rows above give no more than the norm."""
    chosen: dict[str, float] = field(default_factory=dict)
    """The one strength of each condition that has one of its own; the others follow the sweep."""

    @property
    def concepts(self) -> list[str]:
        return list(self.rows)

    @property
    def blocks(self) -> list[int]:
        """Every block that something is added to."""
        return sorted({b for per in self.rows.values() for at in per.values() for b in at})

    def interventions(
        self, concept: str, strengths: Sequence[float], items: Sequence[str]
    ) -> list[Intervention]:
        """The base, and every condition of a concept at every strength but 0, which is the base.

        `items`: the ids of the items that are scored under them. Each meets a random direction of its own,
        the same at every strength.
        """
        conditions = dict(self.rows.get(concept, {}))
        if RANDOM in conditions:
            seeds = [_seed(self.seed, concept, item) for item in items]
            conditions[RANDOM] = {
                block: np.stack([random_like(row, seed) for seed in seeds])
                for block, row in conditions[RANDOM].items()
            }
        return [
            BASE,
            *(
                Intervention(condition, rows, float(strength))
                for condition, rows in conditions.items()
                for strength in ([self.chosen[condition]] if condition in self.chosen else strengths)
                if strength != 0
            ),
        ]

    def only(self, conditions: Sequence[str]) -> "Steering":
        """The same with these conditions alone."""
        return replace(
            self,
            rows={
                concept: {name: at for name, at in given.items() if name in conditions}
                for concept, given in self.rows.items()
            },
        )

    def about(self, concepts: Sequence[str]) -> "Steering":
        """The same for these concepts alone. Raises UserError for one that there is no vector of."""
        missing = [concept for concept in concepts if concept not in self.rows]
        if missing:
            raise UserError(f"concepts: no vector of {missing[0]!r}; there are {', '.join(self.rows)}")
        return replace(self, rows={concept: self.rows[concept] for concept in concepts})

    def digest(self) -> str:
        """Identity of all rows, for the fingerprint of an evaluation."""
        digest = hashlib.sha256(f"random directions {self.seed}".encode())
        for condition, strength in self.chosen.items():
            digest.update(f"{condition} at {strength!r}".encode())
        for concept, conditions in self.rows.items():
            for condition, rows in conditions.items():
                for block, row in rows.items():
                    digest.update(f"{concept}\0{condition}\0{block}\0".encode())
                    digest.update(np.ascontiguousarray(row, np.float32).tobytes())
        return digest.hexdigest()


CONTROLS: tuple[Condition, ...] = (*DERIVED, "no-map", "random-map")
"""Conditions that show what an effect must exceed."""
SYSTEMS: tuple[Condition, ...] = ("align-training", "inst-align", "proxy-tuning")
"""Conditions that are no vectors."""
_SCALED = ("shuffled-map", "random-map")
"""Controls that would prove little if they were shorter than what they are compared with."""


def reference_of(conditions: Iterable[str]) -> str | None:
    """The condition under test, against which the others are tested; None where there is none.

    `vector`, else the first that is neither base nor a control; one that is no vector only for want of
    another.
    """
    tried = [name for name in conditions if name != BASE.name and name not in CONTROLS]
    return min(tried, key=lambda name: (name != "vector", name in SYSTEMS), default=None)


def steering(
    given: Mapping[str, Mapping[str, ConceptVector]],
    conditions: Sequence[str],
    block: int | None = None,
    seed: int = 0,
) -> Steering:
    """Rows for every condition asked for.

    `given`: condition -> concept -> vector in the target's space; `vector` among them, from which the
    controls `random`, `shuffled-map` and `other-concept` (the next concept's) are derived. `random` and the
    controls of the map have the norm of the condition under test (`reference_of`). Raises UserError for a
    condition that can be neither found nor derived.
    """
    main = given.get("vector", {})
    reference = reference_of(conditions) or "vector"
    rows: dict[str, dict[str, dict[int, Row]]] = {}
    for concept in main:
        at, tested = _row(given, reference, concept, block)
        rows[concept] = {}
        for condition in conditions:
            if condition == RANDOM:
                rows[concept][RANDOM] = {at: tested}
                continue
            there, row = _row(given, condition, concept, block)
            rows[concept][condition] = {there: _as_long(row, tested) if condition in _SCALED else row}
    texts = [vector.text_hashes for vector in main.values()]
    maps = [vector.map_text_hashes for vector in main.values()]
    return Steering(rows, _union(texts), _union(maps), seed)


def _row(
    given: Mapping[str, Mapping[str, ConceptVector]],
    condition: str,
    concept: str,
    block: int | None,
) -> tuple[int, Row]:
    main = given["vector"]
    if condition in given:
        if concept not in given[condition]:
            raise UserError(f"condition {condition}: no vector for concept {concept!r}")
        return row_of(given[condition][concept], block)
    if condition == "other-concept":
        names = list(main)
        if len(names) < 2:
            raise UserError("control other-concept: give the vectors of at least two concepts")
        return row_of(main[names[(names.index(concept) + 1) % len(names)]], block)
    if condition == "shuffled-map":
        shuffled = main[concept].shuffled_map
        if shuffled is None:
            raise UserError(f"control shuffled-map: vector {concept!r} did not come through a map")
        at, _ = row_of(main[concept], block)
        return at, shuffled[at]
    raise UserError(f"condition {condition}: no vectors were made for it")


def _as_long(row: Row, other: Row) -> Row:
    """`row` with the norm of `other`; zero stays zero."""
    norm = np.linalg.norm(row.astype(np.float64))
    return (row * (np.linalg.norm(other.astype(np.float64)) / norm)).astype(np.float32) if norm else row


def row_of(vector: ConceptVector, block: int | None) -> tuple[int, Row]:
    """(block, row): at the block asked for, else the only one the vector carries."""
    if block is not None:
        return block, vector.at(block)
    if not vector.blocks:
        raise UserError(f"vector {vector.concept!r} carries nothing at any block")
    if len(vector.blocks) != 1:
        raise UserError(f"vector {vector.concept!r} carries blocks {vector.blocks}; say which with --block")
    return vector.blocks[0], vector.at(vector.blocks[0])


def derivable(vectors: Mapping[str, ConceptVector]) -> list[Condition]:
    """The controls that these vectors allow: all but those that need a map, or a second concept."""
    mapped = all(vector.shuffled_map is not None for vector in vectors.values())
    possible = {"random": True, "shuffled-map": mapped, "other-concept": len(vectors) > 1}
    return [control for control in DERIVED if vectors and possible[control]]


def load_vectors(files: Sequence[str]) -> dict[str, ConceptVector]:
    """Vector files by concept. Raises UserError when two are of the same concept."""
    vectors: dict[str, ConceptVector] = {}
    for file in files:
        vector = ConceptVector.load(file)
        if vector.concept in vectors:
            raise UserError(f"{file}: a second vector of concept {vector.concept!r}")
        vectors[vector.concept] = vector
    return vectors


def _seed(seed: int, concept: str, item: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed} {concept} {item}".encode(), digest_size=8).digest(), "big")


def _union(hashes: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.unique(np.concatenate(hashes)) if hashes else np.empty(0, np.int64)
