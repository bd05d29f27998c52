"""Where an artefact comes from: versions, command line, commit, time. Never a secret."""

import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from contrans_dist.config import FileModel
from contrans_dist.console import without_credentials

_PACKAGES = (
    "contrans-dist",
    "torch",
    "transformers",
    "accelerate",
    "bitsandbytes",
    "pyarrow",
    "numpy",
    "ray",
)
_SECRET_OPTION = re.compile(
    r"(?i)(token(?!s|_changes|i[sz]|[-_]path)|secret|passw|credential|api_?key|(^|[-_.])key$|access[-_]?key)"
)
_SECRET_NAME = re.compile(
    r"(?i)(^|_)(token|secret|password|passwd|(api|access|secret)?_?key)(_(access_?)?(key|id))*$"
)
"""What variables of the environment are called that hold a secret."""
_FEWEST_LETTERS = 8
"""Of a secret that is looked for in texts: a shorter one may be any word."""
_TOKENS = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|(AKIA|ASIA)[0-9A-Z]{16}|"
    r"sk-[\w-]{20,}|glpat-[\w-]{16,}|xox[abprs]-[\w-]{10,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{5,})"
)
"""Tokens of well-known services, wherever they stand."""


class Made(FileModel):
    """By what, and when, a file was made."""

    contrans_dist: str | None = None
    """The version of this program."""
    command: str | None = None
    git_commit: str | None = None
    created: str | None = None


def version() -> str:
    """The version of this program."""
    return importlib.metadata.version(_PACKAGES[0])


def made_by() -> dict[str, str | None]:
    """What every artefact says of its making: this program's version, the command, the commit, the time."""
    return {
        "contrans_dist": version(),
        "command": command_line(),
        "git_commit": git_commit(),
        "created": now(),
    }


def versions() -> dict[str, str]:
    """Installed versions of the packages that can change a number."""
    installed = {}
    for package in _PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def without_secrets(text: str) -> str:
    """The text `without_credentials`, without tokens of well-known services, and without what the environment
    holds under a name such as `HF_TOKEN`."""
    text = without_credentials(text)
    for name, value in os.environ.items():
        if len(value) >= _FEWEST_LETTERS and _SECRET_NAME.search(name):
            text = text.replace(value, "***")
    return _TOKENS.sub("***", text)


def command_line(arguments: list[str] | None = None) -> str:
    """The command that is running, `words_without_secrets`."""
    words = [*_program(sys.argv[0]), *sys.argv[1:]] if arguments is None else arguments
    shown = words_without_secrets(words)
    return " ".join(f"'{word}'" if re.search(r"\s", word) else word for word in shown)


def words_without_secrets(words: Iterable[str]) -> list[str]:
    """Words of a command, each without credentials in URIs, and without the value of a secret-looking option
    or variable."""
    shown: list[str] = []
    hide_next = False
    for word in words:
        option, mark, _ = word.partition("=")
        if hide_next:
            shown.append("***")
        elif mark and "://" not in option and _SECRET_OPTION.search(option):
            shown.append(f"{option}=***")
        else:
            shown.append(without_secrets(word))
        hide_next = word.startswith("-") and not mark and bool(_SECRET_OPTION.search(word))
    return shown


def _program(first: str) -> list[str]:
    """A script as it was named, an installed command without its folder."""
    path = Path(first)
    if path.name == "__main__.py":
        return ["python", "-m", path.parent.name]
    if path.suffix != ".py":
        return [path.name]
    return ["python", path.name if path.is_absolute() else first]


@lru_cache(maxsize=1)
def git_commit() -> str | None:
    """Commit of the checkout this package runs from; None when it was installed from elsewhere."""
    folder = Path(__file__).resolve().parents[1]
    try:
        log = subprocess.run(
            ["git", "-C", str(folder), "log", "-1", "--format=%H", "--", "."],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return log.stdout.strip() or None


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
