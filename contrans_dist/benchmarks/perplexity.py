"""Perplexity of a text in sliding windows: exp of the mean negative log-likelihood of its tokens.

The windows are those of the transformers library's recipe ("Perplexity of fixed-length models"): they start
`stride` tokens apart over the whole text, and each scores the tokens that no window before it has scored. One
thing differs where the tokenizer has a BOS: it stands in front of every window, not of the first alone, since
many models are of no use without it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from contrans_dist.benchmarks.choices import Ids, check_finite, spread
from contrans_dist.benchmarks.hub import dataset_file
from contrans_dist.benchmarks.identity import content_hash
from contrans_dist.benchmarks.statistics import ratio_interval, wilcoxon
from contrans_dist.benchmarks.summary import Estimate, Metric, estimate, summarise
from contrans_dist.benchmarks.windows import Grid, merged, passages, span_of, tokens_of
from contrans_dist.config import PerplexityEvaluation
from contrans_dist.data.text_files import read_document
from contrans_dist.engine.scoring import Intervention, continuation_logprobs
from contrans_dist.errors import UserError
from contrans_dist.models import LanguageModel, encode
from contrans_dist.store.location import Location

_HUB = ("Salesforce/wikitext", "wikitext-2-raw-v1/test-00000-of-00001.parquet")
_REVISION = "b08601e04326c79dfdd32d625aee71d232d685c3"
MOST_WINDOW = 2048
_CHARACTERS = 16
"""More than a token has on average in any text: so much of it is kept for each token of a limit."""
_FIELDS = [
    ("item", pa.string()), ("concept", pa.string()), ("condition", pa.string()), ("strength", pa.float64()),
    ("block", pa.int64()), ("nll", pa.float64()), ("tokens", pa.int64()), ("window", pa.int64()),
    ("stride", pa.int64()),
]  # fmt: skip


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


@dataclass(frozen=True)
class PerplexityBenchmark:
    """A text, cut into passages that are counted together: what is scored does not depend on the cuts."""

    text: str
    starts: tuple[int, ...]
    """Characters at which the passages begin."""
    window: int | None = None
    stride: int | None = None
    limit: int | None = None
    batch_tokens: int = 4096
    name: str = field(default="perplexity", init=False)

    @classmethod
    def load(cls, settings: PerplexityEvaluation) -> "PerplexityBenchmark":
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
        return cls(text, tuple(passages(text)), settings.window, settings.stride, settings.limit)

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

    def score(
        self, lm: LanguageModel, items: Sequence[Passage], interventions: Sequence[Intervention]
    ) -> pa.Table:
        """One row for each intervention and passage.

        Columns: `item`, `concept`, `condition`, `strength`, `block`; `nll`, the negative log-likelihood of
        the passage's tokens (natural logarithm, summed), and how many `tokens` these are (0 beyond the limit,
        or where a token reaches over a whole passage); `window` and `stride` in tokens, the window with what
        stands before the text in it. A window is run once for all passages that have tokens in it, except
        under interventions that have a vector for each item.
        """
        ids, owner = tokens_of(lm.tokenizer, self.text, self.starts)
        ids, owner = ids[: self.limit], owner[: self.limit]
        front = _front(lm, items)
        window, stride = self.sizes(lm, len(front))
        grid = Grid(ids, front, window - len(front), stride)
        spans = [span_of(owner, item.index) for item in items]
        found: dict[int, list[tuple[float, int]]] = {}
        for apart in (False, True):
            chosen = [each for each in interventions if _per_item(each) == apart]
            if chosen:
                values = self._per_token(lm, grid, spans if apart else merged(spans), chosen)
                found |= {id(each): _sums(v, spans) for each, v in zip(chosen, values, strict=True)}
        rows = []
        for each in interventions:
            where = {
                "condition": each.name,
                "strength": float(each.strength),
                "block": each.block,
                "window": window,
                "stride": stride,
            }
            for item, (nll, tokens) in zip(items, found[id(each)], strict=True):
                rows.append({"item": item.id, "concept": item.concept, "nll": nll, "tokens": tokens, **where})
        return pa.Table.from_pylist(rows, schema=pa.schema(_FIELDS))

    def sizes(self, lm: LanguageModel, front: int) -> tuple[int, int]:
        """(window, stride) in tokens for a model, with `front` tokens before each window."""
        window = self.window or min(lm.context or MOST_WINDOW, MOST_WINDOW)
        if lm.context is not None and window > lm.context:
            raise UserError(f"window {window}: the model's context holds {lm.context} tokens")
        stride = self.stride or max(1, window // 2)
        if stride > window - front:
            raise UserError(
                f"stride {stride}: a window of {window} tokens has room for {window - front}, after the "
                f"{front} before the text"
            )
        return window, stride

    def _per_token(
        self,
        lm: LanguageModel,
        grid: Grid,
        runs: Sequence[tuple[int, int]],
        interventions: Sequence[Intervention],
    ) -> list[np.ndarray]:
        """Log-likelihoods of the runs' tokens, for each intervention `[tokens of the text]`, else NaN.

        An intervention with a vector for each item has one for each run.
        """
        pieces = [list(grid.pieces(*run)) for run in runs]
        flat = [piece for each in pieces for piece in each]
        values = [np.full(len(grid.ids), np.nan) for _ in interventions]
        if not flat:
            return values
        scores = continuation_logprobs(
            lm,
            [context for _, context, _ in flat],
            [tokens for _, _, tokens in flat],
            spread(interventions, [len(each) for each in pieces]),
            batch_tokens=self.batch_tokens,
        )
        check_finite(scores, interventions)
        for row, by_piece in zip(values, scores.tokens, strict=True):
            for (start, _, _), logprobs in zip(flat, by_piece, strict=True):
                row[start : start + len(logprobs)] = logprobs
        return values

    def summarise(self, table: pa.Table, reference: str = "vector") -> dict[str, Any]:
        """`conditions`, `reference` and `notes`.

        `perplexity`: exp of the summed negative log-likelihoods over the tokens. `n` counts tokens. The
        interval is bootstrapped over passages; the test is Wilcoxon's, over the passages' mean negative
        log-likelihoods.
        """
        table = table.filter(pc.greater(table.column("tokens"), 0))
        metric = Metric(("nll", "tokens"), _perplexity, _passages_differ)
        sizes = table.group_by(["window", "stride"]).aggregate([]).to_pylist()
        each = table.group_by("item").aggregate([("tokens", "max")])
        total = sum(each.column("tokens_max").to_pylist())
        notes = [
            f"windows of {row['window']} tokens, {row['stride']} apart; {total} tokens of the text are "
            f"scored, in {each.num_rows} passages"
            for row in sorted(sizes, key=lambda row: (row["window"], row["stride"]))
        ]
        return {**summarise(table, {"perplexity": metric}, reference), "notes": notes}


def _front(lm: LanguageModel, items: Sequence[Passage]) -> Ids:
    """What stands before each window: BOS and the like, and the items' common prompt."""
    prompts = {item.prompt for item in items}
    if len(prompts) > 1:
        raise ValueError("passages that are scored together must have the same prompt")
    prompt = prompts.pop() if prompts else ""
    return encode(lm, prompt)


def _per_item(intervention: Intervention) -> bool:
    """Whether it has a vector for each item."""
    return any(np.ndim(vector) == 2 for vector in intervention.vectors.values())


def _sums(values: np.ndarray, spans: Sequence[tuple[int, int]]) -> list[tuple[float, int]]:
    """(negative log-likelihood, tokens scored) of each span."""
    parts = [values[low:high] for low, high in spans]
    return [(-float(np.nansum(part)), int(np.isfinite(part).sum())) for part in parts]


def _perplexity(values: np.ndarray) -> Estimate:
    """From negative log-likelihoods and numbers of tokens, `[n, 2]`."""
    nll, tokens = values[:, 0], values[:, 1]
    low, high = ratio_interval(nll, tokens)
    return estimate(
        np.exp(nll.sum() / tokens.sum()), (float(np.exp(low)), float(np.exp(high))), int(tokens.sum())
    )


def _passages_differ(a: np.ndarray, b: np.ndarray) -> float:
    return wilcoxon(a[:, 0] / a[:, 1], b[:, 0] / b[:, 1])


def _wikitext() -> str:
    """As the recipe joins it: lines with an empty one between them."""
    with dataset_file(*_HUB, _REVISION).open() as source:
        return "\n\n".join(pq.read_table(source, columns=["text"]).column("text").to_pylist())
