"""The snippet of the package's own description, as it is printed there, on tiny models and without Ray."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import CORPUS, save_tiny

import contrans_dist as ct

BLOCKS = 4


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    return (
        save_tiny(folder / "source", "gpt_neox", n_blocks=BLOCKS, d=16),
        save_tiny(folder / "target", "llama", n_blocks=BLOCKS, d=32, seed=1),
    )


def snippet() -> str:
    """The indented lines of the package's docstring."""
    lines = [line for line in (ct.__doc__ or "").splitlines() if line.startswith("    ")]
    return "\n".join(line.removeprefix("    ") for line in lines)


def test_the_snippet_runs_as_printed(models: tuple[Path, Path]) -> None:
    texts = [f"{text} {i}" for i, text in enumerate(dict.fromkeys(CORPUS))] * 4
    source, target = ct.load_model(str(models[0])), ct.load_model(str(models[1]))
    names: dict[str, Any] = {
        "texts": texts,
        "target": target,
        "rows_positive": ct.capture(source, texts[:8], blocks=[2])[2],
        "rows_negative": ct.capture(source, texts[8:16], blocks=[2])[2],
        "source_rows": ct.capture(source, texts, blocks=[2])[2],
        "target_rows": ct.capture(target, texts, blocks=[3])[3],
        "steered": [],
    }
    code = snippet().replace("path-or-hub-id", str(models[0]))
    code = code.replace("blocks=[24]", "blocks=[2]").replace("block=30", "block=3")
    assert code.count("...") == 1
    code = re.sub(r"^( +)\.\.\..*$", r"\1steered.append(logits(target))", code, flags=re.M)
    names["logits"] = logits
    before = logits(target)
    exec(code, names)
    rows = names["rows"]
    assert list(rows) == [2]
    assert rows[2].shape == (len(texts), 16)
    assert rows[2].dtype == np.float32
    assert names["vector"].shape == (16,)
    assert names["mapping"].weight.shape == (16, 32)
    assert not torch.allclose(names["steered"][0], before)
    assert torch.equal(logits(target), before)


def logits(lm: ct.LanguageModel) -> torch.Tensor:
    ids = torch.tensor([lm.tokenizer("The boy was happy")["input_ids"]])
    with torch.no_grad():
        return lm.model(ids).logits


def test_the_steps_are_the_formulas(models: tuple[Path, Path]) -> None:
    """capture, equation 1, equation 2 and equation 3, each written out with numpy and transformers alone."""
    texts = [f"{CORPUS[i % 5]} {i}" for i in range(40)]
    source, target = ct.load_model(str(models[0])), ct.load_model(str(models[1]))
    x, y = ct.capture(source, texts, blocks=[2])[2], ct.capture(target, texts, blocks=[1])[1]
    for lm, rows, block in ((source, x, 2), (target, y, 1)):
        for i in (0, 17, 39):
            ids = torch.tensor([lm.tokenizer(texts[i])["input_ids"]])
            with torch.no_grad():
                states = lm.model(ids, output_hidden_states=True).hidden_states
            np.testing.assert_allclose(rows[i], states[block + 1][0, -1].numpy(), rtol=1e-4, atol=1e-4)
    vector = ct.concept_vector(x[:20], x[20:])
    expected = x[:20].astype(np.float64).mean(axis=0) - x[20:].astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(vector, expected, rtol=1e-5, atol=1e-6)
    mapping = ct.fit_map(x, y, protocol="paper")
    plain = np.linalg.pinv(x[:32].astype(np.float64)) @ y[:32].astype(np.float64)
    carried = ct.transplant(vector, mapping)
    np.testing.assert_allclose(
        carried, expected @ plain, rtol=1e-3, atol=1e-3 * np.abs(expected @ plain).max()
    )
    assert ct.cosine(carried, expected @ plain) == pytest.approx(1, abs=1e-5)
    seen: list[torch.Tensor] = []
    handle = target.blocks[1].register_forward_hook(
        lambda _m, _a, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    logits(target)
    with ct.steer(target, carried, block=1, strength=2.5):
        logits(target)
    handle.remove()
    np.testing.assert_allclose(
        (seen[1] - seen[0]).numpy(), np.broadcast_to(2.5 * carried, seen[0].shape), rtol=1e-3, atol=1e-3
    )


def test_generation_is_steered_and_the_model_is_left_as_it_was(models: tuple[Path, Path]) -> None:
    target = ct.load_model(str(models[1]))
    ids = torch.tensor([target.tokenizer("The boy")["input_ids"]])
    options = {"max_new_tokens": 8, "do_sample": False}
    plain = target.model.generate(ids, **options)
    row = np.random.default_rng(0).normal(size=32).astype(np.float32) * 20
    with ct.steer(target, row, block=2, strength=1.0):
        steered = target.model.generate(ids, **options)
    with ct.steer(target, row, block=2, strength=0.0):
        assert torch.equal(target.model.generate(ids, **options), plain)
    assert not torch.equal(steered, plain)
    assert torch.equal(target.model.generate(ids, **options), plain)


def test_mistakes_are_named(models: tuple[Path, Path]) -> None:
    target = ct.load_model(str(models[1]))
    with pytest.raises(ct.UserError, match="hidden size is 32"), ct.steer(target, np.ones(16), block=1):
        pass
    with pytest.raises(ct.UserError, match="blocks 0 to 3"), ct.steer(target, np.ones(32), block=30):
        pass
    with pytest.raises(ct.UserError, match="nowhere"):
        ct.load_model("/nowhere/at/all")
    with pytest.raises(ValueError, match="16 numbers does not fit"):
        ct.transplant(np.ones(16), np.ones((8, 8)))
    with pytest.raises(AttributeError, match="no attribute 'captured'"):
        ct.captured  # noqa: B018


def test_every_public_name_is_there() -> None:
    assert sorted(ct.__all__) == list(ct.__all__)
    for name in ct.__all__:
        assert getattr(ct, name) is not None


def test_neither_ray_nor_torch_is_loaded_before_it_is_needed() -> None:
    code = (
        "import sys, contrans_dist as ct; import contrans_dist.cli; "
        "assert 'torch' not in sys.modules and 'ray' not in sys.modules; "
        "ct.capture, ct.load_model, ct.fit_map, ct.steer, ct.transplant, ct.generate; "
        "assert 'ray' not in sys.modules"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=120)
