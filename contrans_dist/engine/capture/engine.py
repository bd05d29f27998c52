"""The loop over batches."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial

import numpy as np

from contrans_dist.config import BATCH_TOKENS, CHAT_DATE
from contrans_dist.console import tell
from contrans_dist.data.texts import text_id
from contrans_dist.engine.capture.activations import Activations
from contrans_dist.engine.capture.batches import Position, Prepared, chosen_blocks, prepare, truncate
from contrans_dist.engine.capture.gather import Gatherer, Landing
from contrans_dist.engine.prefixes import Group, Row, Trunk, pack, plan_for
from contrans_dist.errors import RunError
from contrans_dist.models import LanguageModel, encode_many
from contrans_dist.models.devices import out_of_memory


def _run(lm: LanguageModel, groups: Sequence[Group], texts: Prepared, landing: Landing) -> None:
    """Runs the batches in order; once one has not fitted into memory, those as large are cut first."""
    ids, wanted = texts.ids, [[token] for token in texts.tokens]
    done = 0
    with Gatherer(lm, list(landing.arrays), texts.mean) as gatherer:
        for group in groups:
            group, trunk = _with_trunk(gatherer, group, ids)
            queue = deque(group.batches)
            while queue:
                batch = queue.popleft()
                size = len(batch) * batch[0].length
                smaller = _smaller(batch, ids, len(group.trunk))
                if lm.fits is not None and size > lm.fits and smaller:
                    queue.extendleft(reversed(smaller))
                    continue
                packed = pack(batch, ids, wanted, len(group.trunk))
                try:
                    landing.add(packed.texts, gatherer.run(packed, trunk), gatherer.ahead)
                    done += len(packed.texts)
                    tell(done / len(ids))
                    continue
                except RuntimeError as error:
                    if not out_of_memory(error):
                        raise
                    if not smaller:
                        raise RunError(
                            f"text {batch[0].texts[0]}: its {size} tokens alone do not fit into memory"
                        ) from error
                # Only here, after the exception, has the failed batch let go of its memory.
                lm.did_not_fit(size)
                queue.appendleft(batch)


def _with_trunk(gatherer: Gatherer, group: Group, ids: list[list[int]]) -> tuple[Group, Trunk | None]:
    """The group and its trunk, which has run; where that did not fit, each text by itself and no trunk."""
    if not group.trunk:
        return group, None
    try:
        return group, gatherer.trunk(group.trunk)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
    gatherer.lm.did_not_fit(len(group.trunk))
    return group.alone(ids), None


def _smaller(batch: list[Row], ids: list[list[int]], trunk: int) -> list[list[Row]]:
    """The batch in two halves, or one row's texts each in a row of its own; empty for a single text."""
    if len(batch) > 1:
        half = (len(batch) + 1) // 2
        return [batch[:half], batch[half:]]
    texts = batch[0].texts
    return [[Row((i,), len(ids[i]) - trunk)] for i in texts] if len(texts) > 1 else []


@dataclass
class Queued:
    """Texts whose batches a device has been given, and whose rows come to the host as it is through them."""

    landing: Landing
    texts: Prepared
    again: Callable[[list[int]], Activations] | None
    """Captures the texts of these numbers each by itself; None where that would give nothing else."""

    def land(self, run: Callable[[Callable[[], Activations]], Activations] | None = None) -> Activations:
        """The rows, once they are there. `run`: what calls what has the model run again, where that must not
        be done here. Raises as `capture_ids`."""
        self.landing.land()
        captured = self.texts.activations(self.landing.arrays)
        # A NaN reaches what is in the same row through the mask (0 times NaN): each of those again by itself.
        spoilt = captured.bad_rows() if self.again else []
        if self.again and spoilt:
            work = partial(self.again, spoilt)
            for block, rows in (run(work) if run else work()).items():
                captured[block][spoilt] = rows
        return captured


def queue_ids(
    lm: LanguageModel,
    ids: list[list[int]],
    blocks: Sequence[int] | str | None = None,
    position: Position = "last",
    batch_tokens: int = BATCH_TOKENS,
    share_prefixes: bool = True,
) -> Queued:
    """`capture_ids` without the wait for the rows: a device, or several, can be given more meanwhile."""
    chosen = chosen_blocks(lm, blocks)
    texts = prepare(lm, ids, position)
    landing = Landing(chosen, len(ids), lm.d)
    sharing = share_prefixes and not texts.mean
    largest = lm.largest_batch(batch_tokens)
    groups = plan_for(lm, texts.ids, texts.tokens, largest, head=False, share=sharing)
    _run(lm, groups, texts, landing)

    def again(spoilt: list[int]) -> Activations:
        alone = [ids[i] for i in spoilt]
        return capture_ids(lm, alone, chosen, position, batch_tokens, share_prefixes=False)

    return Queued(landing, texts, again if sharing else None)


def capture_ids(
    lm: LanguageModel,
    ids: list[list[int]],
    blocks: Sequence[int] | str | None = None,
    position: Position = "last",
    batch_tokens: int = BATCH_TOKENS,
    share_prefixes: bool = True,
) -> Activations:
    """The residual stream of texts given as token ids, one row a text.

    Args:
        lm: The model.
        ids: Token ids of each text.
        blocks: As in `capture`.
        position: As in `capture`.
        batch_tokens: Tokens of a batch, padding included; on a CPU at most `CPU_TOKENS`. On a GPU, batches
            are halved from where one does not fit into memory.
        share_prefixes: Whether what texts begin with in common is run once, where the model can (see
            `prefixes`).

    Returns:
        `{block: float32 [n_texts, d]}`; NaN and infinity are left for the caller to find (`bad_rows`).

    Raises:
        UserError: For a block that is not loaded, and for a text without tokens, too short for `position` or
            longer than the context.
        RunError: Where a single text does not fit into memory.
    """
    return queue_ids(lm, ids, blocks, position, batch_tokens, share_prefixes).land()


def capture(
    lm: LanguageModel,
    texts: Sequence[str],
    blocks: Sequence[int] | str | None = None,
    position: Position = "last",
    batch_tokens: int = BATCH_TOKENS,
    chat: bool = False,
    chat_date: date = CHAT_DATE,
) -> Activations:
    """The residual stream as each block returns it, one row a text.

    Args:
        lm: The model, as `load_model` gives it.
        texts: Any number; one longer than the model's context loses tokens at its beginning.
        blocks: Numbers, a specification as in `resolve_blocks`, or None for all that are loaded.
        position: The token of the row: `last`, `mean`, or an offset such as -2.
        batch_tokens: At most so many tokens, padding included, run at once.
        chat: Whether each text is a user's turn in the tokenizer's chat template.
        chat_date: The day that the template is told.

    Returns:
        `{block: float32 [n_texts, d]}`, with what is known of the texts.

    Raises:
        UserError: For unusable input.
        RunError: For NaN or infinity.

    Example:
        >>> rows = capture(load_model("demo:source"), ["the boy was happy"], blocks="0.75")
    """
    ids, cut = truncate(lm, encode_many(lm, texts, chat, chat_date))
    activations = capture_ids(lm, ids, blocks, position, batch_tokens)
    bad = activations.bad_rows()
    if bad:
        rows = ", ".join(map(str, bad[:10])) + (f" and {len(bad) - 10} more" if len(bad) > 10 else "")
        raise RunError(
            f"NaN or infinity in the rows of texts {rows}, first at block {activations.first_bad_block()}"
            f" ({lm.dtype}); try another --dtype"
        )
    ours = [text_id(text) for text in texts]
    return replace(activations, truncated=cut, text_ids=ours, n_blocks=lm.n_blocks)


def deviation(rows: Mapping[int, np.ndarray], reference: Mapping[int, np.ndarray]) -> float:
    """Worst max|a - b| / max|a| over a row, between rows `{block: [n_texts, d]}` and a reference."""
    worst = 0.0
    for block, values in rows.items():
        scale = np.abs(reference[block]).max(axis=1, initial=0).clip(min=np.finfo(np.float32).tiny)
        deviations = np.abs(values - reference[block]).max(axis=1, initial=0) / scale
        worst = max(worst, float(deviations.max(initial=0)))
    return worst
