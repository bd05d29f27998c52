"""A/B behaviours (CAA, arXiv 2312.06681): the probability of the answer that matches a behaviour.

A question lists its options, `(A) ...`, `(B) ...` and perhaps more. The score is the probability that the
model gives to the letter of the matching option, over the letters that the question offers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa

from contrans_dist.benchmarks.behaviour_data import (
    TEST_FILE,
    behaviour_files,
    read_questions,
    stem,
)
from contrans_dist.benchmarks.choices import (
    Ids,
    check_context,
    check_finite,
    common_start,
    drawn,
    question_template,
    spread,
)
from contrans_dist.benchmarks.statistics import balanced_mean_interval, wilcoxon
from contrans_dist.benchmarks.summary import Estimate, Metric, estimate, mean, summarise
from contrans_dist.config import CHAT_DATE, BehaviourEvaluation
from contrans_dist.engine.scoring import Intervention, continuation_logprobs
from contrans_dist.errors import UserError
from contrans_dist.models import LanguageModel, encode_many
from contrans_dist.models.tokens import plain_ids, rendered

__all__ = ["BehaviourBenchmark", "BehaviourItem"]

TEMPLATE = "{text}\nAnswer: ("
_FIELDS = [
    ("item", pa.string()), ("concept", pa.string()), ("condition", pa.string()), ("strength", pa.float64()),
    ("block", pa.int64()), ("question", pa.string()), ("letter", pa.string()), ("first", pa.bool_()),
    ("probability", pa.float64()), ("letter_mass", pa.float64()), ("options", pa.list_(pa.string())),
    ("logprobs", pa.list_(pa.float64())),
]  # fmt: skip


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


@dataclass(frozen=True)
class BehaviourBenchmark:
    """Questions of one or more behaviours."""

    all_items: list[BehaviourItem]
    chat: bool = False
    chat_date: date = CHAT_DATE
    batch_tokens: int = 4096
    name: str = field(default="behaviours", init=False)

    @classmethod
    def load(cls, settings: BehaviourEvaluation) -> "BehaviourBenchmark":
        """Read the questions: `texts` is a folder of `<behaviour>/test_dataset_ab.json`, or one such file.

        The letter follows the prompt: at once after an opening bracket or whitespace, else after a space.
        With `chat`, what the template has after its last line break begins the model's own turn (an opening
        bracket at its end where there is no line break); the rest is the user's. Raises UserError for data
        of another form.
        """
        if settings.texts is None:
            raise UserError(f"behaviours: expected `texts`, a folder of <behaviour>/{TEST_FILE} or one file")
        template = question_template(settings.template or TEMPLATE)
        opening = _opening(template)
        items: list[BehaviourItem] = []
        for behaviour, file in behaviour_files(settings.texts, TEST_FILE):
            records = read_questions(file)
            for i in drawn(len(records), settings.limit, f"{settings.seed} {behaviour}"):
                question, options, matching, _ = records[i]
                items.append(
                    BehaviourItem(
                        f"{behaviour}/{i:04d}", behaviour, stem(question), template.format(text=question),
                        opening, options, matching,
                    )
                )  # fmt: skip
        return cls(items, settings.chat, settings.chat_date)

    def items(self) -> list[BehaviourItem]:
        """Every question, behaviour by behaviour in the files' order."""
        return self.all_items

    def identity(self) -> dict[str, Any]:
        """Nothing: all that is scored is in the items."""
        return {}

    def score(
        self, lm: LanguageModel, items: Sequence[BehaviourItem], interventions: Sequence[Intervention]
    ) -> pa.Table:
        """One row for each intervention and question.

        Columns: `item`, `concept`, `condition`, `strength`, `block`, `question`, `letter` (the matching one),
        `first` (whether it is the first offered), `probability` (of the matching letter over the letters
        offered), `letter_mass` (of all letters offered, among whatever could come there), `options` and their
        `logprobs` (natural logarithm). Prompt and letter are tokenised together; a question's letters are
        scored from the first token in which they differ, so a tokenizer that joins bracket and letter is
        asked for that token. Raises UserError for a prompt longer than the model's context.
        """
        wholes = self._wholes(lm, items)
        counts = [len(item.options) for item in items]
        contexts: list[Ids] = []
        letters: list[Ids] = []
        for item, ids in zip(items, wholes, strict=True):
            check_context(lm, item.id, max(map(len, ids)) - 1)
            cut = common_start(ids)
            contexts += [whole[:cut] for whole in ids]
            letters += [whole[cut:] for whole in ids]
        scores = continuation_logprobs(
            lm, contexts, letters, spread(interventions, counts), batch_tokens=self.batch_tokens
        )
        check_finite(scores, interventions)
        rows = []
        for intervention, sums in zip(interventions, scores.sums, strict=True):
            for item, logprobs in zip(items, np.split(sums, np.cumsum(counts)[:-1]), strict=True):
                rows.append({**intervention.columns, **_row(item, logprobs)})
        return pa.Table.from_pylist(rows, schema=pa.schema(_FIELDS))

    def _wholes(self, lm: LanguageModel, items: Sequence[BehaviourItem]) -> list[list[Ids]]:
        """Token ids of prompt and letter, for each letter of each item."""
        if self.chat:
            texts = self.chat_prompts(lm.tokenizer, items, lm.name)
            ids = iter(plain_ids(lm.tokenizer, texts))
        else:
            texts = [item.prompt + _gap(item.prompt) + letter for item in items for letter in item.options]
            ids = iter(encode_many(lm, texts))
        return [[next(ids) for _ in item.options] for item in items]

    def chat_prompts(self, tokenizer: Any, items: Sequence[BehaviourItem], name: str = "") -> list[str]:
        """For each letter of each item a user's turn, and the model's turn up to the letter. Raises UserError
        where the tokenizer has no chat template."""
        turns = [_turns(item, letter) for item in items for letter in item.options]
        return rendered(tokenizer, turns, self.chat_date, name, continue_final_message=True) if turns else []

    def summarise(self, table: pa.Table, reference: str = "vector") -> dict[str, Any]:
        """`conditions`, `reference` and `notes`, over all behaviours and by behaviour.

        `match_probability` is balanced by position: the mean over questions whose matching option is listed
        first and the mean over the others, averaged. Beside it `match_probability_plain`, the mean over all
        questions, as the papers report it; `match_probability_A`, `_B`, ... over the questions with that
        matching letter; and `letter_mass`. Tests are Wilcoxon's, over all questions.
        """
        letters = sorted(set(table.column("letter").to_pylist()))
        metrics = {
            "match_probability": Metric(("probability", "first"), _balanced, _wilcoxon),
            "match_probability_plain": Metric("probability", mean, wilcoxon),
            "letter_mass": Metric("letter_mass", mean, wilcoxon),
        }
        metrics |= {
            f"match_probability_{letter}": Metric("probability", mean, wilcoxon, kind=letter)
            for letter in letters
        }
        by_letter = table.append_column("kind", table.column("letter"))
        return {**summarise(by_letter, metrics, reference), "notes": _notes(table)}


def _row(item: BehaviourItem, logprobs: np.ndarray) -> dict[str, Any]:
    """The columns of one question; `logprobs` are of its options."""
    weights = np.exp(logprobs - logprobs.max())
    place = item.options.index(item.letter)
    return {
        "item": item.id, "concept": item.concept, "question": item.scenario, "letter": item.letter,
        "first": place == 0, "probability": float(weights[place] / weights.sum()),
        "letter_mass": float(np.exp(logprobs).sum()), "options": list(item.options),
        "logprobs": logprobs.tolist(),
    }  # fmt: skip


def _balanced(values: np.ndarray) -> Estimate:
    """From probability and `first`, `[n, 2]`: the mean of the two positions' means."""
    strata = [values[values[:, 1] == first, 0] for first in (1, 0)]
    strata = [stratum for stratum in strata if len(stratum)]
    return estimate(np.mean([s.mean() for s in strata]), balanced_mean_interval(strata), len(values))


def _wilcoxon(a: np.ndarray, b: np.ndarray) -> float:
    return wilcoxon(a[:, 0], b[:, 0])


def _notes(table: pa.Table) -> list[str]:
    """Which behaviours are not balanced at all, as one position is missing."""
    found: dict[str, set[bool]] = {}
    for concept, first in zip(
        table.column("concept").to_pylist(), table.column("first").to_pylist(), strict=True
    ):
        found.setdefault(concept, set()).add(first)
    return [
        f"{concept}: the matching option is {'always' if firsts == {True} else 'never'} listed first, so its "
        "match_probability is not balanced by position"
        for concept, firsts in sorted(found.items())
        if len(firsts) == 1
    ]


def _opening(template: str) -> str:
    """What of a template stands in the model's own turn under a chat template."""
    rest = template.rpartition("{text}")[2]
    if "\n" in rest:
        return rest.rpartition("\n")[2]
    return "(" if rest.endswith("(") else ""


def _gap(prompt: str) -> str:
    return "" if not prompt or prompt[-1].isspace() or prompt[-1] in "([{\"'" else " "


def _turns(item: BehaviourItem, letter: str) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": item.prompt.removesuffix(item.opening).rstrip()},
        {"role": "assistant", "content": item.opening + _gap(item.opening) + letter},
    ]
