"""Steered scoring and generation: our engines over a loop of single prompts and strengths."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import torch

from contrans_dist.engine.scoring import Intervention, continuation_logprobs, generate, next_token
from contrans_dist.models import LanguageModel
from speed.common import REAL_TEXTS, SHAPES, Bench, Row, max_error

_STRENGTHS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5)
_QUESTIONS, _THEIR_PROMPTS, _THEIR_CHOICES = 100, 24, 60
_COMPARED = 12
"""Prompts, and choices, whose numbers are compared at every strength."""
_GENERATED, _NEW_TOKENS = 32, 24


def rows(bench: Bench) -> Iterator[Row]:
    lm = bench.model(bench.dtypes[0])
    block = 3 * len(lm.blocks) // 4
    vector = torch.randn(lm.d, generator=torch.Generator().manual_seed(1)).numpy()
    steered = [Intervention("vector", {block: vector}, strength) for strength in _STRENGTHS]
    prompts = _emotion_prompts(bench)[: 12 if bench.quick else None]
    yield _next_tokens(bench, lm, "emotion-sweep", prompts, steered)
    own = np.random.default_rng(2).standard_normal((len(prompts), lm.d)).astype(np.float32)
    yield _next_tokens(bench, lm, "own-directions", prompts, [Intervention("random", {block: own}, 1.0)])
    yield from _mc1(bench, lm, steered)
    yield _generation(bench, lm, block)


def _tokens(bench: Bench, text: str, numbers: dict[str, int]) -> list[int]:
    """One token a word, mark or line break, numbered as they come."""
    words = re.findall(r"\w+|[^\w ]", text)
    room = SHAPES[bench.shape].vocabulary - 3
    return [1, *(3 + numbers.setdefault(word, len(numbers)) % room for word in words)]


@contextmanager
def _hooked(lm: LanguageModel, steering: Intervention) -> Iterator[None]:
    """A plain forward hook that adds the vector at its block, as the papers' code has it."""
    (block, vector), strength = next(iter(steering.vectors.items())), steering.strength
    added = (strength * torch.as_tensor(vector)).to(device=lm.device, dtype=lm.dtype)

    def hook(_module: Any, _args: Any, output: Any) -> Any:
        return output + added if isinstance(output, torch.Tensor) else (output[0] + added, *output[1:])

    handle = lm.blocks[block].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _loop_logits(lm: LanguageModel, ids: Sequence[int], steering: Intervention) -> torch.Tensor:
    """[tokens, vocabulary]: one prompt through the whole model, a hook adding the vector at its block."""
    with torch.no_grad(), _hooked(lm, steering):
        logits = lm.model(input_ids=torch.tensor([ids], device=lm.device)).logits[0]
    return logits.float()


# -- next token -------------------------------------------------------------------------------------


def _emotion_prompts(bench: Bench) -> list[list[int]]:
    """400 prompts of the ConTrans evaluation of one emotion: 200 scenarios of it and 200 of others, all after
    the same six examples; made up to the same lengths where the data are not there."""
    path = REAL_TEXTS / "emotions" / "contrans" / "eval_anger.json"
    numbers: dict[str, int] = {}
    if path.exists():
        content = json.loads(path.read_text())
        texts = [text for part in content.values() for text in part][:400]
        return [_tokens(bench, text, numbers) for text in texts]
    shots = " ".join(f"example {i} of a prompt that all of them share ." for i in range(28))
    return [_tokens(bench, f"{shots} scenario {i} happens to you . It is", numbers) for i in range(400)]


def _of_prompt(steering: Intervention, p: int) -> Intervention:
    """The same, of a vector for each prompt that of prompt p."""
    return replace(steering, vectors={k: v[p] if v.ndim == 2 else v for k, v in steering.vectors.items()})


def _next_tokens(
    bench: Bench, lm: LanguageModel, name: str, prompts: list[list[int]], steered: list[Intervention]
) -> Row:
    watch = [5, 17, 29, 41, 53, 65]
    few = range(0, len(prompts), max(1, len(prompts) // _THEIR_PROMPTS))[:_THEIR_PROMPTS]

    def ours() -> Any:
        return next_token(lm, prompts, steered, watch=watch)

    def theirs() -> None:
        for p in few:
            _loop_logits(lm, prompts[p], _of_prompt(steered[-1], p))[-1][watch].cpu().numpy()

    found = next_token(lm, prompts, steered, watch=watch)
    compared = range(0, len(prompts), max(1, len(prompts) // _COMPARED))[:_COMPARED]
    loop = torch.stack(
        [
            torch.stack([_loop_logits(lm, prompts[p], _of_prompt(each, p))[-1].cpu() for p in compared])
            for each in steered
        ]
    )
    logits = found.logits[:, compared]
    same = same_argmax(found.argmax[:, compared], loop, np.abs(logits - loop[:, :, watch].numpy()).max())
    error = max(max_error([logits], [loop[:, :, watch]]), 1.0 - float(same.mean()))
    taken = bench.compare({"ours": ours, "theirs": theirs}, min(bench.repeats, 3))
    whole = taken["theirs"] * len(prompts) / len(few) * len(steered)
    return Row(
        "evaluate",
        f"evaluate/{name}",
        whole / taken["ours"],
        taken["ours"],
        whole,
        "seconds",
        error,
        f"{len(prompts)} prompts of {np.mean([len(ids) for ids in prompts]):.0f} tokens, {len(steered)} "
        f"interventions; the loop measured on {len(few)} at one; {same.sum()} of {same.size} arg-max equal "
        "but for rounding",
    )


def same_argmax(argmax: np.ndarray, loop: torch.Tensor, rounding: float) -> np.ndarray:
    """Where the most likely tokens `[C, P]` are those of the loop's logits `[C, P, vocabulary]`, or its two
    most likely ones lie no further apart than two logits that are each off by `rounding`."""
    (first, second), likeliest = loop.topk(2).values.unbind(-1), loop.argmax(-1).numpy()
    return np.asarray((argmax == likeliest) | ((first - second).numpy() <= 2 * rounding))


# -- multiple choice ----------------------------------------------------------------------------------


def _questions(bench: Bench) -> list[tuple[list[int], list[list[int]]]]:
    """(question, choices) of TruthfulQA MC1, spread over the 817."""
    numbers: dict[str, int] = {}
    path = REAL_TEXTS / "truthfulqa" / "mc_task.json"
    if path.exists():
        records = json.loads(path.read_text())
        records = records[:: max(1, len(records) // _QUESTIONS)][:_QUESTIONS]
    else:
        choice = "the answer number {} to this question is one that some people give".format
        records = [
            {"question": f"what happens if you do thing {i} ?", "mc1_targets": list(map(choice, range(5)))}
            for i in range(_QUESTIONS)
        ]
    if bench.quick:
        records = records[:4]
    return [
        (
            _tokens(bench, f"[INST] {record['question']} [/INST]", numbers),
            [_tokens(bench, text, numbers)[1:] for text in record["mc1_targets"]],
        )
        for record in records
    ]


def _mc1(bench: Bench, lm: LanguageModel, steered: list[Intervention]) -> Iterator[Row]:
    pairs = [(question, choice) for question, choices in _questions(bench) for choice in choices]
    prompts, choices = [list(part) for part in zip(*pairs, strict=True)]
    few = pairs[:: max(1, len(pairs) // _THEIR_CHOICES)][:_THEIR_CHOICES]

    def loop(some: Sequence[tuple[list[int], list[int]]], steering: Intervention) -> list[float]:
        found = []
        for question, choice in some:
            scores = _loop_logits(lm, [*question, *choice], steering).log_softmax(-1)
            places = torch.arange(len(question) - 1, len(question) + len(choice) - 1, device=scores.device)
            found.append(float(scores[places, torch.tensor(choice, device=scores.device)].sum()))
        return found

    def theirs() -> list[float]:
        return loop(few, steered[1])

    found = continuation_logprobs(lm, prompts, choices, steered)
    compared = range(0, len(pairs), max(1, len(pairs) // _COMPARED))[:_COMPARED]
    wanted = [loop([pairs[p] for p in compared], each) for each in steered]
    error = max_error([found.sums[:, compared]], [wanted])
    for name, interventions in (("mc1", steered[1:2]), ("mc1-sweep", steered)):

        def ours(given: list[Intervention] = interventions) -> Any:
            return continuation_logprobs(lm, prompts, choices, given)

        taken = bench.compare({"ours": ours, "theirs": theirs}, min(bench.repeats, 3))
        whole = taken["theirs"] * len(pairs) / len(few) * len(interventions)
        yield Row(
            "evaluate",
            f"evaluate/{name}",
            whole / taken["ours"],
            taken["ours"],
            whole,
            "seconds",
            error,
            f"{len(pairs)} choices, {len(interventions)} strengths; the loop measured on {len(few)} at one",
        )


# -- generation ---------------------------------------------------------------------------------------


class Numbers:
    """What generation needs of a tokenizer."""

    pad_token_id, eos_token_id = 0, None

    def decode(self, ids: list[int], skip_special_tokens: bool = True, **_: Any) -> str:
        return " ".join(map(str, ids))


def _generation(bench: Bench, lm: LanguageModel, block: int) -> Row:
    """32 rows, of 8 prompts under 4 interventions, over `generate` of one row after the other."""
    lm.tokenizer = Numbers()
    lm.model.generation_config.eos_token_id = None
    new = 4 if bench.quick else _NEW_TOKENS
    prompts = bench.texts(2 if bench.quick else _GENERATED // 4)
    rng = np.random.default_rng(2)
    vectors = [rng.normal(size=lm.d).astype(np.float32) for _ in range(2)]
    steered = [Intervention("v", {block: vector}, s) for vector in vectors for s in (0.5, 1.0)]

    def ours() -> list[list[str]]:
        return generate(lm, prompts, steered, max_new_tokens=new, batch_size=_GENERATED)

    def theirs() -> list[list[str]]:
        return [[_one(lm, ids, steering, new) for ids in prompts] for steering in steered]

    mine, other = (list(chain.from_iterable(side)) for side in (ours(), theirs()))
    # Ours is what the prompt is continued by, so with the blank between.
    different = sum(a.strip() != b for a, b in zip(mine, other, strict=True))
    taken = bench.compare({"ours": ours, "theirs": theirs}, min(bench.repeats, 3))
    count = len(prompts) * len(steered)
    return Row(
        "evaluate",
        "evaluate/generate",
        taken["theirs"] / taken["ours"],
        count * new / taken["ours"],
        count * new / taken["theirs"],
        "tokens/s",
        different / count,
        f"batch of {count}, {new} new tokens; error: share of texts that differ",
    )


def _one(lm: LanguageModel, ids: list[int], steering: Intervention, new: int) -> str:
    """transformers' own greedy generation of one prompt, a hook adding the vector."""
    tokens = torch.tensor([ids], device=lm.device)
    with torch.no_grad(), _hooked(lm, steering):
        out = lm.model.generate(tokens, max_new_tokens=new, do_sample=False, pad_token_id=0)
    return str(lm.tokenizer.decode(out[0, len(ids) :].tolist()))
