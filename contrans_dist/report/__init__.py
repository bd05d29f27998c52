"""Self-contained HTML pages, one a run and one to compare runs: what was done, and what came of it.

Imports: store, data, vectors, benchmarks, evaluation.
"""

import json
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from contrans_dist.evaluation.analysis import read_run
from contrans_dist.report.compare import compare
from contrans_dist.report.comparison import build_comparison
from contrans_dist.report.page import build_page
from contrans_dist.report.parts import Studio
from contrans_dist.store.location import Location
from contrans_dist.store.provenance import git_commit, version

REPORT_FILE = "report.html"
FIGURES_FOLDER = "figures"


def write_report(run: Location) -> Location:
    """Write `report.html` into a folder, from the artefacts in it; what is missing is left out of the page.

    Each figure is also kept as SVG, with the data behind it as CSV, in `figures/`; those of an earlier page
    that this one lacks are removed.

    Args:
        run: The folder of a run, of an evaluation, or of an activation set.

    Returns:
        Where the page is.

    Raises:
        UserError: When nothing that can be reported is there.
    """
    studio = Studio()
    return _publish("page.html", build_page(read_run(run), studio), studio, run)


def write_comparison(runs: Sequence[Location], target: Location) -> Location:
    """Write a page with runs side by side, evaluation by evaluation.

    Args:
        runs: Their folders. They may be of one recipe or of several: evaluations are matched by name and
            benchmark.
        target: The folder of `report.html` and `figures/`. A `recipe.yaml` in it names what the runs are runs
            of.

    Returns:
        Where the page is.

    Raises:
        UserError: When no run has an evaluation.
    """
    studio = Studio()
    return _publish(
        "comparison.html", build_comparison(compare(runs, target), target, studio), studio, target
    )


def _publish(template: str, page: Any, studio: Studio, folder: Location) -> Location:
    environment = Environment(
        loader=PackageLoader("contrans_dist", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["version"] = version()
    # No time and no command: the same artefacts give the same bytes.
    made = {"kind": "report", "contrans_dist": version(), "git_commit": git_commit()}
    environment.globals["made"] = json.dumps(made)
    html = environment.get_template(template).render(page=page)
    studio.publish(folder / FIGURES_FOLDER)
    target = folder / REPORT_FILE
    # A lone surrogate in somebody's text has no UTF-8 form and must not cost the page.
    target.write_bytes(html.encode("utf-8", "replace"))
    return target
