"""Secrets of the environment, of addresses and of command lines, planted in a whole run: it leaves none."""

import json
from pathlib import Path

import pytest
import yaml

from contrans_dist.store.provenance import command_line, without_secrets
from tests.commands import run
from tests.sets import write_lines
from tests.tiny import save_tiny

PLANTED = {
    "HF_TOKEN": "hf_" + "Plant3dAbCdEfGhIjKlMnOpQr",
    "HUGGING_FACE_HUB_TOKEN": "plant3d-without-a-form-01",
    "AWS_ACCESS_KEY_ID": "AKIA" + "PLANT3D890123456",
    "AWS_SECRET_ACCESS_KEY": "plant3d/with+signs/02",
    "AWS_SESSION_TOKEN": "plant3d==03",
    "OPENAI_API_KEY": "sk-" + "plant3dabcdefghijklmnopq",
    "RAY_AUTH_TOKEN": "plant3d" + "0" * 25,
    "MY_PASSWORD": "plant3d of two words",
    "AZURE_STORAGE_KEY": "plant3d+base64==04",
}
ELSEWHERE = "ghp_" + "plant3dabcdefghijklmnopqrstu"
"""A token that no variable holds."""
PIECE = b"plant3d"


def small_recipe(folder: Path) -> Path:
    """Of one tiny model and its own vectors, with a secret in it."""
    kinds = [(concept, number) for concept in ("happy", "sad") for number in range(6)]
    scenes = [{"text": f"The {c} girl number {i} lost it.", "concept": c} for c, i in kinds]
    scored = [{**scene, "text": f"Then {scene['text']}"} for scene in scenes]
    shown = "Scenario: {text}\nThe emotion of the above scenario is"
    texts = write_lines(folder / "scored.jsonl", scored)
    recipe = {
        "name": "planted",
        "target": str(save_tiny(folder / "model", n_blocks=3)),
        "description": f"from s3://KEY:{PLANTED['AWS_SECRET_ACCESS_KEY']}@bucket/x?token=Plant3d",
        "concepts": {"texts": write_lines(folder / "contrast.jsonl", scenes), "template": shown},
        "map": {"blocks": "1"},
        "evaluations": {"emotions": {"texts": texts, "template": shown, "strengths": [0, 1]}},
    }
    (folder / "planted.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "planted.yaml"


def test_a_whole_run_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CONTRANS_DEBUG", "1")
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    recipe, out = small_recipe(tmp_path), tmp_path / "out" / "run"
    said = []
    words = ["--set", "concepts.seed=1", "--set", f"description={PLANTED['HF_TOKEN']} {ELSEWHERE}"]
    done = [
        ["run", recipe, "--out", out], ["run", recipe, *words, "--out", out],
        ["run", recipe, *words, "--dry-run"], ["report", out], ["status", out], ["inspect", out],
        ["inspect", out, "--json"],
    ]  # fmt: skip
    for number, command in enumerate(done):
        ended = run(capsys, *command)
        assert ended.code == 0, (number, ended.err)
        said.append(ended.out + ended.err)
    for value in (*PLANTED.values(), ELSEWHERE):
        for refused in (
            ["run", recipe, "--set", f"target.token={value}"], ["inspect", tmp_path / value],
            ["harvest", "--model", f"https://user:{value}@host/m", "--texts", recipe, "--out", out],
            ["status", value],
            ["export", "--vector", value, "--format", value, "--out", "x"],
        ):  # fmt: skip
            ended = run(capsys, *refused)
            assert ended.code == 2
            said.append(ended.out + ended.err)
    assert not [text for text in said if PIECE in text.lower().encode()]
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {"run.json", "recipe.yaml", "report.html", "metrics.json"} <= {path.name for path in written}
    assert [path.name for path in written if PIECE in path.read_bytes().lower()] == []
    assert json.loads((out / "run.json").read_text())["description"] == "*** ***"


@pytest.mark.parametrize("option", ["--key", "--ssh-key", "--api-key", "--hub-token", "--db-password"])
def test_the_value_of_an_option_that_is_named_as_a_secret(option: str) -> None:
    assert command_line(["other", option, "v1", "x"]) == f"other {option} *** x"
    assert command_line(["other", f"{option}=v1", "x"]) == f"other {option}=*** x"


def test_what_is_no_secret_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {
        "TOKENIZERS_PARALLELISM": "contrans",
        "RAY_AUTH_TOKEN_PATH": "/root/.ray/token",
        "MONKEYS": "contrans",
        "HF_TOKEN": "demo",
    }
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    words = ["contrans", "run", "demo", "--out", "/root/.ray/token", "--set", "evaluations.e.token_changes=5"]
    words += ["--tokenizer", "llama", "TOKENIZERS_PARALLELISM=false", "RAY_AUTH_TOKEN_PATH=/root/.ray/token"]
    assert command_line(words) == " ".join(words)
    text = "skate-board hf_small gh-pages eyJ sk-learn AKIA"
    assert without_secrets(text) == text
