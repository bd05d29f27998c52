"""The precision that a harvest, or an evaluation, is computed in: chosen once, told, and gone on in."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from contrans_dist.benchmarks.emotions import EmotionEvaluation
from contrans_dist.config import CaptureSettings, ClusterSettings, ModelSettings
from contrans_dist.data.texts import text_table
from contrans_dist.distributed import precision as chosen_on
from contrans_dist.errors import UserError
from contrans_dist.evaluation.driver import evaluate
from contrans_dist.evaluation.steering import Steering, steering
from contrans_dist.harvest import driver as harvesting
from contrans_dist.harvest.driver import harvest
from contrans_dist.models import precision
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.store.location import Location
from contrans_dist.vectors.concept_vector import ConceptVector
from tests.commands import run
from tests.tiny import tiny_model, tiny_tokenizer
from tests.truth import block_rows, by_transformers, read_all

TEXTS = ["the boy was happy", "she felt sad, angry and afraid", "a dog", "they went to the park to play"] * 3
TABLE = text_table({"text": TEXTS})
CAPTURE, ONE = CaptureSettings(shard_size=4), ClusterSettings(actors=1, cpus_per_actor=1)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> ModelSettings:
    """A model whose checkpoint is in bfloat16."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model(n_blocks=3, d=16).to(torch.bfloat16).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return ModelSettings(id=str(folder))


def _processor(monkeypatch: pytest.MonkeyPatch, faster: str) -> None:
    """This one from here on is faster in a precision."""
    rates = (2e10, 1e11) if faster == "float32" else (2e11, 1e11)
    monkeypatch.setattr(precision, "linear_rates", lambda kind: rates)
    chosen_on._on_a_node.cache_clear()


def _said(made: ActivationSet) -> tuple[str | None, str | None]:
    return made.manifest.identity.dtype, made.manifest.identity.compute_dtype


@pytest.mark.parametrize("placement", ["auto", "stream"])
def test_rows_of_a_slow_processor_are_those_of_float32(
    half: ModelSettings, placement: Any, in_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _processor(monkeypatch, "float32")
    cluster = ONE.model_copy(update={"placement": placement})
    made = harvest(half, TABLE, str(tmp_path / "set"), CAPTURE, cluster)
    assert _said(made) == ("bfloat16", "float32")
    wanted, _ = by_transformers(Path(half.id), TEXTS)
    rows = block_rows(read_all(tmp_path / "set"))
    np.testing.assert_allclose(rows, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_what_was_begun_is_gone_on_with_in_its_precision(
    half: ModelSettings, in_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a processor that would have chosen otherwise: the same bytes."""
    out = tmp_path / "set"
    _processor(monkeypatch, "float32")
    harvest(half, TABLE, str(out), CAPTURE, ONE)
    whole = {path.name: path.read_bytes() for path in out.glob("shard-*")}
    _processor(monkeypatch, "bfloat16")
    (out / "manifest.json").unlink()
    (out / "shard-00001.parquet").unlink()
    assert _said(harvest(half, TABLE, str(out), CAPTURE, ONE)) == ("bfloat16", "float32")
    assert {path.name: path.read_bytes() for path in out.glob("shard-*")} == whole
    more = pa.concat_tables([TABLE, text_table({"text": ["one more text"]})])
    assert _said(harvest(half, more, str(out), CAPTURE, ONE)) == ("bfloat16", "float32")
    # Several sets of one model are made by the same actors.
    jobs = [harvesting.HarvestJob(TABLE, Location.parse(tmp_path / name), CAPTURE) for name in ("new", "set")]
    jobs[1] = harvesting.HarvestJob(more, jobs[1].out, CAPTURE)
    assert {_said(made) for made in harvesting.harvest_sets(half, jobs, ONE)} == {("bfloat16", "float32")}
    asked = half.model_copy(update={"compute_dtype": "bfloat16"})
    with pytest.raises(UserError, match="compute_dtype: found 'float32', asked for 'bfloat16'"):
        harvest(asked, more, str(out), CAPTURE, ONE)
    assert _said(harvest(asked, TABLE, str(tmp_path / "other"), CAPTURE, ONE)) == ("bfloat16", "bfloat16")


def _steered() -> Steering:
    values = np.zeros((3, 16), np.float32)
    values[1] = np.random.default_rng(0).normal(size=16)
    vectors = {
        concept: ConceptVector(concept=concept, model="tiny", values=values, text_hashes=np.arange(2))
        for concept in ("happy", "sad")
    }
    return steering({"vector": vectors}, ["vector"])


def test_an_evaluation_too(
    half: ModelSettings, in_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = tmp_path / "scenarios.jsonl", str(tmp_path / "out")
    rows = [{"text": f"It was {i} and the boy was", "concept": c} for c in ("happy", "sad") for i in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = EmotionEvaluation(texts=str(path), strengths=(0.0, 1.0))
    with pytest.MonkeyPatch.context() as begun:
        _processor(begun, "float32")
        made = evaluate(half, settings, _steered(), out, ONE)
    assert made.identity is not None
    assert made.identity["dtype"] == "bfloat16"
    assert made.identity["compute_dtype"] == "float32"
    _processor(monkeypatch, "bfloat16")
    again = evaluate(half, settings, _steered(), out, ONE)
    assert again.identity == made.identity
    asked = half.model_copy(update={"compute_dtype": "bfloat16"})
    with pytest.raises(UserError, match=r"holds another evaluation .*compute_dtype: found"):
        evaluate(asked, settings, _steered(), out, ONE)


def test_commands_take_a_precision_to_compute_in(
    half: ModelSettings, in_process: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    given = ["harvest", "--model", half.id, "--texts", tmp_path / "texts.txt", "--out", tmp_path / "set"]
    assert run(capsys, *given, "--compute-dtype", "float32").code == 0
    assert json.loads((tmp_path / "set/manifest.json").read_text())["identity"]["compute_dtype"] == "float32"
    run(capsys, *given, "--compute-dtype", "half").refused("--compute-dtype", "compute_dtype", "'half'")
    said = run(capsys, *given, "--compute-dtype", "float32", "--quantization", "nf4")
    said.refused("--quantization", "compute_dtype or quantization, not both")
    generated = run(capsys, "generate", "--model", half.id, "--compute-dtype", "float32", "the boy", "--json")
    assert json.loads(generated.out)["texts"][0]["base"]


@pytest.mark.slow
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="held to AVX2 by settings of x86 alone")
def test_a_real_processor_without_fast_bfloat16(half: ModelSettings, tmp_path: Path) -> None:
    """oneDNN and torch are held to AVX2, and the harvest is resumed by a process that is not."""
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    command = [
        sys.executable, "-m", "contrans_dist", "harvest", "--model", half.id, "--shard-size", "4",
        "--texts", str(tmp_path / "texts.txt"), "--out", str(tmp_path / "set"), "--actors", "1",
    ]  # fmt: skip
    held = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    first = subprocess.run(command, env=held, capture_output=True, text=True, check=True)
    assert "weights in bfloat16, computed in float32" in first.stderr.replace("\n", " ")
    (tmp_path / "set/manifest.json").unlink()
    (tmp_path / "set/shard-00001.parquet").unlink()
    subprocess.run(command, capture_output=True, text=True, check=True)
    made = ActivationSet.open(str(tmp_path / "set"))
    assert _said(made) == ("bfloat16", "float32")
    wanted, _ = by_transformers(Path(half.id), TEXTS)
    rows = block_rows(read_all(tmp_path / "set"))
    np.testing.assert_allclose(rows, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
