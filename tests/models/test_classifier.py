"""The judge against transformers' own pipeline, and against its model run by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    TextClassificationPipeline,
)

from contrans_dist.errors import UserError
from contrans_dist.models import classifier
from contrans_dist.models.classifier import Classifier, load_classifier
from tests.tiny import CORPUS, save_tiny, tiny_tokenizer

POSITIONS = 40
ROOM = POSITIONS - 3  # RoBERTa's positions begin behind that of the padding token, which is 2
WORDS = " ".join(CORPUS).split()
TEXTS = [" ".join(WORDS[i : i + n]) for i, n in ((0, 3), (5, 8), (2, 1), (11, 6), (30, 2), (40, 8), (7, 4))]


def classifier_model(kind: str = "roberta", labels: int = 2, **config: Any) -> PreTrainedModel:
    """A random classifier whose weights are large: its probabilities differ from text to text."""
    ids = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 1}
    sizes: dict[str, dict[str, Any]] = {
        "roberta": {
            "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
            "type_vocab_size": 1, "max_position_embeddings": POSITIONS, "pad_token_id": 2,
        },
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": POSITIONS},
    }  # fmt: skip
    names = {i: f"class {i}" for i in range(labels)}
    settings = AutoConfig.for_model(kind, **ids, **sizes[kind], num_labels=labels, id2label=names, **config)
    model = AutoModelForSequenceClassification.from_config(settings, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def save_classifier(path: Path, **options: Any) -> str:
    classifier_model(**options).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return str(path)


def by_pipeline(model: PreTrainedModel, tokenizer: Any, texts: list[str]) -> np.ndarray:
    """One text after the other through transformers' pipeline; the classes in the order of their index."""
    pipe = TextClassificationPipeline(model=model, tokenizer=tokenizer, top_k=None, device="cpu")
    rows = []
    for text in texts:
        scores = {score["label"]: score["score"] for score in pipe([text])[0]}
        rows.append([scores[model.config.id2label[i]] for i in range(model.config.num_labels)])
    return np.array(rows)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"labels": 3},
        {"labels": 3, "problem_type": "multi_label_classification"},
        {"labels": 1},
    ],
    ids=["two", "three", "several at once", "one"],
)
def test_probabilities_equal_the_pipeline(
    tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = load_classifier(save_classifier(tmp_path / "judge", **options))
    expected = by_pipeline(classifier_model(**options), tiny_tokenizer(), TEXTS)
    assert expected.std(axis=0).min() > 0.01
    for batch_size in (1, 3, 64):
        monkeypatch.setattr(classifier, "BATCH_SIZE", batch_size)
        got = judge.probabilities(TEXTS)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, atol=1e-5)
    assert judge.probabilities([]).shape == (0, judge.model.config.num_labels)


def test_of_a_text_that_is_too_long_the_beginning_is_judged(tmp_path: Path) -> None:
    judge = load_classifier(save_classifier(tmp_path / "judge"))
    assert judge.tokenizer.model_max_length > 10**7  # so that the limit is the model's
    assert judge.longest == ROOM
    long = " ".join(WORDS[:200])
    ids = tiny_tokenizer()(long)["input_ids"]
    assert len(ids) > 3 * POSITIONS
    judge.model.cpu()
    with torch.no_grad():
        expected = judge.model(input_ids=torch.tensor([ids[:ROOM]])).logits.softmax(dim=1)
        other = judge.model(input_ids=torch.tensor([ids[: ROOM - 1]])).logits.softmax(dim=1)
    assert not torch.allclose(expected, other, atol=1e-4)
    got = judge.probabilities([TEXTS[0], long, TEXTS[1]])
    np.testing.assert_allclose(got[1:2], expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(got[::2], by_pipeline(judge.model, judge.tokenizer, TEXTS[:2]), atol=1e-5)
    judge.tokenizer.model_max_length = 12
    assert judge.longest == 12


def test_a_tokenizer_without_padding_judges_one_text_at_a_time() -> None:
    model, tokenizer = classifier_model("gpt2"), tiny_tokenizer(pad=False)
    judge = Classifier(model, tokenizer, "gpt2")
    expected = by_pipeline(model, tokenizer, TEXTS)
    np.testing.assert_allclose(judge.probabilities(TEXTS), expected, atol=1e-5)
    assert judge.longest == POSITIONS


def test_labels_by_name_and_index() -> None:
    judge = Classifier(classifier_model(labels=3), tiny_tokenizer(), "judge")
    assert judge.labels == ["class 0", "class 1", "class 2"]
    assert [judge.label_index(label) for label in (0, 2, "class 1")] == [0, 2, 1]
    for wrong in (3, -1, "toxic"):
        with pytest.raises(
            UserError, match=r"judge: no label .* expected one of 0 \(class 0\), 1 \(class 1\)"
        ):
            judge.label_index(wrong)


def test_what_is_no_classifier_is_refused(tmp_path: Path) -> None:
    model = str(save_tiny(tmp_path / "language"))
    with pytest.raises(UserError, match=r"language: not a sequence-classification model; .* no score.weight"):
        load_classifier(model)
    with pytest.raises(UserError, match=r"^classifier \S*nothing: no such folder"):
        load_classifier(str(tmp_path / "nothing"))
    scores = save_classifier(tmp_path / "scores", labels=1, problem_type="regression")
    with pytest.raises(UserError, match="regression"):
        load_classifier(scores)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_it_says_the_same(tmp_path: Path) -> None:
    judge = load_classifier(save_classifier(tmp_path / "judge"))
    assert judge.model.device.type == "cuda"
    got = judge.probabilities(TEXTS)
    judge.model.cpu()
    np.testing.assert_allclose(got, judge.probabilities(TEXTS), atol=1e-4)
