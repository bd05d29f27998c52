"""Tokens that rise and fall, against whole distributions of one prompt at a time."""

from pathlib import Path

import numpy as np
import pytest
import torch

from contrans_dist.engine.scoring import Intervention, changes, token_changes
from contrans_dist.engine.steer import steer
from contrans_dist.errors import RunError
from contrans_dist.models import LanguageModel, load_model, wrap_model
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

TEXTS = ["Once upon a time", "Once upon a dog", "The boy was happy", "She felt sad, angry and", "One day"]


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder: Path = tmp_path_factory.mktemp("model")
    return load_model(str(save_tiny(folder, n_blocks=4, d=32)))


@pytest.mark.parametrize("together", [2, 64])
def test_changes_are_those_of_single_runs(
    lm: LanguageModel, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "_TOGETHER", together)
    row = np.random.default_rng(1).standard_normal(lm.d).astype(np.float32)
    prompts = [lm.tokenizer(text)["input_ids"] for text in TEXTS]
    changed = token_changes(lm, prompts, Intervention("v", {1: row}, 2.0))
    for p, prompt in enumerate(prompts):
        ids = torch.tensor([prompt])
        with torch.no_grad():
            before = lm.model(ids).logits[0, -1].softmax(dim=0)
            with steer(lm, row, block=1, strength=2.0):
                after = lm.model(ids).logits[0, -1].softmax(dim=0)
        change = (after - before).numpy()
        order = np.argsort(change)
        np.testing.assert_allclose(change[changed.up[p]], change[order[::-1][:10]], atol=1e-5)
        np.testing.assert_allclose(change[changed.down[p]], change[order[:10]], atol=1e-5)


def test_changes_of_a_model_whose_logits_overflow_are_a_failure() -> None:
    lm = wrap_model(tiny_model("llama").half(), tiny_tokenizer())
    prompts = [lm.tokenizer(text)["input_ids"] for text in TEXTS]
    vector = {block: np.ones(lm.d, np.float32) for block in (0, 1)}
    with pytest.raises(RunError, match="condition v at strength 60000: the model's logits overflow"):
        token_changes(lm, prompts, Intervention("v", vector, 6e4))
