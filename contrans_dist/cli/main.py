"""The entry point: commands registered, errors turned into one line and an exit code."""

import gc
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import Annotated, Any

import typer
from rich.console import Console

from contrans_dist.cli import exchange, planning, reducing, runs, stages, steered
from contrans_dist.cli.usage import run_command
from contrans_dist.config.limits import VARIABLE
from contrans_dist.console import shown
from contrans_dist.errors import PassingError, RunError, UserError, one_line

_INTERRUPTED = 130
_TERMINATED = 143
_GRACE_SECONDS = 60.0
"""After a signal to end, until the process ends at any rate."""
_ENDS: dict[int, tuple[int, str]] = {
    signal.SIGINT: (_INTERRUPTED, "interrupted"),
    signal.SIGTERM: (_TERMINATED, "terminated"),
}
_terminated = threading.Event()
_GO_ON = "{how}; what is finished is kept: run the same command again to go on"

app = typer.Typer(
    name="contrans",
    help="Move concepts between language models: harvest, reduce, transplant, evaluate, report.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


for command in (
    runs.demo,
    runs.run,
    planning.plan,
    stages.harvest,
    reducing.refine,
    stages.fit,
    stages.transplant,
    reducing.reduce,
    steered.evaluate,
    steered.generate,
    exchange.export,
    exchange.import_,
    runs.report,
    runs.status,
    runs.inspect,
):
    app.command(command.__name__.rstrip("_"))(command)  # `import` is no name of a function


def _show_version(wanted: bool) -> None:
    if wanted:
        from contrans_dist.store.provenance import versions

        typer.echo("\n".join(f"{package} {version}" for package, version in versions().items()))
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    limits: Annotated[
        float | None,
        typer.Option(min=1, help="Times the sizes beyond which a file is refused as too large."),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show versions and exit.")
    ] = False,
) -> None:
    if debug:
        os.environ["CONTRANS_DEBUG"] = "1"
    if limits is not None:
        os.environ[VARIABLE] = str(limits)


def main() -> None:
    """Run the command line."""
    guarded(lambda: run_command(app))


def run_script(command: Callable[..., Any], epilog: str) -> None:
    """Run one command as a script of its own: the same options, messages and exit codes as under `contrans`.

    `epilog`: what its help says below the options, in Markdown.
    """
    # Python looks for modules beside a script first, and so do Ray's workers: `evaluate` is also a package.
    folder = os.path.dirname(os.path.realpath(sys.argv[0]))
    sys.path[:] = [path for path in sys.path if os.path.realpath(path or ".") != folder]
    script = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)
    script.command(epilog=epilog)(command)
    guarded(lambda: run_command(script))


def guarded(work: Callable[[], Any]) -> None:
    """Do `work`; an error becomes one line and an exit code.

    Exit codes: 0 all done, 1 failed while running, 2 bad input, 130 interrupted, 143 terminated (SIGTERM).
    """
    # Else a tenth of the time that torch and transformers take to load goes into looking for garbage in them.
    gc.set_threshold(50_000, 50, 50)
    if threading.current_thread() is not threading.main_thread():
        _told(work)
        return
    _terminated.clear()
    signal.signal(signal.SIGTERM, _terminate)
    with _ended_at_any_rate():
        _told(work)


def _told(work: Callable[[], Any]) -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # what the terminal cannot show is shown by its number
            stream.reconfigure(errors="backslashreplace")
    try:
        work()
    except PassingError as error:
        _fail(error, 1, f"{error}; run the same command again")
    except (UserError, RunError) as error:
        _fail(error, 2 if isinstance(error, UserError) else 1)
    except KeyboardInterrupt as error:
        _fail(error, _INTERRUPTED, _GO_ON.format(how="interrupted"))
    except SystemExit as end:
        # Typer turns an interruption into this code without a word.
        if end.code == _INTERRUPTED:
            _fail(end, _INTERRUPTED, _GO_ON.format(how="interrupted"))
        if _terminated.is_set():
            _fail(end, _TERMINATED, _GO_ON.format(how="terminated"))
        raise
    except BrokenPipeError as error:
        _fail(error, 1, "")
    except Exception as error:
        _fail(
            error,
            1,
            f"unexpected {type(error).__name__}: {one_line(error)} (CONTRANS_DEBUG=1 shows where it arose)",
        )


@contextmanager
def _ended_at_any_rate() -> Iterator[None]:
    """A signal to end that comes in the block ends the process after `_GRACE_SECONDS` if nothing else does:
    Python's own handlers wait for a library that holds the main thread, as one that waits for a store."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    over = threading.Event()

    def watch() -> None:
        with open(reading, "rb", buffering=0) as pipe:
            while number := pipe.read(1):
                code, how = _ENDS.get(number[0], (0, ""))
                if code and not over.wait(_GRACE_SECONDS):
                    _say(_GO_ON.format(how=how))
                    os._exit(code)

    threading.Thread(target=watch, name="signals", daemon=True).start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        os.close(writing)


def _terminate(_signal: int, _frame: Any) -> None:
    """As Ctrl-C: a spot node goes, Slurm's time is over, a job is stopped. Ray, where it waits, makes another
    exit code of this one."""
    _terminated.set()
    sys.exit(_TERMINATED)


def _fail(error: BaseException, code: int, message: str | None = None) -> None:
    if os.environ.get("CONTRANS_DEBUG"):
        sys.stderr.write(_without_secrets("".join(traceback.format_exception(error)), keep="\n"))
    _say(str(error) if message is None else message)
    sys.exit(code)


def _without_secrets(text: str, keep: str) -> str:
    from contrans_dist.store.provenance import without_secrets  # with what takes a while to load

    return shown(without_secrets(text), keep)


def _say(line: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(
        _without_secrets(f"contrans: {line}", keep=""), markup=False
    )
