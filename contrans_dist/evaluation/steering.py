"""What is added where: for each concept, for each condition, a row at a block."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from contrans_dist.engine.scoring import BASE, Intervention
from contrans_dist.errors import UserError
from contrans_dist.evaluation.conditions import CONDITIONS, condition_of, reference_of
from contrans_dist.evaluation.derived import Row, row_of
from contrans_dist.mapping.transplant import random_like
from contrans_dist.vectors.concept_vector import ConceptVector


@dataclass(frozen=True)
class Steering:
    """What is added where: for each concept, for each condition, a row `[d]` at a block."""

    rows: dict[str, dict[str, dict[int, Row]]] = field(default_factory=dict)
    """concept -> condition -> block -> row"""
    vector_texts: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """Units of the texts behind the vectors, and behind the map (`contamination.unit_hashes`)."""
    map_texts: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    texts_known: bool = True
    """Whether every vector says which texts it was made of: an imported one does not, nor does one of texts
    too short to be told apart."""
    map_texts_known: bool = True
    """Whether every map says which texts it was fitted on."""
    seed: int = 0
    """Of directions that are drawn, whose rows above give no more than the norm."""
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
        for drawn in (name for name in conditions if condition_of(name).drawn):
            seeds = [_seed(self.seed, concept, item) for item in items]
            conditions[drawn] = {
                block: np.stack([random_like(row, seed) for seed in seeds])
                for block, row in conditions[drawn].items()
            }
        return [
            BASE,
            *(
                Intervention(name, rows, float(strength))
                for name, rows in conditions.items()
                for strength in ([self.chosen[name]] if name in self.chosen else strengths)
                if strength != 0
            ),
        ]

    def trials(self, concept: str, strengths: Sequence[float]) -> int:
        """How many `interventions` there are."""
        conditions = self.rows.get(concept, {})
        of_sweep = sum(strength != 0 for strength in strengths)
        return 1 + sum(self.chosen[name] != 0 if name in self.chosen else of_sweep for name in conditions)

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
        for name, strength in self.chosen.items():
            digest.update(f"{name} at {strength!r}".encode())
        for concept, conditions in self.rows.items():
            for name, rows in conditions.items():
                for block, row in rows.items():
                    digest.update(f"{concept}\0{name}\0{block}\0".encode())
                    digest.update(np.ascontiguousarray(row, np.float32).tobytes())
        return digest.hexdigest()


def steering(
    given: Mapping[str, Mapping[str, ConceptVector]],
    conditions: Sequence[str],
    block: int | None = None,
    seed: int = 0,
    main: str = "vector",
) -> Steering:
    """What is added for every condition.

    Args:
        given: Condition -> concept -> vector in the target's space; `main` among them.
        conditions: By name. Some controls get the norm of the one under test (`reference_of`).
        block: To be steered, from 0; None is the only one that a vector carries.
        seed: Of directions that are drawn.
        main: The condition from whose vectors those are derived that need no run.

    Raises:
        UserError: For a condition of which there are no vectors, and which cannot be derived either.
    """
    vectors = given.get(main, {})
    reference = reference_of(conditions) or main
    rows: dict[str, dict[str, dict[int, Row]]] = {}
    for concept in vectors:
        _, tested = _row(given, reference, concept, block, main)
        rows[concept] = {}
        for name in conditions:
            at, row = _row(given, name, concept, block, main)
            rows[concept][name] = {at: _as_long(row, tested) if condition_of(name).as_long else row}
    texts = [vector.text_hashes for vector in vectors.values()]
    maps = [vector.map_text_hashes for vector in vectors.values()]
    known = all(hashes.size for hashes in texts)
    of_maps = all(vector.map_texts_known for vector in vectors.values())
    return Steering(rows, _union(texts), _union(maps), known, of_maps, seed)


def _row(
    given: Mapping[str, Mapping[str, ConceptVector]], name: str, concept: str, block: int | None, main: str
) -> tuple[int, Row]:
    made, derived = given.get(name), condition_of(name).row
    if made is not None:
        if concept not in made:
            raise UserError(f"condition {name}: no vector for concept {concept!r}")
        return row_of(made[concept], block)
    if derived is None:
        raise UserError(f"condition {name}: no vectors were made for it")
    return derived(given[main], concept, block)


def _as_long(row: Row, other: Row) -> Row:
    """`row` with the norm of `other`; zero stays zero."""
    norm = np.linalg.norm(row.astype(np.float64))
    return (row * (np.linalg.norm(other.astype(np.float64)) / norm)).astype(np.float32) if norm else row


def derivable(vectors: Mapping[str, ConceptVector], block: int | None = None) -> list[str]:
    """The conditions that these vectors allow: all but those that need a map, or a second concept."""
    return [entry.name for entry in CONDITIONS if vectors and _possible(entry.name, vectors, block)]


def _possible(name: str, vectors: Mapping[str, ConceptVector], block: int | None) -> bool:
    derived = condition_of(name).row
    if derived is None:
        return False
    try:
        for concept in vectors:
            derived(vectors, concept, block)
    except UserError:
        return False
    return True


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
