"""The snippet of the package's own description, as it is printed there, on tiny models and without Ray."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from typer.testing import CliRunner

import contrans_dist as ct
from contrans_dist.cli import app
from contrans_dist.mapping.map_set import MapSet
from contrans_dist.store.manifest import Skipped
from contrans_dist.vectors.concept_vector import ConceptVector
from tests.sets import make_set
from tests.tiny import CORPUS, save_tiny

BLOCKS = 4


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    return (
        save_tiny(folder / "source", "gpt_neox", n_blocks=BLOCKS, d=16),
        save_tiny(folder / "target", "llama", n_blocks=BLOCKS, d=32, seed=1),
    )


def snippet() -> str:
    """The indented lines of the package's docstring."""
    lines = [line for line in (ct.__doc__ or "").splitlines() if line.startswith("    ")]
    return "\n".join(line.removeprefix("    ") for line in lines)


def test_the_snippet_runs_as_printed(models: tuple[Path, Path]) -> None:
    texts = [f"{text} {i}" for i, text in enumerate(dict.fromkeys(CORPUS))] * 4
    source, target = ct.load_model(str(models[0])), ct.load_model(str(models[1]))
    names: dict[str, Any] = {
        "texts": texts,
        "target": target,
        "rows_positive": ct.capture(source, texts[:8], blocks=[2])[2],
        "rows_negative": ct.capture(source, texts[8:16], blocks=[2])[2],
        "source_rows": ct.capture(source, texts, blocks=[2])[2],
        "target_rows": ct.capture(target, texts, blocks=[3])[3],
        "steered": [],
    }
    code = snippet().replace("path-or-hub-id", str(models[0]))
    code = code.replace("blocks=[24]", "blocks=[2]").replace("block=30", "block=3")
    assert code.count("...") == 1
    code = re.sub(r"^( +)\.\.\..*$", r"\1steered.append(logits(target))", code, flags=re.M)
    names["logits"] = logits
    before = logits(target)
    exec(code, names)
    rows = names["rows"]
    assert list(rows) == [2]
    assert rows[2].shape == (len(texts), 16)
    assert rows[2].dtype == np.float32
    assert names["vector"].shape == (16,)
    assert names["mapping"].weight.shape == (16, 32)
    assert not torch.allclose(names["steered"][0], before)
    assert torch.equal(logits(target), before)


def logits(lm: ct.LanguageModel) -> torch.Tensor:
    ids = torch.tensor([lm.tokenizer("The boy was happy")["input_ids"]])
    with torch.no_grad():
        return lm.model(ids).logits


def test_the_steps_are_the_formulas(models: tuple[Path, Path]) -> None:
    """capture, equation 1, equation 2 and equation 3, each written out with numpy and transformers alone."""
    texts = [f"{CORPUS[i % 5]} {i}" for i in range(40)]
    source, target = ct.load_model(str(models[0])), ct.load_model(str(models[1]))
    x, y = ct.capture(source, texts, blocks=[2])[2], ct.capture(target, texts, blocks=[1])[1]
    for lm, rows, block in ((source, x, 2), (target, y, 1)):
        for i in (0, 17, 39):
            ids = torch.tensor([lm.tokenizer(texts[i])["input_ids"]])
            with torch.no_grad():
                states = lm.model(ids, output_hidden_states=True).hidden_states
            np.testing.assert_allclose(rows[i], states[block + 1][0, -1].numpy(), rtol=1e-4, atol=1e-4)
    vector = ct.concept_vector(x[:20], x[20:])
    expected = x[:20].astype(np.float64).mean(axis=0) - x[20:].astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(vector, expected, rtol=1e-5, atol=1e-6)
    mapping = ct.fit_map(x, y, ct.MapOptions("paper"))
    plain = np.linalg.pinv(x[:32].astype(np.float64)) @ y[:32].astype(np.float64)
    carried = ct.transplant(vector, mapping)
    np.testing.assert_allclose(
        carried, expected @ plain, rtol=1e-3, atol=1e-3 * np.abs(expected @ plain).max()
    )
    assert ct.cosine(carried, expected @ plain) == pytest.approx(1, abs=1e-5)
    seen: list[torch.Tensor] = []
    handle = target.blocks[1].register_forward_hook(
        lambda _m, _a, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    logits(target)
    with ct.steer(target, carried, block=1, strength=2.5):
        logits(target)
    handle.remove()
    np.testing.assert_allclose(
        (seen[1] - seen[0]).numpy(), np.broadcast_to(2.5 * carried, seen[0].shape), rtol=1e-3, atol=1e-3
    )


def test_generation_is_steered_and_the_model_is_left_as_it_was(models: tuple[Path, Path]) -> None:
    target = ct.load_model(str(models[1]))
    ids = torch.tensor([target.tokenizer("The boy")["input_ids"]])
    options = {"max_new_tokens": 8, "do_sample": False}
    plain = target.model.generate(ids, **options)
    row = np.random.default_rng(0).normal(size=32).astype(np.float32) * 20
    with ct.steer(target, row, block=2, strength=1.0):
        steered = target.model.generate(ids, **options)
    with ct.steer(target, row, block=2, strength=0.0):
        assert torch.equal(target.model.generate(ids, **options), plain)
    assert not torch.equal(steered, plain)
    assert torch.equal(target.model.generate(ids, **options), plain)


def test_mistakes_are_named(models: tuple[Path, Path]) -> None:
    target = ct.load_model(str(models[1]))
    with pytest.raises(ct.UserError, match="hidden size is 32"), ct.steer(target, np.ones(16), block=1):
        pass
    with pytest.raises(ct.UserError, match="blocks 0 to 3"), ct.steer(target, np.ones(32), block=30):
        pass
    with pytest.raises(ct.UserError, match="nowhere"):
        ct.load_model("/nowhere/at/all")
    with pytest.raises(ValueError, match="16 numbers does not fit"):
        ct.transplant(np.ones(16), np.ones((8, 8)))
    with pytest.raises(AttributeError, match="no attribute 'captured'"):
        ct.captured  # noqa: B018


def test_every_public_name_is_there() -> None:
    assert sorted(ct.__all__) == list(ct.__all__)
    for name in ct.__all__:
        assert getattr(ct, name) is not None


def test_neither_ray_nor_torch_is_loaded_before_it_is_needed() -> None:
    code = (
        "import sys, contrans_dist as ct; import contrans_dist.cli; "
        "assert 'torch' not in sys.modules and 'ray' not in sys.modules; "
        "ct.capture, ct.load_model, ct.fit_map, ct.steer, ct.transplant, ct.generate; "
        "assert 'ray' not in sys.modules"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


@pytest.fixture(scope="module")
def captured(models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Rows of both models in memory, and the same rows as activation sets."""
    folder = tmp_path_factory.mktemp("sets")
    endings = ["and he was very", "but she was not", "when it was so"]
    texts = [f"{CORPUS[i % 5]} That was day {i}, {endings[i % 3]}" for i in range(120)]
    found: dict[str, Any] = {"folder": folder, "labels": ["positive", "negative"] * 60}
    for side, path in zip(("source", "target"), models, strict=True):
        rows = ct.capture(ct.load_model(str(path)), texts)
        found[side] = rows
        found[f"{side}_set"] = make_set(
            folder / side, dict(rows), BLOCKS, texts, text_id=rows.text_ids,
            token_id=pa.array(rows.token_ids), label=found["labels"],
        )  # fmt: skip
    return found


def command(*arguments: Any) -> None:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    assert result.exit_code == 0, (result.output, result.exception)


@pytest.mark.parametrize("protocol", ["default", "paper"])
@pytest.mark.parametrize("pair", [None, (2, 1)])
def test_a_notebook_gives_what_the_commands_give(
    captured: dict[str, Any], tmp_path: Path, protocol: Any, pair: tuple[int, int] | None
) -> None:
    folder, asked = captured["folder"], [] if pair is None else ["--blocks", f"{pair[0]}:{pair[1]}"]
    vector, maps, out = (tmp_path / f"{name}.safetensors" for name in ("vector", "map", "out"))
    command("refine", "--activations", folder / "source", "--out", vector)
    command(
        "fit", "--source", folder / "source", "--target", folder / "target", "--out", maps,
        "--protocol", protocol, *asked,
    )  # fmt: skip
    command("transplant", "--vector", vector, "--map", maps, "--out", out, "--norm", "match")
    [((at, _), theirs)] = MapSet.load(str(maps)).maps.items()
    carried = ConceptVector.load(str(out))

    source, target = captured["source"], captured["target"]
    positive = np.array(captured["labels"]) == "positive"
    own = ct.concept_vector(
        {block: rows[positive] for block, rows in source.items()},
        {block: rows[~positive] for block, rows in source.items()},
    )
    ours = ct.fit_map(source, target, ct.MapOptions(protocol), pair=pair)
    assert ours.source_blocks == ([at - 1, at] if protocol == "default" else [at])
    assert ours.centre == ("token" if protocol == "default" else False)
    np.testing.assert_array_equal(ours.weight, theirs.weight)
    np.testing.assert_array_equal(ours.bias, theirs.bias)
    facts = ("r2_test", "r2_validation", "ridge", "n_fit", "n_effective", "warnings")
    assert [getattr(ours, name) for name in facts] == [getattr(theirs, name) for name in facts]
    block = carried.blocks[0]
    norms = source.norms[at], target.norms[block]
    np.testing.assert_allclose(
        ct.transplant(own, ours, "match", *norms), carried.at(block), rtol=1e-6, atol=1e-7
    )
    np.testing.assert_allclose(
        ct.transplant(ConceptVector.load(str(vector)), ours, "match", *norms), carried.at(block), rtol=1e-6
    )
    of_sets = ct.fit_map(captured["source_set"], captured["target_set"], ct.MapOptions(protocol), pair=pair)
    np.testing.assert_array_equal(of_sets.weight, theirs.weight)
    np.testing.assert_array_equal(of_sets.bias, theirs.bias)


def test_a_map_of_what_is_there(captured: dict[str, Any]) -> None:
    """Blocks that were not captured cannot be read: the highest serves, alone where the one below is not."""
    source, target = captured["source"], captured["target"]
    few = replace(source, rows={block: source[block] for block in (0, 2)})
    assert ct.fit_map(few, target).source_blocks == [2]
    assert ct.fit_map(few, target, pair=(0, 3)).source_blocks == [0]
    plain = ct.fit_map(few[2], target[3])
    assert (plain.centre, plain.source_blocks) == (True, None)


def test_sets_without_the_same_rows_are_fitted_on_those_that_both_have(tmp_path: Path) -> None:
    """Either harvest left out another text that it could not use."""
    rng = np.random.default_rng(0)
    rows, plan = rng.standard_normal((60, 4)), rng.standard_normal((4, 3))
    sets = []
    for name, values, left_out in (("source", rows, 7), ("target", rows @ plan, 30)):
        kept = [row for row in range(60) if row != left_out]
        made = make_set(tmp_path / name, {0: values[kept]}, 1, [f"text {row}" for row in kept])
        skipped = [Skipped(row=left_out, reason="too long")]
        sets.append(replace(made, manifest=made.manifest.model_copy(update={"skipped": skipped})))
    mapping = ct.fit_map(sets[0], sets[1], ct.MapOptions("paper"))
    np.testing.assert_allclose(mapping.weight, plan, atol=1e-5)


def test_rows_that_do_not_belong_together_are_named(captured: dict[str, Any]) -> None:
    source, target = captured["source"], captured["target"]
    other = replace(target, text_ids=[*target.text_ids[:7], "another", *target.text_ids[8:]])
    with pytest.raises(ValueError, match="differ in text 7"):
        ct.fit_map(source, other)
    with pytest.raises(ValueError, match="source has 120 rows, target 119"):
        ct.fit_map(source, replace(target, text_ids=target.text_ids[1:]))
    with pytest.raises(ct.UserError, match="block 9 was not captured"):
        ct.fit_map(source, target, pair=(2, 9))
    with pytest.raises(ValueError, match="two arrays, two captures"):
        ct.fit_map(source[2], target)
    with pytest.raises(ValueError, match="rows by block"):
        ct.fit_map(source[2], target[3], ct.MapOptions(source_blocks=2))
    mapping = ct.fit_map(source, target, pair=(2, 3))
    with pytest.raises(ValueError, match="no block 1; the map reads blocks"):
        ct.transplant({2: np.ones(16, np.float32)}, mapping)
    with pytest.raises(ValueError, match="does not say which source blocks"):
        ct.transplant({2: np.ones(16, np.float32)}, mapping.weight)
