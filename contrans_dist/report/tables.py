"""The headline table, condition by strength, and the verdict's numbers as bars."""

from collections.abc import Sequence

from contrans_dist.analysis import (
    BASE,
    Evaluation,
    Score,
    Verdict,
    best_point,
    companion_score,
    condition_name,
    judge,
    metric,
    number,
    strength_text,
)
from contrans_dist.report.figures import look
from contrans_dist.report.parts import Bar, Cell, Table, interval_text, score_cell

STATUS_WORDS = {
    "clear": "Clear effect",
    "partly": "Partly shared with a control",
    "shared": "The controls do the same",
    "none": "Nothing moved",
    "unchecked": "Without controls",
    "cost": "What steering costs",
}


def condition_table(evaluation: Evaluation, key: str, companions: Sequence[Evaluation] = ()) -> Table:
    """Every condition with its interval: by strength where strengths were swept, else one line each.

    `companions`: perplexity evaluations under the same steering, shown beside single strengths.
    """
    return _sweep_table(evaluation, key) if evaluation.is_sweep else _line_table(evaluation, key, companions)


def _line_table(evaluation: Evaluation, key: str, companions: Sequence[Evaluation]) -> Table:
    """Condition, strength, value, p-values and perplexity, one line a condition."""
    kind, counts = metric(key), {row.scores[key].n for row in evaluation.rows if key in row.scores}
    rows, tested, costed = [], [False, False], False
    for condition in (["base"] if evaluation.base(key) else []) + evaluation.conditions:
        name = BASE if condition == "base" else condition_name(condition)
        best = best_point(evaluation, condition, key) if condition != "base" else None
        score = best[1] if best else evaluation.base(key) if condition == "base" else None
        if score is None:
            continue
        row = evaluation.row(condition, best[0]) if best else None
        ps = [row.p(against, key) if row else None for against in ("vector", "base")]
        tested = [tested[side] or ps[side] is not None for side in (0, 1)]
        cost = companion_score(companions, condition, best[0] if best else 0.0)
        costed = costed or cost is not None
        rows.append(
            [
                Cell(name.title, name.meaning, name.role),
                Cell("–" if best is None or name.system else strength_text(best[0])),
                score_cell(score, kind.percent, len(counts) > 1, "main" if name.role == "effect" else ""),
                *(Cell(p_text(p)) for p in ps),
                score_cell(cost, False, False) if cost else Cell("–", kind="quiet"),
            ]
        )
    head = ["Condition", "Strength", kind.title, "p, against vector", "p, against base", "Perplexity"]
    shown = [True, True, True, *tested, costed]
    amount = f"n = {counts.pop()} {kind.items} in every row. " if len(counts) == 1 else ""
    chosen = " Strengths were chosen on validation items." if evaluation.search else ""
    return Table(
        [name for name, wanted in zip(head, shown, strict=True) if wanted],
        [[cell for cell, wanted in zip(row, shown, strict=True) if wanted] for row in rows],
        f"{amount}In brackets: 95\u202f% interval. p: paired tests, same items.{chosen}",
    )


def p_text(p: float | None) -> str:
    """A p-value for people; empty where there is none."""
    if p is None:
        return ""
    return f"{p:.2g}" if p >= 1e-4 else "< 0.0001"


def _sweep_table(evaluation: Evaluation, key: str) -> Table:
    """Condition by strength: value, interval, best strength of each; p against the vector beside it."""
    kind = metric(key)
    counts = {row.scores[key].n for row in evaluation.rows if key in row.scores}
    show_n = len(counts) > 1
    strengths = evaluation.strengths
    verdict = judge(evaluation, key)
    tests = {}
    if verdict:
        for condition in evaluation.conditions:
            row = evaluation.row(condition, verdict.strength)
            p = row.p("vector", key) if row and condition != verdict.effect.key else None
            if p is not None and not condition_name(condition).system:
                tests[condition] = p_text(p)
    head = ["Condition", *[f"strength {strength_text(strength)}" for strength in strengths]]
    rows = []
    base = evaluation.base(key)
    if base:
        rows.append([Cell(BASE.title), _level_cell(base, kind.percent, len(strengths))])
    for condition in evaluation.conditions:
        name, best = condition_name(condition), best_point(evaluation, condition, key)
        title = Cell(name.title, name.meaning, name.role)
        if name.system:
            if best:
                rows.append([title, _level_cell(best[1], kind.percent, len(strengths))])
            continue
        cells = [
            score_cell(
                evaluation.score(condition, strength, key),
                kind.percent,
                show_n,
                ("main" if name.role == "effect" else "best") if best and strength == best[0] else "",
            )
            for strength in strengths
        ]
        rows.append([title, *cells])
    if tests and verdict:
        head.append(f"p at {strength_text(verdict.strength)}")
        titles = {condition_name(condition).title: p for condition, p in tests.items()}
        rows = [[*row, Cell(titles.get(row[0].text, ""))] for row in rows]
    amount = f"n = {counts.pop()} {kind.items} in every cell. " if len(counts) == 1 else ""
    test = f"p: paired test against {verdict.effect.phrase}, same items." if tests and verdict else ""
    bold = "each row's greatest strength" if kind.cost else "each row's best strength"
    return Table(head, rows, f"{amount}In brackets: 95\u202f% interval. Bold: {bold}. {test}")


def _level_cell(score: Score, percent: bool, width: int) -> Cell:
    """A score that no strength changes, over all of them."""
    cell = score_cell(score, percent, False)
    return Cell(cell.text, cell.note, "base", max(width, 1))


def verdict_bars(verdict: Verdict) -> list[Bar]:
    """The verdict's numbers as bars: no steering, the effect, its controls, then its references."""
    kind = metric(verdict.metric)
    shown: list[tuple[str, str, Score, float | None]] = []
    if verdict.base:
        shown.append(("base", "No steering", verdict.base, None))
    shown.append((verdict.effect.key, verdict.effect.title, verdict.score, verdict.strength))
    shown += [
        (r.name.key, r.name.title, r.score, None if r.name.system else r.strength)
        for r in [*verdict.controls, *verdict.references]
    ]
    top = 1.0 if kind.percent else max(score.high for _, _, score, _ in shown) or 1.0
    return [
        Bar(
            title=title,
            value=number(score.value, kind.percent),
            note=interval_text(score, kind.percent)
            + (f" at strength {strength_text(strength)}" if strength is not None else ""),
            width=round(100 * max(score.value, 0) / top, 2),
            low=round(100 * max(score.low, 0) / top, 2),
            high=round(100 * min(score.high, top) / top, 2),
            colour="#8a8a86" if key == "base" else look(key)[0],
            main=key == verdict.effect.key,
        )
        for key, title, score, strength in shown
    ]
