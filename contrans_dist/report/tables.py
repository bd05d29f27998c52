"""The headline table, condition by strength, and the verdict's numbers as bars."""

from collections.abc import Callable, Sequence

from contrans_dist.benchmarks import Metric
from contrans_dist.console import count_of
from contrans_dist.evaluation.analysis import (
    Evaluation,
    Verdict,
    best_point,
    companion_scores,
    judge,
    number,
    strength_text,
)
from contrans_dist.evaluation.conditions import BASE, condition_of
from contrans_dist.report.parts import Bar, Cell, Table, interval_text, score_cell
from contrans_dist.store.results import Score
from contrans_dist.store.trials import O, Trials

STATUS_WORDS = {
    "clear": "Clear effect",
    "partly": "Partly shared with a control",
    "shared": "The controls do the same",
    "none": "Nothing moved",
    "unchecked": "Without controls",
    "untested": "Neither interval nor test",
    "cost": "What steering costs",
}


def condition_table(evaluation: Evaluation, key: str, companions: Sequence[Evaluation] = ()) -> Table:
    """Every condition with its interval: by strength where strengths were swept, else one line each.

    `companions`: perplexity evaluations under the same steering, shown beside single strengths.
    """
    return _sweep_table(evaluation, key) if evaluation.is_sweep else _line_table(evaluation, key, companions)


def _line_table(evaluation: Evaluation, key: str, companions: Sequence[Evaluation]) -> Table:
    """Condition, strength, value, p-values and perplexity, one line a condition."""
    kind, counts = evaluation.metric(key), _counts(evaluation, key)
    rows, tested = [], [False, False]
    verdict = judge(evaluation, key)
    p_values = _tests(verdict)
    points = {
        condition: point
        for condition in (BASE.name, *evaluation.conditions)
        if (point := best_point(evaluation, condition, key))
    }
    costs = companion_scores(companions, {name: point.strength for name, point in points.items()})
    for condition, (at, score, _) in points.items():
        name, row = condition_of(condition), evaluation.row(condition, at) if at else None
        ps = [p_values.get(condition), row.p("base", key) if row else None]
        tested = [tested[side] or ps[side] is not None for side in (0, 1)]
        cost = costs.get(condition)
        rows.append(
            [
                Cell(name.title, name.meaning, name.role),
                Cell("–" if not at or name.no_vector else strength_text(at)),
                score_cell(score, kind.percent, len(counts) > 1, "main" if name.role == "tested" else ""),
                *(Cell(p_text(p)) for p in ps),
                score_cell(cost, False, False) if cost else Cell("–", kind="quiet"),
            ]
        )
    head = ["Condition", "Strength", kind.title, "p", "p, no steering", "Perplexity"]
    amount = f"n = {counts.pop()} {kind.items} in every row. " if len(counts) == 1 else ""
    chosen = " Strengths were chosen on validation items." if evaluation.search else ""
    test = f" p: paired test against {verdict.effect.phrase}, same items." if verdict and tested[0] else ""
    test += " p, no steering: the same against that." if tested[1] else ""
    caption = f"{amount}In brackets: 95\u202f% interval.{test}{chosen}"
    return Table(head, rows, caption).with_columns([True, True, True, *tested, bool(costs)])


def _counts(evaluation: Evaluation, key: str) -> set[int]:
    """The numbers of items behind the scores in a metric."""
    return {row.metrics[key].n or 0 for row in evaluation.rows if key in row.metrics}


def p_text(p: float | None) -> str:
    """A p-value for people; empty where there is none."""
    if p is None:
        return ""
    return f"{p:.2g}" if p >= 1e-4 else "< 0.0001"


def _tests(verdict: Verdict | None) -> dict[str, float]:
    """By condition, the p-value of the paired test against the condition under test."""
    rivals = [*verdict.controls, *verdict.references] if verdict else []
    return {rival.condition.name: rival.p for rival in rivals if rival.p is not None}


def _sweep_table(evaluation: Evaluation, key: str) -> Table:
    """Condition by strength: value, interval, where each is read; p against the condition under test."""
    kind, strengths = evaluation.metric(key), evaluation.strengths
    counts = _counts(evaluation, key)
    verdict, base = judge(evaluation, key), evaluation.base(key)
    p_values = _tests(verdict)
    rows = [[Cell(BASE.title), _level_cell(base, kind.percent, len(strengths))]] if base else []
    tests = [Cell("")] if base else []
    for condition in evaluation.conditions:
        name, best = condition_of(condition), best_point(evaluation, condition, key)
        if name.no_vector and not best:
            continue
        title = Cell(name.title, name.meaning, name.role)
        if name.no_vector and best:
            rows.append([title, _level_cell(best.score, kind.percent, len(strengths))])
        else:
            bold = "main" if name.role == "tested" else "best"
            cells = [
                score_cell(
                    evaluation.score(condition, strength, key),
                    kind.percent,
                    len(counts) > 1,
                    bold if best and strength == best.strength else "",
                )
                for strength in strengths
            ]
            rows.append([title, *cells])
        tests.append(Cell(p_text(p_values.get(condition))))
    head = ["Condition", *[f"strength {strength_text(strength)}" for strength in strengths]]
    amount = f"n = {counts.pop()} {kind.items} in every cell. " if len(counts) == 1 else ""
    caption = f"{amount}In brackets: 95\u202f% interval. In bold: each row at {read_at(evaluation, key)}."
    if verdict and p_values:
        head.append("p")
        rows = [[*row, test] for row, test in zip(rows, tests, strict=True)]
        at = "" if verdict.effect.no_vector else f" at strength {strength_text(verdict.strength)}"
        caption += f" p: paired test against {verdict.effect.phrase}{at}, same items."
        caption += " Each row is tested where it is bold."
    return Table(head, rows, caption)


def trials_table(
    trials: Trials, named: Sequence[tuple[str, O]], taken: Callable[[O], bool], kind: Metric, what: str,
    caption: str,
) -> Table:  # fmt: skip
    """What was tried, a line each: strength, score, perplexity where one is known, and which was chosen. The
    caption goes on with what was lost.

    `named`: each with its name, `what` the heading of these.
    """
    rows = []
    for name, trial in named:
        over, chosen = trials.over(trial), taken(trial)
        cost = "–" if trial.perplexity is None else f"{trial.perplexity:.2f}"
        rows.append(
            [
                Cell(name),
                Cell(strength_text(trial.strength)),
                Cell(number(trial.score, kind.percent, 1 if kind.percent else 2), kind="best" * chosen),
                Cell(cost, "over the budget" * over, "warn" * over),
                Cell("chosen" * chosen, kind="apart" * chosen),
            ]
        )
    costed = any(trial.perplexity is not None for _, trial in named)
    if trials.lost:
        strengths = ", ".join(map(strength_text, sorted({strength for _, strength in trials.lost})))
        lost = f"{count_of(len(trials.lost), 'trial')}, at strength {strengths}"
        caption += f" Left out, as the model's logits overflow: {lost}."
    table = Table([what, "Strength", kind.title, "Perplexity", ""], rows, caption, compact=True)
    return table.with_columns([True, True, True, costed, True])


def read_at(evaluation: Evaluation, key: str) -> str:
    """At which strength conditions are read, for people: `the best strength`."""
    steered = [condition for condition in evaluation.conditions if not condition_of(condition).no_vector]
    points = (best_point(evaluation, condition, key) for condition in steered)
    ways = {point.way for point in points if point}
    if "reported" in ways:
        there = (evaluation.reported.get(condition) for condition in steered)
        names = dict.fromkeys(point.evaluation for point in there if point)
        rest = ", else the greatest" if "greatest" in ways else ""
        return f"the strength that {' or '.join(names)} reports{rest}"
    if "greatest" in ways:
        return "the greatest strength"
    return "the strength that was chosen" if ways == {"chosen"} else "the best strength"


def _level_cell(score: Score, percent: bool, width: int) -> Cell:
    """A score that no strength changes, over all of them."""
    cell = score_cell(score, percent, False)
    return Cell(cell.text, cell.note, "base", max(width, 1))


def verdict_bars(verdict: Verdict) -> list[Bar]:
    """The verdict's numbers as bars: no steering, the effect, its controls, then its references."""
    kind = verdict.kind
    shown: list[tuple[str, str, Score, float | None]] = []
    if verdict.base:
        shown.append(("base", "No steering", verdict.base, None))
    shown.append((verdict.effect.name, verdict.effect.title, verdict.score, verdict.strength))
    shown += [
        (r.condition.name, r.condition.title, r.score, None if r.condition.no_vector else r.strength)
        for r in [*verdict.controls, *verdict.references]
    ]
    top = 1.0 if kind.percent else max(score.top for _, _, score, _ in shown) or 1.0
    return [
        Bar(
            title=title,
            value=number(score.value, kind.percent),
            note=interval_text(score, kind.percent)
            + (f" at strength {strength_text(strength)}" if strength is not None else ""),
            width=round(100 * max(score.value, 0) / top, 2),
            whisker=_whisker(score, top),
            colour=condition_of(key).look[0],
            main=key == verdict.effect.name,
        )
        for key, title, score, strength in shown
    ]


def _whisker(score: Score, top: float) -> tuple[float, float] | None:
    if score.interval is None:
        return None
    low, high = score.interval
    return round(100 * max(low, 0) / top, 2), round(100 * min(high, top) / top, 2)
