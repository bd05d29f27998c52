"""Where a model's files are: in a folder, in a llama.cpp file, or on the hub."""

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers.utils import CONFIG_NAME
from transformers.utils.hub import cached_file

from contrans_dist.config.limits import MODEL_JSON_BYTES, check_size
from contrans_dist.errors import UserError, meant, one_line

BUNDLED = "demo:"
"""Prefix of the models that come with the package, such as `demo:source`."""
GGUF = ".gguf"
"""How the names of llama.cpp's files end."""


@dataclass(frozen=True)
class ModelFiles:
    """The files of one model, none of which has been looked at."""

    name: str
    """The model as the user gave it."""
    place: str
    """Folder or hub id."""
    revision: str | None = None
    trust_remote_code: bool = False
    gguf: Path | None = None
    """The llama.cpp file that the folder was made of."""

    @classmethod
    def of(cls, name: str, trust_remote_code: bool = False) -> "ModelFiles":
        """Those of `--model`: `org/name@revision`, a folder (@ allowed in it), a GGUF file, a bundled model.

        Raises UserError where a path is meant and no model is there, or one that cannot be read.
        """
        if name.startswith(BUNDLED):
            folder = Path(__file__).parents[1] / "demo" / "models" / name.removeprefix(BUNDLED)
        else:
            folder = Path(name).expanduser()
        if name and folder.is_dir():
            if not (folder / "config.json").is_file():
                raise UserError(
                    f"--model {name}: no config.json in this folder; a Hugging Face model is expected"
                )
            return cls(name, str(folder), None, trust_remote_code)
        if folder.suffix == GGUF and folder.is_file():
            # Imported for them alone: it takes a moment.
            from contrans_dist.models.gguf_files import cached_folder

            return cls(name, str(cached_folder(folder)), None, trust_remote_code, folder)
        if (
            name.startswith((BUNDLED, ".", "/", "~"))
            or name.count("/") > 1
            or folder.suffix == GGUF
            or folder.exists()
        ):
            if name.startswith(BUNDLED):
                bundled = sorted(f"{BUNDLED}{path.name}" for path in folder.parent.iterdir() if path.is_dir())
                raise UserError(f"--model {name}: no such bundled model; {meant(name, bundled)}")
            kind = "file" if folder.suffix == GGUF else "folder"
            raise UserError(f"--model {name}: no such {kind}")
        place, at, tag = name.rpartition("@")
        return cls(name, place if at else name, tag if at else None, trust_remote_code)

    @property
    def in_folder(self) -> bool:
        return Path(self.place).is_dir()

    def config_file(self) -> Path:
        """The configuration. Raises OSError as transformers does where there is none, or no answer."""
        return Path(str(cached_file(self.place, CONFIG_NAME, revision=self.revision)))

    def find(self, file: str, download: bool = True) -> Path | None:
        """One of the other files, None where there is none; of a hub model, without `download`, only if it is
        on this machine. Raises OSError as transformers does for a hub that does not answer."""
        path = cached_file(
            self.place,
            file,
            revision=self.revision,
            local_files_only=not download,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=download,
        )
        return None if path is None else Path(path)

    def settings(self, file: str) -> dict[str, Any]:
        """The content of a file of settings, empty where there is none; see `read_settings`."""
        path = self.find(file)
        return {} if path is None else read_settings(path)


def file_hash(path: Path) -> str:
    """SHA-256 (hex) of a file, computed again only when it has changed."""
    status = path.stat()
    return _file_hash(path.resolve(), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _file_hash(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_settings(path: Path) -> dict[str, Any]:
    """The content of a model's JSON file. Raises UserError for one that is none, or larger than a model's. It
    may hold infinities."""
    check_size(str(path), path.stat().st_size, MODEL_JSON_BYTES)
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: expected a valid JSON file ({one_line(error)})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object")
    return content
