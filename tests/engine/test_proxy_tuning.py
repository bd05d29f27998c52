"""Proxy-tuning against its formula written out: logits of the model + (tuned - plain), at every token."""

from pathlib import Path

import numpy as np
import pytest
import torch

from contrans_dist.engine.prefixes import groups
from contrans_dist.engine.scoring import BASE, Intervention, continuation_logprobs, generate, next_token
from contrans_dist.engine.steer import steer
from contrans_dist.errors import UserError
from contrans_dist.models import LanguageModel, guided, load_model
from tests.tiny import save_tiny

PROMPTS = [
    "Once upon a time there was a little girl. She felt",
    "Once upon a time there was a little girl. They went to the",
    "The boy",
]
FAMILIES = ["llama", "gpt_neox", "gpt2", "opt", "bloom", "gemma2"]


@pytest.fixture(scope="module", params=FAMILIES)
def three(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LanguageModel, LanguageModel, LanguageModel]:
    """Strong, tuned weak, plain weak: of other depths and widths, with one tokenizer."""
    sizes = [(5, 48, 0), (3, 32, 1), (3, 32, 2)]
    folders = [tmp_path_factory.mktemp(f"model{seed}") for _, _, seed in sizes]
    for folder, (n_blocks, d, seed) in zip(folders, sizes, strict=True):
        save_tiny(folder, request.param, n_blocks=n_blocks, d=d, seed=seed)
    strong, tuned, plain = (load_model(str(folder)) for folder in folders)
    return strong, tuned, plain


def written_out(
    models: tuple[LanguageModel, LanguageModel, LanguageModel], ids: list[int], row: np.ndarray | None = None
) -> torch.Tensor:
    """Float32 logits `[T, vocabulary]` of one text alone, the strong model steered with `row` at block 2."""
    strong, tuned, plain = models
    batch = torch.tensor([ids])
    with torch.no_grad():
        if row is None:
            base = strong.model(batch).logits[0]
        else:
            with steer(strong, row, block=2, strength=1.0):
                base = strong.model(batch).logits[0]
        return base + tuned.model(batch).logits[0] - plain.model(batch).logits[0]


@pytest.mark.parametrize("share", [True, False])
def test_scores_are_those_of_the_formula(
    three: tuple[LanguageModel, LanguageModel, LanguageModel], share: bool
) -> None:
    lm = guided(*three)
    row = np.random.default_rng(0).standard_normal(lm.d).astype(np.float32)
    prompts = [lm.tokenizer(text)["input_ids"] for text in PROMPTS]
    continuations = [[5, 9, 30], [41], [7, 7]]
    steered = Intervention("steered", {2: row}, 1.0)
    got = next_token(lm, prompts, [BASE, steered], watch=[5, 9], batch_tokens=64, share_prefixes=share)
    scored = continuation_logprobs(
        lm, prompts, continuations, [BASE, steered], batch_tokens=64, share_prefixes=share
    )
    for c, offset in enumerate([None, row]):
        for p, (prompt, continuation) in enumerate(zip(prompts, continuations, strict=True)):
            logits = written_out(three, [*prompt, *continuation], offset)
            logprobs = logits.log_softmax(dim=1)
            np.testing.assert_allclose(got.logits[c, p], logits[len(prompt) - 1, [5, 9]], atol=2e-3)
            assert got.argmax[c, p] == int(logits[len(prompt) - 1].argmax())
            places = range(len(prompt) - 1, len(prompt) + len(continuation) - 1)
            wanted = [float(logprobs[i, t]) for i, t in zip(places, continuation, strict=True)]
            np.testing.assert_allclose(scored.tokens[c][p], wanted, atol=2e-3)


def test_vectors_of_their_own_after_common_examples(
    three: tuple[LanguageModel, LanguageModel, LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "TRUNK_TOKENS", 0)
    lm, rng = guided(*three), np.random.default_rng(1)
    examples = rng.integers(3, 290, size=20).tolist()
    prompts = [examples + rng.integers(3, 290, size=2 + p).tolist() for p in range(5)]
    rows = rng.standard_normal((5, lm.d)).astype(np.float32)
    swept = [BASE, Intervention("own", {2: rows}, 1.0)]
    got = next_token(lm, prompts, swept, watch=[5, 9], batch_tokens=50)
    for p, prompt in enumerate(prompts):
        for c, row in enumerate([None, rows[p]]):
            expected = written_out(three, prompt, row)[-1, [5, 9]]
            np.testing.assert_allclose(got.logits[c, p], expected, atol=2e-3)


def test_guides_that_look_back_less_far_share_no_longer_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "TRUNK_TOKENS", 0)
    folders = [save_tiny(tmp_path / "strong", "llama", n_blocks=5, d=48)]
    folders += [save_tiny(tmp_path / f"weak{seed}", "gemma2", d=32, seed=seed) for seed in (1, 2)]
    strong, tuned, plain = (load_model(str(folder)) for folder in folders)
    lm, rng = guided(strong, tuned, plain), np.random.default_rng(1)
    examples = rng.integers(3, 290, size=40).tolist()
    prompts = [examples + rng.integers(3, 290, size=2 + p).tolist() for p in range(8)]
    got = next_token(lm, prompts, [BASE], watch=[5, 9])
    for p, prompt in enumerate(prompts):
        expected = written_out((strong, tuned, plain), prompt)[-1, [5, 9]]
        np.testing.assert_allclose(got.logits[0, p], expected, atol=2e-3)


def test_generation_adds_the_difference_at_every_step(
    three: tuple[LanguageModel, LanguageModel, LanguageModel],
) -> None:
    lm = guided(*three)
    prompts = [lm.tokenizer(text)["input_ids"] for text in PROMPTS]
    got = generate(lm, prompts, max_new_tokens=8, batch_size=3)[0]
    plain = generate(three[0], prompts, max_new_tokens=8, batch_size=3)[0]
    for prompt, text in zip(prompts, got, strict=True):
        ids = list(prompt)
        for _ in range(8):
            token = int(written_out(three, ids)[-1].argmax())
            if token == lm.tokenizer.eos_token_id:
                break
            ids.append(token)
        assert text == lm.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)
    assert got != plain


def test_guides_compute_logits_of_the_last_token_alone(
    three: tuple[LanguageModel, LanguageModel, LanguageModel],
) -> None:
    seen: list[int] = []
    heads = [model.model.get_output_embeddings() for model in three[1:]]
    handles = [
        head.register_forward_hook(lambda _m, _args, out: seen.append(out.shape[1]))
        for head in heads
        if head is not None
    ]
    generate(guided(*three), [[5, 6, 7, 8], [9, 10]], max_new_tokens=3)
    for handle in handles:
        handle.remove()
    assert set(seen) == {1}
    assert len(seen) == 2 * 3


def test_another_vocabulary_is_refused(
    three: tuple[LanguageModel, LanguageModel, LanguageModel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tests.tiny.CORPUS", ["Zebras quickly jump over five lazy xylophones."] * 20)
    other = load_model(str(save_tiny(tmp_path / "other", n_blocks=2)))
    with pytest.raises(UserError, match="another vocabulary"):
        guided(three[0], other, three[2])
