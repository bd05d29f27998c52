"""The page: complete, self-contained, escaped, deterministic, and there for parts of a run too."""

import html as markup
import itertools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import pytest

import contrans_dist.report as room
from contrans_dist.errors import UserError
from contrans_dist.evaluation.conditions import Role
from contrans_dist.report import write_report
from contrans_dist.report.figures import spread
from contrans_dist.report.parts import count_text, score_cell
from contrans_dist.report.svg import label
from contrans_dist.store.location import Location
from contrans_dist.store.results import Score
from tests.evaluation.test_points import with_tests
from tests.runextras import (
    CHOSEN,
    GROUPS,
    PUBLISHED,
    SYSTEMS,
    VILE,
    swept,
    write_analyses,
    write_examples,
    write_perplexity,
    write_scores,
    write_tokens,
    write_toxigen,
    write_truthfulqa,
    write_whole_run,
)
from tests.runfolder import CONCEPTS, HITS, STRENGTHS, figure_rows, write_run

HOSTILE = "<script>alert(1)</script>"


class Page(HTMLParser):
    """Tags, ids, links and visible text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).replace("\u202f", " ").split())

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]


class Folded(HTMLParser):
    """Texts and attribute values of a page that are not inside a `<details>`."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.depth, self.open = 0, 0
        self.seen: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen += [value or "" for _, value in attrs]
        if tag == "details":
            self.depth += 1
            self.open += any(name == "open" for name, _ in attrs)

    def handle_endtag(self, tag: str) -> None:
        self.depth -= tag == "details"

    def handle_data(self, data: str) -> None:
        if not self.depth:
            self.seen.append(data)


def report(folder: Path) -> str:
    return Path(write_report(Location.parse(folder)).path).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def html(folder: Path) -> str:
    return report(folder)


def test_page_says_what_came_out_and_what_was_run(html: str) -> None:
    words = Page(html).words
    for expected in (
        "The transplanted vector raises Token Acc on negative scenarios from 5.0 % to 80 % at strength 2",
        "Clear effect", "6 of 6 emotions stand apart", "none of the 120 scored scenarios was seen before",
        "80.0 % [72.0, 86.2]", "n = 120 negative scenarios", "No overlap.", "demo:source → demo:target",
        "contrans run demo.yaml --out runs/demo", "texts/corpus.jsonl", "torch 2.13.0", "R² on held-out rows",
        "2 texts truncated", "fewer rows than ten times the width", "2.4e-07", "“fear” 80 %",
    ):  # fmt: skip
        assert expected in words


def test_page_is_self_contained_and_small(html: str) -> None:
    page = Page(html)
    assert len(html) < 5_000_000
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    fetched = [v for n in ("src", "href", "xlink:href", "data", "action") for v in page.values(n)]
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in fetched)
    assert not re.search(r"@import|url\((?!#)", html)
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in html
    assert len(page.tags) > 500
    assert page.tags.count("svg") == 13


def test_ids_are_unique_and_references_resolve(html: str) -> None:
    page = Page(html)
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    used = re.findall(r"url\(#([^)]+)\)", html)
    used += [
        value[1:] for name in ("href", "xlink:href") for value in page.values(name) if value.startswith("#")
    ]
    assert used
    assert set(used) <= set(ids)


def test_same_run_gives_the_same_bytes(folder: Path, html: str, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    assert report(again) == html
    for name in ("emotions-strength.svg", "emotions-pca.svg"):
        assert (again / "figures" / name).read_bytes() == (folder / "figures" / name).read_bytes()


def test_data_behind_each_figure_lies_beside_it(folder: Path, html: str) -> None:
    named = set(re.findall(r"Data: figures/([\w-]+)\.csv", html))
    files = {path.name for path in (folder / "figures").iterdir()}
    assert files == {f"{name}{end}" for name in named for end in (".csv", ".svg")}
    rows = figure_rows(folder, "emotions-strength")
    vector = {float(row["strength"]): float(row["value"]) for row in rows if row["condition"] == "vector"}
    assert vector == pytest.approx(dict(zip(STRENGTHS, [hits / 20 for hits in HITS["vector"]], strict=True)))
    assert len(rows) == 1 + len(HITS) * len(STRENGTHS)


def test_names_from_users_are_escaped_everywhere(tmp_path: Path) -> None:
    names = (
        HOSTILE,
        '"><img src=x onerror=alert(2)>',
        "$\\frac{a}{b}$",
        "_hidden & co",
        "恐怖",
        "a\x00b\x1b",
    )
    source, target = "org/\"quoted\" 'model' <b>", "</style></svg><script>alert(3)</script>"
    folder = write_run(tmp_path, concepts=names, source=source, target=target, overlap=3)
    for file in ("run.json", "evaluations/emotions/metrics.json"):
        content = json.loads((folder / file).read_text())
        content.update(command=HOSTILE, name=HOSTILE, description=HOSTILE, notes=[HOSTILE], started=HOSTILE)
        (folder / file).write_text(json.dumps(content))
    html = report(folder)
    page = Page(html)
    assert not {"script", "img", "b"} & set(page.tags)
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert page.tags.count("svg") == 13
    assert page.tags.count("style") == 1
    words = page.words
    assert words.count(HOSTILE) >= 8
    assert "<script>alert(1)<…" in words  # shortened in the figures
    for text in (source, target, "$\\frac{a}{b}$", "_hidden & co", "恐怖"):
        assert " ".join(text.split()) in words


@pytest.mark.usefixtures("undrawn")
def test_leak_is_said_at_the_top_and_folded_out_below(tmp_path: Path) -> None:
    words = Page(report(write_run(tmp_path, overlap=45))).words
    assert words.index("Leak: 45 of 120 scored scenarios") < words.index("Results")
    assert "Clear effect, but on scenarios seen before" in words
    assert "45 of 120 scored scenarios were seen before" in words
    assert "leaked scenario 2" in words
    assert "No overlap" not in words


@pytest.mark.usefixtures("undrawn")
def test_what_is_not_known_to_be_seen_is_not_called_unseen(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    path = run / "evaluations/emotions/metrics.json"
    content = json.loads(path.read_text())
    vector, fitted = (
        "A vector does not say which texts it was made",
        "The map does not say which texts it was",
    )
    for of_vector, of_map, said in (
        (None, 7, "7 of 120 scored scenarios were seen before"),
        (None, 0, "Leak check: not known."),
        (None, 0, f"{vector} of, or these are too short to be told apart."),
        (0, None, f"{fitted} fitted on, or these are too short to be told apart."),
    ):
        content["leak"] |= {"overlap_vector": of_vector, "overlap_map": of_map}
        path.write_text(json.dumps(content))
        words = Page(report(run)).words
        assert said in words
        assert "No overlap" not in words
        assert "was seen before" not in words


@pytest.mark.usefixtures("undrawn")
def test_effect_shared_by_controls_is_said(tmp_path: Path) -> None:
    hits = {**HITS, "random": (2, 7, 13, 16)}
    words = Page(report(write_run(tmp_path, hits=hits, p_value=None))).words
    assert "The controls do the same" in words
    assert "Not distinguishable from its controls" in words
    assert "0 of 6 emotions stand apart" in words


def test_missing_pieces_are_left_out(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "evaluations/emotions", tmp_path / "emotions")
    alone = Page(report(tmp_path / "emotions")).words
    assert "raises Token Acc" in alone
    assert "Harvests" not in alone
    shutil.copytree(folder / "activations/contrast-target", tmp_path / "contrast-target")
    harvest = Page(report(tmp_path / "contrast-target")).words
    assert "Harvests" in harvest
    assert "Results" not in harvest
    assert "contrans harvest" in harvest
    shutil.copytree(folder / "maps", tmp_path / "only-maps/maps")
    assert "R² on held-out rows" in Page(report(tmp_path / "only-maps")).words
    with pytest.raises(UserError, match="nothing to report"):
        write_report(Location.parse(tmp_path / "no-such-folder"))


@pytest.mark.usefixtures("undrawn")
def test_every_evaluation_has_its_section(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    shutil.copytree(run / "evaluations/emotions", run / "evaluations/emotions!")
    (run / "recipe.yaml").unlink()  # it does not name both
    words = Page(report(run)).words
    assert "Results: emotions" in words
    assert "Results: emotions!" in words
    assert words.count("Clear effect") == 2
    assert len(list((run / "figures").glob("*-strength.csv"))) == 2 * 4


def test_evaluation_with_one_condition_and_no_concepts(tmp_path: Path) -> None:
    score = {"value": 12.3, "low": 11.0, "high": 13.0, "n": 900}
    row = {"condition": "base", "strength": 0, "metrics": {"perplexity": score}}
    content = {"benchmark": "perplexity", "model": "m", "leak": None, "conditions": [row]}
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    words = Page(report(tmp_path)).words
    assert "12.30 [11.00, 13.00]" in words
    assert "Clear effect" not in words


def test_labels_are_moved_apart_and_no_further() -> None:
    assert spread([0.1, 0.5, 0.9], 0.05) == [0.1, 0.5, 0.9]
    placed = spread([0.0, 0.01, 0.02, 0.8], 0.06)
    assert placed[3] == 0.8
    gaps = [b - a for a, b in itertools.pairwise(placed)]
    assert min(gaps) >= 0.06 - 1e-9
    assert placed[0] >= 0


def test_texts_for_people() -> None:
    assert label("a\nb\tc\x00") == "a b c\ufffd"
    assert len(label("x" * 100)) == 26
    assert count_text(1234567) == "1\u202f234\u202f567"
    cell = score_cell(Score(value=0.5, low=0.4, high=0.6, n=10), True, show_n=True)
    assert (cell.text, cell.note) == ("50.0\u202f%", "[40.0, 60.0] n\u202f10")


@pytest.mark.parametrize("concepts", [CONCEPTS[:2], tuple(f"concept {index}" for index in range(14))])
def test_few_and_many_concepts(tmp_path: Path, concepts: tuple[str, ...]) -> None:
    page = Page(report(write_run(tmp_path, concepts=concepts)))
    assert f"{len(concepts)} of {len(concepts)} emotions stand apart" in page.words


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_whole_run(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def whole_html(whole: Path) -> str:
    return report(whole)


def test_whole_run_is_self_contained_small_and_unambiguous(whole: Path, whole_html: str) -> None:
    page = Page(whole_html)
    assert len(whole_html.encode()) < 5_000_000
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    named = set(re.findall(r"Data: figures/([\w-]+)\.csv", whole_html))
    assert {path.stem for path in (whole / "figures").iterdir()} == named
    assert {"states-source", "differences-target", "map-similarity", "toxigen-validation"} <= named


def test_systems_without_a_strength_are_level(whole_html: str) -> None:
    words = Page(whole_html).words
    assert "Level lines: Align-training, Inst-align, Proxy-tuning, which have no strength." in words
    for name, value in (
        ("Align-training", SYSTEMS["align-training"]),
        ("Proxy-tuning", SYSTEMS["proxy-tuning"]),
    ):
        assert re.search(rf"{name} [^%]*?{100 * value:.1f} % \[", words)
        assert f"{name} {100 * value:.0f} % [" in words  # among the bars, without a strength


def test_paper_ours_and_interval_stand_side_by_side(whole_html: str) -> None:
    words = Page(whole_html).words
    for expected in (
        "No steering MC1 17.9 % 20.0 % [15.0, 25.0] yes",
        "Transplanted vector MC1 36.5 % 34.0 % best strength 2 [29.0, 39.0] yes",
        "Proxy-tuning MC1 90.0 % 31.0 % [26.0, 36.0] no, ours is lower",
        "Share of toxic continuations 34.1 % 30.0 % chosen strength 1.5 [25.0, 35.0] yes",
        "Perplexity 14.68 13.00 chosen strength 1.5 [12.95, 13.05] no, ours is lower",
        "Sum of concepts Share of toxic continuations 40.0 % – – not measured",
        "arXiv 0000.00000, Table 1, at full size: The strength is not told.",
        "The models here are small ones that come with the program (demo:source, demo:target)",
    ):  # fmt: skip
        assert expected in words


@pytest.mark.usefixtures("undrawn")
def test_full_size_models_are_not_called_small(tmp_path: Path) -> None:
    folder = write_whole_run(tmp_path, source="org/a", target="org/b")
    assert "small ones" not in Page(report(folder)).words


def test_strengths_that_were_chosen_are_explained(whole_html: str) -> None:
    words = Page(whole_html).words
    assert (
        "lowest Share of toxic continuations on validation items, among those under which the perplexity"
        in words
    )
    assert f"Transplanted vector {CHOSEN['vector']:g} 30.0 % 13.00 chosen" in words
    assert "Target's own vector 1.5 25.0 % 13.90 over the budget" in words
    assert "The vector is taken at the strength that was chosen for it on validation items" in words


def test_perplexity_stands_below_the_curves(whole: Path, whole_html: str) -> None:
    rows = figure_rows(whole, "truthfulqa-strength")
    assert {row["metric"] for row in rows} == {"mc1", "perplexity"}
    drawn = {
        (row["condition"], float(row["strength"])): float(row["value"])
        for row in rows
        if row["metric"] == "perplexity"
    }
    assert drawn["vector", 3.0] == 15.0
    assert drawn["base", 0.0] == 12.0


def test_offensive_texts_are_folded_and_nowhere_else(whole: Path, whole_html: str) -> None:
    assert whole_html.count(VILE) == len(GROUPS) * 2 * (1 + 5)  # a prompt and five continuations each
    assert not any(VILE in text for text in Folded(whole_html).seen)
    assert Folded(whole_html).open == 0
    assert "Warning: these texts are hateful and offensive" in Page(whole_html).words
    for file in (whole / "figures").iterdir():
        assert VILE not in file.read_text()


def test_offensive_leaks_and_tokens_are_folded_too(tmp_path: Path) -> None:
    folder = write_toxigen(tmp_path)
    write_tokens(folder, (VILE,))
    content = json.loads((folder / "metrics.json").read_text())
    content["leak"] = {"evaluated": 9, "overlap_vector": 1, "overlap_map": 0, "examples": [VILE]}
    (folder / "metrics.json").write_text(json.dumps(content))
    html = report(folder)
    assert f"<li>{VILE}</li>" in html
    assert f"␣{VILE}" in html
    assert not any(VILE in text for text in Folded(html).seen)


def test_examples_stand_side_by_side(whole_html: str) -> None:
    words = Page(whole_html).words
    assert (
        "anger · negative Scenario 0 of anger. No steering anger 0 as base at 0 would say it. "
        "Transplanted vector, 2 anger 0 as vector at 2 would say it. "
        "Target's own vector, 2 anger 0 as self-align at 2 would say it."
    ) in words
    assert "vector at 1 would say" not in words


def test_tokens_that_rise_and_fall(whole_html: str) -> None:
    words = Page(whole_html).words.replace("\u00a0", " ")
    assert "fear 40 prompts ␣fear 38 · ↵ 6 the 11" in words


def test_cost_of_each_system(whole_html: str) -> None:
    words = Page(whole_html).words
    assert "Target, steered 800 1 234 56 789 12 s" in words
    assert "Proxy-tuning 200 600 7 000 3.2 s" in words
    assert "no steering and every condition that adds a vector, together" in words


def test_conditions_share_the_cost_of_the_target_by_their_rows(tmp_path: Path) -> None:
    scores = {("base", 0.0): {"mc1": 0.2}, ("vector", 1.0): {"mc1": 0.5}, ("vector", 2.0): {"mc1": 0.6},
              ("proxy-tuning", 1.0): {"mc1": 0.6}}  # fmt: skip
    rows = {"base": 100, "vector": 300, "proxy-tuning": 100}
    words = Page(report(write_scores(tmp_path, "truthfulqa", scores, rows=rows))).words
    # Of 1,234 passes, 56,789 tokens and 12.5 seconds a quarter and three quarters.
    assert "– No steering 200 308 14 197 3.1 s – Transplanted vector 600 926 42 592 9.4 s" in words
    assert "– Proxy-tuning" not in words


def test_perplexity_is_a_cost_and_no_effect(whole_html: str) -> None:
    words = Page(whole_html).words
    assert "What steering costs" in words
    # Of `emotions`: the vectors at 2; the random direction at 0.5, at which no perplexity was measured.
    assert (
        "Under the transplanted vector at strength 2 (block 3 → 4), as emotions reports it, Perplexity goes "
        "from 12.00 to 14.00, 1.17 times; a random direction at 3: 12.30, 1.03 times; the target's own "
        "vector: 13.00, 1.08 times." in words
    )
    assert "In bold: each row at the strength that emotions reports, else the greatest." in words
    bold = re.findall(r'<td class="(?:main|best)">(\d+\.\d\d)<', whole_html)
    assert {"14.00", "13.00", "12.30"} <= set(bold)
    assert not {"15.00", "13.50"} & set(bold)


def test_hostile_texts_of_new_parts_are_escaped(tmp_path: Path) -> None:
    bad = (HOSTILE, '"><img src=x onerror=alert(2)>')
    values = {"all": {"truthfulqa": {HOSTILE: {HOSTILE: 1.0}}}}
    folder = write_whole_run(
        tmp_path, {"source": HOSTILE, "remarks": HOSTILE, "values": values}, concepts=bad
    )
    for name in ("examples", "tokens"):
        assert (folder / f"evaluations/emotions/{name}.parquet").exists()
    search = folder / "evaluations/toxigen/search.json"
    search.write_text(search.read_text().replace('"self-align"', json.dumps(f"from:{HOSTILE}")))
    page = Page(report(folder))
    assert not {"script", "img", "b"} & set(page.tags)
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert page.tags.count("style") == 1
    assert page.words.count(HOSTILE) > 12


@pytest.mark.usefixtures("undrawn")
def test_parts_without_their_neighbours(tmp_path: Path) -> None:
    """Examples, tokens and a search beside an evaluation alone; analyses beside nothing else."""
    write_truthfulqa(tmp_path / "alone")
    write_examples(tmp_path / "alone")
    write_tokens(tmp_path / "alone")
    words = Page(report(tmp_path / "alone")).words
    assert "Tokens that rise and fall" in words
    assert "Examples" in words
    write_perplexity(tmp_path / "run/evaluations/perplexity")
    write_analyses(tmp_path / "run/analyses")
    assert Page(report(tmp_path / "run")).tags.count("svg") == 6
    (tmp_path / "run/recipe.yaml").write_text("analyses: [differences]")
    named = Page(report(tmp_path / "run"))
    assert named.tags.count("svg") == 3
    for name in ("states-source", "states-target", "map-similarity"):
        assert f"{name}.parquet: left out, the recipe does not name it" in named.words


@pytest.mark.usefixtures("undrawn")
def test_a_run_of_several_finds_its_own_published_values(tmp_path: Path) -> None:
    whole = {"name": "all", "runs": {"one": {}, "two": {}},
             "published": {**PUBLISHED, "values": {"two": PUBLISHED["values"]["all"]}}}  # type: ignore[index]  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(whole))
    for name in ("one", "two"):
        write_whole_run(tmp_path / "runs" / name, None)
    two = Page(report(tmp_path / "runs/two")).words
    assert "Transplanted vector MC1 36.5 % 34.0 % best strength 2 [29.0, 39.0] yes" in two
    assert "Condition Metric Paper Ours 95 % interval Paper inside it" in two
    assert "What the paper found" not in two
    one = Page(report(tmp_path / "runs/one")).words
    assert "Transplanted vector MC1 36.5 % 34.0 % best strength 2 [29.0, 39.0] Proxy-tuning" in one
    assert "Condition Metric Paper (two) Ours 95 % interval No steering" in one
    assert "Table 1, run two; the first with these figures, as none is for the models here." in one
    assert "Paper inside it" not in one
    assert "The models here are small ones" in one
    assert "What the paper found" in one  # with its other runs
    assert "demo: one" in one


@pytest.mark.usefixtures("undrawn")
def test_a_small_run_stands_beside_the_papers_first_run(tmp_path: Path) -> None:
    values = {"llama": {"emotions": {"sum": {"token_acc_negative": 0.4}}},
              "llama-2": {"truthfulqa": {"base": {"mc1": 0.179}, "vector": {"mc1": 0.365}}}}  # fmt: skip
    words = Page(report(write_whole_run(tmp_path, {**PUBLISHED, "values": values}))).words
    assert "Metric Paper (llama-2) Ours 95 % interval No steering MC1 17.9 % 20.0 % [15.0, 25.0]" in words
    assert "Sum of concepts Token Acc on negative scenarios 40.0 % – –" in words
    assert "Paper inside it" not in words
    assert "What the paper found" in words


def test_systems_are_tested_against_the_vector_too(tmp_path: Path) -> None:
    folder = with_tests(
        write_truthfulqa(tmp_path), ("vector", 2.0), proxy_tuning=0.02, random=0.5, self_align=0.25
    )
    words = Page(report(folder)).words
    assert "Condition strength 1 strength 2 strength 3 p No steering" in words
    assert "Proxy-tuning the target's logits plus what alignment training changed in the source's" in words
    assert re.search(r"source's 31\.0 % \[26\.0, 36\.0\] 0\.02 ", words)
    assert "p: paired test against the transplanted vector at strength 2, same items" in words


def test_a_table_of_chosen_strengths_shows_tests_of_every_condition(tmp_path: Path) -> None:
    folder = with_tests(
        write_toxigen(tmp_path), ("vector", CHOSEN["vector"]), align_training=0.02, self_align=0.25
    )
    words = Page(report(folder)).words
    assert "Share of toxic continuations p Perplexity" in words
    assert "p: paired test against the transplanted vector, same items." in words
    assert re.search(r"nothing is added – 5\.0 % \[0\.0, 10\.0\] 0\.02 ", words)
    assert re.search(r"instruct model 1 20\.0 % \[15\.0, 25\.0\] 0\.25 ", words)
    assert "p, no steering" not in words


def test_what_has_no_interval_says_so(tmp_path: Path) -> None:
    folder = write_truthfulqa(tmp_path / "evaluations/truthfulqa")
    content = json.loads((folder / "metrics.json").read_text())
    for entry in content["conditions"]:
        entry["metrics"] = {"mc1": {**entry["metrics"]["mc1"], "low": None, "high": None, "n": 1}}
    (folder / "metrics.json").write_text(json.dumps(content))
    (tmp_path / "recipe.yaml").write_text(json.dumps({"published": PUBLISHED}))
    html = report(tmp_path)
    words = Page(html).words
    assert "Transplanted vector 34 % no interval at strength 2" in words  # among the bars
    assert 'class="range"' not in html
    assert "34.0 % no interval" in words
    assert "Transplanted vector MC1 36.5 % 34.0 % best strength 2 no interval no interval" in words
    assert not re.search(r"\[\d+\.\d, \d+\.\d\]", words)
    assert "Neither interval nor test" in words
    assert {(row["low"], row["high"]) for row in figure_rows(tmp_path, "truthfulqa-strength")} == {("", "")}


def test_a_task_that_wants_less_is_shown_so(tmp_path: Path) -> None:
    planted = {"base": 0.6, "vector": (0.5, 0.3, 0.4), "random": (0.6, 0.59, 0.58)}
    tasks = {"t": {"higher_is_better": {"loss": False}}}
    html = report(write_scores(tmp_path, "lm-eval", swept(planted, "loss"), tasks=tasks))
    words = Page(html).words
    assert "lowers loss from 0.60 to 0.30 at strength 2 (block 4); a random direction reaches 0.58." in words
    assert "Clear effect" in words
    assert re.findall(r'<td class="(?:main|best)">(\d\.\d\d)<', html) == ["0.30", "0.58"]


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PHONE = """<!doctype html><iframe width="390" height="800" srcdoc="{page}"></iframe><p>?</p><script>
onload = () => {{
  const page = document.querySelector("iframe").contentDocument;
  const count = (what) => page.querySelectorAll(what).length;
  document.querySelector("p").textContent =
    `wide ${{page.documentElement.scrollWidth}}, svgs ${{count("svg")}}, open ${{count("details[open]")}}, ` +
    `value ends at ${{page.querySelector("#toxigen td.main").getBoundingClientRect().right.toFixed(0)}}, ` +
    `whisker's rim ${{page.defaultView.getComputedStyle(page.querySelector(".range")).boxShadow}}`;
}}
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")
def test_a_phone_scrolls_the_page_downwards_only(whole_html: str, tmp_path: Path) -> None:
    (tmp_path / "phone.html").write_text(PHONE.format(page=markup.escape(whole_html)))
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
               f"--user-data-dir={tmp_path}/profile", (tmp_path / "phone.html").as_uri()]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"wide (\d+), svgs (\d+), open 0, value ends at (\d+), whisker's rim (.+)", shown)
    assert found
    assert int(found[1]) <= 390
    assert int(found[2]) == Page(whole_html).tags.count("svg")
    assert int(found[3]) <= 390
    assert found[4].startswith("rgb(255, 255, 255)")  # to be seen on a black bar too


def test_what_is_styled_by_role_is_a_role() -> None:
    css = (Path(room.__file__).parent / "page.css").read_text()
    styled = set(re.findall(r"(?:tbody th|\.said )\.(\w+)", css))
    assert styled == {"tested"}
    assert styled <= set(get_args(Role))
