"""A sequence-classification model that judges texts."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from contrans_dist.console import tell
from contrans_dist.errors import UserError
from contrans_dist.models.devices import leave_out_cudnn, usual_device
from contrans_dist.models.facts import config_hash, tokenizer_hash, weights_identity
from contrans_dist.models.hub import hub_errors
from contrans_dist.models.language_model import tokenizer_limit
from contrans_dist.models.loading import Described
from contrans_dist.models.model_files import ModelFiles
from contrans_dist.models.precision import DTYPES
from contrans_dist.models.pretrained import SENSELESS, load_tokenizer, read_config, senseless
from contrans_dist.models.weight_files import check_weights, missing_weights, own_dtype
from contrans_dist.store.patience import patiently

BATCH_SIZE = 64
"""Texts that are judged in one pass."""


@dataclass
class Classifier:
    """A loaded judge."""

    model: PreTrainedModel
    tokenizer: Any
    name: str

    @property
    def labels(self) -> list[str]:
        """Names of the classes, by index."""
        return [str(self.model.config.id2label[i]) for i in range(self.model.config.num_labels)]

    def label_index(self, label: str | int) -> int:
        """Index of a class given by index or by name. Raises UserError when there is no such class."""
        if isinstance(label, int) and 0 <= label < len(self.labels):
            return label
        if label in self.labels:
            return self.labels.index(str(label))
        known = ", ".join(f"{i} ({name})" for i, name in enumerate(self.labels))
        raise UserError(f"classifier {self.name}: no label {label!r}; expected one of {known}")

    @property
    def exclusive(self) -> bool:
        """Whether one of the classes holds (softmax), not each for itself (sigmoid); as transformers does."""
        kind = self.model.config.problem_type
        return len(self.labels) > 1 and kind != "multi_label_classification"

    @property
    def longest(self) -> int | None:
        """Most tokens of a text, special ones included; None where nothing limits it."""
        limits = [tokenizer_limit(self.tokenizer), _positions(self.model)]
        return min((limit for limit in limits if limit is not None), default=None)

    @torch.inference_mode()
    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Probability of each class for each text, float32 `[n_texts, labels]`; it depends on the text alone.

        Of a text longer than the model takes, the beginning is judged.
        """
        done = 0
        probabilities = np.zeros((len(texts), len(self.labels)), np.float32)
        # A decoder that knows no padding token takes one text at a time.
        batch_size = BATCH_SIZE if self.model.config.pad_token_id is not None else 1
        encoded = self._encoded(texts)
        # Only texts of one length run together: nothing is filled up, with whatever token.
        order = sorted(range(len(texts)), key=lambda i: -len(encoded[i]))
        for _, alike in groupby(order, key=lambda i: len(encoded[i])):
            same = list(alike)
            for start in range(0, len(same), batch_size):
                rows = same[start : start + batch_size]
                ids = torch.tensor([encoded[i] for i in rows], device=self.model.device)
                logits = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()
                chances = logits.softmax(dim=1) if self.exclusive else logits.sigmoid()
                probabilities[rows] = chances.cpu().numpy()
                done += len(rows)
                tell(done / len(texts))
        return probabilities

    def _encoded(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        limit = {"truncation": True, "max_length": self.longest} if self.longest is not None else {}
        return list(self.tokenizer(list(texts), padding=False, verbose=False, **limit)["input_ids"])


@contextmanager
def _as_classifier() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("--model", "classifier", 1)) from error


def describe_classifier(name: str, download: bool = False) -> Described:
    """What `load_classifier` loads, from the configuration alone.

    Args:
        name: As in `load_classifier`.
        download: Whether weight files that are not on this machine are fetched, and held against it as well.

    Raises:
        UserError: As `load_classifier`.
        RunError: As `load_classifier`.
    """
    with _as_classifier():
        files = ModelFiles.of(name)
        with hub_errors(name):
            config = read_config(files)
            try:
                with torch.device("meta"):
                    empty = AutoModelForSequenceClassification.from_config(config)
            except SENSELESS as error:
                raise senseless(f"--model {name}: config.json", error) from error
            parameters = sum(parameter.numel() for parameter in empty.parameters())
            check_weights(files, config, parameters, download)
            dtype = own_dtype(files, config)
        if dtype not in DTYPES:
            raise UserError(
                f"--model {name}: its weights are of type {dtype}; expected one of {', '.join(DTYPES)}"
            )
    return Described(files, config, config, type(empty), parameters, type(empty))


@patiently
def load_classifier(name: str) -> Classifier:
    """A classifier of texts from its files, on a GPU where there is one.

    Args:
        name: A hub model (`org/name@revision`), a local folder, or `demo:classifier`.

    Raises:
        UserError: For something that is no classifier, such as a language model, whose head would be drawn at
            random.
        RunError: Where the hub does not answer.
    """
    described = describe_classifier(name, download=True)
    files = described.files
    with _as_classifier(), hub_errors(name):
        tokenizer = load_tokenizer(files)
        model, report = described.loaded.from_pretrained(
            files.place,
            config=described.config,
            revision=files.revision,
            dtype=DTYPES[described.dtype()],
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told by name
        )
    missing = missing_weights(report)
    if missing:
        raise UserError(
            f"classifier {name}: not a sequence-classification model; its checkpoint has no {missing[0]}"
        )
    if model.config.problem_type == "regression":
        raise UserError(f"classifier {name}: a regression model, whose scores are no probabilities")
    leave_out_cudnn()
    return Classifier(model.eval().to(usual_device()), tokenizer, name)


def classifier_identity(name: str) -> dict[str, Any]:
    """What a judge's numbers depend on: weights (`weights_identity`) and their precision, configuration,
    labels, tokenizer, and where that cuts. Raises as `load_classifier` for one that cannot be found.
    """
    described = describe_classifier(name)
    with _as_classifier():
        with hub_errors(name):
            tokenizer = load_tokenizer(described.files)
        weights = weights_identity(name)
    return {
        "weights": weights,
        "config": config_hash(described.config),
        "dtype": described.dtype(),
        "tokenizer": tokenizer_hash(tokenizer),
        "cut": [getattr(tokenizer, name, None) for name in ("model_max_length", "truncation_side")],
    }


def _positions(model: PreTrainedModel) -> int | None:
    """Tokens for which the model has positions. RoBERTa's begin behind the one of its padding token."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    limit = getattr(model.config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None
