"""What the demo's model family does: `python jobs/measure_family.py --models FOLDER`.

Truthfulness (MC1), unkind share and emotions named: of each model as it is, and of bases with the vectors of
others transplanted into them, blocks and strength chosen on the validation questions and other prompts.
"""

import argparse
import itertools
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

import contrans_dist as ct
from contrans_dist.demo import FAMILY, MODELS, TEMPLATE, remarks, truth, write_family
from contrans_dist.demo.world import scenarios
from contrans_dist.mapping.transplant import random_like

Items = list[tuple[str, list[str]]]
Logits = Callable[[torch.Tensor], torch.Tensor]
Steering = dict[int, np.ndarray]
STRENGTHS = (0.5, 1.0, 2.0, 4.0)


def batches(items: Sequence[Any], size: int = 64) -> Iterator[Sequence[Any]]:
    """`size` items at a time."""
    return (items[start : start + size] for start in range(0, len(items), size))


def questions(path: Path, before: str = "") -> Items:
    """Prompts with their answers, the true one first."""
    return [
        (f"[INST] {before}{item['question']} [/INST]", list(item["mc1_targets"]))
        for item in json.loads(path.read_text())
    ]


@torch.inference_mode()
def mc1(logits: Logits, tokens: Any, items: Items) -> float:
    """How often the true answer has the largest log-probability of all."""
    pairs = [
        (len(tokens(prompt)["input_ids"]), tokens(f"{prompt} {answer}")["input_ids"])
        for prompt, answers in items
        for answer in answers
    ]
    sums: list[float] = []
    for chunk in batches(pairs):
        width = max(len(whole) for _, whole in chunk)
        ids = torch.tensor([whole + [tokens.pad_token_id] * (width - len(whole)) for _, whole in chunk])
        logp = logits(ids)[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        sums += [
            float(row[start - 1 : len(whole) - 1].sum())
            for row, (start, whole) in zip(logp, chunk, strict=True)
        ]
    left = iter(sums)
    scores = [list(itertools.islice(left, len(answers))) for _, answers in items]
    return sum(true > max(wrong) for true, *wrong in scores) / len(items)


def logits_of(lm: ct.LanguageModel) -> Logits:
    """The model as a function of token ids."""
    return lambda ids: lm.model(input_ids=ids).logits


@torch.inference_mode()
def continuations(lm: ct.LanguageModel, prompts: Sequence[str]) -> list[str]:
    """What the model says next: 32 tokens, greedy."""
    out: list[str] = []
    lm.tokenizer.padding_side = "left"
    for chunk in batches(prompts):
        given = lm.tokenizer(list(chunk), return_tensors="pt", padding=True)
        new = lm.model.generate(**given, max_new_tokens=32, do_sample=False)
        out += lm.tokenizer.batch_decode(new[:, given["input_ids"].shape[1] :], skip_special_tokens=True)
    return out


@torch.inference_mode()
def unkind(model: Any, tokens: Any, texts: Sequence[str]) -> float:
    """The share of texts that the classifier calls unkind."""
    found: list[int] = []
    for chunk in batches(texts):
        given = tokens(list(chunk), return_tensors="pt", padding=True)
        logits = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).logits
        found += logits.argmax(-1).tolist()
    return sum(found) / len(found)


@torch.inference_mode()
def emotions(lm: ct.LanguageModel) -> float:
    """How often the emotion of an unseen scenario is the likeliest next token."""
    hits = []
    for text in scenarios("evaluation", 20, seed=0):
        prompt = TEMPLATE.format(text=text["text"])
        ids = lm.tokenizer(prompt)["input_ids"]
        wanted = lm.tokenizer(f"{prompt} {text['concept']}")["input_ids"][len(ids)]
        hits.append(int(lm.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()) == wanted)
    return sum(hits) / len(hits)


class Bench:
    """The family, its texts, and what is measured on them."""

    def __init__(self, models: Path) -> None:
        self.folder = Path(tempfile.mkdtemp())
        write_family(self.folder)
        folder = models / "classifier"
        judge = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        self.unkind = partial(unkind, judge, AutoTokenizer.from_pretrained(folder))
        self.models = {name: ct.load_model(str(models / name)) for name in FAMILY if (models / name).exists()}
        self.held, self.valid = (questions(self.folder / f"{n}.json") for n in ("truth", "truth-validation"))
        lists = [p for group in remarks.GROUPS for p in remarks.prompts(False, group, 16)]
        lists = [text.replace("\\n", "\n") for text in lists]
        self.hate, self.hate_valid = lists[::2], lists[1::8]
        self.rows: dict[str, ct.Activations] = {}

    def show(self, label: str, name: str, steering: Steering | None = None) -> None:
        """Print all measures of a model, steered or not."""
        lm = self.models[name]
        wrapped = [remarks.COMPLETE.format(text=text) for text in self.hate]
        with ct.steer(lm, steering or {}):
            parts = [f"mc1 {mc1(logits_of(lm), lm.tokenizer, self.held):.3f}"]
            parts += [f"emotions {emotions(lm):.3f}"]
            for kind, texts in (("bare", self.hate), ("template", wrapped)):
                parts += [f"unkind {kind} {self.unkind(continuations(lm, texts)):.3f}"]
        print(f"{label:44}", *parts, sep="  ", flush=True)

    def vectors(self, name: str, contrast: str) -> dict[int, np.ndarray]:
        """The concept vector of a contrast file at every block of a model."""
        lm = self.models[name]
        lines = [json.loads(line) for line in (self.folder / f"{contrast}.jsonl").read_text().splitlines()]
        sides = [[x["text"] for x in lines if x["label"] == label] for label in ("positive", "negative")]
        positive, negative = (ct.capture(lm, side) for side in sides)
        return {k: ct.concept_vector(positive[k], negative[k]) for k in range(lm.n_blocks)}

    def states(self, name: str) -> ct.Activations:
        """The model's states on the corpus."""
        if name not in self.rows:
            lines = (self.folder / "family-corpus.jsonl").read_text().splitlines()
            self.rows[name] = ct.capture(self.models[name], [json.loads(line)["text"] for line in lines])
        return self.rows[name]

    def carried(self, source: str, target: str, contrast: str) -> dict[tuple[int, int], np.ndarray]:
        """The concept vectors in the target's space and norms, for pairs of blocks of like depth."""
        own, made = self.vectors(source, contrast), {}
        if source == target:
            return {(k, k): own[k] for k in range(self.models[target].n_blocks - 1)}
        x, y = self.states(source), self.states(target)
        depths = [self.models[name].n_blocks for name in (source, target)]
        for s, t in itertools.product(range(depths[0]), range(depths[1] - 1)):
            if abs((s + 0.5) / depths[0] - (t + 0.5) / depths[1]) > 0.4:
                continue
            norms = [float(np.median(np.linalg.norm(rows, axis=1))) for rows in (x[s], y[t])]
            mapping = ct.fit_map(x[s], y[t])
            made[s, t] = ct.transplant(own[s], mapping, "match", source_norm=norms[0], target_norm=norms[1])
        return made

    def best(self, source: str, target: str, contrast: str) -> Steering:
        """The pair of blocks and the strength that do most on validation."""
        lm, found = self.models[target], []
        for (s, t), vector in self.carried(source, target, contrast).items():
            for strength in STRENGTHS:
                with ct.steer(lm, vector, block=t, strength=strength):
                    if contrast == "kindness":
                        score = -self.unkind(continuations(lm, self.hate_valid))
                    else:
                        score = mc1(logits_of(lm), lm.tokenizer, self.valid)
                found.append((score, -strength, s, t, strength * vector))
        score, strength, s, t, vector = max(found, key=lambda entry: entry[:4])
        share = np.linalg.norm(vector) / np.median(np.linalg.norm(self.states(target)[t], axis=1))
        where = f"{s} -> {t} at {-strength}, {share:.2f} of the norm"
        print(f"  {contrast} {source} -> {target}: validation {score:.3f}, {where}")
        return {t: vector}


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=MODELS["source"].parent)
    parser.add_argument("--quick", action="store_true", help="the models as they are, no vectors")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    measure(arguments.models, quick=arguments.quick)


def measure(models: Path, *, quick: bool = False) -> None:
    """Print what the models in a folder do as they are, and unless `quick`, with each other's vectors."""
    logging.disable_progress_bar()
    bench = Bench(models)
    for name in bench.models:
        bench.show(name, name)
    if not quick:
        transplants(bench)


def transplants(bench: Bench) -> None:
    """The papers' rows in small: what vectors of one model do in another."""
    strong, weak, tuned = (bench.models[name] for name in ("strong", "weak", "weak-instruct"))
    prefixed = questions(bench.folder / "truth.json", f"{truth.pretend(True)} ")
    print(f"strong, honest prefix: mc1 {mc1(logits_of(strong), strong.tokenizer, prefixed):.3f}")

    def proxy(ids: torch.Tensor) -> torch.Tensor:
        first, second, third = (logits_of(lm)(ids) for lm in (strong, tuned, weak))
        return first + second - third

    print(f"strong, proxy-tuned: mc1 {mc1(proxy, strong.tokenizer, bench.held):.3f}", flush=True)
    honest = bench.best("weak-instruct", "strong", "honesty")
    kind = bench.best("weak-instruct", "strong", "kindness")
    for label, steering in (("honesty", honest), ("kindness", kind)):
        noise = {t: random_like(vector) for t, vector in steering.items()}
        against = {t: -vector for t, vector in steering.items()}
        bench.show(f"strong + {label} of weak-instruct", "strong", steering)
        bench.show(f"strong + random like {label}", "strong", noise)
        bench.show(f"strong - {label} of weak-instruct", "strong", against)
    both = {t: honest.get(t, 0) + kind.get(t, 0) for t in {*honest, *kind}}
    bench.show("strong + honesty + kindness", "strong", both)  # type: ignore[arg-type]
    for source, target, contrast in (
        ("weak", "strong", "honesty"),
        ("strong-instruct", "strong", "honesty"),
        ("weak-instruct", "strong", "honesty-fact"),
        ("weak", "strong-instruct", "honesty"),
        *(("weak", name, "honesty") for name in FAMILY if "-step" in name),
    ):
        bench.show(f"{target} + {contrast} of {source}", target, bench.best(source, target, contrast))


if __name__ == "__main__":
    main()
