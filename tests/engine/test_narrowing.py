"""The highest block at the wanted positions alone: against whole passes of each text by itself."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from contrans_dist.engine.capture import capture_ids
from contrans_dist.engine.prefixes import Row, can_narrow, narrowed, pack
from contrans_dist.engine.scoring import Intervention, continuation_logprobs, next_token
from contrans_dist.models import LanguageModel, wrap_model
from tests.tiny import ARCHITECTURES, tiny_model, tiny_tokenizer
from tests.truth import block_states

RNG = np.random.default_rng(3)
# Of all lengths, so that there is padding; no two begin alike.
IDS = [[3 + i, *RNG.integers(3, 290, size=4 + i % 9).tolist()] for i in range(20)]
PACKED = {"bloom"}
"""Cannot have several texts in a row, nor be narrowed there."""


def language_model(architecture: str = "llama", **sizes: int) -> LanguageModel:
    return wrap_model(tiny_model(architecture, **sizes), tiny_tokenizer())


@contextmanager
def counted(lm: LanguageModel) -> Iterator[list[int]]:
    """Positions that each block's feed-forward network runs at."""
    seen = [0] * len(lm.blocks)
    handles = []
    for k, block in enumerate(lm.blocks):

        def count(_module: object, args: tuple[torch.Tensor, ...], _out: object, k: int = k) -> None:
            seen[k] += args[0][..., 0].numel()

        handles.append(block.mlp.register_forward_hook(count))  # type: ignore[union-attr, arg-type]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_are_those_of_whole_passes(architecture: str) -> None:
    lm = language_model(architecture)
    assert [can_narrow(lm, 3, shared) for shared in (False, True)] == [True, architecture not in PACKED]
    rows = capture_ids(lm, IDS, batch_tokens=80)
    for i, text in enumerate(IDS):
        alone = block_states(lm, text)
        for block in rows:
            worst = np.abs(rows[block][i] - alone[block][-1]).max() / np.abs(alone[block][-1]).max()
            assert worst < 1e-5


@pytest.mark.parametrize(("blocks", "top"), [([0, 3], 3), ([1], 1)])
def test_the_highest_block_runs_at_one_position_a_text(blocks: list[int], top: int) -> None:
    lm = language_model()
    capture_ids(lm, IDS, blocks)  # what the model can do is tried with its first texts
    with counted(lm) as seen:
        capture_ids(lm, IDS, blocks, batch_tokens=10**6)
    assert seen[top] == len(IDS)
    width = len(IDS) * max(map(len, IDS))
    assert seen[:top] == [width] * top


def test_means_and_whole_rows_run_everywhere() -> None:
    lm = language_model()
    for ids, position in ((IDS, "mean"), ([text[:1] for text in IDS], "last")):
        capture_ids(lm, ids, position=position)
        with counted(lm) as seen:
            capture_ids(lm, ids, position=position, batch_tokens=10**6)
        assert set(seen) == {len(ids) * max(map(len, ids))}


def test_a_sweep_runs_the_highest_block_at_the_last_tokens() -> None:
    lm = language_model()
    sweep = [Intervention(str(s), {1: np.ones(lm.d, dtype=np.float32)}, s) for s in (0.5, 1.0, 2.0)]
    next_token(lm, IDS, sweep, watch=[5])
    with counted(lm) as seen:
        next_token(lm, IDS, sweep, watch=[5])
    assert seen[3] == len(sweep) * len(IDS)
    assert seen[2] >= len(sweep) * sum(map(len, IDS))


def test_several_positions_a_text() -> None:
    """Continuations want a score at each of their tokens, more of one text than of another."""
    lm = language_model()
    prompts, continuations = IDS[:8], [[7, 8, 9][: 1 + i % 3] for i in range(8)]
    steered = [Intervention("v", {1: RNG.normal(size=lm.d).astype(np.float32)}, 1.0)]
    continuation_logprobs(lm, prompts, continuations, steered)
    with counted(lm) as seen:
        scores = continuation_logprobs(lm, prompts, continuations, steered)
    assert seen[3] < seen[2]
    for p, (prompt, continuation) in enumerate(zip(prompts, continuations, strict=True)):
        hook = lm.blocks[1].register_forward_hook(
            lambda _m, _a, out: out + torch.as_tensor(steered[0].vectors[1])
        )
        with torch.no_grad():
            logits = lm.model(input_ids=torch.tensor([[*prompt, *continuation]])).logits[0]
        hook.remove()
        places = torch.arange(len(prompt) - 1, len(prompt) + len(continuation) - 1)
        wanted = logits.log_softmax(-1)[places, torch.tensor(continuation)].sum()
        assert scores.sums[0, p] == pytest.approx(float(wanted), abs=1e-4)


def test_beyond_a_window_nothing_changes() -> None:
    """Blocks with a window count the keys from the end of the row: there they run whole."""
    lm = language_model("mistral")
    window = lm.config.sliding_window
    assert isinstance(window, int)
    long = [RNG.integers(3, 290, size=window + 5).tolist() for _ in range(2)]
    with counted(lm) as seen:
        rows = capture_ids(lm, long, [3], batch_tokens=10**6)
    assert seen[3] >= 2 * (window + 5)
    for i, text in enumerate(long):
        np.testing.assert_allclose(rows[3][i], block_states(lm, text)[3][-1], rtol=1e-4, atol=1e-5)


def test_a_spoilt_text_does_not_spoil_its_batch() -> None:
    lm = language_model()
    expected = capture_ids(lm, IDS)
    with torch.no_grad():
        lm.decoder.get_input_embeddings().weight[299] = float("nan")  # type: ignore[operator, union-attr]
    rows = capture_ids(lm, [*IDS, [3, 299, 4]], batch_tokens=10**6)
    assert rows.bad_rows() == [len(IDS)]
    for block in expected:
        np.testing.assert_allclose(rows[block][: len(IDS)], expected[block], rtol=1e-4, atol=1e-5)


def test_a_block_that_keeps_no_keys_is_left_alone() -> None:
    """What cannot be narrowed is found out by trying, and then runs whole."""
    lm = language_model()
    own = lm.blocks[3].forward

    def forward(hidden_states: torch.Tensor, **named: object) -> object:
        named["past_key_values"] = None
        return own(hidden_states, **named)

    lm.blocks[3].forward = forward  # type: ignore[method-assign, assignment]
    assert not can_narrow(lm, 3, False)
    rows = capture_ids(lm, IDS)
    del lm.blocks[3].forward
    for i, text in enumerate(IDS):
        np.testing.assert_allclose(rows[3][i], block_states(lm, text)[3][-1], rtol=1e-4, atol=1e-5)


def test_elsewhere_there_are_zeros() -> None:
    lm = language_model()
    packed = pack([Row((0,), 5), Row((1,), 6)], IDS[:2], [[4], [2]])
    states: list[torch.Tensor] = []
    handle = lm.blocks[2].register_forward_hook(lambda _m, _a, out: states.append(out))
    with torch.no_grad(), narrowed(lm, 2, packed.rows, packed.columns, packed.ids.shape):
        lm.decoder(input_ids=packed.ids, use_cache=False)
    handle.remove()
    filled = states[0].abs().sum(-1) > 0
    assert filled.nonzero().tolist() == [[0, 4], [1, 2]]
    assert "forward" not in lm.blocks[2].__dict__
