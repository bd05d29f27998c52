"""The models of a plan as their configurations and tokenizers describe them; no weights are read."""

from copy import deepcopy
from functools import cache
from pathlib import Path

from torch import nn
from transformers import AutoModelForSequenceClassification

from contrans_dist.config import ModelSettings
from contrans_dist.models import DTYPES, LanguageModel, find_blocks, load_model, text_config, wrap_model
from contrans_dist.models.classifier import describe_classifier, load_classifier
from contrans_dist.models.hub import hub_errors
from contrans_dist.models.loading import Described, describe
from contrans_dist.models.needs import Needs, needs
from contrans_dist.models.precision import computed_in
from contrans_dist.models.pretrained import load_tokenizer


class PlannedModel:
    """One language model of a recipe: its configuration and its tokenizer. Raises as `load_model`, but needs
    no weights."""

    def __init__(self, settings: ModelSettings, on_gpu: bool = False) -> None:
        """`on_gpu`: whether it runs on GPUs; else it is computed in what suits this machine's processor."""
        self.settings, self.name = settings, settings.id
        self.up_to, self.needs = cache(self._up_to), cache(self._needs)
        described = self.up_to(None, False)
        self.config = text_config(described.config)
        self.dtype = computed_in(described, settings, on_gpu, say_so=True)
        """Precision that it is computed in."""
        if settings.quantization is None:
            self.settings = settings.model_copy(update={"compute_dtype": self.dtype})
        with hub_errors(self.name):
            tokenizer = load_tokenizer(described.files)
        self.lm: LanguageModel = wrap_model(described.empty(), tokenizer, settings.id)
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

    def _needs(self, highest: int | None, head: bool, batch_tokens: int, narrow: bool = False) -> Needs:
        """Bytes that it takes, up to a block."""
        return needs(self.up_to(highest, head), self.settings, batch_tokens, narrow=narrow)

    def loaded(self) -> LanguageModel:
        """It on this machine, without a head."""
        return load_model(self.name, **self.settings.model_dump(exclude={"id"}), head=False)

    def made(self, n_blocks: int) -> LanguageModel:
        """One of its kind, of so many blocks and without a head, with random weights."""
        described = self.up_to(None, False)
        config = deepcopy(described.config)
        config.get_text_config().num_hidden_layers = n_blocks
        return wrap_model(described.whole(config).requires_grad_(False).eval(), self.lm.tokenizer)


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
