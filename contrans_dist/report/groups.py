"""An evaluation concept by concept, or group by group: table and small multiples; and the answers."""

from dataclasses import dataclass

from contrans_dist.benchmarks import about
from contrans_dist.evaluation.analysis import (
    Evaluation,
    Rival,
    Run,
    Verdict,
    judge,
    number,
    score_table,
    strength_text,
)
from contrans_dist.report.compare import Matched
from contrans_dist.report.figures import concepts_figure
from contrans_dist.report.parts import Cell, Drawing, Studio, Table, score_cell
from contrans_dist.vectors.concept_vector import ConceptVector

_MOST_PANELS = 24


@dataclass(frozen=True)
class Groups:
    """What the page shows by group."""

    title: str
    table: Table
    told_apart: str
    curves: Drawing | None


def groups_of(
    run: Run,
    evaluation: Evaluation,
    verdict: Verdict,
    vectors: dict[str, ConceptVector],
    anchor: str,
    studio: Studio,
) -> Groups | None:
    """Every group that has a score of its own in the verdict's metric; None without any."""
    key = verdict.metric
    groups = evaluation.groups(key)
    if not groups:
        return None
    head, plural = about(evaluation.benchmark).group
    table, apart = _table(run, evaluation, verdict, vectors, head)
    curves = None
    if evaluation.is_sweep and len(groups) <= _MOST_PANELS:
        curves = studio.draw(
            (anchor, "concepts"),
            lambda: concepts_figure(evaluation, key),
            score_table(evaluation, key, groups=True),
            f"{verdict.kind.title} over strength, by {head.lower()}. Colours as above.",
        )
    told_apart = f"{apart} of {len(table.rows)} {plural} stand apart on their own"
    return Groups(
        title=f"By {head.lower()}",
        table=table,
        told_apart="" if verdict.status == "cost" else told_apart,
        curves=curves,
    )


def groups_of_runs(matched: Matched, key: str) -> tuple[str, Table] | None:
    """Title and table, run by group: the condition under test. None unless there are several groups."""
    evaluations = matched.by_run.values()
    groups = list(dict.fromkeys(group for evaluation in evaluations for group in evaluation.groups(key)))
    if len(groups) < 2:
        return None
    head, _ = about(matched.benchmark).group
    rows = []
    for run, evaluation in matched.by_run.items():
        verdict = judge(evaluation, key)
        rows.append([Cell(run), *(_group_cell(evaluation, group, verdict) for group in groups)])
    caption = (
        f"{matched.metric(key).title} under the condition that is tested, each run at the strength it is "
        "read at. In brackets: 95\u202f% interval; below: without steering. Green: told apart from that and "
        "from every control."
    )
    return f"By {head.lower()}", Table(["Run", *groups], rows, caption)


def _group_cell(evaluation: Evaluation, group: str, verdict: Verdict | None) -> Cell:
    of_group = _of_group(evaluation, group, verdict) if verdict else None
    if of_group is None:
        return Cell("–", kind="quiet")
    cell = _effect_cell(of_group)
    before = f"from {number(of_group.base.value, of_group.kind.percent)}" if of_group.base else ""
    return Cell(cell.text, "\n".join(filter(None, (cell.note, before))), cell.kind)


def _of_group(evaluation: Evaluation, group: str, verdict: Verdict) -> Verdict | None:
    """The verdict of one group, at the strength at which the whole is read."""
    return judge(evaluation, f"{group}/{verdict.metric}", verdict.strength)


def _effect_cell(of_group: Verdict) -> Cell:
    return score_cell(of_group.score, of_group.kind.percent, False, "apart" if _stands(of_group) else "")


def _stands(of_group: Verdict) -> bool:
    """Whether a group's effect is told apart."""
    return of_group.status in ("clear", "partly")


def _table(
    run: Run, evaluation: Evaluation, verdict: Verdict, vectors: dict[str, ConceptVector], head: str
) -> tuple[Table, int]:
    """The table, and in how many groups the effect is told apart. Columns without content are left out."""
    key, percent = verdict.metric, verdict.kind.percent
    pair = run.main_map.pair if run.main_map else None
    cosines, block = pair.cosines if pair else {}, evaluation.file.block
    rows, apart = [], 0
    for group in evaluation.groups(key):
        of_group = _of_group(evaluation, group, verdict)
        if of_group is None:
            continue
        apart += _stands(of_group)
        sign = 1 if verdict.kind.higher else -1
        most = max(of_group.controls, key=lambda control: sign * control.score.value, default=None)
        reference = next((r for r in of_group.references if r.condition.role == "yardstick"), None)
        vector = vectors.get(group)
        share = vector.share(block, verdict.strength) if vector and block is not None else None
        rows.append(
            [
                Cell(group),
                score_cell(of_group.base, percent, False),
                _effect_cell(of_group),
                _rival_cell(most, percent, named=True),
                _rival_cell(reference, percent),
                Cell(f"{cosines[group]:.2f}" if group in cosines else "–"),
                Cell("–" if share is None else number(share, True, 0)),
            ]
        )
    at = strength_text(verdict.strength)
    heads = [head, "No steering", f"{verdict.effect.title}, strength {at}", "Best control", "Own vector",
             "Cosine to own", "Length"]  # fmt: skip
    filled = [index < 3 or any(row[index].text != "–" for row in rows) for index in range(len(heads))]
    caption = f"{verdict.kind.title}. In brackets: 95\u202f% interval."
    if verdict.status != "cost":
        caption += " Green: told apart from no steering and from every control."
    if filled[5]:
        caption += " Cosine: between the transplanted and the target's own vector."
    if filled[6]:
        caption += " Length: of what is added, as a share of the median residual norm at the block."
    return Table(heads, rows, caption).with_columns(filled), apart


def _rival_cell(rival: Rival | None, percent: bool, named: bool = False) -> Cell:
    """Another condition's score with its interval and, below, its name and its own strength."""
    if rival is None:
        return Cell("–")
    cell = score_cell(rival.score, percent, False)
    at = "" if rival.condition.no_vector else f"strength {strength_text(rival.strength)}"
    return Cell(cell.text, "\n".join(filter(None, (cell.note, rival.condition.title if named else "", at))))
