"""Which precision is computed in, and that rows are those of float32 on the same weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from contrans_dist.config import ClusterSettings, ModelSettings
from contrans_dist.distributed import precision as distributed
from contrans_dist.engine.capture import capture_ids
from contrans_dist.engine.capture.streamed import capture_streamed
from contrans_dist.engine.scoring import Intervention, generate, next_token
from contrans_dist.errors import UserError
from contrans_dist.models import LanguageModel, load_model, precision
from contrans_dist.models.loading import describe
from contrans_dist.models.needs import needs
from contrans_dist.models.placed import load_placed
from contrans_dist.models.placement import choose_placement
from contrans_dist.models.streaming import open_streamed
from tests.tiny import ARCHITECTURES, save_tiny, tiny_model, tiny_tokenizer

MULTIMODAL = ("llava", "gemma3")
_DEFAULT = ["llama", "gpt2", "gemma2", "mixtral"]
IDS = [[1, *np.random.default_rng(i).integers(3, 290, size=n).tolist()] for i, n in enumerate((6, 30, 2, 17))]


def _stored(folder: Path, kind: torch.dtype, architecture: str = "llama") -> Path:
    model = tiny_model(architecture).to(kind)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def _by_transformers(folder: Path, rounded: torch.dtype | None = None) -> np.ndarray:
    """Rows `[texts, blocks but the last, d]` in float32, of weights as they are stored, or rounded."""
    wrapped = json.loads((folder / "config.json").read_text())["model_type"] in MULTIMODAL
    auto: Any = AutoModelForImageTextToText if wrapped else AutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype=torch.float32)
    if rounded is not None:
        for parameter in model.parameters():
            parameter.data = parameter.data.to(rounded).float()
    with torch.no_grad():
        states = [model(torch.tensor([ids]), output_hidden_states=True).hidden_states for ids in IDS]
    return np.stack([torch.stack([state[0, -1] for state in of_text[1:-1]]).numpy() for of_text in states])


def _deviation(rows: Any, wanted: np.ndarray) -> float:
    got = np.stack([rows[k] for k in range(wanted.shape[1])], axis=1)
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


@pytest.fixture
def slow_in_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that is five times as fast in float32 as in any other precision."""
    monkeypatch.setattr(precision, "linear_rates", lambda kind: (2e10, 1e11))


@pytest.fixture
def fast_in_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "linear_rates", lambda kind: (2e11, 1e11))


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(name, marks=() if name in _DEFAULT else pytest.mark.slow) for name in ARCHITECTURES],
)
def test_rows_are_those_of_float32_on_the_same_weights(architecture: str, tmp_path: Path) -> None:
    folder = str(_stored(tmp_path, torch.bfloat16, architecture))
    wanted = _by_transformers(tmp_path)
    options: dict[str, Any] = {"device": "cpu", "compute_dtype": "float32"}
    rows = {
        "wide": capture_ids(load_model(folder, head=False, **options), IDS),
        "narrow": capture_ids(load_model(folder, narrow=True, **options), IDS),
        "streamed": capture_streamed(open_streamed(folder, **options), IDS),
    }
    for held, of in rows.items():
        assert _deviation(of, wanted) < 1e-5, held
    # What is compared would show another precision.
    half = capture_ids(load_model(folder, device="cpu", compute_dtype="bfloat16"), IDS)
    assert _deviation(half, wanted) > 1e-4


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_weights_of_another_precision_are_rounded_to_theirs(kind: str, tmp_path: Path) -> None:
    """Some tensors are stored wider than the checkpoint says, or all of them are."""
    dtype = getattr(torch, kind)
    folder = str(_stored(tmp_path, dtype))
    state = load_file(tmp_path / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    wide = {
        name: 1 + 0.1 * torch.randn(tensor.shape, generator=generator) if tensor.ndim == 1 else tensor
        for name, tensor in state.items()
    }
    save_file(wide, tmp_path / "model.safetensors", metadata={"format": "pt"})
    wanted = _by_transformers(tmp_path, dtype)
    assert np.abs(wanted - _by_transformers(tmp_path)).max() > 1e-4 * np.abs(wanted).max()
    options: dict[str, Any] = {"device": "cpu", "compute_dtype": "float32"}
    for of in (
        capture_ids(load_model(folder, **options), IDS),
        capture_ids(load_model(folder, narrow=True, **options), IDS),
        capture_streamed(open_streamed(folder, **options), IDS),
    ):
        assert _deviation(of, wanted) < 1e-5


def test_a_float32_checkpoint_is_rounded_where_that_is_asked_for(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path)
    lm = load_model(str(folder), dtype="bfloat16", compute_dtype="float32", device="cpu")
    assert (lm.dtype, lm.weights_dtype) == (torch.float32, torch.bfloat16)
    assert _deviation(capture_ids(lm, IDS), _by_transformers(folder, torch.bfloat16)) < 1e-5


def _answers(lm: LanguageModel) -> tuple[np.ndarray, list[list[str]]]:
    vector = np.random.default_rng(0).normal(size=lm.d).astype(np.float32)
    steered = [Intervention("base"), *(Intervention("v", {2: vector}, s) for s in (0.5, 2.0))]
    scores = next_token(lm, IDS, steered, watch=[5, 6, 7]).logprobs
    return scores, generate(lm, IDS, steered, max_new_tokens=6)


def test_blocks_that_are_widened_as_they_run_score_and_write_the_same(tmp_path: Path) -> None:
    folder = str(_stored(tmp_path, torch.bfloat16))
    wide = load_model(folder, compute_dtype="float32", device="cpu")
    narrow = load_model(folder, compute_dtype="float32", device="cpu", narrow=True)
    for _ in range(2):
        (scores, texts), (expected, wanted) = _answers(narrow), _answers(wide)
        np.testing.assert_allclose(scores, expected, atol=1e-6)
        assert texts == wanted
        # Between passes they are as they were stored.
        assert {p.dtype for block in narrow.blocks for p in block.parameters()} == {torch.bfloat16}
    assert narrow.dtype == torch.float32


def test_blocks_are_narrow_again_after_an_error(tmp_path: Path) -> None:
    lm = load_model(
        str(_stored(tmp_path, torch.bfloat16)), compute_dtype="float32", device="cpu", narrow=True
    )
    before = capture_ids(lm, IDS)
    handle = lm.blocks[1].mlp.register_forward_hook(lambda *_: 1 / 0)  # type: ignore[operator,union-attr]
    with pytest.raises(ZeroDivisionError):
        capture_ids(lm, IDS)
    handle.remove()
    assert {p.dtype for p in lm.blocks[1].parameters()} == {torch.bfloat16}
    for k, rows in capture_ids(lm, IDS).items():
        np.testing.assert_array_equal(rows, before[k])


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
@pytest.mark.usefixtures("slow_in_halves")
def test_a_processor_that_is_slow_in_halves_computes_in_float32(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(_stored(tmp_path, getattr(torch, kind)))
    for lm in (load_model(folder, device="cpu"), open_streamed(folder, device="cpu").lm):
        assert (lm.dtype, lm.weights_dtype) == (torch.float32, getattr(torch, kind))
    told = f"weights in {kind}, computed in float32: 5.0 times as fast as {kind} on this processor"
    assert capsys.readouterr().err.replace("\n", "").count(told) == 1
    options: dict[str, Any] = {"device": "cpu", "compute_dtype": kind}
    for lm in (load_model(folder, **options), open_streamed(folder, **options).lm):
        assert lm.dtype == getattr(torch, kind)
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("fast_in_halves")
def test_a_processor_that_is_fast_in_halves_keeps_to_the_weights(tmp_path: Path) -> None:
    lm = load_model(str(_stored(tmp_path, torch.bfloat16)), device="cpu")
    assert (lm.dtype, lm.weights_dtype) == (torch.bfloat16, torch.bfloat16)


def test_float32_and_gpus_leave_nothing_to_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "linear_rates", lambda kind: pytest.fail("measured"))
    wide, half = save_tiny(tmp_path / "a"), _stored(tmp_path / "b", torch.bfloat16)
    assert load_model(str(wide), device="cpu").dtype == torch.float32
    settings = ModelSettings(id=str(half))
    assert precision.computed_in(describe(str(half)), settings, on_gpu=True) == "bfloat16"
    need = needs(describe(str(half)), settings, 64, on_gpu=True)
    assert need.weights == sum(2 * p.numel() for p in describe(str(half)).empty().parameters())


@pytest.mark.parametrize(
    ("kind", "able", "chosen"),
    [("bfloat16", False, "float32"), ("bfloat16", True, "bfloat16"), ("float16", False, "float16")],
)
def test_a_gpu_without_bfloat16_computes_in_float32(
    kind: str, able: bool, chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    # PyTorch calls it supported where it only imitates it, unless told not to.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda imitated=True: imitated or able)
    described = describe(str(_stored(tmp_path, getattr(torch, kind))))
    settings = ModelSettings(id=str(tmp_path))
    assert precision.computed_in(described, settings, on_gpu=True) == chosen
    weights = sum(p.numel() for p in described.empty().parameters()) * getattr(torch, chosen).itemsize
    assert needs(described, settings, 64, on_gpu=True).weights == weights
    asked = settings.model_copy(update={"compute_dtype": kind})
    assert precision.computed_in(described, asked, on_gpu=True) == kind
    monkeypatch.setattr(distributed.ray, "is_initialized", lambda: False)
    cluster = ClusterSettings(address="local", gpus_per_actor=1)
    assert distributed.settled(settings, cluster).compute_dtype == chosen


def test_the_measurement_is_of_this_processor() -> None:
    for kind in ("bfloat16", "float16"):
        own, wide = precision.linear_rates(kind)
        assert 1e8 < own < 1e14
        assert 1e8 < wide < 1e14
        assert precision.choice(kind)[0] == (kind if own >= wide else "float32")


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "mixtral"])
@pytest.mark.usefixtures("slow_in_halves")
def test_memory_decides_how_weights_are_held(architecture: str, tmp_path: Path) -> None:
    folder = str(_stored(tmp_path, torch.bfloat16, architecture))
    model, described = ModelSettings(id=folder), describe(folder)
    wide, narrow = needs(described, model, 64), needs(described, model, 64, narrow=True)
    held = load_model(folder, device="cpu", narrow=True)
    sizes = [sum(p.numel() for p in block.parameters()) for block in held.blocks]
    loaded = sum(p.numel() * p.element_size() for p in held.model.parameters())
    assert narrow.weights == loaded + 4 * max(sizes)  # with the memory that they are widened in
    assert wide.weights == sum(4 * p.numel() for p in held.model.parameters())
    for room, kind, is_narrow in (
        (wide.total / 0.94, "resident", False),
        (narrow.total / 0.94, "resident", True),
        (narrow.total / 0.97, "stream", False),
    ):
        placement = choose_placement(model, memories={"cpu": round(room)}, batch_tokens=64)
        assert (placement.kind, placement.narrow) == (kind, is_narrow), placement.reason
        if placement.kind == "resident":
            kinds = {p.dtype for block in load_placed(model, placement).blocks for p in block.parameters()}
            assert kinds == {torch.bfloat16 if is_narrow else torch.float32}
    assert (
        "bfloat16 weights take"
        in choose_placement(model, memories={"cpu": round(narrow.total / 0.94)}, batch_tokens=64).reason
    )


def test_what_cannot_be_is_one_line(tmp_path: Path) -> None:
    folder = str(save_tiny(tmp_path))
    with pytest.raises(UserError, match="--compute-dtype half: expected one of float32, bfloat16, float16"):
        load_model(folder, compute_dtype="half")
    with pytest.raises(
        UserError, match=r"--compute-dtype float32: .* is quantised; .* its --dtype, bfloat16"
    ):
        load_model(folder, dtype="bfloat16", quantization="nf4", compute_dtype="float32", device="cpu")
