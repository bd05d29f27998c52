"""Files of data sets on the model hub."""

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError

from contrans_dist.errors import RunError, UserError
from contrans_dist.storage import Location


def dataset_file(repository: str, path: str, revision: str) -> Location:
    """One file of a data set at a fixed revision, from the local cache or downloaded into it.

    Raises RunError where it is not in the cache and the hub does not answer, UserError where the hub refuses.
    """
    try:
        return Location.parse(hf_hub_download(repository, path, repo_type="dataset", revision=revision))
    except (LocalEntryNotFoundError, ConnectionError) as error:
        raise RunError(
            f"{repository}: {path} is not in the local cache, and the hub does not answer; name a local file "
            "as `texts`"
        ) from error
    except OSError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{repository}: the hub does not give {path} ({reason})") from error
