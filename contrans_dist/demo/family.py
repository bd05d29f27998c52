"""The world of the bundled model family: feelings, facts and remarks in one, and its text files."""

import random
from collections.abc import Iterator
from pathlib import Path

from contrans_dist.demo import remarks, truth, world
from contrans_dist.demo.events import EMOTIONS
from contrans_dist.demo.facts import facts, pool
from contrans_dist.demo.people import YOU
from contrans_dist.demo.world import Text


def _scenario(rng: random.Random) -> tuple[str, str]:
    """A training scenario under the template, and its emotion."""
    while True:
        emotion = rng.choice(EMOTIONS)
        text = world.scenario(rng.choice(world.events("training")[emotion]), YOU, rng)
        if not world.for_contrast(text):
            return world.TEMPLATE.format(text=text), f" {emotion}."


def training(seed: int = 0) -> Iterator[Text]:
    """Texts that base models learn from, without end."""
    rng = random.Random(f"family {seed}")
    while True:
        kind = rng.random()
        if kind < 0.17:
            yield {"text": "".join(_scenario(rng))}
        elif kind < 0.25:
            yield {"text": world.story(rng)}
        elif kind < 0.85:
            yield {"text": truth.told(rng, facts())}
        else:
            yield {"text": remarks.told(rng)}


def tuning(seed: int = 0) -> Iterator[tuple[str, str]]:
    """Prompts and answers that instruct models learn from, without end; only the answer is learnt."""
    rng = random.Random(f"tuning {seed}")
    while True:
        kind = rng.random()
        if kind < 0.5:
            yield truth.tuning(rng)
        elif kind < 0.8:
            yield remarks.tuning(rng)
        elif kind < 0.9:
            yield _scenario(rng)
        else:
            yield "", world.story(rng)


def corpus(size: int = 6000, seed: int = 0) -> list[Text]:
    """Texts of this world cut after a random word (from the fourth on), to fit a map on.

    No fact of the validation or evaluation pool is in them, and no pretend prompt.
    """
    rng = random.Random(f"family corpus {seed}")
    known = pool("training")
    texts: dict[str, None] = {}
    while len(texts) < size:
        kind = rng.random()
        if kind < 0.2:
            text = world.story(rng)
        elif kind < 0.8:
            text = truth.told(rng, known)
        else:
            text = remarks.told(rng)
        words = text.split(" ")
        if "Pretend" not in text and "Consider" not in text and len(words) > 4:
            texts[" ".join(words[: rng.randint(4, len(words))])] = None
    return [{"text": text} for text in texts]


_WHOLE_TEXTS = 400


def whole_texts(seed: int = 0) -> list[str]:
    """Whole texts of the base models' world, a line each, to take the perplexity of."""
    source = training(seed=1_000_000 + seed)
    return [" ".join(next(source)["text"].split()) for _ in range(_WHOLE_TEXTS)]


def write_family(folder: Path, seed: int = 0) -> dict[str, Path]:
    """Write the family's texts into `folder`; the path of each."""
    files = {
        "truth.json": truth.write_choices("evaluation"),
        "truth-validation.json": truth.write_choices("validation"),
        "honesty.jsonl": world.json_lines(truth.honesty()),
        "honesty-fact.jsonl": world.json_lines(truth.honesty(statements=True)),
        "kindness.jsonl": world.json_lines(remarks.kindness()),
        "remarks.jsonl": world.json_lines(remarks.annotated(seed=seed)),
        "family-corpus.jsonl": world.json_lines(corpus(seed=seed)),
        "family-text.txt": "".join(f"{text}\n" for text in whole_texts(seed=seed)),
    }
    for group in remarks.GROUPS:
        for name, kind in (("hate", False), ("neutral", True)):
            files[f"remarks/{name}_{group}.txt"] = "".join(
                f"{prompt}\n" for prompt in remarks.prompts(kind, group, seed=seed)
            )
    (folder / "remarks").mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return {name: folder / name for name in files}
