"""Steering against hooks written out here, one block and one call at a time."""

import numpy as np
import pytest
import torch

from contrans_dist.engine.steer import steer
from contrans_dist.errors import UserError
from contrans_dist.models import find_blocks, wrap_model
from tests.tiny import tiny_model, tiny_tokenizer

IDS = torch.tensor([[0, 5, 17, 40, 8, 99], [0, 7, 3, 50, 60, 70]])
D, N = 32, 4


def vector(seed: int = 0, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape or (D,)).astype(np.float32)


def by_hand(model, offsets: dict[int, np.ndarray]) -> torch.Tensor:
    """The model's logits with `offsets` added to the blocks' outputs, by hooks of this test's own."""

    def make(offset):
        def hook(_module, _args, output):
            if isinstance(output, tuple):
                return (output[0] + torch.tensor(offset), *output[1:])
            return output + torch.tensor(offset)

        return hook

    handles = [find_blocks(model)[1][k].register_forward_hook(make(v)) for k, v in offsets.items()]
    try:
        with torch.no_grad():
            return model(IDS).logits
    finally:
        for handle in handles:
            handle.remove()


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def n_hooks(model) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize(
    "architecture", ["llama", "gpt2", "bloom", "falcon", "mpt", "gpt_neo", "gemma2", "llava"]
)
def test_adds_strength_times_vector_at_every_position(architecture):
    model = tiny_model(architecture)
    v = vector()
    with steer(model, v, block=2, strength=1.5):
        got = logits(model)
    torch.testing.assert_close(got, by_hand(model, {2: 1.5 * v}), rtol=0, atol=1e-5)
    assert (got - logits(model)).abs().max() > 0.1


def test_state_after_the_block_is_the_formula():
    """Hidden state k+1 with steering is the one without, plus the offset; below it nothing changes."""
    model = tiny_model("llama")
    v = vector()
    with torch.no_grad():
        plain = model(IDS, output_hidden_states=True).hidden_states
        with steer(model, v, block=1, strength=-3.0):
            steered = model(IDS, output_hidden_states=True).hidden_states
    torch.testing.assert_close(steered[2], plain[2] - 3 * torch.tensor(v), rtol=0, atol=1e-6)
    assert torch.equal(steered[1], plain[1])


def test_shapes_of_vectors_mean_what_they_say():
    model = tiny_model("llama")
    rows = vector(1, N, D)
    rows[3] = 0
    cases = [
        (rows, None, {0: rows[0], 1: rows[1], 2: rows[2]}),
        (rows, 1, {1: rows[1]}),
        (rows, [0, 2], {0: rows[0], 2: rows[2]}),
        (rows[0], [1, 2], {1: rows[0], 2: rows[0]}),
        ({0: rows[1], 3: rows[2]}, None, {0: rows[1], 3: rows[2]}),
        (torch.tensor(rows[0]), 2, {2: rows[0]}),
    ]
    for given, block, expected in cases:
        with steer(model, given, block=block, strength=2.0):
            got = logits(model)
        torch.testing.assert_close(
            got, by_hand(model, {k: 2 * v for k, v in expected.items()}), rtol=0, atol=1e-5
        )


def test_strength_zero_is_bit_identical_and_hooks_nothing():
    model = tiny_model("llama")
    plain = logits(model)
    with steer(model, vector(), block=1, strength=0.0):
        assert n_hooks(model) == 0
        assert torch.equal(logits(model), plain)


def test_hooks_are_gone_after_an_exception():
    model = tiny_model("llama")
    plain = logits(model)

    def fails():
        with steer(model, vector(), block=[0, 1], strength=1.0):
            assert n_hooks(model) == 2
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fails()
    assert n_hooks(model) == 0
    assert torch.equal(logits(model), plain)


def test_nested_steering_adds_up():
    model = tiny_model("llama")
    a, b = vector(1), vector(2)
    with steer(model, a, block=1, strength=1.0), steer(model, b, block=1, strength=2.0):
        got = logits(model)
    torch.testing.assert_close(got, by_hand(model, {1: a + 2 * b}), rtol=0, atol=1e-5)


def test_generate_with_cache_equals_full_forward_each_step():
    model = tiny_model("llama", eos_token_id=None)
    model.generation_config.eos_token_id = None
    v, ids = vector(), IDS[:1]
    with steer(model, v, block=1, strength=2.0):
        got = model.generate(ids, max_new_tokens=8, do_sample=False, use_cache=True, pad_token_id=2)
        for _ in range(8):
            with torch.no_grad():
                ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(got, ids)
    plain = model.generate(IDS[:1], max_new_tokens=8, do_sample=False, pad_token_id=2)
    assert not torch.equal(got, plain)


def test_vector_takes_the_dtype_of_the_block():
    model = tiny_model("llama").to(torch.bfloat16)
    with torch.no_grad():
        plain = model(IDS, output_hidden_states=True).hidden_states[2]
        with steer(model, vector().astype(np.float64), block=1, strength=1.0):
            steered = model(IDS, output_hidden_states=True).hidden_states[2]
    assert steered.dtype == torch.bfloat16
    assert torch.equal(steered, plain + torch.tensor(vector()).to(torch.bfloat16))


@pytest.mark.parametrize(
    ("given", "block", "words"),
    [
        (vector(0, D + 1), 1, "hidden size is 32"),
        (vector(), 4, "blocks 0 to 3"),
        (vector(), -1, "blocks 0 to 3"),
        (vector(), None, "needs `block`"),
        (vector(0, N + 1, D), None, r"\[4, 32\]"),
        (vector(0, N, D + 1), 1, "hidden size"),
        ({7: vector()}, None, "blocks 0 to 3"),
        ({1: vector()}, 1, "not both"),
        (vector() * np.nan, 1, "not finite"),
        (np.zeros((N, D), np.float32), 2, "carries nothing at block 2"),
    ],
)
def test_what_does_not_fit_is_refused(given, block, words):
    model = tiny_model("llama")
    with pytest.raises(UserError, match=words), steer(model, given, block=block, strength=1.0):
        pass
    assert n_hooks(model) == 0


def test_a_loaded_language_model_is_steered_too():
    model = tiny_model("llama")
    lm = wrap_model(model, tiny_tokenizer())
    with steer(lm, vector(), block=0, strength=1.0):
        got = logits(model)
    torch.testing.assert_close(got, by_hand(model, {0: vector()}), rtol=0, atol=1e-5)
