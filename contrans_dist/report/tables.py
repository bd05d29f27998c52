"""The headline table, condition by strength, and the verdict's numbers as bars."""

from contrans_dist.analysis import (
    Evaluation,
    Score,
    Verdict,
    best_point,
    condition_name,
    judge,
    metric,
    number,
    strength_text,
)
from contrans_dist.report.figures import look
from contrans_dist.report.parts import Bar, Cell, Table, interval_text, score_cell


def condition_table(evaluation: Evaluation, key: str) -> Table:
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
            if p is not None:
                tests[condition] = f"{p:.2g}" if p >= 1e-4 else "< 0.0001"
    head = ["Condition", *[f"strength {strength_text(strength)}" for strength in strengths]]
    rows = []
    base = evaluation.base(key)
    if base:
        cell = score_cell(base, kind.percent, show_n)
        rows.append([Cell("No steering"), Cell(cell.text, cell.note, "base", max(len(strengths), 1))])
    for condition in evaluation.conditions:
        name, best = condition_name(condition), best_point(evaluation, condition, key)
        cells = [
            score_cell(
                evaluation.score(condition, strength, key),
                kind.percent,
                show_n,
                ("main" if name.role == "effect" else "best") if best and strength == best[0] else "",
            )
            for strength in strengths
        ]
        rows.append([Cell(name.title, name.meaning, name.role), *cells])
    if tests and verdict:
        head.append(f"p at {strength_text(verdict.strength)}")
        rows = [[*row, Cell(tests.get(name, ""))] for row, name in
                zip(rows, [*(["base"] if base else []), *evaluation.conditions], strict=True)]  # fmt: skip
    amount = f"n = {counts.pop()} {kind.items} in every cell. " if len(counts) == 1 else ""
    test = f"p: paired test against {verdict.effect.phrase}, same items." if tests and verdict else ""
    return Table(
        head, rows, f"{amount}In brackets: 95\u202f% interval. Bold: each row's best strength. {test}"
    )


def verdict_bars(verdict: Verdict) -> list[Bar]:
    """The verdict's numbers as bars: no steering, the effect, its controls, then its references."""
    kind = metric(verdict.metric)
    shown: list[tuple[str, str, Score, float | None]] = []
    if verdict.base:
        shown.append(("base", "No steering", verdict.base, None))
    shown.append((verdict.effect.key, verdict.effect.title, verdict.score, verdict.strength))
    shown += [
        (r.name.key, r.name.title, r.score, r.strength) for r in [*verdict.controls, *verdict.references]
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
