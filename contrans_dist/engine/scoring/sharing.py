"""Prompts under interventions, which share what is below them, and prompts how they begin.

What many prompts begin with is run as a trunk (`prefixes`): once below the steered block, and above it once
for each intervention that adds the same to all prompts. Above its block, one with a vector for each prompt
shares nothing but what prompts with the same vector begin with.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from contrans_dist.console import tell
from contrans_dist.engine.prefixes import Packed, Row, can_share, limits_of, plan_for
from contrans_dist.engine.scoring.forward import Offsets
from contrans_dist.engine.scoring.interventions import Intervention, checked_offsets, same_rows
from contrans_dist.engine.scoring.runner import Runner, Texts
from contrans_dist.errors import RunError
from contrans_dist.models import LanguageModel
from contrans_dist.models.devices import out_of_memory


def run_all(
    lm: LanguageModel,
    sequences: Sequence[Sequence[int]],
    wanted: Sequence[int],
    interventions: Sequence[Intervention],
    batch_tokens: int,
    share_prefixes: bool = True,
) -> Iterator[tuple[list[int], Packed, Tensor]]:
    """Every sequence under every intervention: (interventions, batch, float32 logits `[C, U, vocabulary]`) at
    the last `wanted[i]` positions of sequence i, those of several sequences once (`Packed.index`). Those of a
    long text come some at a time (`Packed.first`); where memory ran out, some may come again.

    Each batch runs once up to the steered blocks, then once more from there for as many interventions as fit
    `batch_tokens` together. The logits stay on the device. To be consumed in inference mode: entered here, a
    consumer's exception would leave it on. Raises as `checked_offsets`, and RunError where a single text does
    not fit into memory.
    """
    if lm.model.training:
        raise ValueError("the model is in training mode: call model.eval(), else dropout makes scores random")
    offsets = checked_offsets(lm, interventions, sequences)
    if not offsets:
        return
    batch_tokens = lm.largest_batch(batch_tokens)
    places = [range(len(text) - n, len(text)) for text, n in zip(sequences, wanted, strict=True)]
    own_from = [place.start for place in places]
    alike, limits = same_rows(offsets), limits_of(lm, batch_tokens, head=True)
    share_prefixes = share_prefixes and all(can_share(guide, head=True) for guide in lm.guides or ())
    done, whole = 0, len(offsets) * sum(wanted)
    for group in plan_for(lm, sequences, own_from, batch_tokens, head=True, share=share_prefixes):
        texts = Texts(sequences, places, group, alike, limits)
        for members, batch, values in _of_group(lm, texts, offsets):
            yield members, batch, values
            done += len(members) * len(batch.index)
            tell(min(1.0, done / whole))


_Run = tuple[list[int], Packed, Tensor]
"""Interventions, batch, logits `[C, U, vocabulary]`."""


def _of_group(lm: LanguageModel, texts: Texts, offsets: Sequence[Offsets]) -> Iterator[_Run]:
    """A group of prompts under all interventions. Where a GPU has not the memory for the trunk's keys and
    values, under half of the interventions and then the others; at last without the trunk."""
    left, models = deque(texts.group.batches), (lm, *(lm.guides or ()))
    before = [model.fits for model in models]
    try:
        yield from _through(lm, texts, offsets, left)
        return
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        if not texts.group.shares:
            longest = max(len(texts.sequences[i]) for rows in left for row in rows for i in row.texts)
            raise RunError(f"a text of {longest} tokens alone does not fit into memory") from error
    rest = replace(texts.group, batches=list(left))
    # Only here, after the exception, is the memory free again.
    if not rest.trunk or len(offsets) == 1:
        lm.did_not_fit(len(rest.trunk) + rest.batches[0][0].length)
        yield from _of_group(lm, replace(texts, group=rest.alone(texts.sequences)), offsets)
        return
    # What was kept left no room: under fewer interventions it does, for passes as large as before.
    torch.cuda.empty_cache()
    for model, fits in zip(models, before, strict=True):
        model.fits = fits
    numbers, half = range(len(offsets)), len(offsets) // 2
    for some in (numbers[:half], numbers[half:]):
        of_half = _of_group(lm, replace(texts, group=rest), offsets[some.start : some.stop])
        yield from (([some[i] for i in members], batch, values) for members, batch, values in of_half)


def _through(
    lm: LanguageModel, texts: Texts, offsets: Sequence[Offsets], left: deque[list[Row]]
) -> Iterator[_Run]:
    """The same with what memory there is; each batch leaves `left` when it is done."""
    runner = Runner(lm, texts, texts.in_common(offsets))
    guiding = [Runner(guide, texts, [{}]) for guide in lm.guides or ()]
    while left:
        for batch, runs in runner.run(left[0]):
            pieces: list[tuple[Packed, range | None]]
            pieces = [(batch.positions_of(some), some) for some in texts.pieces(batch)] or [(batch, None)]
            of_guides = [guide.unsteered(batch) for guide in guiding]
            for members, found in runs:
                for part, places in pieces:
                    values = runner.logits_of(found, places)
                    if guiding:
                        pairs = zip(guiding, of_guides, strict=True)
                        _guide(values, *(guide.logits_of(given, places) for guide, given in pairs))
                    yield members, part, values
        left.popleft()


def _guide(values: Tensor, tuned: Tensor, plain: Tensor) -> None:
    """Adds to logits those of a tuned model less those of the plain one, for proxy-tuning."""
    # A head may be padded beyond the vocabulary.
    width = min(each.shape[-1] for each in (values, tuned, plain))
    values[..., :width] += (tuned[..., :width] - plain[..., :width].to(tuned.device)).to(values.device)
