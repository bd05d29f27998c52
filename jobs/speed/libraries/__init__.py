"""Other libraries, each in an environment of its own: they disagree on the versions of what they need."""

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from contrans_dist.engine.capture import capture_ids
from contrans_dist.models import load_model
from speed.common import Bench, Row, max_error

REQUIREMENTS = {
    "nnsight": ["nnsight", "accelerate"],
    "repeng": ["repeng==0.4.*"],
    "steering-vectors": ["steering-vectors==0.12.*"],
    "transformer-lens": ["transformer-lens==4.3.*"],
}
_TEXTS = 200
_TIMEOUT = 900


def install(folder: Path) -> int:
    """A virtual environment for each library, with the torch that runs here; how many failed."""
    import torch

    same = f"torch=={torch.__version__.partition('+')[0]}"
    failed = 0
    for name, required in REQUIREMENTS.items():
        python = folder / name / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", str(folder / name)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        code = subprocess.run([*pip, same]).returncode or subprocess.run([*pip, *required, same]).returncode
        print(f"{name}: {'installed' if code == 0 else 'could not be installed'}", flush=True)
        failed += code != 0
    return failed


def compared(bench: Bench) -> Iterator[Row]:
    """Our engine over each library that is installed, in turns, on the same model folder and texts."""
    assert bench.libraries is not None
    folder = bench.saved_model("float32")
    lm = load_model(str(folder), device=bench.device, head=False)
    ids = [[i % 100 for i in text] for text in bench.texts(24 if bench.quick else _TEXTS)]
    tokens = sum(map(len, ids))
    given = bench.scratch / "ids.json"
    given.write_text(json.dumps(ids))
    for name in REQUIREMENTS:
        python = bench.libraries / name / "bin" / "python"
        if not python.exists():
            print(f"harvest/{name}: left out, not installed in {bench.libraries}")
            continue
        before = [bench.seconds(lambda: capture_ids(lm, ids)) for _ in range(2)]
        out = bench.scratch / f"{name}.npz"
        script = Path(__file__).with_name(f"run_{name.replace('-', '_')}.py")
        done = subprocess.run(
            [str(python), str(script), str(folder), str(given), str(out), bench.device],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            bench.miss(f"harvest/{name}: left out, it failed: {last[:300]}")
            continue
        after = [bench.seconds(lambda: capture_ids(lm, ids)) for _ in range(2)]
        found = np.load(out)
        wanted = capture_ids(lm, ids)
        blocks = [int(key) for key in found.files if key.isdigit()]
        error = max_error([found[str(k)] for k in blocks], [wanted[k] for k in blocks])
        seconds, mine = float(found["seconds"]), statistics.median(before + after)
        yield Row(
            "harvest",
            f"harvest/{name}",
            seconds / mine,
            tokens / mine,
            tokens / seconds,
            "tokens/s",
            error,
            f"{found['version']}; {found['how']}; {len(blocks)} blocks compared",
        )
