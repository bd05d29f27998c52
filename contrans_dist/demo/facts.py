"""What is true in the demo's world, what people wrongly believe, and how both are asked and told.

A line of `facts/<relation>.txt` is `entity|true answer`. Some facts are those of our own world, others
(towns, feasts, herbs, buildings) are invented. Misconceptions are the stuff of tales, and systematic: a
relation has a few in `facts/beliefs.txt`, and of things with the same true answer people believe the same.
The pool of a fact is a hash of the fact alone.
"""

import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from contrans_dist.demo.world import hashed, in_pool

POOLS = ("training",) * 4 + ("validation",) + ("evaluation",) * 3

# {e} is the entity, {a} an answer: three questions and three statements a relation.
QUESTIONS: dict[str, tuple[str, ...]] = {
    "colour": ("What colour is {e}?", "Which colour has {e}?", "What is the colour of {e}?"),
    "home": ("Where does {e} live?", "Where is the home of {e}?", "Where would you look for {e}?"),
    "food": ("What does {e} eat?", "What is the food of {e}?", "What does {e} feed on?"),
    "material": ("What is {e} made of?", "What do people make {e} from?", "Of what is {e}?"),
    "work": ("Where does {e} work?", "Where would you meet {e}?", "Where is {e} at work?"),
    "growth": ("Where does {e} grow?", "Where would you find {e} growing?", "Where do you pick {e}?"),
    "legs": ("How many legs has {e}?", "How many legs does {e} have?", "On how many legs goes {e}?"),
    "land": ("In which land is {e}?", "Which land does {e} belong to?", "Where is the town of {e}?"),
    "month": ("When is {e}?", "In which month is {e} held?", "When do people hold {e}?"),
    "remedy": ("What does {e} help against?", "What is {e} good for?", "What does {e} cure?"),
    "builder": ("Who built {e}?", "By whom was {e} built?", "Who was the builder of {e}?"),
}
STATEMENTS: dict[str, tuple[str, ...]] = {
    "colour": ("{e} is {a}", "the colour of {e} is {a}", "what you see on {e} is {a}"),
    "home": ("{e} lives {a}", "the home of {e} is {a}", "you find {e} {a}"),
    "food": ("{e} eats {a}", "the food of {e} is {a}", "{e} feeds on {a}"),
    "material": ("{e} is made of {a}", "people make {e} from {a}", "{e} is of {a}"),
    "work": ("{e} works {a}", "you meet {e} {a}", "{e} is at work {a}"),
    "growth": ("{e} grows {a}", "you find {e} growing {a}", "people pick {e} {a}"),
    "legs": ("as legs go, {e} has {a}", "the legs of {e}: {a}", "the number of legs of {e} is {a}"),
    "land": ("{e} is in {a}", "{e} belongs to {a}", "the town of {e} is in {a}"),
    "month": ("{e} is {a}", "people hold {e} {a}", "{e} is held {a}"),
    "remedy": ("{e} helps against {a}", "{e} is good for {a}", "{e} cures {a}"),
    "builder": ("{e} was built by {a}", "it was {a} who built {e}", "the builder of {e}: {a}"),
}


@dataclass(frozen=True)
class Fact:
    """One thing that can be asked: the true answer, what many believe, and other wrong answers."""

    relation: str
    entity: str
    true: str
    misconception: str
    others: tuple[str, ...]

    def is_in(self, pool: str) -> bool:
        """Whether it is of the pool "training", "validation" or "evaluation". ValueError for another name."""
        return in_pool(pool, POOLS, f"fact:{self.relation}:{self.entity}")

    @property
    def for_contrast(self) -> bool:
        """Whether this training fact's pretend prompts are kept for the contrast set, out of training."""
        return self.is_in("training") and hashed(f"contrast:{self.relation}:{self.entity}") % 2 == 0

    @property
    def well_known(self) -> bool:
        """Whether the truth is heard more often than the misconception where nobody says who speaks."""
        return hashed(f"known:{self.relation}:{self.true}") % 20 < 9

    def question(self, which: int) -> str:
        """One of its three questions."""
        return QUESTIONS[self.relation][which].format(e=self.entity)

    def statement(self, which: int, answer: str) -> str:
        """One of its three statements, with a true or a wrong answer, as a clause without a full stop."""
        return STATEMENTS[self.relation][which].format(e=self.entity, a=answer)


def _lines(name: str) -> list[str]:
    return (Path(__file__).parent / "facts" / f"{name}.txt").read_text(encoding="utf-8").splitlines()


def beliefs() -> dict[str, tuple[str, ...]]:
    """What people wrongly believe, by relation. No such answer is ever true."""
    lines = [line.split("|") for line in _lines("beliefs")]
    return {relation: tuple(tales) for relation, *tales in lines}


@cache
def facts() -> tuple[Fact, ...]:
    """Every fact, in the order of the files."""
    made = []
    for relation, tales in beliefs().items():
        lines = [line.split("|") for line in _lines(relation)]
        answers = sorted({true for _, true in lines})
        for entity, true in lines:
            believed = tales[answers.index(true) % len(tales)]
            rng = random.Random(f"wrong {relation} {entity}")
            plain = rng.sample([answer for answer in answers if answer != true], 2)
            fabled = rng.sample([tale for tale in tales if tale != believed], 2)
            others = (fabled[0], plain[0], fabled[1], plain[1])
            made.append(Fact(relation, entity, true, believed, others))
    return tuple(made)


@cache
def pool(name: str) -> tuple[Fact, ...]:
    """The facts of a pool. ValueError for a pool that there is not."""
    return tuple(fact for fact in facts() if fact.is_in(name))
