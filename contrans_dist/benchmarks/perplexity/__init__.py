"""Perplexity of a text in sliding windows: exp of the mean negative log-likelihood of its tokens.

The windows are those of the transformers library's recipe ("Perplexity of fixed-length models"): they start
`stride` tokens apart over the whole text, and each scores the tokens that no window before it has scored. One
thing differs where the tokenizer has a BOS: it stands in front of every window, not of the first alone, since
many models are of no use without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from contrans_dist.benchmarks.base import Benchmark, result_table
from contrans_dist.benchmarks.calls import Continuations
from contrans_dist.benchmarks.identity import content_hash
from contrans_dist.benchmarks.perplexity.windows import Windows, merged, passages, span_of, tokens_of
from contrans_dist.benchmarks.statistics import ratio_interval, wilcoxon
from contrans_dist.benchmarks.summary import Estimate, Metric, estimate
from contrans_dist.config import EvaluationSettings
from contrans_dist.data.text_files import read_document
from contrans_dist.errors import UserError
from contrans_dist.store.location import Location

if TYPE_CHECKING:
    from contrans_dist.engine.scoring import Intervention
    from contrans_dist.models import LanguageModel

_HUB = ("Salesforce/wikitext", "wikitext-2-raw-v1/test-00000-of-00001.parquet")
_REVISION = "b08601e04326c79dfdd32d625aee71d232d685c3"
MOST_WINDOW = 2048
_CHARACTERS = 16
"""More than a token has on average in any text: so much of it is kept for each token of a limit."""
_MOST_NATS = 700.0
"""Of a token, on average: e**710 is no number, and what a ruined model has is above any other."""
_FIELDS = [("nll", pa.float64()), ("tokens", pa.int64()), ("window", pa.int64()), ("stride", pa.int64())]


class PerplexityEvaluation(EvaluationSettings):
    """Perplexity of any text, in sliding windows."""

    benchmark: Literal["perplexity"] = "perplexity"
    window: int | None = Field(None, ge=2)
    """Tokens the model sees at once; None is its context, at most 2,048."""
    stride: int | None = Field(None, ge=1)
    """Tokens between the starts of two windows; None is half a window."""
    limit: int | None = Field(None, ge=2)
    """Only the first tokens of the text."""


@dataclass(frozen=True)
class Passage:
    """A run of the text; its tokens are those that begin in it."""

    id: str
    index: int
    scenario: str
    """Its longest line: by that the leak check knows it again in a corpus of lines."""
    prompt: str = ""
    """What stands before each window."""
    concept: str = ""


def _perplexity(values: np.ndarray) -> Estimate:
    """From negative log-likelihoods and numbers of tokens, `[n, 2]`."""
    nll, tokens = values[:, 0], values[:, 1]
    low, high = ratio_interval(nll, tokens)
    value, low, high = np.exp(np.minimum([nll.sum() / tokens.sum(), low, high], _MOST_NATS)).tolist()
    return estimate(value, (low, high), int(tokens.sum()))


def _passages_differ(a: np.ndarray, b: np.ndarray) -> float:
    return wilcoxon(a[:, 0] / a[:, 1], b[:, 0] / b[:, 1])


@dataclass(frozen=True)
class PerplexityBenchmark(Benchmark[PerplexityEvaluation, Passage]):
    """A text, cut into passages that are counted together: what is scored does not depend on the cuts."""

    text: str
    starts: tuple[int, ...]
    """Characters at which the passages begin."""

    settings_class = PerplexityEvaluation
    metrics = (
        Metric(
            "perplexity", "Perplexity", ("nll", "tokens"), _perplexity, _passages_differ,
            percent=False, higher=False, items="tokens", cost=True,
        ),
    )  # fmt: skip
    noun = "texts"

    @classmethod
    def load(cls, settings: PerplexityEvaluation) -> Self:
        """Read a text file in UTF-8; None is the test split of WikiText-2 from the hub.

        The number of tokens is known to a model's tokenizer alone, so items are passages: of at most 4,096
        characters, ending on a line break where there is one. Raises UserError for an empty or undecodable
        text, or a stride longer than the window; RunError where the hub does not answer.
        """
        if settings.window is not None and settings.stride is not None and settings.stride > settings.window:
            raise UserError(f"stride {settings.stride}: expected at most the window, {settings.window}")
        text = read_document(Location.parse(settings.texts)) if settings.texts else _wikitext()
        if settings.limit is not None:
            text = text[: settings.limit * _CHARACTERS]
        return cls(settings, text, tuple(passages(text)))

    def items(self) -> list[Passage]:
        """Every passage, in the text's order."""
        ends = (*self.starts[1:], len(self.text))
        return [
            Passage(f"passage/{i:05d}", i, max(self.text[start:end].splitlines(), key=len).strip())
            for i, (start, end) in enumerate(zip(self.starts, ends, strict=True))
        ]

    def identity(self) -> dict[str, Any]:
        """The whole text, of which an item holds one line, and where it is cut."""
        return {"text": content_hash([self.text, self.starts])}

    def calls(self, lm: LanguageModel, items: Sequence[Passage]) -> list[Continuations]:
        """The windows over the passages; one is run once for all passages that have tokens in it."""
        return self._over(lm, items, [(0, span) for span in merged(self._spans(lm, items))])

    def calls_apart(self, lm: LanguageModel, items: Sequence[Passage]) -> list[Continuations]:
        """The windows over each passage."""
        return self._over(lm, items, list(enumerate(self._spans(lm, items))))

    def _over(
        self, lm: LanguageModel, items: Sequence[Passage], owned: Sequence[tuple[int, tuple[int, int]]]
    ) -> list[Continuations]:
        """Windows over spans of tokens, each of an item."""
        windows = self._windows(lm, items)
        pieces = [(owner, piece) for owner, span in owned for piece in windows.pieces(*span)]
        if not pieces:
            return []
        contexts = [context for _, (_, context, _) in pieces]
        return [
            Continuations(contexts, [scored for _, (*_, scored) in pieces], [owner for owner, _ in pieces])
        ]

    def score(
        self, lm: LanguageModel, items: Sequence[Passage], interventions: Sequence[Intervention]
    ) -> pa.Table:
        """One row for each intervention and passage.

        Columns besides the common ones: `nll`, the negative log-likelihood of the passage's tokens (natural
        logarithm, summed), and how many `tokens` these are (0 beyond the limit, or where a token reaches over
        a whole passage); `window` and `stride` in tokens, the window with what stands before the text in it.
        """
        windows, spans = self._windows(lm, items), self._spans(lm, items)
        sizes = {"window": windows.room + len(windows.front), "stride": windows.stride}
        rows: list[list[dict[str, Any]]] = [[] for _ in interventions]
        for apart in (False, True):
            chosen = [i for i, intervention in enumerate(interventions) if intervention.per_item == apart]
            values = self._per_token(lm, items, [interventions[i] for i in chosen], apart) if chosen else []
            for i, of_tokens in zip(chosen, values, strict=True):
                parts = [of_tokens[low:high] for low, high in spans]
                rows[i] = [
                    {"nll": -float(np.nansum(part)), "tokens": int(np.isfinite(part).sum()), **sizes}
                    for part in parts
                ]
        return result_table(items, interventions, rows, _FIELDS)

    def _per_token(
        self, lm: LanguageModel, items: Sequence[Passage], interventions: Sequence[Intervention], apart: bool
    ) -> list[np.ndarray]:
        """The tokens' log-likelihoods, for each intervention `[tokens of the text]`; NaN where not scored."""
        windows, spans = self._windows(lm, items), self._spans(lm, items)
        values = [np.full(len(windows.ids), np.nan) for _ in interventions]
        runs = spans if apart else merged(spans)
        starts = [start for span in runs for start, *_ in windows.pieces(*span)]
        for call in self.calls_apart(lm, items) if apart else self.calls(lm, items):
            scores = call.run(lm, items, interventions, self.batch_tokens)
            for row, by_piece in zip(values, scores.tokens, strict=True):
                for start, logprobs in zip(starts, by_piece, strict=True):
                    row[start : start + len(logprobs)] = logprobs
        return values

    def _spans(self, lm: LanguageModel, items: Sequence[Passage]) -> list[tuple[int, int]]:
        """The tokens of each passage, first and one past the last."""
        _, owner = tokens_of(lm.tokenizer, self.text, self.starts)
        return [span_of(owner[: self.settings.limit], item.index) for item in items]

    def _windows(self, lm: LanguageModel, items: Sequence[Passage]) -> Windows:
        """Those of a model over the whole text, behind BOS and the like, and the items' common prompt."""
        from contrans_dist.models import encode

        prompts = {item.prompt for item in items}
        if len(prompts) > 1:
            raise ValueError("passages that are scored together must have the same prompt")
        front = encode(lm, prompts.pop() if prompts else "")
        window = self.settings.window or min(lm.context or MOST_WINDOW, MOST_WINDOW)
        if lm.context is not None and window > lm.context:
            raise UserError(f"window {window}: the model's context holds {lm.context} tokens")
        stride = self.settings.stride or max(1, window // 2)
        if stride > window - len(front):
            raise UserError(
                f"stride {stride}: a window of {window} tokens has room for {window - len(front)}, after the "
                f"{len(front)} before the text"
            )
        ids, _ = tokens_of(lm.tokenizer, self.text, self.starts)
        return Windows(ids[: self.settings.limit], front, window - len(front), stride)

    def summarise(self, table: pa.Table, reference: str = "vector") -> dict[str, Any]:
        """`conditions`, `reference` and `notes`.

        `perplexity`: exp of the summed negative log-likelihoods over the tokens. `n` counts tokens. The
        interval is bootstrapped over passages; the test is Wilcoxon's, over the passages' mean negative
        log-likelihoods.
        """
        table = table.filter(pc.greater(table.column("tokens"), 0))
        sizes = table.group_by(["window", "stride"]).aggregate([]).to_pylist()
        passages = table.group_by("item").aggregate([("tokens", "max")])
        total = sum(passages.column("tokens_max").to_pylist())
        notes = [
            f"windows of {row['window']} tokens, {row['stride']} apart; {total} tokens of the text are "
            f"scored, in {passages.num_rows} passages"
            for row in sorted(sizes, key=lambda row: (row["window"], row["stride"]))
        ]
        return {**super().summarise(table, reference), "notes": notes}


def _wikitext() -> str:
    """As the recipe joins it: lines with an empty one between them."""
    from contrans_dist.benchmarks.hub import dataset_file

    with dataset_file(*_HUB, _REVISION).open() as source:
        return "\n\n".join(pq.read_table(source, columns=["text"]).column("text").to_pylist())
