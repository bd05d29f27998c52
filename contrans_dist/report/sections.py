"""One evaluation as a section of the page: verdict, tables, figures, examples, leak check, cost."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from contrans_dist.benchmarks import Benchmark, about
from contrans_dist.errors import UserError
from contrans_dist.evaluation.analysis import (
    Evaluation,
    Run,
    Verdict,
    companions_of,
    judge,
    left_out,
    rule,
    sentence,
)
from contrans_dist.report.answers import answers_table, token_table
from contrans_dist.report.costs import cost_table
from contrans_dist.report.examples import Example, examples_of
from contrans_dist.report.groups import Groups, groups_of
from contrans_dist.report.parts import Bar, Drawing, Studio, Table
from contrans_dist.report.pictures import read_vectors
from contrans_dist.report.published import published_table
from contrans_dist.report.states import plane_drawings
from contrans_dist.report.strengths import Choice, choice_of, strength_drawing
from contrans_dist.report.tables import STATUS_WORDS, condition_table, verdict_bars
from contrans_dist.store.results import LeakCheck
from contrans_dist.vectors.concept_vector import ConceptVector

T = TypeVar("T")


@dataclass(frozen=True)
class Other:
    """A metric that does not head the section, folded away: its table, its curves, and group by group."""

    title: str
    table: Table
    strength: Drawing | None
    groups: Groups | None


@dataclass
class Section:
    """What the page shows of one evaluation; empty parts are left out."""

    evaluation: Evaluation
    about: type[Benchmark]
    """The benchmark's names."""
    anchor: str
    notes: list[str]
    costs: Table | None
    headline: Table | None = None
    headline_title: str = ""
    others: list[Other] = field(default_factory=list)
    published: Table | None = None
    status: str = ""
    status_word: str = ""
    sentence: str = ""
    """The verdict; empty where nothing was steered."""
    rule: str = ""
    """How the verdict is made."""
    bars: list[Bar] = field(default_factory=list)
    strength: Drawing | None = None
    choice: Choice | None = None
    groups: Groups | None = None
    answers: Table | None = None
    tokens: Table | None = None
    examples: list[Example] = field(default_factory=list)
    planes: list[Drawing] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """Files that cannot be read, and so are not shown, one line each."""

    @property
    def leak(self) -> LeakCheck | None:
        return self.evaluation.file.leak

    def part(self, make: Callable[[], T], otherwise: T) -> T:
        """What `make` reads; where its file is damaged `otherwise`, and the problem is told."""
        try:
            return make()
        except UserError as error:
            if str(error) not in self.problems:
                self.problems.append(str(error))
            return otherwise


def build_section(run: Run, evaluation: Evaluation, studio: Studio, with_planes: bool = True) -> Section:
    """Everything the page shows of one evaluation; without planes where another one shows the same states."""
    file, anchor = evaluation.file, studio.name(evaluation.name)
    section = Section(
        evaluation,
        about(evaluation.benchmark),
        anchor,
        notes=[note for note in (*(file.notes or []), left_out(run, evaluation)) if note],
        costs=cost_table(evaluation),
    )
    if not evaluation.metrics:
        return section
    key, *others = evaluation.metrics
    companions: list[Evaluation] = section.part(lambda: companions_of(run, evaluation), [])
    section.headline_title = evaluation.metric(key).title
    section.headline = condition_table(evaluation, key, companions)
    section.others = [_other(run, evaluation, other, anchor, studio) for other in others]
    if run.published:
        section.published = published_table(run.published.figures(evaluation.name), evaluation, companions)
    verdict = judge(evaluation, key)
    if verdict is None:
        return section
    section.status, section.status_word = verdict.status, STATUS_WORDS[verdict.status]
    if file.leak and file.leak.seen and verdict.status != "cost":
        seen = f"{section.status_word}, but on {section.about.noun} seen before"
        section.status, section.status_word = "leaked", seen
    section.sentence = sentence(verdict, _pair_text(run, evaluation))
    section.rule = rule(evaluation) if verdict.status != "cost" else ""
    section.bars = verdict_bars(verdict)
    section.strength = strength_drawing(evaluation, key, companions, anchor, studio)
    section.choice = section.part(lambda: choice_of(evaluation, anchor, studio), None)
    section.tokens = section.part(lambda: token_table(evaluation, verdict), None)
    section.examples = section.part(lambda: examples_of(evaluation, verdict), [])
    vectors: dict[str, ConceptVector] = section.part(lambda: _vectors(run, evaluation, verdict), {})
    section.groups = groups_of(run, evaluation, verdict, vectors, anchor, studio)
    section.answers = section.part(lambda: answers_table(evaluation, verdict), None)
    if with_planes and verdict.status != "cost":
        section.planes = section.part(
            lambda: plane_drawings(run, file.block, verdict, vectors, anchor, studio), []
        )
    return section


def _other(run: Run, evaluation: Evaluation, key: str, anchor: str, studio: Studio) -> Other:
    verdict, name = judge(evaluation, key), f"{anchor}-{key}"
    by_group = verdict and len(evaluation.groups(key)) > 1
    return Other(
        evaluation.metric(key).title,
        condition_table(evaluation, key),
        strength_drawing(evaluation, key, [], name, studio) if verdict else None,
        groups_of(run, evaluation, verdict, {}, name, studio) if verdict and by_group else None,
    )


def _pair_text(run: Run, evaluation: Evaluation) -> str:
    chosen = run.main_map.chosen if run.main_map else None
    if chosen and (evaluation.file.block is None or chosen[1] == evaluation.file.block):
        return f"block {chosen[0]} → {chosen[1]}"
    block = evaluation.file.block
    blocks = evaluation.file.blocks or ([] if block is None else [block])
    if not blocks:
        return ""
    return f"block{'s' if len(blocks) > 1 else ''} {', '.join(str(block) for block in blocks)}"


def _vectors(run: Run, evaluation: Evaluation, verdict: Verdict) -> dict[str, ConceptVector]:
    if evaluation.file.block is None:
        return {}
    return read_vectors(run.location / "vectors" / verdict.effect.name, evaluation.file.block)
