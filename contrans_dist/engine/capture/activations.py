"""What a capture returns."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Activations(Mapping[int, np.ndarray]):
    """Captured rows by block: `activations[block]` is float32 `[n_texts, d]`, in the order of the texts."""

    rows: dict[int, np.ndarray]
    n_tokens: np.ndarray
    """int32 `[n_texts]`: tokens that the model saw of each text."""
    token_ids: np.ndarray
    """int32 `[n_texts]`: the token that the row was taken from; -1 for position `mean`."""
    truncated: list[int] = field(default_factory=list)
    """Texts that were longer than the model's context, and lost tokens after their BOS."""
    text_ids: list[str] = field(default_factory=list)
    """Identities of the texts (`texts.text_id`); none where only their token ids were given."""
    n_blocks: int = 0
    """Decoder blocks of the whole model; 0 where only token ids were given."""

    def __getitem__(self, block: int) -> np.ndarray:
        return self.rows[block]

    def __iter__(self) -> Iterator[int]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def norms(self) -> dict[int, float]:
        """Median Euclidean norm of the rows at each block; what `norm: match` needs."""
        return {block: float(np.median(np.linalg.norm(rows, axis=1))) for block, rows in self.rows.items()}

    def take(self, texts: list[int]) -> "Activations":
        """The rows of some texts, given by their indices, in this order, with what is known of them."""
        places = {text: place for place, text in enumerate(texts)}
        return Activations(
            {block: rows[texts] for block, rows in self.rows.items()},
            self.n_tokens[texts],
            self.token_ids[texts],
            [places[text] for text in self.truncated if text in places],
            [self.text_ids[text] for text in texts] if self.text_ids else [],
            self.n_blocks,
        )

    def bad_rows(self) -> list[int]:
        """Texts with a NaN or an infinity in any block."""
        bad = np.zeros(len(self.n_tokens), dtype=bool)
        for rows in self.rows.values():
            bad |= ~np.isfinite(rows).all(axis=1)
        return np.flatnonzero(bad).tolist()

    def first_bad_block(self) -> int | None:
        """The lowest block with a NaN or an infinity."""
        return next((block for block in sorted(self.rows) if not np.isfinite(self.rows[block]).all()), None)
