"""The texts of a shard as token ids: those that a model can run, and those that are left out."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from contrans_dist.config import CaptureSettings
from contrans_dist.data.templates import prompts
from contrans_dist.engine.capture import Activations, truncate
from contrans_dist.engine.capture.batches import parse_position, too_short
from contrans_dist.errors import RunError
from contrans_dist.models import LanguageModel, encode_many, unusable
from contrans_dist.store.manifest import Skipped

_TWO_CANARIES = 256
FATAL = "its process died"
SPOILT = "NaN or infinity, "
"""How reasons begin why a text is left out that only running it shows."""


def canary_rows(rows: int) -> list[int]:
    """The rows, of so many, that are also run alone; that costs a pass each, so a small shard has but one."""
    return [rows // 2] if rows < _TWO_CANARIES else [rows // 3, 2 * rows // 3]


def token_ids(
    lm: LanguageModel, rows: pa.Table, settings: CaptureSettings
) -> tuple[list[list[int]], list[int]]:
    """What is run for each of the texts, and which of them were cut."""
    texts = prompts(rows, settings.template)
    ids = encode_many(lm, texts, settings.chat, settings.chat_date)
    return truncate(lm, ids, settings.max_tokens)


class SpoiltError(RunError):
    """Rows that hold NaN or infinity."""

    def __init__(self, where: str, rows: dict[int, str]) -> None:
        named = ", ".join(map(str, list(rows)[:5]))
        told = next(iter(rows.values())).removeprefix(SPOILT)
        super().__init__(f"{where}: {len(rows)} rows hold NaN or infinity (row {named}; {told})")
        self.where, self.rows = where, rows
        """Why, by number of the row in the input."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.where, self.rows)


def spoilt_rows(rows: pa.Table, captured: Activations) -> dict[int, str]:
    """Why activations of these rows of the input are of no use, by number of the row."""
    bad = captured.bad_rows()
    if not bad:
        return {}
    reason = f"{SPOILT}first at block {captured.first_bad_block()} (try dtype float32 or bfloat16)"
    numbers = rows.column("row").to_pylist()
    return {numbers[row]: reason for row in bad}


@dataclass(frozen=True)
class Runnable:
    """The texts of a shard that can be run."""

    rows: pa.Table
    ids: list[list[int]]
    truncated: frozenset[int] = frozenset()
    """Which of them, by row of the input, were cut."""
    skipped: tuple[Skipped, ...] = ()
    """Those that cannot be run: each of these would fail by itself."""

    @classmethod
    def of(
        cls,
        lm: LanguageModel,
        rows: pa.Table,
        settings: CaptureSettings,
        fatal: Mapping[int, str] = MappingProxyType({}),
    ) -> "Runnable":
        """Of these rows of the input, without the `fatal` ones: why, by number of the row."""
        # Before they are tokenised: that may be what a process dies of.
        left = cls(rows, [[]] * rows.num_rows)._without(fatal)[1]
        ids, cut = token_ids(lm, left.rows, settings)
        position, numbers = parse_position(settings.position), left.rows.column("row").to_pylist()
        reasons = {
            row: unusable(lm, text) or too_short(position, len(text))
            for row, text in zip(numbers, ids, strict=True)
        }
        bad = {row: reason for row, reason in reasons.items() if reason is not None}
        return replace(left, ids=ids, truncated=frozenset(numbers[place] for place in cut))._without(bad)[1]

    def without_spoilt(self, error: SpoiltError) -> "tuple[list[int], Runnable]":
        """The places of the texts that are left, and these alone. Raises the error unless they are more than
        half: only then do they show that the model works."""
        if 2 * len(error.rows) >= len(self.ids):
            raise error
        return self._without(error.rows)

    def _without(self, bad: Mapping[int, str]) -> "tuple[list[int], Runnable]":
        numbers = self.rows.column("row").to_pylist()
        kept = [place for place, row in enumerate(numbers) if row not in bad]
        fresh = [Skipped(row=row, reason=reason) for row, reason in bad.items()]
        return kept, Runnable(
            self.rows if len(kept) == len(numbers) else self.rows.take(pa.array(kept, pa.int64())),
            [self.ids[place] for place in kept],
            self.truncated - set(bad),
            tuple(sorted([*self.skipped, *fresh], key=lambda skipped: skipped.row)),
        )
