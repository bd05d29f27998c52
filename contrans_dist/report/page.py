"""The whole page as plain data: what the template shows, from top to bottom."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import yaml

from contrans_dist.console import count_of
from contrans_dist.evaluation.analysis import Published, Run
from contrans_dist.report.blocks import BlockView, block_view
from contrans_dist.report.harvests import harvest_table, harvest_warnings, norms_drawing
from contrans_dist.report.maps import MapView, map_view
from contrans_dist.report.parts import Cell, Drawing, Studio, Table, seconds_text
from contrans_dist.report.projections import analysis_drawings
from contrans_dist.report.published import paper_table, small_models
from contrans_dist.report.sections import Section, build_section
from contrans_dist.store.results import StageEntry, plain


@dataclass
class Page:
    """Everything the template needs."""

    title: str
    description: str
    models: str
    sections: list[Section]
    analyses: list[Drawing]
    published: Published | None
    small: str
    paper: Table | None
    """All of the paper's figures, where none of them is for this very run."""
    own: bool
    """Whether the target is steered with its own vectors."""
    block: BlockView | None
    """How its block was chosen then."""
    maps: list[MapView]
    norms: Drawing | None
    harvests: Table | None
    facts: list[tuple[str, str]]
    stages: Table | None
    command: str
    recipe: str
    warnings: list[str] = field(default_factory=list)


def build_page(run: Run, studio: Studio) -> Page:
    """Put the page of a run together; parts whose artefacts are missing stay empty."""
    sections: list[Section] = []
    for evaluation in run.evaluations:
        with_planes = not any(section.planes for section in sections)
        sections.append(build_section(run, evaluation, studio, with_planes))
    analyses, unread = analysis_drawings(run, studio)
    problems = [*run.problems, *(problem for section in sections for problem in section.problems), *unread]
    warnings = [*problems, *(warning for summary in run.maps for warning in summary.warnings)]
    warnings += [
        warning for name, harvest in run.harvests.items() for warning in harvest_warnings(name, harvest)
    ]
    recipe = run.recipe.content
    return Page(
        title=run.name,
        description=run.record.description or run.recipe.description or "",
        models=_models(run),
        sections=sections,
        analyses=analyses,
        published=run.published,
        small=small_models([run]),
        paper=paper_table(run.published)
        if run.published and not run.published.has_any(evaluation.name for evaluation in run.evaluations)
        else None,
        own=run.recipe.without_source,
        block=block_view(run.block_choice, run.evaluations) if run.block_choice else None,
        maps=[map_view(summary, run.evaluations, studio) for summary in run.maps],
        norms=norms_drawing(run, studio),
        harvests=harvest_table(run.harvests) if run.harvests else None,
        facts=_facts(run),
        stages=_stages(run.record.stages or []),
        command=_command(run),
        recipe=yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True) if recipe else "",
        warnings=warnings,
    )


def _model_id(run: Run, side: str) -> str:
    harvest = run.harvests.get(f"contrast-{side}") or run.harvests.get(f"corpus-{side}")
    return run.recipe.model(side) or (harvest.manifest.identity.model if harvest else "")


def _models(run: Run) -> str:
    source, target = _model_id(run, "source"), _model_id(run, "target")
    if source and target:
        return f"{source} → {target}"
    if run.evaluations:
        return run.evaluations[0].file.model
    return ", ".join(harvest.manifest.identity.model for harvest in run.harvests.values())


def _command(run: Run) -> str:
    commands = [run.record.command, *(evaluation.file.command for evaluation in run.evaluations)]
    commands += [harvest.manifest.command for harvest in run.harvests.values()]
    return next(filter(None, commands), "")


def _stages(stages: list[StageEntry]) -> Table | None:
    if not stages:
        return None
    rows = [[Cell(stage.name), Cell(seconds_text(stage.seconds))] for stage in stages]
    return Table(["Stage", "Time"], rows, compact=True)


def _facts(run: Run) -> list[tuple[str, str]]:
    recipe, record = run.recipe.content, run.record
    facts = [("Source", _describe(run, "source")), ("Target", _describe(run, "target"))]
    for key, title in (
        ("source_base", "Source before alignment training"),
        ("target_instruct", "Target after alignment training"),
        ("map_source", "Map fitted from"),
        ("map_target", "Map fitted to"),
    ):
        facts.append((title, run.recipe.model(key)))
    facts += [(f"Source {name}", _settings(value)) for name, value in (recipe.get("sources") or {}).items()]
    steered = "Block" if run.recipe.without_source else "Map"
    for key, title in (("corpus", "Corpus of the map"), ("concepts", "Contrast sets"), ("map", steered)):
        facts.append((title, _settings(recipe.get(key))))
    facts += [
        (f"Evaluation {name}", _settings(value)) for name, value in (recipe.get("evaluations") or {}).items()
    ]
    if not recipe:
        facts += _own_facts(run)
    facts += [("Started", _time(record.started)), ("Finished", _time(record.finished))]
    facts.append(("Commit", (record.git_commit or "")[:12]))
    versions = (record.versions or {}).items()
    facts.append(("Versions", ", ".join(f"{name} {version}" for name, version in versions)))
    return [fact for fact in facts if fact[1]]


def _own_facts(run: Run) -> list[tuple[str, str]]:
    """What parts that stand alone say of themselves, where there is no recipe."""
    facts = []
    for evaluation in run.evaluations:
        kept = ("benchmark", "protocol", "strengths", "created", "versions", "git_commit")
        content = evaluation.file.model_dump(include=set(kept))
        facts.append((f"Evaluation {evaluation.name}", _settings({key: content[key] for key in kept})))
    for name, harvest in run.harvests.items():
        facts.append((f"Activations {name}", _settings(plain(harvest.manifest.identity))))
    return facts


def _describe(run: Run, side: str) -> str:
    harvest = run.harvests.get(f"contrast-{side}") or run.harvests.get(f"corpus-{side}")
    name = _model_id(run, side)
    if not harvest:
        return name
    identity = harvest.manifest.identity
    parts = [
        f"{count_of(harvest.n_blocks, 'block')} of width {harvest.d}",
        identity.precision,
        identity.quantization,
    ]
    return f"{name}: {', '.join(filter(None, parts))}"


def _settings(value: Any) -> str:
    """Settings that were given, in one line; what was left out is left out here too."""
    if not isinstance(value, dict):
        return str(value or "")
    parts = []
    for key, entry in value.items():
        if entry is None or entry in ("", [], {}, ()):
            continue
        shown = str(entry)
        if isinstance(entry, list | tuple):
            shown = ", ".join(str(item) for item in entry)
        elif isinstance(entry, dict):
            shown = ", ".join(f"{name} {item}" for name, item in entry.items())
        parts.append(f"{key.replace('_', ' ')}: {shown}")
    return " · ".join(parts)


def _time(text: str | None) -> str:
    try:
        return datetime.fromisoformat(text or "").strftime("%Y-%m-%d %H:%M:%S %Z").strip()
    except ValueError:
        return text or ""
