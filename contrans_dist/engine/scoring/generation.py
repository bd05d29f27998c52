"""Steered generation in batches with a cache; interventions are rows of one batch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from contrans_dist.console import tell
from contrans_dist.engine.scoring.interventions import BASE, Intervention, check_sound, checked_offsets
from contrans_dist.engine.steer import added
from contrans_dist.models import After, LanguageModel
from contrans_dist.models.devices import out_of_memory
from contrans_dist.models.tokens import Alone

BATCH_SIZE = 32
"""Texts that are continued together, where nothing else is said."""


def generate(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    interventions: Sequence[Intervention] = (BASE,),
    *,
    max_new_tokens: int = 64,
    batch_size: int = BATCH_SIZE,
    temperature: float = 0.0,
    seed: int = 0,
    until: Sequence[str] = (),
    alone: bool = False,
) -> list[list[str]]:
    """The texts that continue each prompt under each intervention.

    The model's own sampling defaults are not used. A batch that does not fit into memory is halved.

    Args:
        lm: The model, with its head.
        prompts: Token ids of each of P prompts.
        interventions: What is done to the model, C times over.
        max_new_tokens: Tokens of a continuation at most.
        batch_size: Texts that are continued together.
        temperature: 0 is greedy and does not depend on the batch; above 0, tokens are drawn from the whole
            softmax, and which texts share a batch does matter.
        seed: Of what is drawn.
        until: A text ends once it holds one of these strings, which stays in it; what of it stands in the
            prompt does not count.
        alone: Whether texts are decoded as lm-evaluation-harness reads its own models' texts: without the
            prompt, and with the token that ends them, where that is shown.

    Returns:
        `[C][P]` texts without their prompts.

    Raises:
        UserError: For an empty prompt, one that leaves no room in the context, or a vector that does not fit.
        RunError: Where a text's logits are no numbers.

    Example:
        >>> lm = load_model("demo:source")
        >>> generate(lm, [[5, 6, 7]], max_new_tokens=8)
    """
    offsets = checked_offsets(lm, interventions, prompts, max_new_tokens)
    if lm.split_at and max(map(len, prompts), default=0) + max_new_tokens > lm.split_at:
        batch_size = 1  # such a model's rotary frequencies would depend on the longest text of the batch
    pairs = [
        (c, p)
        for p in sorted(range(len(prompts)), key=lambda p: -len(prompts[p]))
        for c in range(len(offsets))
    ]
    texts = [[""] * len(prompts) for _ in offsets]
    until = [stop for stop in until if stop]
    pad = _padding(prompts, int(lm.config.vocab_size))
    with _plain_sampling(lm, max_new_tokens, temperature, pad), _seeded(lm.device, seed) as drawing:
        start = 0
        while start < len(pairs):
            chunk = pairs[start : start + batch_size]
            steered = [
                {k: row[p] if row.ndim == 2 else row for k, row in offsets[c].items()} for c, p in chunk
            ]
            new, states = None, [generator.get_state() for generator in drawing]
            told = partial(_tell, start / len(pairs), len(chunk) / len(pairs) / max_new_tokens)
            try:
                new = _continue(lm, [prompts[p] for _, p in chunk], steered, until, pad, alone, told)
            except RuntimeError as error:  # what keys and values take grows with every token
                if len(chunk) == 1 or not out_of_memory(error):
                    raise
            if new is None:  # only here, outside the handler, whose traceback held the tensors
                torch.cuda.empty_cache()
                for generator, state in zip(drawing, states, strict=True):
                    generator.set_state(state)
                batch_size = len(chunk) // 2
                continue
            written, sound = new
            check_sound([interventions[c] for c, _ in chunk], sound)
            for (c, p), text in zip(chunk, written, strict=True):
                texts[c][p] = text
            start += len(chunk)
    return texts


def _continue(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    offsets: Sequence[Mapping[int, Tensor]],
    until: Sequence[str],
    pad: int,
    alone: bool,
    told: Callable[[int], None],
) -> tuple[list[str], list[bool]]:
    """The texts that follow left-padded prompts, row i steered by `offsets[i]`, and whether the logits of
    each are numbers; `told` how many tokens."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.as_tensor(prompt, dtype=torch.int64)
        mask[row, width - len(prompt) :] = 1
    blocks = sorted({k for vectors in offsets for k in vectors})
    rows = {k: torch.stack([vectors.get(k, torch.zeros(lm.d)) for vectors in offsets]) for k in blocks}
    with torch.inference_mode(), added(lm.blocks, rows):
        finite = _Finite()
        processors = LogitsProcessorList([*([_Guides(*lm.guides, mask)] if lm.guides else []), finite])
        after = [Alone(lm.tokenizer) if alone else After(lm.tokenizer, prompt) for prompt in prompts]
        stops = _Stops(after, until, width)
        out = lm.model.generate(
            input_ids=ids.to(lm.device),
            attention_mask=mask.to(lm.device),
            logits_processor=processors,
            stopping_criteria=StoppingCriteriaList([_Told(told, width), *([stops] if until else [])]),
        )
    ends = _end_ids(lm)
    texts, sound = [], []
    for row, (new, numbers) in enumerate(zip(out[:, width:].tolist(), finite.by_row(), strict=True)):
        new = new[: stops.lengths[row]]
        end = next((i for i, token in enumerate(new) if token in ends), len(new))
        texts.append(after[row].text(new[: end + alone]))
        sound.append(all(numbers[: end + 1]))  # what follows its end is padding
    return texts, sound


def _tell(before: float, of_token: float, tokens: int) -> None:
    tell(before + of_token * tokens)


class _Told(StoppingCriteria):
    """Stops nothing; says after each step how many tokens are written."""

    def __init__(self, told: Callable[[int], None], width: int) -> None:
        self.told, self.width = told, width

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        self.told(input_ids.shape[1] - self.width)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class _Stops(StoppingCriteria):
    """Ends each row once what follows its prompt, special tokens shown, holds one of the strings."""

    def __init__(self, after: Sequence[After | Alone], until: Sequence[str], width: int) -> None:
        self.after, self.until, self.width = after, until, width
        self.lengths: list[int | None] = [None] * len(after)
        """New tokens of each row that has ended."""

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        for row, new in enumerate(input_ids[:, self.width :].tolist()):
            if self.lengths[row] is None:
                text = self.after[row].text(new, special=True)
                if any(stop in text for stop in self.until):
                    self.lengths[row] = len(new)
        return torch.tensor([length is not None for length in self.lengths], device=input_ids.device)


class _Guides(LogitsProcessor):
    """Proxy-tuning while generating: each step's logits + (tuned - plain), the two models with caches."""

    def __init__(self, tuned: LanguageModel, plain: LanguageModel, mask: Tensor) -> None:
        self.guides, self.mask = (tuned, plain), mask
        self.caches: list[Any] = [None, None]
        self.seen = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        new = input_ids[:, self.seen :]
        self.seen = input_ids.shape[1]
        grown = self.seen - self.mask.shape[1]
        mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), grown)], dim=1)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -new.shape[1] :]
        logits = []
        for which, guide in enumerate(self.guides):
            arguments, takes = {"input_ids": new, "attention_mask": mask}, signature(guide.model.forward)
            # Models without this argument count positions from the mask.
            if "position_ids" in takes.parameters:
                arguments["position_ids"] = positions
            output = guide.model(
                **{name: tensor.to(guide.device) for name, tensor in arguments.items()},
                **guide.keeping(self.caches[which]),
                # A prompt's logits at every token can be far larger than all else.
                **({"logits_to_keep": 1} if "logits_to_keep" in takes.parameters else {}),
            )
            self.caches[which] = output[guide.cache_name]
            logits.append(output.logits[:, -1].float().to(scores.device))
        width = min(scores.shape[-1], *(tensor.shape[-1] for tensor in logits))
        guided = scores.clone()
        guided[:, :width] += logits[0][:, :width] - logits[1][:, :width]
        return guided


class _Finite(LogitsProcessor):
    """Keeps, step by step, whether each row's logits are numbers. Others make way for zeros: tokens cannot be
    drawn from them, and on a GPU the attempt would end the process."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        finite = scores.amax(dim=1).isfinite()
        self.steps.append(finite)
        return scores.masked_fill_(~finite[:, None], 0.0)

    def by_row(self) -> list[list[bool]]:
        """`[rows][tokens]`."""
        return torch.stack(self.steps, dim=1).tolist()  # type: ignore[no-any-return]


@contextmanager
def _plain_sampling(lm: LanguageModel, max_new_tokens: int, temperature: float, pad: int) -> Iterator[None]:
    """Put a generation config in place that knows only what is asked for here, and the model's end tokens."""
    before = lm.model.generation_config
    chosen = GenerationConfig(
        max_new_tokens=max_new_tokens,
        pad_token_id=pad,
        eos_token_id=sorted(_end_ids(lm)) or None,
        bos_token_id=before.bos_token_id,
        **({"do_sample": True, "temperature": temperature, "top_k": 0} if temperature > 0 else {}),
    )
    lm.model.generation_config = chosen
    try:
        yield
    finally:
        lm.model.generation_config = before


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[list[torch.Generator]]:
    """Numbers drawn on the CPU and on the model's device, by these generators, follow from the seed; no other
    GPU is touched, and what is drawn elsewhere later is what it would have been."""
    gpus = [device.index] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        generators = [torch.default_generator, *(torch.cuda.default_generators[gpu] for gpu in gpus)]
        for generator in generators:
            generator.manual_seed(seed)
        yield generators


def _padding(prompts: Sequence[Sequence[int]], vocabulary: int) -> int:
    """A token to fill up with, which is masked: the tokenizer's own may lie beyond the embeddings. No prompt
    ends with it, as transformers would warn of padding on the right."""
    ends = {prompt[-1] for prompt in prompts}
    return next((token for token in range(vocabulary) if token not in ends), 0)


def _end_ids(lm: LanguageModel) -> set[int]:
    """The tokens that end a text, by the model's generation config, else by the tokenizer."""
    ends = getattr(lm.model.generation_config, "eos_token_id", None)
    if ends is None:
        ends = getattr(lm.tokenizer, "eos_token_id", None)
    return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)
