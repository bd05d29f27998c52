"""What is read off the logits: the next token, and the log-likelihood of a continuation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from contrans_dist.config import BATCH_TOKENS
from contrans_dist.engine.scoring.interventions import Intervention
from contrans_dist.engine.scoring.sharing import run_all
from contrans_dist.errors import UserError
from contrans_dist.models import LanguageModel
from contrans_dist.models.crossing import OnHost, to_device


@dataclass(frozen=True)
class NextToken:
    """The next token after each prompt under each intervention; C interventions, P prompts, W watched."""

    argmax: np.ndarray  # int64 [C, P]
    logits: np.ndarray  # float32 [C, P, W]: of the watched tokens
    logprobs: np.ndarray  # float32 [C, P, W]: natural logarithm, over the whole vocabulary


@dataclass(frozen=True)
class TokenScores:
    """Log-likelihood of each continuation given its prompt; C interventions, P pairs."""

    sums: np.ndarray  # float64 [C, P], natural logarithm
    tokens: list[list[np.ndarray]]  # [C][P] float32, one entry a token of the continuation
    greedy: np.ndarray  # bool [C, P]: at every token's place of the continuation, no other scores higher


@torch.inference_mode()
def next_token(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    interventions: Sequence[Intervention],
    *,
    watch: Sequence[int] | Sequence[Sequence[int]] | np.ndarray,
    batch_tokens: int = BATCH_TOKENS,
    share_prefixes: bool = True,
) -> NextToken:
    """The next token after each prompt, and the logits and log-probabilities of watched tokens.

    Interventions share the blocks below the lowest one that they steer.

    Args:
        lm: The model, with its head.
        prompts: Token ids of each of P prompts.
        interventions: What is done to the model, C times over.
        watch: The token ids that are watched, `[W]`, the same for every prompt, or `[P, W]`.
        batch_tokens: Tokens of a batch, padding and interventions included.
        share_prefixes: Whether what prompts begin with in common is run once.

    Returns:
        `argmax` int64 `[C, P]`, `logits` and `logprobs` (natural logarithm) float32 `[C, P, W]`.

    Raises:
        UserError: For an empty or too long prompt, or a vector that does not fit.
        RunError: Where a single text does not fit into memory.
    """
    wanted = np.asarray(watch, dtype=np.int64)
    ids = torch.as_tensor(np.broadcast_to(wanted, (len(prompts), wanted.shape[-1])).copy())
    shape = (len(interventions), len(prompts))
    argmax = np.zeros(shape, dtype=np.int64)
    logits = np.zeros((*shape, ids.shape[1]), dtype=np.float32)
    logprobs = np.zeros_like(logits)
    runs = run_all(lm, prompts, [1] * len(prompts), interventions, batch_tokens, share_prefixes)
    for members, batch, values in runs:
        index, watch_here = _beside(values, batch.index, ids[batch.texts])
        watched = values[:, index[:, None], watch_here]
        place = np.ix_(members, batch.texts)
        best = values.argmax(dim=2, keepdim=True)
        total = _logsumexp_(values, values.gather(2, best))
        found = _on_host(best[:, index, 0], watched, watched - total[:, index])
        argmax[place], logits[place], logprobs[place] = found
    return NextToken(argmax, logits, logprobs)


@torch.inference_mode()
def distributions(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    interventions: Sequence[Intervention],
    *,
    batch_tokens: int = BATCH_TOKENS,
) -> np.ndarray:
    """The whole distribution of the next token after each prompt.

    Args:
        lm: The model, with its head.
        prompts: Token ids of each of P prompts, few enough that all of it fits into memory.
        interventions: What is done to the model, C times over.
        batch_tokens: Tokens of a batch, padding and interventions included.

    Returns:
        Probabilities, float32 `[C, P, vocabulary]`.

    Raises:
        UserError: For an empty or too long prompt, or a vector that does not fit.
        RunError: Where a single text does not fit into memory.
    """
    rows: dict[tuple[int, int], np.ndarray] = {}
    for members, batch, values in run_all(lm, prompts, [1] * len(prompts), interventions, batch_tokens):
        chances = values.softmax(dim=2)[:, batch.index.to(values.device)].cpu().numpy()
        rows |= {(c, p): chances[i, j] for i, c in enumerate(members) for j, p in enumerate(batch.texts)}
    return np.stack([[rows[c, p] for p in range(len(prompts))] for c in range(len(interventions))])


@torch.inference_mode()
def continuation_logprobs(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    interventions: Sequence[Intervention],
    *,
    batch_tokens: int = BATCH_TOKENS,
    share_prefixes: bool = True,
) -> TokenScores:
    """Log-probability of a continuation after each prompt, token by token and summed.

    Work is shared as in `next_token`: several continuations of one prompt run it once.

    Args:
        lm: The model, with its head.
        prompts: Token ids of each of P prompts.
        continuations: Token ids of what follows each of them.
        interventions: What is done to the model, C times over.
        batch_tokens: Tokens of a batch, padding and interventions included.
        share_prefixes: Whether what prompts begin with in common is run once.

    Returns:
        `sums` float64 `[C, P]` (natural logarithm), and the same of each token of the continuations.

    Raises:
        UserError: For an empty prompt or continuation, a pair longer than the model's context, or a vector
            that does not fit.
        RunError: Where a single text does not fit into memory.
    """
    if len(prompts) != len(continuations):
        raise ValueError(f"{len(prompts)} prompts but {len(continuations)} continuations")
    for p, (prompt, continuation) in enumerate(zip(prompts, continuations, strict=True)):
        if not prompt or not continuation:
            raise UserError(f"pair {p}: prompt and continuation need at least one token each")
    # The last token predicts nothing that is asked for: what is run is everything before it.
    sequences = [[*p, *c[:-1]] for p, c in zip(prompts, continuations, strict=True)]
    lengths = [len(c) for c in continuations]
    tokens = [[np.empty(n, np.float32) for n in lengths] for _ in interventions]
    greedy = np.ones((len(interventions), len(prompts)), dtype=bool)
    runs = run_all(lm, sequences, lengths, interventions, batch_tokens, share_prefixes)
    for members, batch, values in runs:
        spans = [slice(batch.first, min(lengths[p], batch.first + len(batch.index))) for p in batch.texts]
        here = list(zip(batch.texts, spans, strict=True))
        targets = torch.tensor([t for p, span in here for t in continuations[p][span]])
        scores, best = _score_targets(values, *_beside(values, batch.index, targets))
        ends = np.cumsum([span.stop - span.start for span in spans])[:-1]
        for row, c in enumerate(members):
            parts = np.split(scores[row], ends), np.split(best[row], ends)
            for (p, span), part, hit in zip(here, *parts, strict=True):
                tokens[c][p][span] = part
                greedy[c, p] &= hit.all()
    sums = np.array([[part.sum(dtype=np.float64) for part in row] for row in tokens])
    return TokenScores(sums.reshape(greedy.shape), tokens, greedy)


def _score_targets(values: Tensor, index: Tensor, targets: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """From logits `[C, U, V]`: each target's log-probability `[C, N]` at the place `index` names for it, and
    whether it scores highest there."""
    chosen = values[:, index, targets]
    best = values.amax(dim=2, keepdim=True)
    hits = chosen >= best[:, index, 0]
    scores, hit = _on_host(chosen - _logsumexp_(values, best)[:, index, 0], hits)
    return scores, hit


def _beside(values: Tensor, *tensors: Tensor) -> list[Tensor]:
    """Tensors on the device of the logits; the host does not wait."""
    return [to_device(tensor, values.device) for tensor in tensors]


def _on_host(*tensors: Tensor) -> list[np.ndarray]:
    """Tensors of one device, which are on their way before the host waits for the first."""
    return [each.tensor().numpy() for each in [OnHost(tensor) for tensor in tensors]]


def _logsumexp_(values: Tensor, largest: Tensor) -> Tensor:
    """log of the sum of exp over the last dimension, `[C, U, 1]`, given its largest; overwrites `values`.

    In place, as a copy of a pass's logits costs more than the sum: tens of megabytes, new to the process.
    """
    return values.sub_(largest).exp_().sum(dim=2, keepdim=True).log_().add_(largest)
