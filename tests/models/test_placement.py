"""Where a model goes: the choice by memory, and rows that do not depend on it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contrans_dist.config import ClusterSettings, ModelSettings, Quantization
from contrans_dist.engine.capture import capture_ids
from contrans_dist.engine.scoring import Intervention, next_token
from contrans_dist.errors import UserError
from contrans_dist.evaluation.baselines import System
from contrans_dist.models import CPU_TOKENS, devices, load_model, precision
from contrans_dist.models.devices import host_memory
from contrans_dist.models.loading import describe
from contrans_dist.models.needs import Needs, activation_bytes, needs
from contrans_dist.models.placed import fewest_gpus, load_placed
from contrans_dist.models.placement import Placement, choose_placement
from tests.tiny import save_tiny

GB = 10**9


def needed(name: str, tokens: int = CPU_TOKENS, quantization: Quantization | None = None) -> Needs:
    """What a whole model needs, in its own precision."""
    return needs(describe(name), ModelSettings(id=name, quantization=quantization), tokens)


@pytest.fixture(autouse=True)
def fast_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor that is not, weights in bfloat16 would be computed with in float32."""
    monkeypatch.setattr(precision, "linear_rates", lambda kind: (2e11, 1e11))


def placed(name: str, **options: Any) -> Placement:
    """`choose_placement`, the model's settings among its options."""
    settings = {key: options.pop(key) for key in ("dtype", "quantization") if key in options}
    return choose_placement(ModelSettings(id=name, **settings), **options)


LLAMA_7B = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "torch_dtype": "bfloat16",
}
LLAMA_13B = LLAMA_7B | {
    "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40,
}  # fmt: skip
LLAMA_70B = LLAMA_7B | {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
}


def _config(folder: Path, config: dict) -> str:
    """A model of which there is only a configuration."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    return _config(tmp_path_factory.mktemp("x") / "7b", LLAMA_7B)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    return _config(tmp_path_factory.mktemp("x") / "70b", LLAMA_70B)


@pytest.mark.parametrize(
    ("memories", "kind"),
    [
        ({"cpu": 64 * GB}, "resident"),
        ({"cpu": 8 * GB}, "stream"),
        ({0: 80 * GB, "cpu": 1 * GB}, "resident"),
        ({0: 10 * GB, 1: 10 * GB, "cpu": 900 * GB}, "device-map"),
        ({0: 5 * GB, 1: 5 * GB, "cpu": 900 * GB}, "stream"),
        ({0: 10 * GB, "cpu": 900 * GB}, "stream"),
    ],
)
def test_the_choice_for_7b(small: str, memories: dict, kind: str) -> None:
    """13.5 GB of weights in bfloat16, 13.2 without the head."""
    placement = placed(small, head=False, memories=memories)
    assert placement.kind == kind
    assert "13.2 GB of weights" in placement.reason
    assert (placement.device_map is not None) == (kind == "device-map")


def test_70b_over_eight_gpus_in_balance_and_no_block_in_two(large: str) -> None:
    memories = dict.fromkeys(range(8), 24 * GB) | {"cpu": 100 * GB}
    placement = placed(large, head=False, memories=memories)
    assert placement.kind == "device-map"
    assert placement.device_map is not None
    blocks = {k: v for k, v in placement.device_map.items() if k.startswith("layers")}
    assert sorted(blocks, key=lambda name: int(name.split(".")[1])) == [f"layers.{k}" for k in range(80)]
    counts = np.bincount(list(blocks.values()))
    assert len(counts) == 8
    assert counts.max() * 1.72e9 < 24 * GB
    assert list(blocks.values()) == sorted(blocks.values())


def test_depth_head_dtype_and_quantisation_count(large: str, small: str) -> None:
    one: dict = {0: 80 * GB, "cpu": 10 * GB}
    assert placed(large, head=False, memories=one).kind == "stream"
    assert placed(large, head=False, highest_block=30, memories=one).kind == "resident"
    assert placed(large, head=False, quantization="nf4", memories=one).kind == "resident"
    assert placed(large, head=False, quantization="int8", memories=one).kind == "resident"
    tight = {0: round(27.5 * GB), "cpu": GB}
    assert placed(small, dtype="float32", memories=tight).kind == "stream"
    assert placed(small, dtype="bfloat16", memories=tight).kind == "resident"
    with pytest.raises(UserError, match=r"int8: .* only plain weights stream; give --gpus-per-actor more"):
        placed(large, quantization="int8", memories={0: 24 * GB, "cpu": GB})


def test_what_cannot_be_is_one_line(large: str) -> None:
    with pytest.raises(UserError, match="leave out --quantization"):
        placed(large, quantization="nf4", placement="stream")
    with pytest.raises(UserError, match=r"device-map: 138\.0 GB of weights.*2 GPUs with 48\.0 GB"):
        placed(large, placement="device-map", memories={0: 24 * GB, 1: 24 * GB, "cpu": GB})
    assert placed(large, placement="stream", memories={"cpu": 1}).kind == "stream"


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gpt2", "gemma2", "mixtral", "opt", "llava"])
@pytest.mark.parametrize("head", [True, False])
def test_bytes_of_weights_are_those_of_the_loaded_model(
    tmp_path: Path, architecture: str, head: bool
) -> None:
    folder = str(save_tiny(tmp_path / "model", architecture))
    for highest in (None, 1):
        lm = load_model(folder, device="cpu", head=head, highest_block=highest)
        loaded = sum(p.numel() * p.element_size() for p in lm.model.parameters())
        described = describe(folder, head=head, highest_block=highest)
        assert needs(described, ModelSettings(id=folder), 64).weights == loaded


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
@pytest.mark.parametrize("architecture", ["llama", "mixtral", "gpt2"])
def test_quantised_bytes_are_those_of_the_loaded_model(
    tmp_path: Path, architecture: str, quantization: Quantization
) -> None:
    folder = str(save_tiny(tmp_path / "model", architecture, d=128, n_blocks=3))
    lm = load_model(folder, device="cpu", quantization=quantization)
    loaded = dict[torch.dtype, int]()
    for parameter in lm.model.parameters():
        loaded[parameter.dtype] = loaded.get(parameter.dtype, 0) + parameter.nbytes
    plain = loaded[lm.dtype]
    scales = 0
    for module in lm.model.modules():
        weight = getattr(module, "weight", None)
        # bitsandbytes moves those of int8 at the first pass.
        of_nf4, of_int8 = getattr(weight, "quant_state", None), getattr(weight, "SCB", None)
        of_int8 = getattr(getattr(module, "state", None), "SCB", None) if of_int8 is None else of_int8
        scales += 4 * (of_nf4.absmax.numel() if of_nf4 is not None else 0)
        scales += of_int8.nbytes if of_int8 is not None else 0
    need = needed(folder, quantization=quantization)
    assert (need.weights, need.plain) == (sum(loaded.values()) + scales, plain)


def test_a_quantised_mixture_is_placed_by_what_it_takes(tmp_path: Path) -> None:
    """Mixtral-8x7B: 45.1 billion weights of experts, and .3 of embeddings and head, in bfloat16; the 1.3
    billion of attention in nf4."""
    mixtral = LLAMA_7B | {
        "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "intermediate_size": 14336,
        "num_key_value_heads": 8, "num_local_experts": 8,
    }  # fmt: skip
    name = _config(tmp_path / "8x7b", mixtral)
    plain = 2 * (32 * 8 * 3 * 4096 * 14336 + 2 * 32000 * 4096 + 32 * 8 * 4096 + 65 * 4096)
    quantised = 32 * 2 * (4096 + 1024) * 4096 * (0.5 + 4 / 64)
    need = needed(name, quantization="nf4")
    assert (need.weights, need.plain) == (plain + quantised, plain)
    reason = placed(name, quantization="nf4", memories={0: 110 * GB, "cpu": GB}).reason
    assert reason.startswith("91.5 GB of weights (90.7 GB of them unquantised) and ")
    assert placed(name, quantization="nf4", memories={0: 60 * GB, 1: 60 * GB, "cpu": GB}).kind == "device-map"
    with pytest.raises(UserError, match="more than"):
        placed(name, quantization="nf4", memories={0: 45 * GB, 1: 45 * GB, "cpu": GB})


def test_a_model_cut_over_memory_and_disk_gives_the_same_rows_and_logits(tmp_path: Path) -> None:
    folder = str(save_tiny(tmp_path / "model", "llama", n_blocks=6))
    need = needed(folder)
    rng = np.random.default_rng(0)
    ids = [rng.integers(3, 300, n).tolist() for n in rng.integers(2, 30, 20)]
    whole = load_model(folder, device="cpu")
    # Room for three of the six blocks, and the ends.
    room = (need.activations + need.weights - 3 * need.largest_block + need.largest_block // 2) / 0.95
    placement = placed(folder, placement="device-map", memories={"cpu": round(room)})
    assert placement.device_map is not None
    assert set(placement.device_map.values()) == {"cpu", "disk"}
    cut = load_model(folder, device=placement.device_map)
    wanted, rows = capture_ids(whole, ids), capture_ids(cut, ids)
    for block in wanted:
        np.testing.assert_allclose(
            rows[block], wanted[block], rtol=0, atol=1e-5 * np.abs(wanted[block]).max()
        )
    vectors = {2: rng.normal(size=32).astype(np.float32)}
    steered = [Intervention("vector", vectors, strength) for strength in (0.0, 0.5, 1.0)]
    here, there = (next_token(lm, ids, steered, watch=[5, 6, 7]) for lm in (whole, cut))
    np.testing.assert_allclose(there.logits, here.logits, rtol=0, atol=1e-4)


def test_host_memory_is_within_this_machine() -> None:
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 0 < host_memory() <= total


@pytest.mark.parametrize("above", [False, True])
def test_what_a_group_holds_is_not_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, above: bool) -> None:
    """Both kinds of control groups, also those that one's own is in; file cache would be given back."""
    monkeypatch.setattr(devices, "_GROUPS", tmp_path)
    monkeypatch.setattr(devices, "_OWN_GROUPS", tmp_path / "own")
    (tmp_path / "own").write_text("9:name=systemd:/\n4:cpu,memory:/slurm/job\n0::/user/job\n")
    own_alone = "active_file 9\ninactive_file 9\n"  # of version 1, without the groups below it
    for own, limit, used, others, total in (
        ("user/job", "memory.max", "memory.current", "", ""),
        ("memory/slurm/job", "memory.limit_in_bytes", "memory.usage_in_bytes", own_alone, "total_"),
    ):
        (tmp_path / own).mkdir(parents=True)
        group = (tmp_path / own).parent if above else tmp_path / own
        (group / limit).write_text("1000000\n")
        (group / used).write_text("700000\n")
        cached = f"{total}inactive_file 60000\n{total}active_file 40000\n"
        (group / "memory.stat").write_text(f"anon 600000\n{others}{cached}")
        assert host_memory() == 400_000
        (group / limit).write_text("max\n" if limit == "memory.max" else "\u00b2\n")
        assert host_memory() > 400_000


def test_several_actors_share_the_memory(small: str) -> None:
    memories = {"cpu": 32 * GB}
    assert placed(small, head=False, memories=memories, share=0.5).kind == "resident"
    assert placed(small, head=False, memories=memories, share=0.25).kind == "stream"
    idle = placed(small, head=False, memories=dict.fromkeys(range(4), 80 * GB) | memories)
    assert idle.reason.endswith("; the actor's 3 other GPUs stay idle")


def test_each_process_on_a_gpu_has_a_context_there(small: str) -> None:
    """Of four, three are still to come when the first looks what is free."""
    need = needed(small, 4096).total
    room = round(4 * (need + 1000) / 0.95)
    assert placed(small, memories={0: room + 3 * GB // 2, "cpu": GB}, share=0.25).kind == "resident"
    assert placed(small, memories={0: room + GB, "cpu": GB}, share=0.25).kind == "stream"
    assert placed(small, memories={0: room // 4 + 1, "cpu": GB}).kind == "resident"


def test_the_fewest_gpus_that_hold_it(small: str, large: str) -> None:
    def chosen(
        name: str, nodes: float, given: float | None = None, head: bool = False, **options: Any
    ) -> tuple[float, str]:
        cluster = ClusterSettings(gpus_per_actor=given, placement=options.get("placement", "auto"))

        def choose(gpus: float) -> Placement:
            memories = dict.fromkeys(range(int(gpus)), 80 * GB) | {"cpu": 100 * GB}
            return placed(name, head=head, memories=memories, **options)

        gpus, placement = fewest_gpus(name, cluster, nodes, head, choose)
        return gpus, placement.kind

    assert chosen(small, 8) == (1, "resident")
    assert chosen(small, 8, given=0.5) == (0.5, "resident")
    assert chosen(small, 8, given=0) == chosen(small, 0) == (0, "resident")
    assert chosen(large, 8) == (2, "device-map")
    assert chosen(large, 8, given=4) == (4, "device-map")
    assert chosen(large, 1) == (1, "stream")
    assert chosen(large, 8, placement="stream") == (1, "stream")
    assert chosen(large, 1, quantization="nf4") == (1, "resident")
    assert chosen(large, 8, dtype="float32", quantization="int8")[0] <= 2
    with pytest.raises(UserError, match=r"138\.0 GB of weights .*; steering needs the whole model"):
        chosen(large, 8, given=1, head=True)


def _taken(name: str, placement: Placement, guides: list[ModelSettings]) -> dict[int | str, int]:
    """Bytes on each device, summed weight by weight; activations where a block or a guide runs."""
    described = describe(name)
    need = needed(name, 4096)
    assert placement.device_map is not None
    taken: dict[int | str, int] = dict.fromkeys(placement.device_map.values(), need.activations)
    for weight, values in described.empty().named_parameters():
        module = max((m for m in placement.device_map if weight.startswith(f"{m}.")), key=len)
        taken[placement.device_map[module]] += 2 * values.numel()
    for guide, device in zip(guides, placement.beside, strict=True):
        taken[device] = taken.get(device, 0) + needed(guide.id, 4096).total
    return taken


@pytest.mark.parametrize("size", [80, 60, 48])
def test_guides_lie_where_a_spread_model_leaves_room(small: str, large: str, size: int) -> None:
    """138 GB of weights and twice 13.5 on four GPUs; of 48 GB, these are nearly full."""
    guides = [ModelSettings(id=small), ModelSettings(id=small)]
    memories = dict.fromkeys(range(4), size * GB) | {"cpu": 100 * GB}
    placement = placed(large, memories=memories, beside=guides)
    assert placement.kind == "device-map"
    taken = _taken(large, placement, guides)
    assert set(taken) == {0, 1, 2, 3}
    assert sum(taken.values()) > 170 * GB
    assert max(taken.values()) <= size * GB
    assert 0 not in placement.beside
    # Alone, the model would have taken what they take now.
    alone = placed(large, memories=memories)
    full = _taken(large, alone, [])
    assert size > 48 or any(full[d] + needed(guides[0].id, 4096).total > size * GB for d in placement.beside)


def test_guides_count_when_the_number_of_gpus_is_chosen(small: str, large: str, tmp_path: Path) -> None:
    middle = _config(tmp_path / "13b", LLAMA_13B)
    guides = (ModelSettings(id=small), ModelSettings(id=small))

    def chosen(name: str, size: int, most: float) -> tuple[float, Placement]:
        def choose(gpus: float) -> Placement:
            memories = dict.fromkeys(range(int(gpus)), size * GB) | {"cpu": 40 * GB}
            return placed(name, memories=memories, beside=guides)

        return fewest_gpus(name, ClusterSettings(), most, True, choose)

    # 26.0 GB and twice 13.5 GB, with 1.3 and twice 1.0 GB of activations.
    assert chosen(middle, 80, 8)[0] == 1
    gpus, placement = chosen(middle, 48, 8)
    assert (gpus, placement.kind, placement.beside) == (2, "resident", (1, 1))
    assert placement.reason.endswith("fit into the 48.0 GB free of GPU 0, the models beside on GPU 1")
    assert chosen(large, 80, 8)[0] == 4
    with pytest.raises(UserError, match=r"29\.\d GB for 2 models beside, are more than .*; steering needs"):
        chosen(middle, 48, 1)
    with pytest.raises(UserError, match="steering needs the whole model"):
        chosen(middle, 48, 0)  # 40 GB of memory
    assert placed(middle, memories={"cpu": 60 * GB}, beside=guides).beside == ("cpu", "cpu")
    assert placed(middle, memories={"cpu": 40 * GB}).kind == "resident"


def test_a_system_is_loaded_as_it_was_placed(tmp_path: Path) -> None:
    folders = [save_tiny(tmp_path / name, n_blocks=n, seed=n) for name, n in (("t", 6), ("a", 2), ("b", 3))]
    target, *guides = (ModelSettings(id=str(folder)) for folder in folders)
    system = System("proxy-tuning", target, guides=tuple(guides))
    need = needed(target.id)
    beside = sum(needed(guide.id).total for guide in guides)
    room = (need.total + beside - 2 * need.largest_block) / 0.95
    tight = placed(target.id, placement="device-map", memories={"cpu": round(room)}, beside=guides)
    roomy = placed(target.id, memories={"cpu": GB}, beside=guides)
    assert tight.device_map is not None
    assert (set(tight.device_map.values()), roomy.kind) == ({"cpu", "disk"}, "resident")
    ids = [[3, 4, 5, 6], [7, 8]]
    cut, whole = (
        next_token(system.load(placement), ids, [Intervention("x")], watch=[5])
        for placement in (tight, roomy)
    )
    np.testing.assert_allclose(cut.logits, whole.logits, atol=1e-4)
    for guide in system.load(tight).guides or ():
        assert guide.device.type == "cpu"


def test_a_model_is_loaded_where_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ModelSettings(id=str(save_tiny(tmp_path / "model")), dtype="bfloat16")
    lm = load_placed(model, highest_block=1, head=False)
    assert (len(lm.blocks), lm.dtype, lm.model.get_output_embeddings()) == (2, torch.bfloat16, None)
    monkeypatch.setattr("contrans_dist.models.placement.free_memory", lambda: {"cpu": 1000})
    with pytest.raises(UserError, match=r"^--model .* are more than the 0\.0 MB free of memory; try --quant"):
        load_placed(model)


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_other_gpus_are_asked_only_where_the_first_has_not_the_room(
    quantization: Quantization | None, small: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each that is asked loses half a GB to a process that does not use it."""
    model, asked, given = ModelSettings(id=small, quantization=quantization), list[int](), list[Any]()

    def free(gpu: int) -> tuple[int, int]:
        asked.append(gpu)
        return room, room

    for module in ("devices", "placed"):
        monkeypatch.setattr(f"contrans_dist.models.{module}.gpu_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "mem_get_info", free)
    monkeypatch.setattr(
        "contrans_dist.models.placed.load_model", lambda _name, **options: given.append(options["device"])
    )
    room = 40 * GB
    load_placed(model)
    assert (asked, given) == ([0], [None])
    asked.clear()
    room = 7 * GB
    load_placed(model)
    assert asked == [0, 0, 1, 2, 3]
    assert len(set(given[1].values())) > 1


def test_activations_grow_with_tokens_and_experts(small: str) -> None:
    config = describe(small).config
    assert activation_bytes(config, 2048, 2, False) == 2 * activation_bytes(config, 1024, 2, False)
    assert activation_bytes(config, 1024, 2, True) > activation_bytes(config, 1024, 2, False)
