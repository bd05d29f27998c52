"""One self-contained HTML page per run: what was done, what came out, and whether to believe it."""

from jinja2 import Environment, PackageLoader, StrictUndefined

from contrans_dist.analysis import read_run
from contrans_dist.report.page import build_page
from contrans_dist.report.parts import Studio
from contrans_dist.storage import Location

REPORT_FILE = "report.html"
FIGURES_FOLDER = "figures"


def write_report(run: Location) -> Location:
    """Write `report.html` into a run folder, an evaluation or an activation set; returns where it is.

    Reads artefacts only; what is missing is left out of the page. Each figure is also kept as SVG, with the
    data behind it as CSV, in `figures/`. Raises UserError when nothing that can be reported is there.
    """
    studio = Studio()
    page = build_page(read_run(run), studio)
    environment = Environment(
        loader=PackageLoader("contrans_dist", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("page.html").render(page=page)
    studio.publish(run / FIGURES_FOLDER)
    target = run / REPORT_FILE
    # A lone surrogate in somebody's text has no UTF-8 form and must not cost the page.
    target.write_bytes(html.encode("utf-8", "replace"))
    return target
