"""What went wrong when the model hub was asked: the user's mistake, a failure, or one that may pass."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from contrans_dist.errors import PassingError, RunError, UserError, one_line

_BUSY = (408, 425, 429)
_LOG_IN = "hf auth login, or HF_TOKEN in the environment"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def hub_failure(name: str, error: OSError | HTTPError) -> UserError | RunError:
    """What to raise for an OSError of transformers or of the hub's client: by what is at the bottom of it.

    PassingError for a server that is busy or breaks off, RunError where none can be reached or this machine
    fails, UserError for what is not there, not allowed or malformed.
    """
    reason = one_line(error)
    for cause in _causes(error):
        if isinstance(cause, OfflineModeIsEnabled):
            break
        if isinstance(cause, HfHubHTTPError):
            status = cause.response.status_code
            if status in _BUSY or status >= 500:
                return PassingError(f"{name}: the hub answers with status {status}; {one_line(cause)}")
            return UserError(f"--model {name}: {_refusal(name, cause) or reason}")
        if isinstance(cause, ConnectionResetError | ConnectionAbortedError | BrokenPipeError | TimeoutError):
            return PassingError(f"{name}: the connection to the hub broke off; {reason}")
        if isinstance(cause, HTTPError) and "Connect" not in type(cause).__name__:
            # Its client's own classes; one that cannot connect has tried several times already.
            return PassingError(f"{name}: the connection to the hub broke off; {one_line(cause)}")
        if isinstance(cause, HTTPError | ConnectionError):
            return RunError(f"{name}: not in the local cache, and the hub does not answer; {reason}")
        user = (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError, FileNotFoundError)
        if isinstance(cause, OSError) and cause.errno is not None and not isinstance(cause, user):
            return RunError(f"{name}: cannot be read: {reason}")
    if "connect" in reason.lower() or "offline" in reason.lower():
        return RunError(f"{name}: not in the local cache, and the hub does not answer; {reason}")
    return UserError(f"--model {name}: {reason}")


def _refusal(name: str, cause: HfHubHTTPError) -> str | None:
    """What to do about a refusal of the hub; None where it says so itself."""
    place = f"https://huggingface.co/{name.partition('@')[0]}"
    if isinstance(cause, GatedRepoError):
        return f"accept its terms at {place} and log in ({_LOG_IN})"
    if isinstance(cause, RevisionNotFoundError):
        return f"the hub has no such revision of it; {place} lists what there is"
    if isinstance(cause, RepositoryNotFoundError) or cause.response.status_code in (401, 403):
        return (
            "the hub has no such model that you may see; check the name, and log in if it is private "
            f"({_LOG_IN})"
        )
    return None


@contextmanager
def silent() -> Iterator[None]:
    """Without transformers' bars and its report on skipped weights."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """What transformers raises, as one line; and what it would print, silenced."""
    try:
        with silent():
            yield
    except (OSError, HTTPError) as error:
        raise hub_failure(name, error) from error
    except (ValueError, KeyError, ImportError, RecursionError, StrictDataclassError) as error:
        raise UserError(f"--model {name}: {one_line(error)}") from error
    except (TypeError, AttributeError) as error:
        raise RunError(f"{name}: cannot be loaded: {type(error).__name__}: {one_line(error)}") from error
    except (SafetensorError, RuntimeError) as error:
        raise RunError(f"{name}: its weights cannot be loaded: {one_line(error)}") from error
