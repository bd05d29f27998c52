"""Exported files read by the tools' own code, where the package index gives it."""

from pathlib import Path

import numpy as np
import pytest

import contrans_dist as ct
from contrans_dist.store.location import Location
from contrans_dist.vectors.exchange import export_vector
from tests.packages import python, without_dependencies

pytestmark = [pytest.mark.slow, pytest.mark.network]

PACKAGES = ["repeng==0.4.0", "vllm-lens==1.3.0", "zstandard==0.25.0"]
BLOCKS, STRENGTH = (2, 3), 1.5


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages, and without what they depend on."""
    return without_dependencies(tmp_path_factory.mktemp("tools"), PACKAGES)


@pytest.fixture(scope="module")
def vector() -> ct.ConceptVector:
    values = np.random.default_rng(0).normal(size=(4, 96)).astype(np.float32)
    return ct.ConceptVector(values=values, concept="fear", model="demo:source")


def test_repeng(tools: Path, vector: ct.ConceptVector, tmp_path: Path) -> None:
    export_vector(vector, Location.parse(tmp_path / "v.gguf"), "gguf", "2,3", STRENGTH)
    np.save(tmp_path / "rows.npy", np.float32(STRENGTH) * vector.values[list(BLOCKS)])
    python(
        tools,
        "import numpy as np\n"
        "np.float_ = np.float64\n"  # it names what numpy 2 has under another name
        "import repeng\n"
        f"read = repeng.ControlVector.import_gguf({str(tmp_path / 'v.gguf')!r})\n"
        "assert read.model_type == 'gpt_neox', read\n"
        f"assert list(read.directions) == {list(BLOCKS)}\n"
        f"rows = np.load({str(tmp_path / 'rows.npy')!r})\n"
        "assert np.array_equal(np.stack(list(read.directions.values())), rows)\n",
    )


def test_vllm_lens(tools: Path, vector: ct.ConceptVector, tmp_path: Path) -> None:
    """Its model of a vector, without vLLM: the package itself imports that."""
    export_vector(vector, Location.parse(tmp_path / "v.json"), "vllm-lens", "2,3", STRENGTH)
    np.save(tmp_path / "rows.npy", vector.values[list(BLOCKS)])
    python(
        tools,
        "import json, types, numpy as np\n"
        "package = sys.modules['vllm_lens'] = types.ModuleType('vllm_lens')\n"
        f"package.__path__ = [{str(tools / 'vllm_lens')!r}]\n"
        "from vllm_lens._helpers.types import SteeringVector\n"
        f"read = SteeringVector.model_validate(json.load(open({str(tmp_path / 'v.json')!r})))\n"
        f"assert (read.layer_indices, read.scale) == ({list(BLOCKS)}, {STRENGTH})\n"
        "assert (read.norm_match, read.position_indices) == (False, None)\n"
        f"assert np.array_equal(read.activations.numpy(), np.load({str(tmp_path / 'rows.npy')!r}))\n"
        "assert SteeringVector.model_validate(read.model_dump()).layer_indices == read.layer_indices\n",
    )
