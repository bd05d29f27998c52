"""The demo's texts: scenarios and stories made from events, in pools that share no event.

Everything is a pure function of its seed. The pool of an event (training, validation or evaluation) is a hash
of the event alone, so no seed can move it; contrast scenarios and the map's corpus come from training events.
"""

import hashlib
import itertools
import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

from contrans_dist.demo.events import CLOSINGS, EMOTIONS, OPENINGS, patterns
from contrans_dist.demo.people import ADJECTIVES, FEELINGS, NAMES, NOUNS, REACTIONS, YOU, Person

TEMPLATE = "Scenario: {text}\nThe emotion of the above scenario is"
Text = dict[str, str]
"""A line of a JSONL file."""
POOLS = ("training",) * 5 + ("validation",) + ("evaluation",) * 2
"""Of events; a pool that stands there more often gets more of them."""


def hashed(text: str) -> int:
    """A hash that is the same in every process, unlike Python's own."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def in_pool(pool: str, pools: Sequence[str], text: str) -> bool:
    """Whether a text's hash puts it into a pool. ValueError for a pool that there is not."""
    if pool not in pools:
        raise ValueError(f"no pool {pool!r}: expected one of {sorted(set(pools))}")
    return pools[hashed(text) % len(pools)] == pool


def json_lines(texts: Iterable[Text]) -> str:
    """Texts as a JSONL file."""
    return "".join(json.dumps(text) + "\n" for text in texts)


def expand(pattern: str) -> list[str]:
    """Every way of filling the choices `[a|b]` of a pattern; the slots in braces stay."""
    parts = re.split(r"\[([^\]]*)\]", pattern)
    return ["".join(filled) for filled in itertools.product(*(part.split("|") for part in parts))]


@cache
def events(pool: str) -> dict[str, list[str]]:
    """Each emotion's events in `pool`: "training" (5 of 8), "validation" (1 of 8), "evaluation" (2 of 8).

    ValueError for another pool.
    """
    return {
        emotion: [
            event for pattern in patterns(emotion) for event in expand(pattern) if in_pool(pool, POOLS, event)
        ]
        for emotion in EMOTIONS
    }


@cache
def _neutral() -> list[str]:
    return [event for pattern in patterns("neutral") for event in expand(pattern)]


def render(clause: str, person: Person, name: str = "", noun: str = "", adjective: str = "") -> str:
    """Fill a clause's slots with a person's words, and those for a name and a feeling where it has them."""
    slots = {"I": person.subject, "me": person.object, "my": person.possessive, "was": person.was}
    return clause.format(**slots, name=name, N=noun, A=adjective)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def scenario(event: str, person: Person, rng: random.Random) -> str:
    """One sentence: an opening, the event, a closing."""
    opening, closing = render(rng.choice(OPENINGS), person), render(rng.choice(CLOSINGS), person)
    clause = render(event, person)
    return _sentence((f"{opening}, {clause}" if opening else clause) + (f" {closing}" if closing else ""))


def for_contrast(text: str) -> bool:
    """Whether a scenario of a training event is kept out of training, for the contrast set."""
    return hashed("contrast:" + text) % 6 == 0


def scenarios(pool: str, per_emotion: int, seed: int, *, contrast: bool | None = None) -> list[Text]:
    """`per_emotion` second-person scenarios of each emotion, one an event as long as there are events.

    With `contrast` true or false, only those that the contrast set or the training texts may use.
    """
    rng = random.Random(f"scenarios {pool} {seed}")
    made: list[Text] = []
    for emotion in EMOTIONS:
        order = rng.sample(events(pool)[emotion], len(events(pool)[emotion]))
        texts: dict[str, None] = {}
        for event in itertools.cycle(order):
            text = scenario(event, YOU, rng)
            if contrast is None or for_contrast(text) == contrast:
                texts[text] = None
            if len(texts) == per_emotion:
                break
        made += [{"text": text, "concept": emotion} for text in texts]
    return made


def _feeling(name: str, person: Person, emotion: str, rng: random.Random) -> str:
    noun, adjective = rng.choice(NOUNS[emotion]), rng.choice(ADJECTIVES[emotion])
    return render(rng.choice(FEELINGS), person, name, noun, adjective)


def _episode(name: str, rng: random.Random) -> list[str]:
    """Two to six sentences: perhaps something neutral, an event, and what the person does and feels."""
    person = NAMES[name]
    named = Person(name, person.object, person.possessive)
    emotion = rng.choice(EMOTIONS)
    event = rng.choice(events("training")[emotion])
    before = [_sentence(render(rng.choice(_neutral()), named)) for _ in range(rng.randrange(3))]
    after = [_sentence(_feeling(name, person, emotion, rng)) for _ in range(rng.randint(1, 2))]
    after += [_sentence(render(rng.choice(REACTIONS[emotion]), person))] * rng.randrange(2)
    rng.shuffle(after)
    if rng.random() < 0.25:  # the feeling first, the reason after it
        why = render(event, person)
        return [*before, _sentence(f"{_feeling(name, person, emotion, rng)} because {why}"), *after[1:]]
    return [*before, scenario(event, named, rng), *after]


def story(rng: random.Random) -> str:
    """A third-person story of one or two people, training events only."""
    names = rng.sample(sorted(NAMES), rng.randint(1, 2))
    return " ".join(sentence for name in names for sentence in _episode(name, rng))


def corpus(size: int, seed: int = 0) -> list[Text]:
    """`size` stories, each cut after a random word (from the fourth on): the text to fit the map on."""
    rng = random.Random(f"corpus {seed}")
    texts: dict[str, None] = {}
    while len(texts) < size:
        words = story(rng).split(" ")
        texts[" ".join(words[: rng.randint(4, len(words))])] = None
    return [{"text": text} for text in texts]


def training(seed: int = 0) -> Iterator[Text]:
    """Training texts without end: scenarios under the template with their answer, and stories, in turn."""
    rng = random.Random(f"training {seed}")
    while True:
        emotion = rng.choice(EMOTIONS)
        text = scenario(rng.choice(events("training")[emotion]), YOU, rng)
        if not for_contrast(text):
            yield {"text": f"{TEMPLATE.format(text=text)} {emotion}.", "concept": emotion}
        yield {"text": story(rng)}


def write_texts(folder: Path, seed: int = 0, *, training_texts: int = 0) -> dict[str, Path]:
    """Write corpus, contrast, validation and evaluation texts as JSONL into `folder`; the path of each.

    `training_texts`: write that many training texts too. Every line has `text`, and
    `concept` where it is about one: the corpus never has it.
    """
    sets = {
        "corpus": corpus(6000, seed),
        "contrast": scenarios("training", 80, seed, contrast=True),
        "validation": scenarios("validation", 20, seed),
        "evaluation": scenarios("evaluation", 40, seed),
    }
    if training_texts:
        sets["training"] = list(itertools.islice(training(seed), training_texts))
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.jsonl" for name in sets}
    for name, texts in sets.items():
        paths[name].write_text(json_lines(texts), encoding="utf-8")
    return paths
