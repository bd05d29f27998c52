"""The registry of benchmarks: one that a package brings, from recipe to report; and broken packages."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from contrans_dist.config import benchmark_names, find_benchmark
from contrans_dist.config.recipe import load_recipe
from contrans_dist.errors import UserError
from tests.commands import run
from tests.sets import write_lines
from tests.tiny import save_tiny

PLUGIN = Path(__file__).parents[1] / "plugin"
PAGE = Path(__file__).parents[2] / "docs" / "your-own-benchmark.md"
WORDS = ["the", "boy", "was", "happy", "sad", "angry", "afraid", "dog", "cat", "tree", "ball", "forest"]


def texts(count: int, seed: int) -> list[dict[str, str]]:
    draw = np.random.default_rng(seed)
    return [
        {"text": " ".join(draw.choice(WORDS, 6)), "wanted": "happy and sad", "other": "angry"}
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example package, installed into a folder of its own, without a network."""
    source, target = tmp_path_factory.mktemp("source") / "plugin", tmp_path_factory.mktemp("site")
    shutil.copytree(PLUGIN, source)
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(source)], check=True)
    return target


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(site)
    return site


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("target"), seed=1)


def recipe(folder: Path, target: Path) -> Path:
    draw = np.random.default_rng(0)
    contrast = [
        {"text": f"the boy was {concept} {draw.choice(WORDS)}", "concept": concept}
        for concept in ("happy", "sad")
        for _ in range(8)
    ]
    content = {
        "name": "endings",
        "source": str(save_tiny(folder / "source")),
        "target": str(target),
        "corpus": {
            "texts": write_lines(
                folder / "corpus.jsonl", [{"text": " ".join(draw.choice(WORDS, 8))} for _ in range(60)]
            )
        },
        "concepts": {"texts": write_lines(folder / "contrast.jsonl", contrast)},
        "map": {"blocks": "2:2"},
        "evaluations": {
            "endings": {
                "benchmark": "preferences",
                "texts": write_lines(folder / "endings.jsonl", texts(12, 1)),
                "validation": write_lines(folder / "more.jsonl", texts(6, 2)),
                "strengths": [0, 1, 3],
                "conditions": ["vector", "random"],
                "search": {},
                "examples": 1,
            }
        },
        "cluster": {"actors": 1},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def margins(model: Path, items: list[dict[str, str]]) -> list[float]:
    """By transformers alone: the log-likelihood of the wanted ending less that of the other."""
    lm, tokenizer = AutoModelForCausalLM.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)

    def likelihood(text: str, ending: str) -> float:
        ids = tokenizer(f"{text} {ending}", return_tensors="pt")["input_ids"]
        start = len(tokenizer(text)["input_ids"])
        chances = lm(ids).logits[0].detach().log_softmax(-1)
        return float(sum(chances[place - 1, ids[0, place]] for place in range(start, ids.shape[1])))

    return [likelihood(i["text"], i["wanted"]) - likelihood(i["text"], i["other"]) for i in items]


def test_a_recipe_with_a_benchmark_of_ones_own(
    in_process: None, installed: Path, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = recipe(tmp_path, target), tmp_path / "run"
    planned = run(capsys, "plan", path, "--json")
    assert planned.code == 0, planned.err
    stages = {stage["name"]: stage for stage in json.loads(planned.out)["stages"]}
    ended = run(capsys, "run", path, "--out", out)
    assert ended.code == 0, ended.err
    metrics = json.loads((out / "evaluations/endings/metrics.json").read_text())
    base = next(entry for entry in metrics["conditions"] if entry["condition"] == "base")
    expected = margins(target, texts(12, 1))
    assert base["metrics"]["margin"]["value"] == pytest.approx(np.mean(expected), abs=1e-4)
    assert base["metrics"]["preferred"]["value"] == pytest.approx(np.mean(np.array(expected) > 0))
    assert base["metrics"]["preferred"]["n"] == 12
    assert {entry["condition"] for entry in metrics["conditions"]} == {"base", "vector", "random"}
    search = json.loads((out / "evaluations/endings/search.json").read_text())
    assert (search["criterion"], search["higher"]) == ("preferred", True)
    # The plan counts what the engine then runs, but for finding out once whether it can share beginnings.
    taken = metrics["costs"]["target"]["tokens"]
    assert 0 <= taken - stages["evaluate endings"]["tokens_in_passes"] < 200
    page = (out / "report.html").read_text()
    assert "Wanted ending preferred" in page
    assert "12 texts in every" in page


def test_it_is_evaluated_by_itself_with_its_settings(
    in_process: None, installed: Path, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_lines(tmp_path / "endings.jsonl", texts(5, 1))
    arguments = ["evaluate", "--model", target, "--benchmark", "preferences", "--data", data]
    out = tmp_path / "out"
    ended = run(capsys, *arguments, "--set", "template=the dog {text}", "--out", out, "--json")
    assert ended.code == 0, ended.err
    told = [{**row, "text": f"the dog {row['text']}"} for row in texts(5, 1)]
    value = json.loads(ended.out)["conditions"][0]["metrics"]["margin"]["value"]
    assert value == pytest.approx(np.mean(margins(target, told)), abs=1e-4)
    wrong = run(capsys, *arguments, "--set", "templat=x", "--out", tmp_path / "o")
    wrong.refused("unknown key 'templat'; did you mean template")
    (tmp_path / "bad.jsonl").write_text('{"text": "a", "wanted": "b"}\n')
    bad = run(capsys, *arguments[:-1], tmp_path / "bad.jsonl", "--out", tmp_path / "o")
    bad.refused("bad.jsonl", "'other'")


def test_a_report_goes_on_without_the_package(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = {"preferred": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}}
    entries = [
        {"condition": name, "strength": strength, "metrics": scores}
        for name, strength in (("base", 0.0), ("vector", 1.0))
    ]
    content = {"benchmark": "preferences", "model": "m", "conditions": entries}
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    for title in ("Wanted ending preferred", "preferred"):
        assert run(capsys, "report", tmp_path).code == 0
        page = (tmp_path / "report.html").read_text()
        assert title in page
        assert ("Wanted ending" in page) == title.startswith("Wanted")
        monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(installed)])


def test_names_are_read_without_torch(installed: Path, tmp_path: Path, target: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from contrans_dist.benchmarks import about\nfrom contrans_dist.config.recipe import load_recipe\n"
        "from contrans_dist.config.benchmarks import OURS\n"
        "names = [about(name).metrics[0].title for name in [*(e.name for e in OURS), 'preferences']]\n"
        f"load_recipe(Path({str(recipe(tmp_path, target))!r}))\n"
        "assert not {'torch', 'ray', 'transformers'} & set(sys.modules)\nprint(names)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True,
        env={"PYTHONPATH": f"{PLUGIN.parents[1]}:{installed}"},
    ).stdout  # fmt: skip
    assert "Wanted ending preferred" in said


def test_the_page_shows_the_example_package() -> None:
    page = PAGE.read_text()
    for language, name in (("toml", "pyproject.toml"), ("py", "contrans_preferences.py")):
        (shown,) = re.findall(rf"```{language}\n(.*?)```\n", page, flags=re.DOTALL)
        assert shown == (PLUGIN / name).read_text()


# -- packages that are not as they should be ---------------------------------------------------------


def package(folder: Path, name: str, entries: dict[str, str], code: str = "") -> Path:
    """An installed package that brings benchmarks: what `pip install` leaves of one."""
    module = name.replace("-", "_")
    (folder / f"{module}.py").write_text(code)
    about = folder / f"{module}-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"{key} = {module}:{value}\n" for key, value in entries.items()]
    (about / "entry_points.txt").write_text("[contrans_dist.benchmarks]\n" + "".join(lines))
    return folder


GOOD = """
from typing import Literal
from contrans_dist.benchmarks import Benchmark, EvaluationSettings
class S(EvaluationSettings):
    benchmark: Literal["{name}"] = "{name}"
class B(Benchmark):
    settings_class = S
"""


@pytest.mark.parametrize(
    ("entries", "code", "asked", "said"),
    [
        ({"a": "B"}, "import no_such_module", "a", "of bad-one: bad_one:B cannot be imported: ModuleNotF"),
        ({"a": "C"}, GOOD.format(name="a"), "a", "of bad-one: bad_one:C cannot be imported: AttributeError"),
        ({"a": "S"}, GOOD.format(name="a"), "a", "benchmark a of bad-one: expected a Benchmark"),
        ({"a": "B"}, GOOD.format(name="b"), "a", "of bad-one: its settings call it 'b'; expected"),
        ({"emotions": "B"}, GOOD.format(name="emotions"), "emotions", "contrans-dist and bad-one both"),
        ({"a": "B"}, GOOD.format(name="a"), "emotion", "no benchmark 'emotion'; did you mean emotions?"),
        ({"mine": "B"}, GOOD.format(name="mine"), "mines", "no benchmark 'mines'; did you mean mine?"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_package_is_one_line_when_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entries: dict[str, str], code: str, asked: str, said: str
) -> None:
    monkeypatch.delitem(sys.modules, "bad_one", raising=False)
    monkeypatch.syspath_prepend(package(tmp_path, "bad-one", entries, code))
    with pytest.raises(UserError) as error:
        find_benchmark(asked)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    other = next(name for name in ("perplexity", "emotions") if name not in entries)
    assert find_benchmark(other).settings_class.model_fields["benchmark"].default == other


def test_two_packages_with_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("first-one", "second-one"):
        package(tmp_path, name, {"same": "B"}, GOOD.format(name="same"))
    monkeypatch.syspath_prepend(tmp_path)
    assert benchmark_names().count("same") == 1
    with pytest.raises(UserError, match=r"benchmark same: .*-one and .*-one both bring one of that name"):
        find_benchmark("same")


def test_a_recipe_that_names_a_broken_benchmark_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "broken_one", raising=False)
    monkeypatch.syspath_prepend(package(tmp_path, "broken-one", {"broken": "B"}, "1 / 0"))
    content: dict[str, Any] = {
        "name": "r", "source": "a", "target": "b", "corpus": {"texts": "c"}, "concepts": {"texts": "d"},
        "evaluations": {"x": {"benchmark": "broken"}},
    }  # fmt: skip
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"r.yaml: evaluations.x.benchmark: .* of broken-one: .*ZeroDivision"):
        load_recipe(path)
    assert (
        load_recipe(path, ["evaluations.x={benchmark: perplexity}"]).evaluations["x"].has_validation is False
    )
