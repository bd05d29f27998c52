"""Batched, steered generation against the model's own `generate`, one prompt, one intervention at a time."""

import warnings
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from contrans_dist.engine.scoring import BASE, Intervention, generate
from contrans_dist.engine.scoring.interventions import checked_offsets
from contrans_dist.errors import OverflowedError, UserError
from contrans_dist.models import LanguageModel, wrap_model
from tests.tiny import ARCHITECTURES, CONTEXT, tiny_model, tiny_tokenizer
from tests.truth import continued

D = 32
RNG = np.random.default_rng(11)
# Some longer than the sliding windows (8 tokens), one of a single token.
PROMPTS = [[0, *RNG.integers(3, 290, size=n).tolist()] for n in (25, 3, 11, 0, 7, 17)]
STEPS = 8


def vec(seed: int) -> np.ndarray:
    return (0.7 * np.random.default_rng(seed).standard_normal(D)).astype(np.float32)


INTERVENTIONS = [
    BASE,
    *(Intervention(f"{seed} times {strength}", {seed: vec(seed)}, strength)
      for seed, strength in product((1, 2), (1.0, -4.0, 20.0))),
    Intervention("two blocks", {0: vec(3), 3: vec(4)}, 2.0),
]  # fmt: skip


def language_model(architecture: str) -> LanguageModel:
    return wrap_model(tiny_model(architecture), tiny_tokenizer())


def new_ids(lm: LanguageModel, prompt: list[int], intervention: Intervention, ends: list[int]) -> list[int]:
    """The tokens that follow one prompt in a batch of one, under this test's own hooks."""
    handles = []
    for k, row in intervention.vectors.items():
        offset = torch.tensor(intervention.strength * row)

        def hook(_module: nn.Module, _args: object, output: object, offset: torch.Tensor = offset) -> object:
            if isinstance(output, tuple):
                return (output[0] + offset, *output[1:])
            return output + offset  # type: ignore[operator]

        handles.append(lm.blocks[k].register_forward_hook(hook))
    ids = torch.tensor([prompt])
    out = lm.model.generate(  # type: ignore[operator]
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=STEPS, do_sample=False,
        eos_token_id=ends or None, pad_token_id=2,
    )  # fmt: skip
    for handle in handles:
        handle.remove()
    new = out[0, len(prompt) :].tolist()
    return new[: min((new.index(end) for end in ends if end in new), default=None)]


def alone(lm: LanguageModel, ends: list[int]) -> list[list[str]]:
    return [
        [continued(lm.tokenizer, prompt, new_ids(lm, prompt, intervention, ends)) for prompt in PROMPTS]
        for intervention in INTERVENTIONS
    ]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_interventions_as_rows_of_a_batch_equal_each_alone(architecture: str) -> None:
    lm = language_model(architecture)
    expected = alone(lm, [1])
    got = generate(lm, PROMPTS, INTERVENTIONS, max_new_tokens=STEPS, batch_size=20)
    assert got == expected
    assert len({tuple(texts) for texts in got}) > 4  # steering shows


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_rows_that_end_early_leave_the_others_alone(batch_size: int) -> None:
    lm = language_model("llama")
    rows = [new_ids(lm, prompt, intervention, []) for intervention in INTERVENTIONS for prompt in PROMPTS]
    # A token that ends some texts at once, some later, and some not at all.
    counts = {token: sum(token in row for row in rows) for row in rows for token in row}
    end = min(counts, key=lambda token: abs(counts[token] - len(rows) // 2))
    at = {row.index(end) if end in row else STEPS for row in rows}
    assert {STEPS} < at
    assert len(at) > 3
    lm.model.generation_config.eos_token_id = ends = [end, 299]  # type: ignore[union-attr]
    got = generate(lm, PROMPTS, INTERVENTIONS, max_new_tokens=STEPS, batch_size=batch_size)
    assert got == alone(lm, ends)


def test_the_whole_context_can_be_used() -> None:
    lm = language_model("gpt2")
    prompt = [0, *RNG.integers(3, 290, size=CONTEXT - STEPS - 1).tolist()]
    expected = continued(lm.tokenizer, prompt, new_ids(lm, prompt, INTERVENTIONS[1], [1]))
    assert generate(lm, [prompt, PROMPTS[1]], INTERVENTIONS[1:2], max_new_tokens=STEPS)[0][0] == expected
    with pytest.raises(UserError, match=f"needs {CONTEXT + 1} tokens"):
        generate(lm, [[*prompt, 5]], max_new_tokens=STEPS)


def test_a_row_for_each_prompt_is_checked_like_a_single_one() -> None:
    lm = language_model("llama")
    rows, prompts = np.stack([vec(p) for p in range(300)]), [[5]] * 300
    whole = checked_offsets(lm, [Intervention("own", {1: rows}, 2.0)], prompts)
    torch.testing.assert_close(whole[0][1], torch.tensor(2.0 * rows))
    for bad, at in ((np.nan, (0, 0)), (np.inf, (299, 31)), (-np.inf, (150, 7))):
        broken = rows.copy()
        broken[at] = bad
        with pytest.raises(UserError, match=r"^vector for block 1 holds values that are not finite$"):
            checked_offsets(lm, [Intervention("own", {1: broken}, 2.0)], prompts)
    message = r"^vector for block 1 has shape \(31,\), the model's hidden size is 32$"
    with pytest.raises(UserError, match=message):
        checked_offsets(lm, [Intervention("own", {1: rows[:, :31]}, 2.0)], prompts)
    with pytest.raises(UserError, match="blocks 0 to 3"):
        checked_offsets(lm, [Intervention("own", {4: rows}, 2.0)], prompts)
    with pytest.raises(UserError, match="299 rows for 300 prompts"):
        checked_offsets(lm, [Intervention("own", {1: rows[1:]}, 2.0)], prompts)


def test_a_model_on_one_device_draws_there_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch warns where the random numbers of several GPUs are set aside that nobody named."""
    lm = language_model("llama")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.random, "_fork_rng_warned_already", False)
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = [generate(lm, PROMPTS[:2], max_new_tokens=STEPS, temperature=1.0, seed=s) for s in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_no_text(temperature: float) -> None:
    """In float16, whose largest number is 65,504. The most likely of NaN is a token like any other."""
    lm = wrap_model(tiny_model("llama").half(), tiny_tokenizer())
    loud, quiet = (Intervention("vector", {1: vec(1)}, strength) for strength in (1e5, 1.0))
    told = "condition vector at strength 100000: the model's logits overflow"
    with pytest.raises(OverflowedError, match=told) as caught:
        generate(lm, PROMPTS, [BASE, loud, quiet], max_new_tokens=STEPS, temperature=temperature)
    assert caught.value.lost == {("vector", 1e5)}
    generate(lm, PROMPTS, [BASE, quiet], max_new_tokens=STEPS, temperature=temperature)


def test_what_follows_the_end_of_a_text_is_not_looked_at() -> None:
    """A row that has ended is fed padding while others of its batch go on: here a token that overflows."""
    lm = language_model("llama")
    prompts = [[5, 6], [7, 8]]
    on, ended = (new_ids(lm, prompt, BASE, []) for prompt in prompts)
    end = next(token for token in ended[: STEPS // 2] if token not in on)
    lm.model.generation_config.eos_token_id = [end]  # type: ignore[union-attr]
    whole = generate(lm, prompts, max_new_tokens=STEPS)
    assert 0 not in (*on, *ended)  # what is filled up with
    with torch.no_grad():
        lm.model.get_input_embeddings().weight[0] = torch.inf  # type: ignore[operator, index]
    assert generate(lm, prompts, max_new_tokens=STEPS) == whole
    with pytest.raises(OverflowedError, match="base"):
        generate(lm, [[0, 5]], max_new_tokens=STEPS)


def test_a_batch_that_does_not_fit_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = language_model("llama")
    wanted = generate(lm, PROMPTS, INTERVENTIONS[:3], max_new_tokens=STEPS)
    sizes, whole = [], lm.model.generate

    def small(**given: object) -> object:
        ids = given["input_ids"]
        assert isinstance(ids, torch.Tensor)
        sizes.append(len(ids))
        if len(ids) > room:
            raise RuntimeError("CUDA error: out of memory")
        return whole(**given)  # type: ignore[operator]

    monkeypatch.setattr(lm.model, "generate", small)
    room = 3
    assert generate(lm, PROMPTS, INTERVENTIONS[:3], max_new_tokens=STEPS, batch_size=18) == wanted
    # Once found out, the size stays.
    assert sizes == [18, 9, 4, *[2] * 9]
    room = 0
    with pytest.raises(RuntimeError, match="out of memory"):
        generate(lm, PROMPTS, INTERVENTIONS[:3], max_new_tokens=STEPS, batch_size=2)


def test_what_did_not_fit_has_drawn_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The texts are those of a batch that is as small from the start."""
    lm = language_model("llama")
    draw = partial(generate, lm, PROMPTS, INTERVENTIONS[:2], max_new_tokens=STEPS, temperature=1.0, seed=3)
    wanted, whole = draw(batch_size=3), lm.model.generate

    def small(**given: object) -> object:
        ids = given["input_ids"]
        assert isinstance(ids, torch.Tensor)
        if len(ids) > 3:
            torch.rand(1, device=ids.device)
            raise torch.OutOfMemoryError("after the first token")
        return whole(**given)  # type: ignore[operator]

    monkeypatch.setattr(lm.model, "generate", small)
    assert draw(batch_size=6) == wanted
