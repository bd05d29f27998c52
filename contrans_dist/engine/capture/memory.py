"""Batches that do not fit into a GPU's memory."""

import logging

import torch

from contrans_dist.models import LanguageModel

_log = logging.getLogger(__name__)


def did_not_fit(lm: LanguageModel, tokens: int) -> None:
    """A batch of so many tokens did not: from here on none is tried that is more than half as large. Said
    once a model. To be called outside the handler: only then has the failed batch let go of its memory."""
    torch.cuda.empty_cache()
    if lm.fits is None:
        _log.warning("%s: out of memory at %d tokens a batch; going on with smaller batches", lm.name, tokens)
    lm.fits = tokens // 2
