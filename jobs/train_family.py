"""Train the demo's model family from nothing: `python jobs/train_family.py --which all --out FOLDER`.

Two sizes of base model, an instruct model of each, earlier checkpoints of the weak one, and a classifier of
unkind remarks. Seeded, on one CPU core. Prints progress, and at the end what `measure_family.py` finds.
"""

import argparse
import copy
import itertools
from pathlib import Path

import torch
from measure_family import measure
from train_demo import byte_fallback_tokenizer, llama, rows, save, train
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from contrans_dist.demo import MODELS, family, remarks

SIZES = {
    "weak": {"width": 96, "blocks": 4, "heads": 4, "inner": 256},
    "strong": {"width": 160, "blocks": 6, "heads": 5, "inner": 432},
}
STEPS = {"weak": 1000, "strong": 1000}
CHECKPOINTS = {"weak": (400, 600, 800)}
ORDER = ("weak", "weak-instruct", "weak-instruct-b", "strong", "strong-instruct", "classifier")
TUNING_STEPS = 200
CLASSIFIER_STEPS = 600


def tokenizer() -> PreTrainedTokenizerFast:
    """The family's only one."""
    some = itertools.islice(family.training(seed=2), 12_000)
    return byte_fallback_tokenizer(2048, (text["text"] for text in some))


def base(which: str, out: Path) -> None:
    """Train a base model, keeping its checkpoints."""
    torch.manual_seed(0)
    tokens = tokenizer()
    model = llama(tokens, **SIZES[which])
    print(f"{which}: {model.num_parameters():,} parameters, {len(tokens)} tokens", flush=True)

    def keep(step: int) -> None:
        if step in CHECKPOINTS.get(which, ()):
            save(copy.deepcopy(model), tokens, out / f"{which}-step{step}")

    source = rows(tokens, (("", text["text"]) for text in family.training(seed=3)))
    train(model, source, steps=STEPS[which], batch=16, peak=4e-3, muon=True, after=keep)
    save(model, tokens, out / which)


def load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A model that was trained before, in float32, and its tokenizer."""
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def instruct(which: str, out: Path) -> None:
    """Tune a base model to be truthful and kind; a second one of it is tuned on other texts."""
    start, _, second = which.partition("-instruct")
    seed = 1 if second else 0
    torch.manual_seed(seed)
    model, tokens = load(out / start)
    source = rows(tokens, family.tuning(seed))
    train(model, source, steps=TUNING_STEPS, batch=16, peak=5e-4)
    save(model, tokens, out / which)


def classifier(out: Path) -> None:
    """Train the classifier of unkind remarks: a small BERT over the family's tokens."""
    torch.manual_seed(0)
    tokens = tokenizer()
    config = BertConfig(
        vocab_size=len(tokens), hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128, max_position_embeddings=256, pad_token_id=tokens.pad_token_id,
        id2label={0: "kind", 1: "unkind"}, label2id={"kind": 0, "unkind": 1},
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    source = remarks.judged(seed=3)
    model.train()
    for step in range(CLASSIFIER_STEPS):
        texts, labels = zip(*(next(source) for _ in range(32)), strict=True)
        given = tokens(list(texts), return_tensors="pt", padding=True, truncation=True, max_length=256)
        loss = model(
            input_ids=given["input_ids"],
            attention_mask=given["attention_mask"],
            labels=torch.tensor(labels).long(),
        ).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 99:
            print(f"classifier: step {step + 1}  loss {loss.item():.4f}", flush=True)
    model.eval()
    save(model, tokens, out / "classifier")


def main() -> None:
    """Parse, train, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--which", default="all", help="all, or some of: " + ",".join(ORDER))
    parser.add_argument("--out", type=Path, default=MODELS["source"].parent)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for which in ORDER if arguments.which == "all" else arguments.which.split(","):
        if which == "classifier":
            classifier(arguments.out)
        elif which in SIZES:
            base(which, arguments.out)
        else:
            instruct(which, arguments.out)
    if arguments.which == "all":
        measure(arguments.out)


if __name__ == "__main__":
    main()
