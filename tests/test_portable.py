"""Not only Linux: every module, and the ways of a harvest, where Linux's own calls are not there."""

import subprocess
import sys
from pathlib import Path

from tests.tiny import save_tiny

SCRIPT = """
import importlib, pkgutil, sys
sys.modules["fcntl"] = None
sys.path.insert(0, TESTS)
from tests.other_system import other_system
with other_system():
    import contrans_dist
    for module in pkgutil.walk_packages(contrans_dist.__path__, "contrans_dist."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    from contrans_dist.config import CaptureSettings, ModelSettings
    from contrans_dist.harvest.actors import SweepActor
    from contrans_dist.models.devices import host_memory
    from contrans_dist.models.placement import choose_placement
    from contrans_dist.pipeline.plan import actor_memory
    from contrans_dist.harvest.shards import HarvestSpec, Shard, ShardTask
    from contrans_dist.store.location import Location
    from contrans_dist.store.identity import Identity
    from contrans_dist.harvest.sweep import SweepTask
    from contrans_dist.data.texts import read_texts

    assert choose_placement(ModelSettings(id=MODEL)).kind == "resident"
    assert host_memory() > 100 << 20 and 50 << 20 < actor_memory() < 8 << 30
    texts = read_texts(OUT + ".txt")
    identity = Identity(model=MODEL, dtype="float32", compute_dtype="float32", blocks=[0, 1])
    spec = HarvestSpec(identity, CaptureSettings(), 16, Location.parse(OUT))
    shard = Shard(spec, 0, 0, texts.num_rows)
    actor = SweepActor(ModelSettings(id=MODEL))
    made = actor.run(SweepTask("key", [ShardTask(shard, texts)]))
    assert not made.failures, made.failures
"""


def test_every_module_and_a_streamed_harvest(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model", "llama", n_blocks=2, d=16)
    (tmp_path / "set.txt").write_text("the cat\na dog\nthe boy was happy\n")
    named = {"TESTS": str(Path(__file__).parents[1]), "MODEL": str(model), "OUT": str(tmp_path / "set")}
    code = "".join(f"{name} = {value!r}\n" for name, value in named.items()) + SCRIPT
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["shard-00000.parquet"]
