"""Files of data sets on the model hub."""

from collections.abc import Callable

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from contrans_dist.errors import RunError, UserError
from contrans_dist.storage import Location


def dataset_file(repository: str, path: str, revision: str) -> Location:
    """One file of a data set at a fixed revision, from the local cache or downloaded into it.

    Raises RunError where it is not in the cache and the hub does not answer, UserError where the hub refuses.
    """
    return _fetched(
        repository, path,
        lambda: hf_hub_download(repository, path, repo_type="dataset", revision=revision),
    )  # fmt: skip


def dataset_folder(repository: str, pattern: str) -> Location:
    """A folder with the files of a data set that match a pattern; as `dataset_file`."""
    return _fetched(
        repository, pattern,
        lambda: snapshot_download(repository, repo_type="dataset", allow_patterns=pattern),
    )  # fmt: skip


def _fetched(repository: str, what: str, fetch: Callable[[], str]) -> Location:
    try:
        return Location.parse(fetch())
    except (LocalEntryNotFoundError, ConnectionError) as error:
        raise RunError(
            f"{repository}: {what} is not in the local cache, and the hub does not answer; name local `texts`"
        ) from error
    except OSError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{repository}: the hub does not give {what}; accept its terms and log in, or name local `texts` "
            f"({reason})"
        ) from error
