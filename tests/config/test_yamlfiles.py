"""Recipes as strangers make them: each is refused in a line, at once and in little memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from contrans_dist.config.recipe import load_recipe
from contrans_dist.config.yamlfiles import parse_yaml
from contrans_dist.errors import UserError

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)
MERGED = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}], y{i}: 1}}\n" for i in range(1, 12)
)
REFUSED: dict[str, tuple[str | bytes, str]] = {
    "laughs": (LAUGHS + "name: *a11\n", "keys and values, expected at most 100,000"),
    "merged": (MERGED + "source: *a11\n", "keys and values, expected at most 100,000"),
    "deep": ("name: " + "[" * 50_000 + "]" * 50_000, "expected YAML (more than 64 levels)"),
    "deep-map": ("".join(" " * i + "a:\n" for i in range(300)), "expected YAML (more than 64 levels)"),
    "itself": ("name: &a [*a]\n", "expected YAML (an anchor that holds itself)"),
    "itself-map": ("name: &a {b: *a}\n", "expected YAML (an anchor that holds itself)"),
    "twice": ("name: a\nsource: b\nname: c\n", "the key 'name' is there twice, line 1 on"),
    "half": ('name: "\\ud83d"\n', "expected whole characters, found half of one"),
    "date": ("name: 2024-99-99\n", "expected YAML (month must be in 1..12)"),
    "bool": ("name: !!bool maybe\n", "expected YAML"),
    "int": ("name: !!int ''\n", "expected YAML"),
    "digits": ("name: " + "1" * 5000 + "\n", "expected YAML"),
    "python": ("name: !!python/object/apply:os.system ['true']\n", "expected YAML"),
    "list-key": ("[a]: 1\n", "expected YAML"),
    "control": ("name: \x01\n", "expected YAML"),
    "latin": ("name: Wörter\n".encode("latin-1"), "expected YAML"),
    "utf16": ("name: a\n".encode("utf-16"), "expected YAML"),
    "nothing": ("", "expected a mapping"),
    "list": ("- a\n", "expected a mapping"),
    "two": ("name: a\n---\nname: b\n", "expected YAML"),
    "long": ("name: [" + "abcdefgh, " * 10_000 + "]\n", "name: expected a valid string, found ['abcdefgh',"),
    "large": (b"#" * (300 << 10), "307,200 bytes, expected at most 262,144"),
    "numbers": ("1: 2\n2.5: 3\nnull: 4\ntrue: 5\n2020-01-01: 6\n", "missing key 'name'"),
    "chain": (
        "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 5000)),
        "expected YAML (more than 64 levels)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_each_fault_is_named(tmp_path: Path, name: str) -> None:
    content, said = REFUSED[name]
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        load_recipe(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("value", ["[1", LAUGHS, "\ud83d", "!!bool maybe", "[" * 9999, "&a [*a]"])
def test_values_of_set_are_read_with_the_same_care(value: str) -> None:
    path = Path(__file__).parents[2] / "contrans_dist" / "pipeline" / "recipes" / "demo.yaml"
    with pytest.raises(UserError, match="--set"):
        load_recipe(path, [f"map.blocks.x={value}"])


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan"])
def test_numbers_without_end_are_refused(value: str) -> None:
    path = Path(__file__).parents[2] / "contrans_dist" / "pipeline" / "recipes" / "demo.yaml"
    with pytest.raises(UserError, match=r"search\.budget: expected a finite number"):
        load_recipe(path, [f"evaluations.emotions.search={{perplexity: a, budget: {value}}}"])


READ = """
import json, resource, sys, time
from pathlib import Path
from contrans_dist.errors import UserError
from contrans_dist.config.recipe import load_recipe
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
found = {}
for path in sys.argv[1:]:
    before, began = peak(), time.process_time()
    try:
        said = str(load_recipe(Path(path)))[:50]
    except UserError as error:
        said = str(error)
    found[path] = said, peak() - before, time.process_time() - began
print(json.dumps(found))
"""


def test_hostile_recipes_are_refused_at_once(tmp_path: Path) -> None:
    said = {}
    for name in ("laughs", "merged", "deep"):
        (tmp_path / f"{name}.yaml").write_text(str(REFUSED[name][0]))
        said[str(tmp_path / f"{name}.yaml")] = REFUSED[name][1]
    (tmp_path / "large.yaml").write_bytes(b"a")
    os.truncate(tmp_path / "large.yaml", 100 << 20)
    said[str(tmp_path / "large.yaml")] = "104,857,600 bytes, expected at most 262,144"
    said |= {"/dev/zero": "expected at most 262,144", str(tmp_path): "that can be read (Is a directory)"}
    command = [sys.executable, "-c", READ, *said]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for path, (content, megabytes, seconds) in json.loads(done.stdout).items():
        assert said[path] in content, content
        assert megabytes < 200, path
        assert seconds < 30, path  # a second or two; minutes, were it read


@pytest.mark.parametrize("blocks", ["24:30", "4:5", "-2:30", "12:13:14", "1:30.5", "0:30"])
def test_a_range_of_blocks_needs_no_quotes(blocks: str) -> None:
    assert parse_yaml(f"blocks: {blocks}".encode(), "x") == {"blocks": blocks}
    assert parse_yaml(b"[30, -2, 1.5, 0x10, 1_000]", "x") == [30, -2, 1.5, 16, 1000]


def test_what_is_honest_is_read_as_before() -> None:
    text = "a: &a {x: 1, y: [1, 2.5, null, true]}\nb: {<<: *a, z: ok}\nc: [*a, *a]\nd: 2020-01-01\n"
    assert parse_yaml(b"\xef\xbb\xbf" + text.encode(), "t") == yaml.safe_load(text)
    for path in (Path(__file__).parents[2] / "contrans_dist" / "pipeline" / "recipes").glob("*.yaml"):
        assert parse_yaml(path.read_bytes(), "t") == yaml.safe_load(path.read_text())
