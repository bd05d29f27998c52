"""Files of data sets on the model hub."""

from collections.abc import Callable

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError

from contrans_dist.errors import PassingError, RunError, UserError, one_line
from contrans_dist.models.hub import hub_failure
from contrans_dist.store.location import Location
from contrans_dist.store.patience import patiently


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


@patiently
def _fetched(repository: str, what: str, fetch: Callable[[], str]) -> Location:
    try:
        return Location.parse(fetch())
    except (OSError, HTTPError) as error:
        failure = hub_failure(repository, error)
        if isinstance(failure, PassingError):
            raise failure from error
        if isinstance(failure, RunError) or isinstance(error, LocalEntryNotFoundError):
            raise RunError(
                f"{repository}: {what} is not in the local cache, and the hub does not answer; "
                "name local `texts`"
            ) from error
        raise UserError(
            f"{repository}: the hub does not give {what}; accept its terms and log in, or name local `texts` "
            f"({one_line(error)})"
        ) from error
