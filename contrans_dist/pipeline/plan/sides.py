"""The models of a plan as their configurations and tokenizers describe them; no weights are read."""

import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

from contrans_dist.config import CHAT_DATE, ModelSettings
from contrans_dist.errors import RunError, UserError
from contrans_dist.models import (
    DTYPES,
    LanguageModel,
    encode_many,
    find_blocks,
    split_name,
    text_config,
    wrap_model,
)
from contrans_dist.models.classifier import describe_classifier
from contrans_dist.models.hub import hub_errors
from contrans_dist.models.loading import Described, describe
from contrans_dist.models.needs import activation_bytes
from contrans_dist.models.pretrained import load_tokenizer

_PIECE = re.compile(r"\w{1,5}|[^\w\s]")


class Pieces:
    """A tokenizer for models whose own is not on this machine: words cut after every fifth letter.

    That is about what the vocabularies of Llama and its like make of English: 346 thousand tokens of the test
    split of WikiText-2, where Llama 2 has 341 thousand.
    """

    is_fast = True
    bos_token_id = 0

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
        """`input_ids` and, if asked, `offset_mapping`, as transformers' tokenizers return them."""
        if isinstance(texts, str):
            found = self([texts], add_special_tokens, return_offsets_mapping)
            return {name: each[0] for name, each in found.items()}
        front = [self.bos_token_id] * add_special_tokens
        made: dict[str, list[Any]] = {
            "input_ids": [[*front, *map(self._id, _PIECE.findall(text))] for text in texts]
        }
        if return_offsets_mapping:
            spans = [(0, 0)] * add_special_tokens
            made["offset_mapping"] = [[*spans, *(m.span() for m in _PIECE.finditer(text))] for text in texts]
        return made

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return list(self(text, add_special_tokens)["input_ids"])

    def decode(self, _ids: Sequence[int], **_: Any) -> str:
        return "<s>"

    chat_template = "{{ messages }}"

    def get_chat_template(self) -> str:
        return self.chat_template

    def apply_chat_template(self, conversations: list[list[dict[str, str]]], **_: Any) -> list[str]:
        """The turns one after the other, as if nothing stood around them."""
        return ["\n".join(turn["content"] for turn in turns) for turns in conversations]

    def _id(self, piece: str) -> int:
        if piece not in self.known:
            self.known[piece] = 1 + len(self.known) % (self.vocabulary - 1)
        return self.known[piece]


class Side:
    """One language model of a recipe."""

    def __init__(self, model: ModelSettings) -> None:
        self.model, self.name = model, model.id
        self.described = self.at(None, head=False)
        self.dtype = self.described.dtype(model.dtype)
        self.lm: LanguageModel = wrap_model(self.described.empty(), self._tokenizer(), model.id)
        """Without weights: for what the engines ask of a model before they run it."""
        self.n_blocks, self.d = self.lm.n_blocks, self.lm.d

    def at(self, highest: int | None, head: bool) -> Described:
        """The model up to a block."""
        trust = self.model.trust_remote_code
        return describe(self.model.id, head=head, highest_block=highest, trust_remote_code=trust)

    @property
    def here(self) -> bool:
        """Whether its weights are on this machine."""
        return any(Path(split_name(self.model.id)[0]).glob("*.safetensors"))

    @cached_property
    def block_parameters(self) -> float:
        """Entries of the matrices of one block, on average."""
        _, blocks = find_blocks(self.lm.model)
        return sum(p.numel() for block in blocks for p in block.parameters() if p.ndim > 1) / len(blocks)

    @property
    def weights(self) -> int:
        """Bytes of the matrices of all blocks."""
        return round(self.n_blocks * self.block_parameters * DTYPES[self.dtype].itemsize)

    @property
    def head_share(self) -> float:
        """What the language-model head costs at a position, in blocks."""
        return int(self.lm.config.vocab_size) * self.d / self.block_parameters

    def ids(self, texts: Sequence[str], chat: bool = False, chat_date: date = CHAT_DATE) -> list[list[int]]:
        """The texts as token ids."""
        return encode_many(self.lm, texts, chat, chat_date)

    def _tokenizer(self) -> Any:
        source, revision = split_name(self.model.id)
        unknown = Pieces(text_config(self.described.config).vocab_size)
        if Path(source).is_dir() and not (Path(source) / "tokenizer_config.json").exists():
            return unknown
        # A folder's own is there, or damaged; a hub need not answer for a plan.
        silent = () if Path(source).is_dir() else (UserError, RunError)
        with suppress(*silent), hub_errors(self.model.id):
            return load_tokenizer(self.model.id, source, revision, self.model.trust_remote_code)
        return unknown


class Judge:
    """The classifier of a benchmark."""

    head_share = 0.0

    def __init__(self, name: str) -> None:
        self.name = name
        described = describe_classifier(name)
        self.config, self.dtype, model = described.config, described.dtype, described.empty
        self.here = any(Path(described.source).glob("*.safetensors"))
        self.n_blocks = int(self.config.num_hidden_layers)
        self.weights = DTYPES[self.dtype].itemsize * sum(p.numel() for p in model.parameters())
        embedded = model.get_input_embeddings().weight.numel()
        self.block_parameters = (sum(p.numel() for p in model.parameters()) - embedded) / self.n_blocks

    def activations(self, tokens: int) -> int:
        """Bytes of a batch of so many tokens."""
        return activation_bytes(self.config, tokens, DTYPES[self.dtype].itemsize, head=False)


class Models:
    """The models of a recipe's runs, each described once."""

    def __init__(self) -> None:
        self._sides: dict[ModelSettings, Side] = {}
        self._judges: dict[str, Judge] = {}

    def side(self, model: ModelSettings) -> Side:
        """A language model. Raises UserError for one that is not there."""
        if model not in self._sides:
            self._sides[model] = Side(model)
        return self._sides[model]

    def judge(self, name: str) -> Judge:
        """A classifier. Raises UserError for one that is not there."""
        if name not in self._judges:
            self._judges[name] = Judge(name)
        return self._judges[name]
