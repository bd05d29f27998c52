"""The scoring engine against the plain loop: one prompt, one intervention, a full forward, own hooks."""

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import accelerate
import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import Cache, PreTrainedTokenizerFast

from contrans_dist.console import listening
from contrans_dist.engine.capture import capture_ids
from contrans_dist.engine.prefixes import Trunk, can_share, groups, support
from contrans_dist.engine.scoring import (
    BASE,
    Intervention,
    NextToken,
    TokenScores,
    continuation_logprobs,
    cues,
    generate,
    next_token,
    token_changes,
)
from contrans_dist.engine.scoring.interventions import same_rows
from contrans_dist.engine.steer import steer
from contrans_dist.errors import RunError, UserError
from contrans_dist.models import LanguageModel, wrap_model
from contrans_dist.models.passing import replaced
from tests.tiny import ARCHITECTURES, tiny_model, tiny_tokenizer
from tests.truth import continued

D, N, V = 32, 4, 300
RNG = np.random.default_rng(7)
PROMPTS = [[0, *RNG.integers(3, 290, size=n).tolist()] for n in (9, 1, 22, 5, 14, 9, 3)]
WATCH = [5, 250, 17]


def vec(seed: int) -> np.ndarray:
    return (0.7 * np.random.default_rng(seed).standard_normal(D)).astype(np.float32)


INTERVENTIONS = [
    Intervention("base"),
    Intervention("one", {2: vec(1)}, 1.0),
    Intervention("two", {2: vec(1)}, 2.0),
    Intervention("off", {1: vec(2)}, 0.0),
    Intervention("several", {1: vec(2), 3: vec(3)}, -1.5),
    Intervention("low and equal", {1: vec(4), 2: vec(5)}, 0.5),
    Intervention("last", {3: vec(6)}, 4.0),
    Intervention("first", {0: vec(7)}, 1.0),
]


def language_model(architecture: str = "llama", **config):
    return wrap_model(tiny_model(architecture, **config), tiny_tokenizer())


def plain_logits(lm, ids: list[int], intervention: Intervention) -> torch.Tensor:
    """Logits [T, V] of one prompt under one intervention, with hooks of this test's own."""

    def make(offset):
        def hook(_module, _args, output):
            first = output[0] if isinstance(output, tuple) else output
            moved = first + offset
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        return hook

    handles = [
        lm.blocks[k].register_forward_hook(make(torch.tensor(intervention.strength * v)))
        for k, v in intervention.vectors.items()
    ]
    with torch.no_grad():
        out = lm.model(torch.tensor([ids])).logits[0].double()
    for handle in handles:
        handle.remove()
    return out


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_next_token_equals_the_plain_loop(architecture):
    lm = language_model(architecture)
    got = next_token(lm, PROMPTS, INTERVENTIONS, watch=WATCH, batch_tokens=60)
    for c, intervention in enumerate(INTERVENTIONS):
        for p, prompt in enumerate(PROMPTS):
            last = plain_logits(lm, prompt, intervention)[-1]
            scale = float(last.abs().max())
            assert got.argmax[c, p] == int(last.argmax())
            np.testing.assert_allclose(got.logits[c, p], last[WATCH], rtol=0, atol=1e-5 * max(scale, 1))
            expected = torch.log_softmax(last, dim=0)[WATCH]
            np.testing.assert_allclose(got.logprobs[c, p], expected, rtol=0, atol=2e-5 * max(scale, 1))
    assert (
        len({tuple(np.round(got.logits[c, 0], 3)) for c in range(len(INTERVENTIONS))}) == 7
    )  # "off" is the base


@pytest.mark.parametrize(
    "architecture", ["llama", "gemma2", "bloom", "falcon", "mpt", "gpt_neo", "opt", "qwen3_moe"]
)
def test_continuations_equal_the_plain_loop(architecture):
    lm = language_model(architecture)
    continuations = [[8], [9, 10, 11], [12, 13], [14, 15, 16, 17, 18], [20], [21, 22], [23, 24, 25]]
    got = continuation_logprobs(lm, PROMPTS, continuations, INTERVENTIONS, batch_tokens=60)
    for c, intervention in enumerate(INTERVENTIONS):
        for p, (prompt, answer) in enumerate(zip(PROMPTS, continuations, strict=True)):
            logits = plain_logits(lm, prompt + answer, intervention)[len(prompt) - 1 : -1]
            expected = torch.log_softmax(logits, dim=1)[range(len(answer)), answer].numpy()
            np.testing.assert_allclose(got.tokens[c][p], expected, rtol=0, atol=1e-3)
            assert got.sums[c, p] == pytest.approx(expected.sum(), abs=1e-3)
            assert got.greedy[c, p] == (logits.argmax(1).tolist() == answer)


def test_a_greedy_continuation_is_known_as_such():
    lm = language_model()
    best = int(plain_logits(lm, PROMPTS[0], INTERVENTIONS[1])[-1].argmax())
    got = continuation_logprobs(lm, [PROMPTS[0]] * 2, [[best], [best + 1]], [INTERVENTIONS[1]])
    assert got.greedy.tolist() == [[True, False]]


def test_watch_may_differ_by_prompt():
    lm = language_model()
    both = next_token(lm, PROMPTS[:2], INTERVENTIONS[:2], watch=[4, 9])
    apart = next_token(lm, PROMPTS[:2], INTERVENTIONS[:2], watch=[[4], [9]])
    np.testing.assert_array_equal(apart.logits[:, 0, 0], both.logits[:, 0, 0])
    np.testing.assert_array_equal(apart.logits[:, 1, 0], both.logits[:, 1, 1])


def test_a_vector_with_a_row_for_each_prompt_equals_the_prompts_one_by_one():
    lm = language_model()
    rows = {k: np.stack([vec(10 * k + p) for p in range(len(PROMPTS))]) for k in (1, 3)}
    per_prompt = Intervention("own", rows, 1.5)
    together = [*INTERVENTIONS[:3], per_prompt, INTERVENTIONS[4]]
    continuations = [[8], [9, 10, 11], [12, 13], [14, 15, 16, 17, 18], [20], [21, 22], [23, 24, 25]]
    got = next_token(lm, PROMPTS, together, watch=WATCH, batch_tokens=60)
    said = continuation_logprobs(lm, PROMPTS, continuations, together, batch_tokens=60)
    written = generate(lm, PROMPTS, together, max_new_tokens=5, batch_size=4)
    for p, prompt in enumerate(PROMPTS):
        alone = Intervention("alone", {k: row[p] for k, row in rows.items()}, 1.5)
        logits = plain_logits(lm, prompt + continuations[p], alone)[len(prompt) - 1 : -1]
        np.testing.assert_allclose(got.logits[3, p], logits[0, WATCH], rtol=0, atol=1e-4)
        expected = torch.log_softmax(logits, dim=1)[range(len(continuations[p])), continuations[p]]
        np.testing.assert_allclose(said.tokens[3][p], expected, rtol=0, atol=1e-3)
        assert written[3][p] == greedy_by_hand(lm, prompt, alone, 5)


def test_the_blocks_below_run_once_however_many_interventions():
    lm = language_model()
    sweep = [Intervention(str(a), {2: vec(1)}, a) for a in (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)]
    next_token(lm, [PROMPTS[2]], sweep, watch=WATCH)  # what the model can do is tried with its first prompts
    runs = [0] * N
    for k, block in enumerate(lm.blocks):

        def count(*_: object, k: int = k) -> None:
            runs[k] += 1

        block.mlp.register_forward_hook(count)
    next_token(lm, [PROMPTS[2]], sweep, watch=WATCH, batch_tokens=len(PROMPTS[2]))
    assert runs == [1, 1, 1, 7]
    next_token(lm, [PROMPTS[2]], sweep, watch=WATCH, batch_tokens=7 * len(PROMPTS[2]))
    assert runs == [2, 2, 2, 8]  # all seven as rows of one batch


def test_models_are_left_as_they_were():
    lm = language_model()
    mark = object()
    lm.blocks[1].__dict__["forward"] = forward = lambda *a, **k: (
        mark,
        type(lm.blocks[1]).forward(lm.blocks[1], *a, **k),
    )[1]
    next_token(lm, PROMPTS, INTERVENTIONS, watch=WATCH)
    assert lm.blocks[1].__dict__["forward"] is forward
    assert all("forward" not in lm.blocks[k].__dict__ for k in (0, 2, 3))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())

    def fail(*_args, **_named):
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"), replaced(lm.blocks, {0: fail, 1: fail}):
        lm.model(torch.tensor([PROMPTS[0]]))
    assert lm.blocks[1].__dict__["forward"] is forward
    assert "forward" not in lm.blocks[0].__dict__
    assert not torch.is_inference_mode_enabled()


def test_steering_around_the_engine_acts_once():
    lm = language_model()
    outer = {0: vec(11), 2: vec(12), 3: vec(13)}
    inner = Intervention("inner", {2: vec(1)}, 1.0)
    both = {k: outer[k] + inner.vectors.get(k, 0) for k in outer}
    with steer(lm, outer, strength=1.0):
        got = next_token(lm, PROMPTS, [inner], watch=WATCH)
    for p, prompt in enumerate(PROMPTS):
        expected = plain_logits(lm, prompt, Intervention("both", both, 1.0))[-1][WATCH]
        np.testing.assert_allclose(got.logits[0, p], expected, rtol=0, atol=1e-4)


def test_no_prompt_and_no_intervention_give_empty_results():
    lm = language_model()
    assert next_token(lm, [], INTERVENTIONS, watch=WATCH).logits.shape == (8, 0, 3)
    assert next_token(lm, PROMPTS, [], watch=WATCH).argmax.shape == (0, 7)
    assert continuation_logprobs(lm, [], [], INTERVENTIONS).sums.shape == (8, 0)


@pytest.mark.parametrize(
    ("prompts", "interventions", "words"),
    [
        ([[]], [Intervention("base")], "prompt 0: no tokens"),
        ([[0] * 129], [Intervention("base")], "129 tokens.*128"),
        ([[0]], [Intervention("a", {4: vec(0)}, 1.0)], "blocks 0 to 3"),
        ([[0]], [Intervention("a", {1: vec(0)[:5]}, 1.0)], "hidden size is 32"),
        ([[0]], [Intervention("a", {1: np.stack([vec(0)] * 2)}, 1.0)], "2 rows for 1 prompts"),
    ],
)
def test_bad_input_is_named(prompts, interventions, words):
    with pytest.raises(UserError, match=words):
        next_token(language_model(), prompts, interventions, watch=WATCH)


def test_training_mode_is_refused():
    lm = language_model()
    lm.model.train()
    with pytest.raises(ValueError, match="call model"):
        next_token(lm, PROMPTS, INTERVENTIONS, watch=WATCH)


# --- prompts that begin alike ---


def alike() -> list[list[int]]:
    trunk, heads = RNG.integers(3, 290, size=20).tolist(), RNG.integers(3, 290, size=(4, 7)).tolist()
    return [trunk + heads[i % 4] + RNG.integers(3, 290, size=2 + i % 4).tolist() for i in range(14)] + PROMPTS


def test_a_trunk_runs_as_many_interventions_at_a_time_as_fit(monkeypatch):
    monkeypatch.setattr(groups, "TRUNK_TOKENS", 0)
    monkeypatch.setattr(groups, "ROW_TOKENS", 40)
    lm, prompts = language_model(), [[*range(3, 33), 40 + i, 50 + i] for i in range(20)]
    sweep = [Intervention(str(a), {1: vec(1)}, a / 4) for a in range(1, 12)]
    sizes = []
    expected = next_token(lm, prompts, sweep, watch=WATCH, share_prefixes=False)
    handle = lm.blocks[2].mlp.register_forward_hook(lambda _m, _a, out: sizes.append(out[..., 0].numel()))
    got = next_token(lm, prompts, sweep, watch=WATCH, batch_tokens=70)
    handle.remove()
    assert 60 in sizes  # two interventions over the trunk of 30 tokens
    assert max(sizes) <= 70
    np.testing.assert_allclose(got.logits, expected.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_prompts_that_begin_alike_score_as_each_alone(architecture, monkeypatch):
    monkeypatch.setattr(groups, "TRUNK_TOKENS", 0)
    monkeypatch.setattr(groups, "ROW_TOKENS", 64)
    lm, prompts = language_model(architecture), alike()
    per_prompt = Intervention("own", {2: np.stack([vec(100 + p) for p in range(len(prompts))])}, 1.5)
    got = next_token(lm, prompts, [*INTERVENTIONS, per_prompt], watch=WATCH, batch_tokens=250)
    for p, prompt in enumerate(prompts):
        alone = [*INTERVENTIONS, Intervention("own", {2: per_prompt.vectors[2][p]}, 1.5)]
        for c, intervention in enumerate(alone):
            expected = plain_logits(lm, prompt, intervention)[-1]
            scale = max(1.0, float(expected.abs().max()))
            np.testing.assert_allclose(got.logits[c, p], expected[WATCH], rtol=0, atol=2e-5 * scale)
            assert got.argmax[c, p] == int(expected.argmax())


# --- where memory is short ---


@contextmanager
def room_for(lm: LanguageModel, tokens: int) -> Iterator[list[int]]:
    """No block runs on more than so many tokens, padding included; what was tried."""
    tried: list[int] = []

    def full(_module, args, named):
        tried.append((args[0] if args else named["hidden_states"])[..., 0].numel())
        if tried[-1] > tokens:
            raise RuntimeError("CUDA error: out of memory")

    inside = [m for name, m in lm.decoder.named_modules() if name.endswith(".mlp")]  # of blocks that run
    handles = [each.register_forward_pre_hook(full, with_kwargs=True) for each in inside]
    yield tried
    for handle in handles:
        handle.remove()


def scores_of(
    lm: LanguageModel, prompts: list[list[int]], share: bool = True
) -> tuple[NextToken, TokenScores]:
    own = Intervention("own", {2: np.stack([vec(100 + p % 5) for p in range(len(prompts))])}, 1.5)
    answers, swept = [[8, 9 + p, 10][: 1 + p % 3] for p in range(len(prompts))], [*INTERVENTIONS, own]
    watched = next_token(lm, prompts, swept, watch=WATCH, batch_tokens=400, share_prefixes=share)
    scored = continuation_logprobs(lm, prompts, answers, swept, batch_tokens=400, share_prefixes=share)
    return watched, scored


def assert_same(found: tuple[NextToken, TokenScores], expected: tuple[NextToken, TokenScores]) -> None:
    np.testing.assert_allclose(found[0].logits, expected[0].logits, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found[0].logprobs, expected[0].logprobs, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(found[0].argmax, expected[0].argmax)
    np.testing.assert_allclose(found[1].sums, expected[1].sums, rtol=0, atol=1e-3)
    np.testing.assert_array_equal(found[1].greedy, expected[1].greedy)


@pytest.mark.parametrize("room", [120, 40, 35])
def test_passes_that_do_not_fit_run_in_halves(monkeypatch, caplog, room):
    monkeypatch.setattr(groups, "TRUNK_TOKENS", 0)
    monkeypatch.setattr(groups, "ROW_TOKENS", 30)
    lm, prompts = language_model(), alike()
    expected = scores_of(lm, prompts, share=False)
    assert_same(scores_of(lm, prompts), expected)
    caplog.clear()
    with room_for(lm, room) as tried:
        assert_same(scores_of(lm, prompts), expected)
        assert max(tried) > room
        tried.clear()
        scores_of(lm, prompts)  # what was learnt holds for the next texts
        assert max(tried) <= room
    assert len(caplog.records) == 1
    with room_for(lm, 20), pytest.raises(RunError, match=r"^a text of [23]\d tokens alone does not fit"):
        scores_of(lm, prompts)


@pytest.mark.parametrize("room", [1, 0])
def test_a_trunk_kept_for_more_interventions_than_fit_is_kept_for_fewer_and_then_not(monkeypatch, room):
    monkeypatch.setattr(groups, "TRUNK_TOKENS", 0)
    monkeypatch.setattr(groups, "ROW_TOKENS", 30)
    lm, prompts = language_model(), alike()
    expected, kept, of_all = scores_of(lm, prompts, share=False), [], Trunk.of_all

    def full(parts: list[Trunk]) -> Trunk:
        kept.append(sum(max((len(layer[0]) for layer in part.layers if layer), default=0) for part in parts))
        if kept[-1] > room:
            raise RuntimeError("CUDA error: out of memory")
        return of_all(parts)

    monkeypatch.setattr(Trunk, "of_all", full)
    assert_same(scores_of(lm, prompts), expected)
    assert max(kept) > room
    assert room == 0 or 1 in kept


def test_a_trunk_that_does_not_fit_makes_no_later_pass_smaller(monkeypatch, caplog):
    """There is room for a trunk's keys and values under 12 of 16 interventions, and for any pass."""
    monkeypatch.setattr(groups, "TRUNK_TOKENS", 0)
    monkeypatch.setattr(groups, "ROW_TOKENS", 8)
    lm, sweep = language_model(), [Intervention(str(a), {1: vec(1)}, a / 8) for a in range(1, 17)]
    rng = np.random.default_rng(11)
    trunks = rng.integers(3, 290, size=(3, 40)).tolist()
    batches = [[trunk + rng.integers(3, 290, size=6).tolist() for _ in range(24)] for trunk in trunks]
    passes: list[int] = []
    lm.blocks[-1].register_forward_hook(lambda *_given: passes.append(1))
    kept: weakref.WeakSet[Trunk] = weakref.WeakSet()
    of = Trunk.of

    def under(trunk: Trunk) -> int:
        top = trunk.layers[-1] if len(trunk.layers) == lm.n_blocks else None
        return 0 if top is None else len(top[0])

    def full(cache: Cache) -> Trunk:
        kept.add(trunk := of(cache))
        if sum(map(under, kept)) > 12:
            raise torch.OutOfMemoryError("pretended")
        return trunk

    def scored() -> tuple[list[NextToken], int]:
        passes.clear()
        found = [next_token(lm, prompts, sweep, watch=WATCH, batch_tokens=400) for prompts in batches]
        return found, len(passes)

    expected, with_room = scored()
    monkeypatch.setattr(Trunk, "of", full)
    found, without = scored()
    assert with_room < without < 2 * with_room
    assert lm.fits is None
    assert len(caplog.records) == 1
    for some, same in zip(found, expected, strict=True):
        np.testing.assert_allclose(some.logits, same.logits, rtol=0, atol=1e-4)
        np.testing.assert_array_equal(some.argmax, same.argmax)


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_the_logits_of_a_long_text_are_there_some_at_a_time(monkeypatch, architecture):
    """Gemma 2 caps its logits behind the head."""
    lm = language_model(architecture)
    monkeypatch.setattr(support, "LOGIT_BYTES", 4 * V * 8)
    tuned, plain = (wrap_model(tiny_model(architecture, seed=s), tiny_tokenizer()) for s in (1, 2))
    texts = [[0, *RNG.integers(3, 290, size=n).tolist()] for n in (30, 5, 9, 24)]
    places: list[int] = []
    for guides in (None, (tuned, plain)):
        lm.guides = guides
        handles = [
            model.model.lm_head.register_forward_hook(lambda _m, _a, out: places.append(out[..., 0].numel()))
            for model in (lm, *(guides or ()))
        ]
        swept = [INTERVENTIONS[1], INTERVENTIONS[4], INTERVENTIONS[0]]
        got = continuation_logprobs(
            lm, [text[:1] for text in texts], [text[1:] for text in texts], swept, batch_tokens=60
        )
        for handle in handles:
            handle.remove()
        assert max(places) == 8
        for c, intervention in enumerate(swept):
            for p, text in enumerate(texts):
                logits = plain_logits(lm, text, intervention)
                if guides:
                    logits += plain_logits(tuned, text, BASE) - plain_logits(plain, text, BASE)
                expected = logits[:-1].log_softmax(dim=1)[range(len(text) - 1), text[1:]]
                np.testing.assert_allclose(got.tokens[c][p], expected, rtol=0, atol=1e-3)
                assert got.sums[c, p] == pytest.approx(float(expected.sum()), abs=5e-3)


def test_answers_to_one_question_share_it(monkeypatch):
    monkeypatch.setattr(groups, "TRUNK_TOKENS", 0)
    lm = language_model()
    tokens = []
    handle = lm.blocks[0].register_forward_pre_hook(
        lambda _m, args, named: tokens.append((args[0] if args else named["hidden_states"])[..., 0].numel()),
        with_kwargs=True,
    )
    preamble = RNG.integers(3, 290, size=30).tolist()
    questions = [preamble + RNG.integers(3, 290, size=9).tolist() for _ in range(6)]
    prompts = [question for question in questions for _ in range(5)]
    answers = [RNG.integers(3, 290, size=1 + i % 4).tolist() for i in range(len(prompts))]
    runs = {}
    for share in (True, False):
        next_token(lm, PROMPTS, INTERVENTIONS[:1], watch=WATCH)
        tokens.clear()
        scores = continuation_logprobs(
            lm, prompts, answers, INTERVENTIONS, batch_tokens=400, share_prefixes=share
        )
        runs[share] = (scores, sum(tokens))
    handle.remove()
    np.testing.assert_allclose(runs[True][0].sums, runs[False][0].sums, rtol=0, atol=1e-3)
    assert (runs[True][0].greedy == runs[False][0].greedy).all()
    assert runs[True][1] < runs[False][1] / 3.5
    for p, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        logprobs = plain_logits(lm, prompt + answer, INTERVENTIONS[1]).log_softmax(-1)
        expected = sum(float(logprobs[len(prompt) - 1 + i, t]) for i, t in enumerate(answer))
        assert runs[True][0].sums[1, p] == pytest.approx(expected, abs=1e-3)


# --- generation ---


def test_answers_that_get_the_same_vector_share_their_question(monkeypatch):
    lm = language_model()
    tokens = []
    handle = lm.blocks[-1].register_forward_pre_hook(
        lambda _m, args, named: tokens.append((args[0] if args else named["hidden_states"])[..., 0].numel()),
        with_kwargs=True,
    )
    owners = [question for question in range(4) for _ in range(5)]
    questions = [RNG.integers(3, 290, size=40).tolist() for _ in range(4)]
    prompts = [questions[owner] for owner in owners]
    answers = [RNG.integers(3, 290, size=1 + i % 4).tolist() for i in range(len(prompts))]
    of_questions = np.stack([vec(200 + question) for question in range(4)])
    own = [Intervention("own", {1: of_questions[owners]}, strength) for strength in (0.5, 2.0)]
    scores = continuation_logprobs(lm, prompts, answers, own, batch_tokens=400)
    handle.remove()
    assert sum(tokens) < 2 * 4 * 80  # not the 20 times 40 of the prompts, under either
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        for c, strength in enumerate((0.5, 2.0)):
            alone = Intervention("alone", {1: of_questions[owners[i]]}, strength)
            expected = plain_logits(lm, [*prompt, *answer], alone).log_softmax(-1)
            places = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
            by_hand = sum(float(expected[place, token]) for place, token in zip(places, answer, strict=True))
            assert scores.sums[c][i] == pytest.approx(by_hand, abs=1e-4)


def test_vectors_of_their_own_share_examples_below_their_block(monkeypatch):
    monkeypatch.setattr(groups, "TRUNK_TOKENS", 0)
    monkeypatch.setattr(groups, "ROW_TOKENS", 128)
    lm = language_model()
    assert can_share(lm, head=True)  # tried, before tokens are counted
    tokens: dict[int, list[int]] = {0: [], 3: []}
    handles = [
        lm.blocks[k].mlp.register_forward_hook(lambda _m, _a, out, k=k: tokens[k].append(out[..., 0].numel()))
        for k in tokens
    ]
    preamble = RNG.integers(3, 290, size=50).tolist()
    owners = [question for question in range(12) for _ in range(4)]
    questions = [preamble + RNG.integers(3, 290, size=5 + question).tolist() for question in range(12)]
    prompts = [questions[owner] for owner in owners]
    answers = [RNG.integers(3, 290, size=1 + i % 4).tolist() for i in range(len(prompts))]
    rows = np.stack([vec(300 + question) for question in range(12)])[owners]
    swept = [*INTERVENTIONS[:2], Intervention("own", {2: rows}, 0.5), Intervention("own", {2: rows}, 2.0)]
    scores = continuation_logprobs(lm, prompts, answers, swept, batch_tokens=160)
    for handle in handles:
        handle.remove()
    asked = sum(len(question) - 50 for question in questions) + sum(len(answer) - 1 for answer in answers)
    assert 50 + asked <= sum(tokens[0]) <= 50 + 1.5 * asked
    assert sum(tokens[3]) >= 2 * (50 * 12 + asked)
    assert 74 < max(tokens[3]) <= 160  # rows of the two, in parts
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        alone = [*swept[:2], *(Intervention("own", {2: rows[i]}, strength) for strength in (0.5, 2.0))]
        for c, intervention in enumerate(alone):
            expected = plain_logits(lm, [*prompt, *answer], intervention).log_softmax(-1)
            places = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
            by_hand = [float(expected[place, token]) for place, token in zip(places, answer, strict=True)]
            np.testing.assert_allclose(scores.tokens[c][i], by_hand, atol=1e-4)


def test_one_vector_for_all_of_a_document_shares_it_above_its_block(monkeypatch):
    monkeypatch.setattr(groups, "TRUNK_TOKENS", 0)
    monkeypatch.setattr(groups, "ROW_TOKENS", 48)
    lm = language_model()
    assert can_share(lm, head=True)
    tokens: list[int] = []
    handle = lm.blocks[3].mlp.register_forward_hook(lambda _m, _a, out: tokens.append(out[..., 0].numel()))
    documents = [RNG.integers(3, 290, size=60).tolist() for _ in range(3)]
    owners = [document for document in range(3) for _ in range(4)]
    prompts = [[*documents[owner], *RNG.integers(3, 290, size=20).tolist()] for owner in owners]
    rows = np.stack([vec(400 + document) for document in range(3)])[owners]
    own = Intervention("own", {1: rows}, 1.0)
    got = next_token(lm, prompts, [INTERVENTIONS[0], own], watch=WATCH, batch_tokens=400)
    handle.remove()
    assert sum(tokens) < 2 * 3 * (60 + 4 * 20) + 3 * 60
    for p, prompt in enumerate(prompts):
        for c, alone in enumerate([INTERVENTIONS[0], Intervention("own", {1: rows[p]}, 1.0)]):
            expected = plain_logits(lm, prompt, alone)[-1][WATCH]
            np.testing.assert_allclose(got.logits[c, p], expected, rtol=0, atol=1e-4)


def test_prompts_are_the_same_where_all_interventions_add_the_same():
    assert same_rows([{}, {1: torch.zeros(3)}]) is None
    a, b = (torch.from_numpy(np.stack([vec(seed) for seed in seeds])) for seeds in ((1, 1, 2), (1, 2, 2)))
    assert same_rows([{1: a}]) == [0, 0, 1]
    assert same_rows([{1: a}, {1: b}]) == [0, 1, 2]
    assert same_rows([{1: a, 2: torch.zeros(3)}, {2: a}]) == [0, 0, 1]
    assert same_rows([{1: a, 2: b}]) == [0, 1, 2]


def greedy_by_hand(lm, prompt: list[int], intervention: Intervention, steps: int) -> str:
    ids = list(prompt)
    for _ in range(steps):
        token = int(plain_logits(lm, ids, intervention)[-1].argmax())
        if token == lm.tokenizer.eos_token_id:
            break
        ids.append(token)
    return continued(lm.tokenizer, prompt, ids[len(prompt) :])


@pytest.mark.parametrize(
    "architecture", ["llama", "gpt2", "gpt_neox", "bloom", "opt", "falcon", "gemma2", "mpt"]
)
def test_generation_in_batches_equals_one_at_a_time_without_cache(architecture):
    lm = language_model(architecture)
    chosen = [INTERVENTIONS[0], Intervention("strong", {2: vec(1)}, 20.0), INTERVENTIONS[4]]
    got = generate(lm, PROMPTS[:4], chosen, max_new_tokens=6, batch_size=5)
    prompts = PROMPTS[:4]
    expected = [[greedy_by_hand(lm, prompt, change, 6) for prompt in prompts] for change in chosen]
    assert got == expected
    assert got[0] != got[1]


def test_generation_without_pad_token_and_with_the_models_own_sampling_defaults():
    lm = wrap_model(tiny_model("llama"), tiny_tokenizer(pad=False))
    lm.model.generation_config.do_sample = True
    lm.model.generation_config.temperature = 5.0
    lm.model.generation_config.repetition_penalty = 9.0
    before = lm.model.generation_config
    got = generate(lm, PROMPTS[:3], [INTERVENTIONS[1]], max_new_tokens=5)
    assert got == [[greedy_by_hand(lm, p, INTERVENTIONS[1], 5) for p in PROMPTS[:3]]]
    assert lm.model.generation_config is before
    assert before.repetition_penalty == 9.0


def test_generation_stops_at_the_end_token():
    lm = language_model()
    third = int(plain_logits(lm, PROMPTS[0], INTERVENTIONS[0])[-1].argmax())
    lm.model.generation_config.eos_token_id = third
    assert generate(lm, PROMPTS[:1], max_new_tokens=5) == [[""]]


def test_sampling_is_seeded_and_leaves_the_global_generator_alone():
    lm = language_model()
    state = torch.random.get_rng_state()
    texts = [generate(lm, PROMPTS, max_new_tokens=8, temperature=1.5, seed=s) for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(state, torch.random.get_rng_state())


def test_generation_beyond_the_context_is_refused():
    with pytest.raises(UserError, match="context holds 128"):
        generate(language_model(), [[0] * 120], max_new_tokens=20)


# --- where a word begins ---

WORDS = ["happy", "sad", "scared"]
PIECES = ["▁", "▁happy", "▁sad", "▁scared", "▁felt", "▁he", "happy", "sad", "scared", "felt", "h", "s"]


def with_tokenizer(backend: Tokenizer):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    return wrap_model(tiny_model("llama", vocab=max(300, len(tokenizer))), tokenizer)


def unigram(pieces: list[str], prepend: str = "always"):
    """A SentencePiece-like tokenizer with exactly these pieces and single letters."""
    letters = [(c, -20.0) for c in "abcdefghijklmnopqrstuvwxyz. "]
    vocab = [("<unk>", 0.0), ("</s>", 0.0), *((p, -1.0) for p in pieces), *letters]
    backend = Tokenizer(models.Unigram(list(dict(vocab).items()), unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=False)
    backend.decoder = decoders.Metaspace()
    return with_tokenizer(backend)


def space_behind():
    """Words carry the space behind them, as in `felt▁`: a prompt's last token depends on what follows."""
    pieces = ["he▁", "felt▁", "felt", "▁", "happy", "sad", "scared"]
    letters = [(c, -20.0) for c in "abcdefghijklmnopqrstuvwxyz."]
    backend = Tokenizer(
        models.Unigram([("<unk>", 0.0), ("</s>", 0.0), *((p, -1.0) for p in pieces), *letters], unk_id=0)
    )
    backend.normalizer = normalizers.Replace(Regex(" "), "▁")
    return with_tokenizer(backend)


def first_token(lm, prompt, word):
    return cues(lm, [prompt], [word])[0].tokens[0]


@pytest.mark.parametrize("prompt", ["he felt", "he felt "])
def test_first_token_with_the_space_before_the_word(prompt):
    lm = unigram(PIECES)
    assert [lm.tokenizer.convert_ids_to_tokens(first_token(lm, prompt, w)) for w in WORDS] == [
        "▁happy",
        "▁sad",
        "▁scared",
    ]
    context = cues(lm, [prompt], WORDS)[0].context
    assert lm.tokenizer.convert_ids_to_tokens(context) == ["▁he", "▁felt"]


@pytest.mark.parametrize("prompt", ["he felt", "he felt "])
def test_first_token_with_the_space_behind_the_word_before(prompt):
    lm = space_behind()
    cue = cues(lm, [prompt], WORDS)[0]
    assert lm.tokenizer.convert_ids_to_tokens(cue.context) == ["he▁", "felt▁"]
    assert lm.tokenizer.convert_ids_to_tokens(cue.tokens) == WORDS


def test_first_token_of_a_word_in_several_pieces():
    lm = unigram(["▁", "▁happy", "▁ha", "▁felt", "▁he", "ppiness"])
    assert lm.tokenizer.convert_ids_to_tokens(first_token(lm, "he felt", "happiness")) == "▁ha"


@pytest.mark.parametrize("bos", [True, False])
def test_first_token_of_a_byte_level_tokenizer(bos):
    lm = wrap_model(tiny_model("llama"), tiny_tokenizer(bos=bos))
    for prompt in ("The boy was", "The boy was ", "Théo 🙂 was"):
        for word in (*WORDS, "éclat"):
            full = lm.tokenizer(prompt.rstrip() + " " + word)["input_ids"]
            prompt_alone = lm.tokenizer(prompt.rstrip())["input_ids"]
            assert cues(lm, [prompt], [word])[0].context == prompt_alone == full[: len(prompt_alone)]
            assert first_token(lm, prompt, word) == full[len(prompt_alone)]


def test_first_token_after_a_line_break():
    lm = wrap_model(tiny_model("llama"), tiny_tokenizer())
    prompt_alone = lm.tokenizer("Answer:\n")["input_ids"]
    assert cues(lm, ["Answer:\n"], ["was"])[0].context == prompt_alone
    assert first_token(lm, "Answer:\n", "was") == lm.tokenizer("Answer:\nwas")["input_ids"][len(prompt_alone)]


def test_first_token_of_a_tokenizer_that_knows_no_offsets():
    lm = wrap_model(tiny_model("llama"), tiny_tokenizer())
    expected = cues(lm, ["The boy was", "The boy was "], WORDS)

    class Slow:
        is_fast = False

        def __call__(self, texts, **named):
            assert "return_offsets_mapping" not in named
            return fast(texts, **named)

    fast, lm.tokenizer = lm.tokenizer, Slow()
    assert cues(lm, ["The boy was", "The boy was "], WORDS) == expected


def test_many_prompts_at_once_equal_one_at_a_time():
    lm = unigram(PIECES)
    prompts = ["he felt", "he felt ", "sad he felt", "felt"]
    assert cues(lm, prompts, WORDS) == [cues(lm, [p], WORDS)[0] for p in prompts]


@pytest.mark.parametrize("name", ["stories3m", "tinystories-656k"])
def test_first_token_of_really_trained_tokenizers(shared, name):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / name)
    lm = wrap_model(tiny_model("llama", vocab=len(tokenizer)), tokenizer)
    for prompt in ("The dog was sad. It felt", "The dog was sad. It felt "):
        cue = cues(lm, [prompt], WORDS)[0]
        marks = [t.replace("▁", "") for t in tokenizer.convert_ids_to_tokens(cue.tokens)]
        assert marks == WORDS
        for word, token in zip(WORDS, cue.tokens, strict=True):
            whole = tokenizer("The dog was sad. It felt " + word)["input_ids"]
            assert [*cue.context, token] == whole


def test_an_offloaded_model_scores_the_same():
    """accelerate puts forwards of its own on every module; they are used, passed over and put back."""
    lm = language_model()
    expected = next_token(lm, PROMPTS, INTERVENTIONS, watch=WATCH)
    accelerate.cpu_offload(lm.model, execution_device=torch.device("cpu"))
    before = [block.forward for block in lm.blocks]
    got = next_token(lm, PROMPTS, INTERVENTIONS, watch=WATCH)
    np.testing.assert_allclose(got.logits, expected.logits, rtol=0, atol=1e-5)
    assert [block.forward for block in lm.blocks] == before


def test_every_call_says_how_far_it_is() -> None:
    """In shares that grow, batch by batch and token by token, to the whole; the results are the same."""
    lm = language_model()

    def heard(call: Callable[[], object]) -> list[float]:
        shares: list[float] = []
        with listening(shares.append):
            call()
        assert shares == sorted(shares)
        assert shares[-1] == pytest.approx(1.0)
        return shares

    per_batch = heard(lambda: next_token(lm, PROMPTS, INTERVENTIONS, watch=WATCH, batch_tokens=64))
    assert len(per_batch) > len(PROMPTS)
    assert max(np.diff(per_batch)) < 0.5
    heard(lambda: continuation_logprobs(lm, PROMPTS, [[3, 4]] * len(PROMPTS), INTERVENTIONS[:2]))
    texts = [generate(lm, PROMPTS, INTERVENTIONS[:2], max_new_tokens=5, batch_size=7)]
    per_token = heard(
        lambda: texts.append(generate(lm, PROMPTS, INTERVENTIONS[:2], max_new_tokens=5, batch_size=7))
    )
    assert len(per_token) == 2 * 5
    assert texts[0] == texts[1]
    assert len(heard(lambda: token_changes(lm, PROMPTS * 10, INTERVENTIONS[1]))) >= 2
    assert len(heard(lambda: capture_ids(lm, PROMPTS, batch_tokens=16))) > 2


def test_a_pass_leaves_nothing_behind() -> None:
    """Its model, states and batch go with the last name for them, not when garbage is next looked for."""
    lm = language_model()
    model = weakref.ref(lm.model)
    gc.collect()
    gc.disable()
    try:
        next_token(lm, PROMPTS, INTERVENTIONS, watch=WATCH)
        del lm
        assert model() is None
    finally:
        gc.enable()
