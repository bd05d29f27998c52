"""The models of a plan as their configurations and tokenizers describe them; no weights are read."""

import re
from collections.abc import Sequence
from contextlib import suppress
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from contrans_dist.config import ModelSettings
from contrans_dist.errors import RunError, UserError
from contrans_dist.models import DTYPES, LanguageModel, find_blocks, text_config, wrap_model
from contrans_dist.models.classifier import describe_classifier
from contrans_dist.models.hub import hub_errors
from contrans_dist.models.loading import Described, describe
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
        self.up_to = cache(self._up_to)
        described = self.up_to(None, False)
        self.dtype = described.dtype(settings.dtype)
        self.lm: LanguageModel = wrap_model(described.empty(), self._tokenizer(described), settings.id)
        """Without weights: for what the engine asks of a model before it runs it."""
        self.n_blocks, self.d = self.lm.n_blocks, self.lm.d

    def _up_to(self, highest: int | None, head: bool) -> Described:
        """The model up to a block."""
        trust = self.settings.trust_remote_code
        return describe(self.name, head=head, highest_block=highest, trust_remote_code=trust)

    @property
    def here(self) -> bool:
        """Whether its weights are on this machine."""
        return any(Path(self.up_to(None, False).files.place).glob("*.safetensors"))

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

    head_share = 0.0

    def __init__(self, name: str) -> None:
        self.name = name
        described = describe_classifier(name)
        self.config, self.dtype, model = described.config, described.dtype(), described.empty()
        self.here = any(Path(described.files.place).glob("*.safetensors"))
        self.n_blocks = int(self.config.num_hidden_layers)
        parameters = sum(p.numel() for p in model.parameters())
        self.weights = DTYPES[self.dtype].itemsize * parameters
        self.block_parameters = (parameters - model.get_input_embeddings().weight.numel()) / self.n_blocks
