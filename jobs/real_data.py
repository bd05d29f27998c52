"""Public data taken apart for the experiments on a real model: what vectors are made from, what blocks and
strengths are chosen on, and what is scored have nothing in common."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from contrans_dist.benchmarks.behaviours.questions import stem
from contrans_dist.data.contamination import overlap, unit_hashes

PAIRS, CHOSEN_ON = 100, 30
"""Of each emotion: scenarios behind its vector, and scenarios that are chosen on. The rest are scored."""
BEHAVIOURS = (
    "coordinate-other-ais", "corrigible-neutral-HHH", "hallucination", "myopic-reward", "refusal",
    "survival-instinct", "sycophancy",
)  # fmt: skip
QUESTIONS, QUESTIONS_CHOSEN_ON = 100, 24
"""Of each behaviour, half of them with the matching answer under A, half under B."""


def emotions(data: Path, out: Path) -> None:
    """ConTrans's `eval_<emotion>.json`, of which `refine_<emotion>.json` has the same scenarios.

    Writes `contrast.jsonl` (text, concept), and the authors' own prompts of the other scenarios into
    `validation/` and `scored/`.
    """
    files = sorted((data / "emotions/contrans").glob("eval_*.json"))
    prompts = {file.name: json.loads(file.read_text()) for file in files}
    positive = {name: list(dict.fromkeys(map(_scenario, kinds["pos"]))) for name, kinds in prompts.items()}
    part = {scenario: "scored" for scenarios in positive.values() for scenario in scenarios}
    # A scenario of two emotions makes vectors before it is chosen on, and that before it is scored.
    for named, end in (("validation", PAIRS + CHOSEN_ON), ("contrast", PAIRS)):
        part |= {scenario: named for scenarios in positive.values() for scenario in scenarios[:end]}
    contrast = [
        {"text": scenario, "concept": name.removeprefix("eval_").removesuffix(".json")}
        for name, scenarios in positive.items()
        for scenario in scenarios[:PAIRS]
    ]
    _write_lines(out / "contrast.jsonl", contrast)
    for named in ("validation", "scored"):
        for name, kinds in prompts.items():
            kept = {kind: [p for p in kinds[kind] if part.get(_scenario(p)) == named] for kind in kinds}
            _write(out / named / name, kept)


def behaviours(data: Path, out: Path) -> None:
    """CAA's `generate/<behaviour>`: `contrast/<behaviour>.json`, and questions to choose on in
    `validation/<behaviour>/test_dataset_ab.json`. Each position of the matching answer has its half.

    Questions that share a sentence with one of a `test` set are left out, unless it is how all are asked: 785
    of 1,000 of sycophancy's, 1,131 of all 4,911.
    """
    scored = unit_hashes(
        stem(question["question"])
        for behaviour in BEHAVIOURS
        for question in json.loads((data / "caa/test" / behaviour / "test_dataset_ab.json").read_text())
    )
    pools = {}
    for behaviour in BEHAVIOURS:
        questions = json.loads((data / "caa/generate" / behaviour / "generate_dataset.json").read_text())
        seen = set(overlap([stem(question["question"]) for question in questions], scored))
        unseen = [question for question in questions if stem(question["question"]) not in seen]
        contrast = _balanced(unseen, QUESTIONS)
        _write(out / "contrast" / f"{behaviour}.json", contrast)
        pools[behaviour] = [question for question in unseen if question not in contrast]
    # Which sentences are how all are asked depends on what is chosen.
    while True:
        chosen = {behaviour: _balanced(pool, QUESTIONS_CHOSEN_ON) for behaviour, pool in pools.items()}
        stems = [stem(question["question"]) for questions in chosen.values() for question in questions]
        seen = set(overlap(stems, scored))
        if not seen:
            break
        pools = {b: [q for q in pool if stem(q["question"]) not in seen] for b, pool in pools.items()}
    for behaviour, questions in chosen.items():
        _write(out / "validation" / behaviour / "test_dataset_ab.json", questions)


def _balanced(questions: Sequence[dict[str, str]], count: int) -> list[dict[str, str]]:
    """The first questions, half of them with the matching answer under A, half under B."""
    by_letter = {
        letter: [q for q in questions if q["answer_matching_behavior"].strip() == letter]
        for letter in ("(A)", "(B)")
    }
    return [q for of_letter in by_letter.values() for q in of_letter[: count // 2]]


PREPARED: dict[str, Callable[[Path, Path], None]] = {"emotions": emotions, "behaviours": behaviours}


def _scenario(prompt: str) -> str:
    return re.findall(r"Scenario: (.*?)\n", prompt)[-1]


def _write(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, ensure_ascii=False, indent=1))


def _write_lines(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
