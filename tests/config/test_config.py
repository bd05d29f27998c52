"""Recipes: every mistake is one line that names the key; and no secret gets into an artefact."""

import copy
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import contrans_dist
from contrans_dist.config import ClusterSettings, Recipe, differing, fingerprint
from contrans_dist.config.recipe import load_recipe, runs_of
from contrans_dist.errors import UserError
from contrans_dist.evaluation.conditions import further_sources, systems_of
from contrans_dist.pipeline.runs import RECIPES, find_recipe
from contrans_dist.store.provenance import command_line, git_commit, versions

GOOD: dict[str, Any] = {
    "name": "small",
    "source": "org/weak",
    "target": {"id": "org/strong@v1", "dtype": "float16"},
    "corpus": {"texts": "corpus.txt", "cut": "random"},
    "concepts": {"texts": {"happy": "happy.json"}},
    "evaluations": {"emotions": {"texts": "scenarios.jsonl"}},
}


def written(folder: Path, content: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def refusal(folder: Path, content: Any, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(written(folder, content), list(overrides))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_good_recipe_is_read_with_its_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, GOOD))
    assert recipe.source is not None
    assert (recipe.source.id, recipe.source.dtype, recipe.target.dtype) == ("org/weak", None, "float16")
    assert (recipe.map.protocol, recipe.blocks, recipe.concepts.position) == ("default", "depth", "last")
    assert load_recipe(written(tmp_path, recipe.model_dump(mode="json"))) == recipe


@pytest.mark.parametrize(
    ("parents", "wrong", "nearest"),
    [
        ([], "sorce", "source"),
        ([], "evaluation", "evaluations"),
        (["target"], "dtpye", "dtype"),
        (["corpus"], "text", "texts"),
        (["concepts"], "metod", "method"),
        (["map"], "protocl", "protocol"),
        (["cluster"], "gpus_per_acter", "gpus_per_actor"),
        (["evaluations", "emotions"], "strenghts", "strengths"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_right_one(
    tmp_path: Path, parents: list[str], wrong: str, nearest: str
) -> None:
    content = copy.deepcopy(GOOD)
    inner = content
    for parent in parents:
        inner = inner.setdefault(parent, {})
    inner[wrong] = 1
    message = refusal(tmp_path, content)
    assert message.startswith(str(tmp_path / "recipe.yaml"))
    assert repr(".".join([*parents, wrong])) in message
    assert f"did you mean {nearest}?" in message


def test_an_unknown_key_like_no_other_lists_the_right_ones(tmp_path: Path) -> None:
    message = refusal(tmp_path, {**GOOD, "map": {"zzzz": 1}})
    assert "unknown key 'map.zzzz'" in message
    assert "blocks, centre, norm, protocol, regularise, source_blocks" in message


def drop(*keys: str) -> Callable[[dict[str, Any]], None]:
    def edit(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return edit


def put(value: Any, *keys: str) -> Callable[[dict[str, Any]], None]:
    def edit(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content.setdefault(key, {})
        content[keys[-1]] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (drop("source"), "missing key 'source'"),
        (drop("corpus", "texts"), "missing key 'corpus.texts'"),
        (drop("evaluations", "emotions", "texts"), "missing key 'evaluations.emotions.texts'"),
        (drop("target", "id"), "missing key 'target.id'"),
        (put(3, "name"), "name: expected a valid string, found 3"),
        (
            put("float64", "target", "dtype"),
            "target.dtype: expected 'float32', 'bfloat16' or 'float16', found",
        ),
        (
            put("half", "corpus", "cut"),
            "corpus.cut: expected 'none', 'end', 'random' or 'after', found 'half'",
        ),
        (put("many", "batch_tokens"), "batch_tokens: expected a valid integer"),
        (put(0, "cluster", "actors"), "cluster.actors: expected greater than or equal to 1, found 0"),
        (put("lcross", "map", "protocol"), "map.protocol: expected 'default' or 'paper', found 'lcross'"),
        (put(None, "map"), "map: expected a mapping, found None"),
        (put([], "evaluations"), "evaluations: expected a mapping, found []"),
        (put({}, "evaluations"), "evaluations: expected at least 1, found {}"),
        (
            put({"happy": 1}, "concepts", "texts"),
            "concepts.texts.happy: expected a valid string or a mapping, found 1",
        ),
        (put(3, "concepts", "texts"), "concepts.texts: expected a valid string or a mapping, found 3"),
        (
            put("first", "concepts", "position"),
            "concepts.position: expected 'last' or 'mean' or a valid integer",
        ),
        (put(True, "concepts", "position"), "concepts.position: expected"),
        (put([0, "a"], "evaluations", "emotions", "strengths"), "evaluations.emotions.strengths.1: expected"),
        (put([float("nan")], "evaluations", "emotions", "strengths"), "expected a finite number, found nan"),
    ],
)
def test_what_is_missing_or_of_the_wrong_kind_is_named(
    tmp_path: Path, edit: Callable[[dict[str, Any]], None], said: str
) -> None:
    content = copy.deepcopy(GOOD)
    edit(content)
    message = refusal(tmp_path, content)
    assert message.startswith(f"{tmp_path / 'recipe.yaml'}: ")
    assert said in message


@pytest.mark.parametrize("text", ["a: [1", "a: b: c", "\t- x: {"])
def test_bad_yaml_names_file_and_line(tmp_path: Path, text: str) -> None:
    message = refusal(tmp_path, text)
    assert message.startswith(f"{tmp_path / 'recipe.yaml'}: expected YAML")
    assert "line 1" in message


@pytest.mark.parametrize("text", ["", "[1, 2]", "just words"])
def test_yaml_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    assert "expected a mapping with source, target" in refusal(tmp_path, text)


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.yaml: no such recipe"):
        load_recipe(tmp_path / "nowhere.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: \xff")
    with pytest.raises(UserError, match=r"latin.yaml: expected YAML"):
        load_recipe(tmp_path / "latin.yaml")
    with pytest.raises(UserError, match=r"bundled are .*demo"):
        find_recipe(Path("demmo"))


def test_overrides_reach_every_level(tmp_path: Path) -> None:
    recipe = load_recipe(
        written(tmp_path, GOOD),
        [
            "name=other",
            "map.protocol=paper",
            "target.dtype=null",
            "evaluations.emotions.strengths=[0, 2.5]",
            "evaluations.more.texts=more.jsonl",
            "source={id: org/new, dtype: bfloat16}",
            "corpus.texts=s3://bucket/a=b.txt",
        ],
    )
    assert (recipe.name, recipe.map.protocol, recipe.target.dtype) == ("other", "paper", None)
    assert recipe.evaluations["emotions"].strengths == (0.0, 2.5)
    assert recipe.evaluations["more"].texts == "more.jsonl"
    assert recipe.source is not None
    assert recipe.corpus is not None
    assert (recipe.source.id, recipe.source.dtype) == ("org/new", "bfloat16")
    assert recipe.corpus.texts == "s3://bucket/a=b.txt"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("map.protocol", "--set map.protocol: expected key=value"),
        ("=paper", "--set =paper: expected key=value"),
        ("source.dtype=float16", "source is a plain id here"),
        ("name.x=1", "--set name.x=1: name has no keys of its own"),
        ("map.protocol=[1", "--set map.protocol=[1: expected a YAML value"),
        ("mpa.protocol=paper", "unknown key 'mpa'; did you mean map"),
        ("map.protocol=papre", "map.protocol: expected 'default' or 'paper', found 'papre'"),
    ],
)
def test_bad_overrides_are_named(tmp_path: Path, override: str, said: str) -> None:
    assert said in refusal(tmp_path, GOOD, override)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_bundled_recipes_are_valid(path: Path) -> None:
    recipe = load_recipe(find_recipe(Path(path.stem)))
    assert recipe.name == path.stem
    every = list(runs_of(recipe).values())
    if recipe.small is not None:
        small = load_recipe(path, small=True)
        every += runs_of(small).values()
        assert small.published is recipe.published or small.published == recipe.published
    for run in every:
        conditions = {name for settings in run.evaluations.values() for name in settings.conditions}
        assert conditions & {"vector", "lcross-own", "sum"}
        for settings in run.evaluations.values():
            systems_of(run, settings)  # what a condition needs is there
        further_sources(run)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_published_numbers_belong_to_something_that_is_run(path: Path) -> None:
    recipe = load_recipe(path)
    runs = runs_of(recipe)
    for run, evaluations in (recipe.published.values if recipe.published else {}).items():
        for evaluation, conditions in evaluations.items():
            known = {"base", *runs[run].evaluations[evaluation].conditions}
            assert set(conditions) <= known, (run, evaluation)


@pytest.mark.parametrize(
    ("number", "rows"),
    [
        (
            1,
            {
                "base": "Base Model\t", "align-training": "Align-Training\t", "self-align": "Self-Align\t",
                "inst-align": "Inst-Align\t", "proxy-tuning": "EFT/proxy-tune\t", "vector": "CONTRANS\t",
            },
        ),
        (
            6,
            {
                "base": "Origin Acc.\t", "from:base": "+ $v_{\\text{honesty}}$ from 7B base\t",
                "vector": "+ $v_{\\text{honesty}}$ from 7B instruct\t",
                "from:own-base": "+ $v_{\\text{honesty}}$ from own base\t",
                "self-modulation": "+ $v_{\\text{honesty}}$ from own instruct\t",
            },
        ),
        (
            10,
            {
                "base": "Origin Acc.\t", "vector": "+ vhonesty-fact from 7B instruct\t",
                "self-align": "+ vhonesty-fact from own instruct\t",
            },
        ),
    ],
)  # fmt: skip
def test_published_numbers_are_the_papers(shared: Path, number: int, rows: dict[str, str]) -> None:
    """The tables' columns are the recipe's runs in their order; `/` is a model that there is not."""
    published = load_recipe(RECIPES / f"contrans-table{number}.yaml").published
    assert published is not None
    text = (shared / "papers/contrans.txt").read_text(encoding="utf-8")
    before = text.split(f"\nTable {number}:")[0].splitlines()
    for condition, label in rows.items():
        row = next(line for line in reversed(before) if line.startswith(label))
        printed = [re.sub(r"</?u>", "", cell) for cell in row.rstrip("\t").split("\t")[1:]]
        ours = [
            of_run["truthfulqa"][condition]["mc1"] if condition in of_run["truthfulqa"] else None
            for of_run in published.values.values()
        ]
        cells = ["/" if value is None else f"{100 * value:.1f}%" for value in ours]
        # Table 6 has an empty column for a Vicuna of 70B, which is no run here.
        assert cells + ["/"] * (len(printed) - len(cells)) == printed, (condition, row)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_small_variant_says_what_it_is_itself(path: Path) -> None:
    small = load_recipe(path).small
    assert small is None or small.get("description")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_bundled_recipes_show_texts_before_and_after(path: Path) -> None:
    every = list(runs_of(load_recipe(path)).values())
    if load_recipe(path).small is not None:
        small = runs_of(load_recipe(path, small=True))
        every += small.values() if len(small) == 1 else ()  # with several it would take longer
    for run in every:
        assert next(iter(run.evaluations.values())).examples


def test_settings_cannot_be_changed(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, GOOD))
    with pytest.raises(ValueError, match="frozen"):
        recipe.name = "x"  # type: ignore[misc]


def test_a_fingerprint_is_a_fixed_function_of_the_content() -> None:
    # `printf '{"a":[1,null],"b":"x"}' | sha256sum`
    known = "3dece6dc8d22d616"
    assert fingerprint({"b": "x", "a": [1, None]}) == fingerprint({"a": [1, None], "b": "x"}) == known
    assert fingerprint({"a": [None, 1], "b": "x"}) != known
    with pytest.raises(TypeError):
        fingerprint({"a": {1, 2}})


def test_fields_that_differ_are_named() -> None:
    stored = {"dtype": "float32", "blocks": [1, 2], "gone": 1, "same": "x"}
    wanted = {"dtype": "float16", "blocks": [1, 2], "new": None, "same": "x"}
    assert differing(stored, wanted) == [
        "dtype: found 'float32', asked for 'float16'",
        "gone: found 1, asked for None",
    ]
    assert differing(wanted, wanted) == []


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (
            ["contrans", "harvest", "--out", "s3://AKIA:s3cr3t@bucket/x"],
            "contrans harvest --out s3://bucket/x",
        ),
        (["--out", "s3://AKIA:se/s3cr3t@bucket/x"], "--out s3://bucket/x"),
        (
            ["--out", "https://u@host/a?X-Amz-Signature=s3cr3t&b=1"],
            "--out https://host/a?X-Amz-Signature=***&b=1",
        ),
        (["--set", "corpus.texts=s3://k:s3cr3t@b/x"], "--set corpus.texts=s3://b/x"),
        (["--token", "s3cr3t", "--model", "a@b"], "--token *** --model a@b"),
        (["--hf-token=s3cr3t"], "--hf-token=***"),
        (["--api-key", "s3cr3t"], "--api-key ***"),
        (["AWS_SECRET_ACCESS_KEY=s3cr3t", "x"], "AWS_SECRET_ACCESS_KEY=*** x"),
        (["--password=s3cr3t"], "--password=***"),
        (["--batch-tokens", "4096", "--max-new-tokens=9"], "--batch-tokens 4096 --max-new-tokens=9"),
        (["--set", "batch_tokens=512"], "--set batch_tokens=512"),
        (["--template", "Scenario: {text}"], "--template 'Scenario: {text}'"),
    ],
)
def test_a_command_line_keeps_what_repeats_it_and_no_secret(words: list[str], shown: str) -> None:
    assert command_line(words) == shown
    assert "s3cr3t" not in command_line(words)


def test_versions_and_commit() -> None:
    assert {"torch", "transformers", "pyarrow", "numpy", "contrans-dist"} <= set(versions())
    package = Path(contrans_dist.__file__).parent
    asked = ["git", "-C", str(package), "log", "-1", "--format=%H", "--", "."]
    commit = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    assert git_commit() == (commit or None)


def test_the_schema_forbids_unknown_keys_everywhere() -> None:
    """A settings class that let unknown keys pass would swallow misspelt ones silently."""
    for name, part in Recipe.model_json_schema()["$defs"].items():
        assert part["additionalProperties"] is False, name


def test_a_classifier_gets_one_gpu_at_most() -> None:
    by_gpus = {gpus: ClusterSettings(gpus_per_actor=gpus).one_gpu_each() for gpus in (None, 0, 0.5, 1, 4)}
    assert {gpus: settings.gpus_per_actor for gpus, settings in by_gpus.items()} == {
        None: None,
        0: 0,
        0.5: 0.5,
        1: 1,
        4: 1,
    }


@pytest.mark.parametrize(
    ("first", "shown"),
    [
        ("/opt/venv/bin/contrans", "contrans run demo"),
        ("jobs/experiments.py", "python jobs/experiments.py run demo"),
        ("/srv/job/pipeline.py", "python pipeline.py run demo"),
    ],
)
def test_a_command_line_begins_as_it_can_be_repeated(
    monkeypatch: pytest.MonkeyPatch, first: str, shown: str
) -> None:
    monkeypatch.setattr("sys.argv", [first, "run", "demo"])
    assert command_line() == shown
