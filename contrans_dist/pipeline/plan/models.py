"""The models of a plan as their configurations and tokenizers describe them; no weights are read."""

import re
from collections.abc import Sequence
from contextlib import suppress
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoModelForSequenceClassification

from contrans_dist.config import ModelSettings
from contrans_dist.errors import RunError, UserError
from contrans_dist.models import DTYPES, LanguageModel, find_blocks, load_model, text_config, wrap_model
from contrans_dist.models.classifier import describe_classifier, load_classifier
from contrans_dist.models.hub import hub_errors
from contrans_dist.models.loading import Described, describe
from contrans_dist.models.needs import Needs, needs
from contrans_dist.models.pretrained import load_tokenizer

_PIECE = re.compile(r"\w{1,5}|[^\w\s]")


class StandIn:
    """For a tokenizer that is not on this machine, a rough count: words cut after every fifth letter.

    That is about what the vocabularies of Llama and its like make of English: 346 thousand tokens of the test
    split of WikiText-2, where Llama 2 has 341 thousand. Called as transformers' tokenizers are.
    """

    is_fast = True
    bos_token_id = 0
    chat_template = "{{ messages }}"

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self.known: dict[str, int] = {}

    def __call__(
        self,
        texts: str | Sequence[str],
        add_special_tokens: bool = True,
        return_offsets_mapping: bool = False,
        **_: Any,
    ) -> dict[str, list[Any]]:
        if isinstance(texts, str):
            several = self([texts], add_special_tokens, return_offsets_mapping)
            return {name: values[0] for name, values in several.items()}
        front = [self.bos_token_id] * add_special_tokens
        encoded: dict[str, list[Any]] = {
            "input_ids": [[*front, *map(self._id, _PIECE.findall(text))] for text in texts]
        }
        if return_offsets_mapping:
            spans = [(0, 0)] * add_special_tokens
            encoded["offset_mapping"] = [
                [*spans, *(piece.span() for piece in _PIECE.finditer(text))] for text in texts
            ]
        return encoded

    def decode(self, _ids: Sequence[int], **_: Any) -> str:
        return "<s>"

    def get_chat_template(self) -> str:
        return self.chat_template

    def apply_chat_template(self, conversations: list[list[dict[str, str]]], **_: Any) -> list[str]:
        return ["\n".join(turn["content"] for turn in turns) for turns in conversations]

    def _id(self, piece: str) -> int:
        return self.known.setdefault(piece, 1 + len(self.known) % (self.vocabulary - 1))


class PlannedModel:
    """One language model of a recipe. Raises UserError for one that is not there."""

    def __init__(self, settings: ModelSettings) -> None:
        self.settings, self.name = settings, settings.id
        self.up_to, self.needs = cache(self._up_to), cache(self._needs)
        described = self.up_to(None, False)
        self.dtype, self.config = described.dtype(settings.dtype), text_config(described.config)
        self.lm: LanguageModel = wrap_model(described.empty(), self._tokenizer(described), settings.id)
        """Without weights: for what the engine asks of a model before it runs it."""
        self.n_blocks, self.d = self.lm.n_blocks, self.lm.d
        _, blocks = find_blocks(self.lm.model)
        entries = sum(p.numel() for block in blocks for p in block.parameters() if p.ndim > 1)
        self.block_parameters = entries / len(blocks)
        """Entries of the matrices of one block, on average."""
        self.head = int(self.config.vocab_size) * self.d / self.block_parameters
        """What the language-model head costs at a position, in blocks."""
        self.here = any(Path(described.files.place).glob("*.safetensors"))
        """Whether its weights are on this machine."""

    def _up_to(self, highest: int | None, head: bool) -> Described:
        """The model up to a block."""
        trust = self.settings.trust_remote_code
        return describe(self.name, head=head, highest_block=highest, trust_remote_code=trust)

    def _needs(self, highest: int | None, head: bool, batch_tokens: int) -> Needs:
        """Bytes that it takes, up to a block."""
        return needs(self.up_to(highest, head), self.settings, batch_tokens)

    def loaded(self) -> LanguageModel:
        """It on this machine, without a head."""
        return load_model(self.name, **self.settings.model_dump(exclude={"id"}), head=False)

    def made(self, n_blocks: int) -> LanguageModel:
        """One of its kind, of so many blocks and without a head, with random weights."""
        described = self.up_to(None, False)
        config = deepcopy(described.config)
        config.get_text_config().num_hidden_layers = n_blocks
        return wrap_model(described.whole(config).requires_grad_(False).eval(), self.lm.tokenizer)

    def _tokenizer(self, described: Described) -> Any:
        files = described.files
        stand_in = StandIn(text_config(described.config).vocab_size)
        if files.in_folder and not (Path(files.place) / "tokenizer_config.json").exists():
            return stand_in
        # A folder's own is there, or damaged; a hub need not answer for a plan.
        silent = () if files.in_folder else (UserError, RunError)
        with suppress(*silent), hub_errors(self.name):
            return load_tokenizer(files)
        return stand_in


class PlannedJudge:
    """The classifier of a benchmark. Raises UserError for one that is not there."""

    head = 0.0

    def __init__(self, name: str) -> None:
        self.name = name
        described = describe_classifier(name)
        self.config, self.dtype, empty = described.config, described.dtype(), described.empty()
        self.here = any(Path(described.files.place).glob("*.safetensors"))
        self.n_blocks = int(self.config.num_hidden_layers)
        parameters = sum(p.numel() for p in empty.parameters())
        self.weights = DTYPES[self.dtype].itemsize * parameters
        embedding = empty.get_input_embeddings().weight.numel()
        self.block_parameters = (parameters - embedding) / self.n_blocks

    def loaded(self) -> nn.Module:
        """It on this machine."""
        return load_classifier(self.name).model

    def made(self, n_blocks: int) -> nn.Module:
        """One of its kind, of so many blocks, with random weights."""
        config = deepcopy(self.config)
        config.num_hidden_layers = n_blocks
        made: nn.Module = AutoModelForSequenceClassification.from_config(config)
        return made.requires_grad_(False).eval()
