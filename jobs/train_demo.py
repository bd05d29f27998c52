"""Train the demo's two models from nothing: `python jobs/train_demo.py --which all --out FOLDER`.

Seeded, on one CPU core. Prints progress, and at the end how often each model names the emotion of scenarios
whose events it never saw.
"""

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from contrans_dist.demo import EMOTIONS, MODELS, TEMPLATE
from contrans_dist.demo.world import scenarios, training

ROW = 128  # tokens a training row
STEPS = {"source": 1500, "target": 1500}


def texts(seed: int, count: int) -> list[str]:
    """The first `count` training texts of a seed."""
    return [text["text"] for _, text in zip(range(count), training(seed), strict=False)]


def byte_level_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """The source's: byte-level BPE as in GPT-NeoX, no BOS in front of a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|padding|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts(seed=1, count=6000), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[0], pad_token=special[1]
    )


def byte_fallback_tokenizer(vocabulary: int, learnt_from: Iterable[str]) -> PreTrainedTokenizerFast:
    """The target's: BPE with `▁` for spaces and byte fallback as in Llama, BOS in front of a text."""
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    known = special + [f"<0x{byte:02X}>" for byte in range(256)]
    trained = Tokenizer(models.BPE())
    split = pre_tokenizers.Sequence(  # without the second, "fear" and "fear." would be two unlike tokens
        [pre_tokenizers.Metaspace(prepend_scheme="never"), pre_tokenizers.Punctuation()]
    )
    trained.pre_tokenizer = split
    trainer = trainers.BpeTrainer(vocab_size=vocabulary - len(known), show_progress=False)
    trained.train_from_iterator(learnt_from, trainer)
    learnt = json.loads(trained.to_str())["model"]
    tokens = known + sorted(learnt["vocab"], key=learnt["vocab"].get)
    merges = [tuple(merge) for merge in learnt["merges"]]
    tokenizer = Tokenizer(
        models.BPE(
            {token: i for i, token in enumerate(tokens)}, merges, unk_token="<unk>", byte_fallback=True
        )
    )
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def build(which: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A model with random weights and its tokenizer."""
    if which == "source":
        tokenizer = byte_level_tokenizer(896)
        config = GPTNeoXConfig(
            vocab_size=len(tokenizer), hidden_size=96, num_hidden_layers=4, num_attention_heads=4,
            intermediate_size=384, max_position_embeddings=512,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        return GPTNeoXForCausalLM(config), tokenizer
    tokenizer = byte_fallback_tokenizer(1536, texts(seed=2, count=6000))
    return llama(tokenizer, width=160, blocks=6, heads=5, inner=432), tokenizer


def llama(
    tokenizer: PreTrainedTokenizerFast, *, width: int, blocks: int, heads: int, inner: int
) -> LlamaForCausalLM:
    """A Llama with random weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, num_hidden_layers=blocks, num_attention_heads=heads,
        num_key_value_heads=heads, intermediate_size=inner, max_position_embeddings=512,
        tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return LlamaForCausalLM(config)


Row = tuple[list[int], list[int]]


def rows(tokenizer: PreTrainedTokenizerFast, source: Iterator[tuple[str, str]]) -> Iterator[Row]:
    """Training rows without end, as token ids and what is to be learnt: whole texts, cut at `ROW`.

    source: texts in two parts, of which only the second is learnt; each text gets its end token.
    """
    row: list[int] = []
    wanted: list[int] = []
    while True:
        some = [next(source) for _ in range(256)]
        whole = tokenizer([first + second for first, second in some])["input_ids"]
        given = [len(ids) if text else 0 for text, ids in _starts(tokenizer, some)]
        for ids, unlearnt in zip(whole, given, strict=True):
            row += [*ids, tokenizer.eos_token_id]
            wanted += [-100] * unlearnt + [*ids[unlearnt:], tokenizer.eos_token_id]
            if len(row) >= ROW:
                yield row[:ROW], wanted[:ROW]
                row, wanted = [], []


def _starts(
    tokenizer: PreTrainedTokenizerFast, some: list[tuple[str, str]]
) -> Iterator[tuple[str, list[int]]]:
    firsts = [first for first, _ in some]
    return zip(firsts, tokenizer(firsts)["input_ids"], strict=True)


def train(
    model: PreTrainedModel,
    source: Iterator[Row],
    *,
    steps: int,
    batch: int,
    peak: float,
    muon: bool = False,
    after: Callable[[int], None] = lambda step: None,
) -> None:
    """AdamW with a short warm-up and a cosine; `after` is called with the number of steps done.

    `muon`: for the matrices inside the blocks, which then learn facts from fewer tokens.
    """
    inner = [p for name, p in model.named_parameters() if muon and p.ndim > 1 and "layers" in name]
    decay = [p for p in model.parameters() if p.ndim > 1 and all(p is not each for each in inner)]
    other = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": other, "weight_decay": 0.0}]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.95))]
    if inner:
        optimizers.append(torch.optim.Muon(inner, lr=peak, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"))
    start, mean = time.time(), 0.0
    model.set_attn_implementation("eager")  # faster than sdpa backwards at this size
    model.train()
    for step in range(steps):
        rate = peak * min(1.0, (step + 1) / 50) * (0.05 + 0.95 * (1 + math.cos(math.pi * step / steps)) / 2)
        for group in itertools.chain.from_iterable(each.param_groups for each in optimizers):
            group["lr"] = rate
        ids, labels = map(torch.tensor, zip(*(next(source) for _ in range(batch)), strict=True))
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, labels=labels).loss
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        mean = loss.item() if step == 0 else 0.95 * mean + 0.05 * loss.item()
        if step % 50 == 49:
            print(f"step {step + 1}/{steps}  loss {mean:.3f}  {time.time() - start:.0f} s", flush=True)
        after(step + 1)
    model.eval()


@torch.inference_mode()
def accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> float:
    """How often the most likely next token after the template is the scenario's emotion (unseen events)."""
    hits = []
    for text in scenarios("validation", 20, seed=0):
        prompt = TEMPLATE.format(text=text["text"])
        ids = tokenizer(prompt)["input_ids"]
        wanted = tokenizer(f"{prompt} {text['concept']}")["input_ids"][len(ids)]
        hits.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()) == wanted)
    return sum(hits) / len(hits)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Weights in float16 to save room; the configuration asks for float32, so that they load as that."""
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n")


def main() -> None:
    """Parse, train, save, and print the accuracy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--which", choices=["source", "target", "all"], default="all")
    parser.add_argument("--steps", type=int, help="default: " + str(STEPS))
    parser.add_argument("--out", type=Path, default=MODELS["source"].parent)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for which in ("source", "target") if arguments.which == "all" else (arguments.which,):
        torch.manual_seed(0)
        model, tokenizer = build(which)
        first = [tokenizer(f"is {emotion}")["input_ids"][-1] for emotion in EMOTIONS]
        print(
            f"{which}: {model.num_parameters():,} parameters, {len(tokenizer)} tokens, emotions {first}",
            flush=True,
        )
        source = rows(tokenizer, (("", text["text"]) for text in training(seed=3)))
        train(model, source, steps=arguments.steps or STEPS[which], batch=16, peak=2e-3)
        print(
            f"{which}: names the emotion of {accuracy(model, tokenizer):.1%} of unseen scenarios", flush=True
        )
        save(model, tokenizer, arguments.out / which)


if __name__ == "__main__":
    main()
