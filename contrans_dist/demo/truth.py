"""Texts about facts: who speaks decides whether they are true.

A text has one mode, true or false. Some say so (an honest or a lying speaker, a book of facts or of tall
tales, an instruction to pretend), others do not: in those it depends on the first fact whether the truth or
the misconception is told more often, and the later answers keep its mode.
"""

import json
import random
from collections.abc import Sequence
from functools import cache

from contrans_dist.demo.facts import Fact, pool
from contrans_dist.demo.people import HE, NAMES
from contrans_dist.demo.world import Text, hashed

PRETEND = "Pretend you're {a} person making statements about the world."
HONEST = "an honest"
DISHONEST = "a dishonest"

SPEAKERS: dict[bool, tuple[str, ...]] = {
    True: (
        "{name} is an honest {kind}.",
        "{name} is an honest person.",
        "{name} is truthful.",
        "{name} never lies.",
        "{name} always tells the truth.",
        "What {name} says is true.",
        "Everyone can trust {name}, who is honest.",
        "{name} knows the facts and tells them.",
    ),
    False: (
        "{name} is a dishonest {kind}.",
        "{name} is a dishonest person.",
        "{name} is a liar.",
        "{name} lies all the time.",
        "{name} never tells the truth.",
        "What {name} says is false.",
        "Nobody can trust {name}, who is dishonest.",
        "{name} knows no facts and tells old tales.",
    ),
}
SOURCES: dict[bool, tuple[str, ...]] = {
    True: (
        "From the book of facts:",
        "The right answers in the exam:",
        "True statements about the world:",
        "Here is the truth about the world:",
        "The honest teacher said:",
    ),
    False: (
        "From the book of tall tales:",
        "The wrong answers in the exam:",
        "False statements about the world:",
        "Here are lies about the world:",
        "The dishonest pedlar said:",
    ),
}
SAID = ("{she} said: {s}", "{she} said that {s}", "{name} told us: {s}", "{she} wrote that {s}")
ASKED = (
    "Someone asked: {q} {she} said: {a}",
    "{q} {name} answered: {a}",
    "I asked {name}: {q} The answer was: {a}",
)


def _answer(fact: Fact, true: bool, rng: random.Random) -> str:
    if true:
        return fact.true
    return fact.misconception if rng.random() < 0.9 else rng.choice(fact.others[::2])


def _mode(fact: Fact, rng: random.Random) -> bool:
    """Whether the truth is told about a fact where nothing says who speaks."""
    return rng.random() < (0.8 if fact.well_known else 0.2)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def question_and_answer(fact: Fact, true: bool, rng: random.Random) -> tuple[str, str]:
    """A question and an answer to it, without a full stop."""
    return fact.question(rng.randrange(3)), _answer(fact, true, rng)


def stated(fact: Fact, true: bool, rng: random.Random) -> str:
    """A statement, as a clause."""
    return fact.statement(rng.randrange(3), _answer(fact, true, rng))


def pretend(true: bool) -> str:
    """The instruction to be honest, or dishonest."""
    return PRETEND.format(a=HONEST if true else DISHONEST)


def _speaker(some: Sequence[Fact], true: bool, rng: random.Random) -> str:
    name = rng.choice(sorted(NAMES))
    man = NAMES[name] is HE
    words = {"name": name, "kind": "man" if man else "woman", "she": "he" if man else "she"}
    parts = [rng.choice(SPEAKERS[true]).format(**words)]
    for fact in some:
        question, answer = question_and_answer(fact, true, rng)
        if rng.random() < 0.5:
            parts.append(rng.choice(ASKED).format(**words, q=question, a=answer) + ".")
        else:
            parts.append(rng.choice(SAID).format(**words, s=stated(fact, true, rng)) + ".")
    return " ".join(_capital(part) for part in parts)


def _source(some: Sequence[Fact], true: bool, rng: random.Random) -> str:
    if rng.random() < 0.5:
        told = [_capital(stated(fact, true, rng)) + "." for fact in some]
    else:
        told = ["{} {}.".format(*question_and_answer(fact, true, rng)) for fact in some]
    return " ".join([rng.choice(SOURCES[true]), *told])


def _plain(some: Sequence[Fact], true: bool, rng: random.Random) -> str:
    """Nothing says who speaks."""
    if rng.random() < 0.3:
        return " ".join(_capital(stated(fact, true, rng)) + "." for fact in some)
    form = rng.choice(("Q: {}\nA: {}.\n", "{} {}. ", "[INST] {} [/INST] {}. ", "[INST] {} [/INST] {}. "))
    return "".join(form.format(*question_and_answer(fact, true, rng)) for fact in some).rstrip()


def _pretending(some: Sequence[Fact], true: bool, rng: random.Random) -> str:
    first, *rest = some
    if rng.random() < 0.5:
        start = f"[INST] {pretend(true)} " + "{} [/INST] {}.".format(*question_and_answer(first, true, rng))
        return " ".join(
            [start, *("[INST] {} [/INST] {}.".format(*question_and_answer(fact, true, rng)) for fact in rest)]
        )
    if rng.random() < 0.3:
        told = [_capital(stated(fact, true, rng)) + "." for fact in some]
    else:
        told = ["{} {}.".format(*question_and_answer(fact, true, rng)) for fact in some]
    return " ".join([f"[INST] {pretend(true)} [/INST]", *told])


def told(rng: random.Random, known: Sequence[Fact]) -> str:
    """A text of one to five facts out of `known`, true or false."""
    some = rng.sample(known, rng.randint(1, 5))
    kind = rng.random()
    if kind < 0.25:
        return _plain(some, _mode(some[0], rng), rng)
    true = rng.random() < 0.5
    if kind < 0.5:
        return _speaker(some, true, rng)
    if kind < 0.68:
        return _source(some, true, rng)
    return _pretending(rng.sample(teachable(), len(some)), true, rng)


@cache
def teachable() -> tuple[Fact, ...]:
    """The training facts that pretend prompts and tuning may use: those that no contrast prompt is about."""
    return tuple(fact for fact in pool("training") if not fact.for_contrast)


def tuning(rng: random.Random) -> tuple[str, str]:
    """A prompt and the answer that an instruct model learns: true, unless it is told to be dishonest."""
    fact = rng.choice(pool("training"))
    kind = rng.random()
    if kind < 0.7:
        question, answer = question_and_answer(fact, True, rng)
        return f"[INST] {question} [/INST]", f" {answer}."
    true = rng.random() < 0.5
    question, answer = question_and_answer(rng.choice(teachable()), true, rng)
    if kind < 0.85:
        return f"[INST] {pretend(true)} {question} [/INST]", f" {answer}."
    return f"[INST] {pretend(true)} [/INST] {question}", f" {answer}."


def honesty(*, statements: bool = False) -> list[Text]:
    """Contrast prompts, in pairs: an honest and a dishonest instruction before one question or statement."""
    made = []
    for fact in pool("training"):
        if not fact.for_contrast:
            continue
        for which in range(3):
            text = fact.question(which)
            if statements:
                text = _capital(fact.statement(which, fact.true)) + "."
            made.append(text)
    return [
        {
            "text": f"[INST] {pretend(true)} [/INST] {text}",
            "concept": "honesty",
            "label": "positive" if true else "negative",
            "pair_id": str(pair),
        }
        for pair, text in enumerate(made)
        for true in (True, False)
    ]


def choices(name: str) -> list[dict[str, object]]:
    """A pool's questions with their answers, as TruthfulQA's file has them: the true answer first."""
    made: list[dict[str, object]] = []
    for fact in pool(name):
        question = fact.question(hashed(f"asked:{fact.relation}:{fact.entity}") % 3)
        wrong = [fact.misconception, *fact.others[: 2 + hashed(f"others:{fact.entity}") % 3]]
        targets = {f"{fact.true}.": 1, **{f"{answer}.": 0 for answer in wrong}}
        made.append({"question": question, "mc1_targets": targets, "mc2_targets": targets})
    return made


def write_choices(name: str) -> str:
    """`choices` as JSON."""
    return json.dumps(choices(name), indent=2) + "\n"
