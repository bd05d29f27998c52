"""The A/B questions of CAA (github.com/nrimsky/CAA): read from files, and as they are asked."""

import re
from dataclasses import dataclass
from typing import Any

from contrans_dist.benchmarks.choices import read_questions
from contrans_dist.errors import UserError
from contrans_dist.store.location import Location

TEST_FILE = "test_dataset_ab.json"
_MATCHING, _OTHER = "answer_matching_behavior", "answer_not_matching_behavior"
_FIELDS = ("question", _MATCHING, _OTHER)
_OPTION = re.compile(r"^[ \t]*\(([A-Z])\)", re.MULTILINE)
_LETTER = re.compile(r"\s*\(?([A-Z])\)?\s*")

ABQuestion = tuple[str, tuple[str, ...], str, str]
"""Question, letters offered, the matching letter and the other one."""


def behaviour_files(source: Location | str, name: str) -> list[tuple[str, Location]]:
    """(behaviour, file) of a single JSON file, a behaviour's folder, or a folder of those."""
    location = Location.parse(source)
    if location.name.endswith(".json"):
        return [(location.parent.name, location)]
    if name in location.names():
        return [(location.name, location / name)]
    files = [(n, location / n / name) for n in location.names() if (location / n / name).exists()]
    if not files:
        raise UserError(f"{location}: expected a folder of <behaviour>/{name}, or one such file")
    return files


def read_ab_questions(location: Location) -> list[ABQuestion]:
    """The questions of a file of CAA. Raises UserError that names the file and the question."""
    return [_ab_question(where, record) for where, record in read_questions(location, _FIELDS)]


def _ab_question(where: str, record: dict[str, Any]) -> ABQuestion:
    if not all(isinstance(record.get(name), str) for name in _FIELDS):
        raise UserError(f"{where}: expected texts {', '.join(_FIELDS)}")
    question = record["question"]
    options = _offered(question)
    letters = []
    for name in (_MATCHING, _OTHER):
        match = _LETTER.fullmatch(record[name])
        if match is None or match[1] not in options:
            offered = ", ".join(f"({letter})" for letter in options) or "none"
            raise UserError(f"{where}: {name} {record[name]!r} is none of the options offered: {offered}")
        letters.append(match[1])
    if letters[0] == letters[1]:
        raise UserError(f"{where}: {_MATCHING} and {_OTHER} are both ({letters[0]})")
    return question, options, letters[0], letters[1]


def _offered(question: str) -> tuple[str, ...]:
    """Letters from A on, each at the beginning of a line in brackets, in this order."""
    options: list[str] = []
    for match in _OPTION.finditer(question):
        if match[1] == chr(ord("A") + len(options)):
            options.append(match[1])
    return tuple(options)


def stem(question: str) -> str:
    """The question without its options and the word that announces them."""
    match = _OPTION.search(question)
    stem = question[: match.start()] if match else question
    return stem.rstrip().removesuffix("Choices:").rstrip()


@dataclass(frozen=True)
class BehaviourItem:
    """A question as it is asked."""

    id: str
    concept: str
    """The behaviour, whose own vectors it is scored under."""
    scenario: str
    """The question without its options."""
    prompt: str
    """All that stands before the letter; under a chat template `opening` begins the model's own turn."""
    opening: str
    options: tuple[str, ...]
    """The letters that the question offers."""
    letter: str
    """The letter of the option that matches the behaviour."""


def opening_of(template: str) -> str:
    """What of a template stands in the model's own turn under a chat template."""
    rest = template.rpartition("{text}")[2]
    if "\n" in rest:
        return rest.rpartition("\n")[2]
    return "(" if rest.endswith("(") else ""


def gap(prompt: str) -> str:
    """What stands between a prompt and the letter after it."""
    return "" if not prompt or prompt[-1].isspace() or prompt[-1] in "([{\"'" else " "


def turns(item: BehaviourItem, letter: str) -> list[dict[str, str]]:
    """A user's turn, and the model's own up to the letter."""
    return [
        {"role": "user", "content": item.prompt.removesuffix(item.opening).rstrip()},
        {"role": "assistant", "content": item.opening + gap(item.opening) + letter},
    ]
