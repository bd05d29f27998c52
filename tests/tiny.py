"""Tiny random models of many architectures, and tokenizers for them.

The weights are large and the norms perturbed, so that a row taken from a wrong position or block differs by
far more than any tolerance.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedTokenizerFast,
)
from transformers.modeling_utils import PreTrainedModel

CORPUS = [
    "Once upon a time there was a little girl who lived near the forest.",
    "The boy was happy because he had found his red ball under the tree.",
    "She felt sad, angry and afraid when the big dog ran after her cat.",
    "They went to the park to play, and then they came home to eat dinner.",
    "One day a bird asked the old man: where is the water? He did not know!",
] * 4

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)

_LLAMA_LIKE = ["llama", "mistral", "qwen2", "olmo2", "stablelm", "phi3"]
_NEW = ["qwen3", "gemma2", "gemma3_text"]
_MOE = ["mixtral", "qwen3_moe"]
_OLD = ["gpt2", "gpt_neo", "gpt_neox", "opt", "bloom", "falcon", "mpt"]
_MULTIMODAL = ["llava", "gemma3"]
ARCHITECTURES = _LLAMA_LIKE + _NEW + _MOE + _OLD + _MULTIMODAL
CONTEXT = 128


def tiny_tokenizer(
    vocab: int = 300, bos: bool = True, pad: bool = True, chat: bool | str = False, eos: bool = False
) -> PreTrainedTokenizerFast:
    """A byte-level BPE of five sentences; without `bos` it adds no token before a text, with `eos` one behind
    it, without `pad` it has none. `chat`: a template of its own instead of `CHAT_TEMPLATE`."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    if bos or eos:
        single = " ".join(["<s>"] * bos + ["$A"] + ["</s>"] * eos)
        backend.post_processor = processors.TemplateProcessing(
            single=single,
            pair=f"{single} {single.replace('A', 'B')}",
            special_tokens=[("<s>", 0), ("</s>", 1)],
        )
    names = {"bos_token": "<s>", "eos_token": "</s>"} if bos else {"eos_token": "</s>"}
    if pad:
        names["pad_token"] = "<pad>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    tokenizer.chat_template = CHAT_TEMPLATE if chat is True else chat or None
    return tokenizer


def _sizes(architecture: str, n: int, d: int, vocab: int) -> dict:
    """The configuration in the words of the architecture."""
    modern = {
        "hidden_size": d,
        "num_hidden_layers": n,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": d // 4,
        "intermediate_size": 2 * d,
        "vocab_size": vocab,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    ids = {"vocab_size": vocab, "bos_token_id": 0, "eos_token_id": 1}
    window = {"sliding_window": 8}
    mixed = ["full_attention" if i % 2 else "sliding_attention" for i in range(n)]
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": n,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    }
    special: dict[str, dict] = {
        "gpt2": dict(n_embd=d, n_layer=n, n_head=4, n_positions=CONTEXT, **ids),
        "gpt_neo": dict(
            hidden_size=d,
            num_layers=n,
            num_heads=4,
            attention_types=[[["global", "local"], n // 2]] + ([[["global"], 1]] if n % 2 else []),
            window_size=8,
            max_position_embeddings=CONTEXT,
            **ids,
        ),
        "opt": dict(
            hidden_size=d,
            word_embed_proj_dim=d,
            num_hidden_layers=n,
            num_attention_heads=4,
            ffn_dim=2 * d,
            max_position_embeddings=CONTEXT,
            **ids,
        ),
        "bloom": dict(hidden_size=d, n_layer=n, n_head=4, **ids),
        "mpt": dict(d_model=d, n_layers=n, n_heads=4, expansion_ratio=2, max_seq_len=CONTEXT, **ids),
        "falcon": dict(
            hidden_size=d,
            num_hidden_layers=n,
            num_attention_heads=4,
            ffn_hidden_size=2 * d,
            max_position_embeddings=CONTEXT,
            **ids,
        ),
        "mistral": {**modern, **window},
        "gemma2": {**modern, **window, "query_pre_attn_scalar": d // 4},
        "gemma3_text": {**modern, **window, "layer_types": mixed},
        "mixtral": {**modern, "num_local_experts": 4, "num_experts_per_tok": 2},
        "qwen3_moe": {
            **modern,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": d,
            "mlp_only_layers": [1, n - 1],
        },
        "llava": {
            "text_config": {**modern, "model_type": "llama"},
            "vision_config": {**vision, "model_type": "clip_vision_model", "projection_dim": 16},
            "image_token_index": vocab - 1,
        },
        "gemma3": {
            "text_config": {**modern, **window, "layer_types": mixed, "model_type": "gemma3_text"},
            "vision_config": {**vision, "model_type": "siglip_vision_model"},
            "mm_tokens_per_image": 4,
            "image_token_index": vocab - 1,
            "boi_token_index": vocab - 2,
            "eoi_token_index": vocab - 3,
        },
    }
    return special.get(architecture, modern)


def tiny_model(
    architecture: str = "llama", n_blocks: int = 4, d: int = 32, vocab: int = 300, seed: int = 0, **config
) -> PreTrainedModel:
    """A random model with its head, float32, on the CPU; `config` overrides fields of the configuration."""
    fields = {**_sizes(architecture, n_blocks, d, vocab), **config}
    settings = AutoConfig.for_model(architecture, **fields)
    auto = AutoModelForImageTextToText if architecture in _MULTIMODAL else AutoModelForCausalLM
    model = auto.from_config(settings, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                parameter.copy_(0.2 * noise)
            else:
                parameter.add_(0.2 * noise)
    return model


def save_tiny(
    path: Path, architecture: str = "llama", n_blocks: int = 4, d: int = 32, vocab: int = 300, **options
) -> Path:
    """Writes a tiny model and its tokenizer as a folder that transformers loads; returns the folder.

    `options`: `bos`, `pad`, `chat`, `eos` of the tokenizer, `seed` and fields of the model's configuration.
    """
    of_tokenizer = {k: options.pop(k) for k in ("bos", "pad", "chat", "eos") if k in options}
    tiny_model(architecture, n_blocks, d, vocab, **options).save_pretrained(path)
    tiny_tokenizer(vocab, **of_tokenizer).save_pretrained(path)
    return Path(path)
