"""Submit a Ray job once: its submission id is made of the work, so that the same work does not run twice.

As `ray job submit`, but work that was submitted before is found: a job that waits or runs is followed, one
that succeeded is left alone, and one that failed or was stopped is submitted again, to go on from what is
finished.
"""

import asyncio
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.resources import files
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from contrans_dist.cli import run_script
from contrans_dist.config.yamlfiles import parse_yaml
from contrans_dist.console import note
from contrans_dist.errors import RunError, UserError, one_line
from contrans_dist.store.provenance import version, words_without_secrets

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

SUBMIT = """From a checkout of the repository, with what `ray job submit` takes behind `--`:

`python jobs/submit.py --address http://HEAD:8265 -- python jobs/harvest.py --model MODEL --texts FILE
--out s3://bucket/set`"""
_LARGE = 64 * 2**20
"""Bytes from which on a file inside a folder, as a model's weights, is known by its size alone."""
BUNDLED = Path(str(files("contrans_dist"))) / "pipeline" / "recipes"
_SECONDS_BETWEEN_LOOKS = 1.0
_ENDED = ("FAILED", "STOPPED")
"""What is submitted again."""


def submit(
    entrypoint: Annotated[list[str], typer.Argument(help="The command, such as python jobs/harvest.py ...")],
    address: Annotated[
        str | None, typer.Option(help="http://HEAD:8265. Default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS.")
    ] = None,
    working_dir: Annotated[str, typer.Option(help="Uploaded, and where the job starts; or its URI.")] = ".",
    runtime_env_json: Annotated[
        str, typer.Option(help="Ray's runtime environment; its working_dir comes first.")
    ] = "{}",
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not follow the job.")] = False,
) -> None:
    """Submit a Ray job, unless the same work was submitted before; follow it, and end with its exit code.

    The submission id is contrans-SCRIPT-HASH. What is hashed: the script's name and arguments, the content of
    the files and folders that they name, and a recipe among them, but for the one behind --out, and the
    program's version. Of what lies in a store size and time stand for the content; what cannot be seen from
    here, as a path of the cluster's, is known by its name alone.
    """
    runtime_env = _runtime_env(runtime_env_json, working_dir)
    _check_secrets(["--working-dir", runtime_env["working_dir"], *entrypoint])
    name = submission_id(entrypoint, runtime_env["working_dir"])
    client = _client(address)
    job, status = _submitted(client, name, shlex.join(entrypoint), runtime_env)
    if no_wait:
        sys.stdout.write(f"{job}\n")
    elif status == "SUCCEEDED":
        note(f"{job}: succeeded before, and is not run again (`ray job submit` would run it)")
    else:
        _follow(client, job)


def submission_id(entrypoint: list[str], working_dir: str) -> str:
    """The id of a command: the same for the same work.

    Args:
        entrypoint: The command's words.
        working_dir: The folder that is uploaded, where relative paths start; or its URI.

    Raises:
        UserError: When the command runs no Python script, or the script is not there.
    """
    at = next((i for i, word in enumerate(entrypoint) if word.endswith(".py")), None)
    if at is None:
        raise UserError(f"{shlex.join(entrypoint)}: expected a script, as in python jobs/harvest.py ...")
    words = entrypoint[at:]
    uploaded = "://" not in working_dir
    base = os.path.expanduser(working_dir) if uploaded else "/"  # of a URI only absolute paths may be here
    if uploaded and not os.path.isfile(os.path.join(base, words[0])):
        raise UserError(f"{words[0]}: no such file in {working_dir}, which is uploaded")
    work: list[Any] = [version()]
    for before, word in zip(["", *words], words, strict=False):
        out = before == "--out" or word.startswith("--out=")
        work.append([word, [] if out else list(_named(word, base))])
    digest = hashlib.sha256(json.dumps(work).encode()).hexdigest()
    return f"contrans-{Path(words[0]).stem}-{digest[:12]}"


def _named(word: str, base: str) -> Iterator[str]:
    """What a file or folder holds that a word, or its part behind `=`, names; and what a recipe names."""
    for text in (word, word.partition("=")[2]):
        if "://" in text:
            yield from _stored(text)
            continue
        path = os.path.join(base, os.path.expanduser(text))
        if text and os.path.exists(path):
            yield from _contents(Path(path))
        bundled = BUNDLED / f"{text}.yaml"
        if os.path.isfile(path) and path.endswith((".yaml", ".yml")):
            yield from _inside(Path(path).read_bytes(), path, base)
        elif text and bundled.parent == BUNDLED and os.path.isfile(bundled):  # a long text is no name
            yield from _inside(bundled.read_bytes(), str(bundled), base)
        elif text.startswith(("{", "[")):
            with suppress(UserError):  # the command says so itself
                yield from _inside(text.encode(), text, base)


def _inside(content: bytes, name: str, base: str) -> Iterator[str]:
    """What the files and folders hold that YAML names."""
    for other in _strings(parse_yaml(content, name)):
        if "://" in other:
            yield from _stored(other)
        elif os.path.exists(path := os.path.join(base, os.path.expanduser(other))):
            yield from _contents(Path(path))


def _stored(uri: str) -> Iterator[str]:
    """What a store holds there, by name, size and time; nothing where that is not to be seen from here."""
    from contrans_dist.store.location import Location
    from contrans_dist.store.patience import briefly

    with suppress(UserError, RunError), briefly():
        place = Location.parse(uri)
        infos = [place.info(), *sorted(place.entries(), key=lambda info: info.base_name)]
        yield from [f"{info.base_name} {info.size} {info.mtime_ns}" for info in infos if info.is_file]


def _contents(path: Path) -> Iterator[str]:
    """A file's digest; a folder's files, by name and digest, large ones by size."""
    try:
        if not path.is_dir():
            yield _digest(path)
            return
        for folder, folders, files in os.walk(path):
            folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
            for file in sorted(Path(folder, name) for name in files if not name.startswith(".")):
                if file.is_file():
                    size = file.stat().st_size
                    yield f"{file.relative_to(path)} {size if size > _LARGE else _digest(file)}"
    except OSError as error:
        raise UserError(f"{path}: expected a file that can be read ({error.strerror})") from error


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _strings(content: Any) -> Iterator[str]:
    if isinstance(content, str) and content:
        yield content
    elif isinstance(content, dict | list):
        for part in content.values() if isinstance(content, dict) else content:
            yield from _strings(part)


def _runtime_env(text: str, working_dir: str) -> dict[str, Any]:
    try:
        given = json.loads(text)
    except ValueError as error:
        raise UserError(f"--runtime-env-json: expected a JSON object ({error})") from error
    if not isinstance(given, dict) or not isinstance(given.get("working_dir", ""), str):
        raise UserError("--runtime-env-json: expected a JSON object, its working_dir a path or a URI")
    _tell_of_secrets(given.get("env_vars"))
    return {"working_dir": working_dir, **given}


def _check_secrets(words: list[str]) -> None:
    """Raise UserError for a secret: what Ray runs stands in its job table, its dashboard and its logs."""
    for before, word, shown in zip(["", *words], words, words_without_secrets(words), strict=False):
        if word != shown:
            option = next((each for each in (word, before) if each.startswith("-")), shown)
            raise UserError(
                f"{option.partition('=')[0]}: holds a secret, which Ray shows to all who reach the cluster; "
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or HF_TOKEN, where the nodes start"
            )


def _tell_of_secrets(variables: Any) -> None:
    """Say which variables Ray will show: who passes them may have no other way."""
    pairs = [f"{name}={value}" for name, value in variables.items()] if isinstance(variables, dict) else []
    names = [pair.partition("=")[0] for pair in pairs if words_without_secrets([pair]) != [pair]]
    if names:
        note(f"env_vars {', '.join(names)}: Ray shows their values to all who reach the cluster")


def _client(address: str | None) -> "JobSubmissionClient":
    from ray.job_submission import JobSubmissionClient

    if address is not None:  # Ray would take these before what it is told
        for variable in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
            os.environ.pop(variable, None)
    try:
        return JobSubmissionClient(address)
    except Exception as error:  # of many kinds: no answer, no Ray, no token, no address at all
        raise RunError(
            f"--address {address or 'of the environment'}: no Ray cluster took the job ({one_line(error)}); "
            "if it asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
        ) from error


def _submitted(
    client: "JobSubmissionClient", name: str, command: str, runtime_env: dict[str, Any]
) -> tuple[str, str]:
    """The job that does the work, and its status: one that is there, or a new one under the next number."""
    for number in count(1):
        job = name if number == 1 else f"{name}-{number}"
        status = _status(client, job)
        if status is None:
            try:
                client.submit_job(entrypoint=command, submission_id=job, runtime_env=runtime_env)
            except Exception as error:  # Ray's bare ones; another may have submitted the same just now
                status = _status(client, job)
                if status is None:
                    raise RunError(f"{job} was not submitted: {one_line(error)}") from error
            else:
                note(f"{job}: submitted; `ray job stop {job}` ends it")
                return job, "PENDING"
        if status not in _ENDED:
            note(f"{job}: {status.lower()}, as submitted before")
            return job, status
        note(f"{job}: {status.lower()} before; what is finished is not done again")
    raise AssertionError


def _details(client: "JobSubmissionClient", job: str) -> "JobDetails | None":
    try:
        return next((each for each in client.list_jobs() if each.submission_id == job), None)
    except Exception as error:  # the connection's, and Ray's bare ones
        raise RunError(
            f"{job}: no answer from the cluster ({one_line(error)}); try the same again"
        ) from error


def _status(client: "JobSubmissionClient", job: str) -> str | None:
    details = _details(client, job)
    return None if details is None else str(details.status.value)


def _follow(client: "JobSubmissionClient", job: str) -> None:
    """Show the job's log until it ends, and end with its exit code."""
    try:
        asyncio.run(_show_log(client, job))
    except KeyboardInterrupt:
        note(f"{job} goes on; `ray job stop {job}` ends it")
        raise
    details = _details(client, job)
    status = "LOST" if details is None else str(details.status.value)
    code = None if details is None else details.driver_exit_code
    if status == "SUCCEEDED":
        note(f"{job}: succeeded")
    elif status == "FAILED" and code is not None:
        note(f"{job}: failed with exit code {code}; the same command goes on from what is finished")
        raise typer.Exit(code if 0 < code < 256 else 1)
    else:
        why = one_line(details.message) if details is not None and details.message else "no word of why"
        raise RunError(f"{job}: {status.lower()} ({why}); the same command goes on from what is finished")


async def _show_log(client: "JobSubmissionClient", job: str) -> None:
    try:
        async for text in client.tail_job_logs(job):
            sys.stdout.write(text)
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except Exception as error:
        note(f"{job}: its log is cut off ({one_line(error)}); waiting for its end")
    while _status(client, job) in ("PENDING", "RUNNING"):
        await asyncio.sleep(_SECONDS_BETWEEN_LOOKS)


if __name__ == "__main__":
    run_script(submit, SUBMIT)
