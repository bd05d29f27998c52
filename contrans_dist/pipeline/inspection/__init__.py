"""What an artefact is, what it was made from, how, and what is in it: `contrans inspect`.

Only heads, footers and manifests are read, each under the limits that hold for files of strangers.
"""

from pyarrow import fs

from contrans_dist.errors import UserError
from contrans_dist.pipeline.inspection import files, folders
from contrans_dist.pipeline.inspection.artefact import Artefact
from contrans_dist.store.location import Location

__all__ = ["Artefact", "inspected"]

_EXPECTED = (
    "an activation set, shard, vector, map, reduction, evaluation, run, recipe, report page, table of "
    "results, file of texts, model, or a vector's file for another tool"
)


def inspected(location: Location) -> Artefact:
    """What an artefact says of itself.

    Args:
        location: A file or folder of this program, a recipe, texts, a model, or a vector for another tool.

    Raises:
        UserError: When it is none of them, or damaged; one line that names the file.
    """
    info = location.info()
    if info.type is fs.FileType.NotFound:
        raise UserError(f"{location}: no such file or folder")
    found = folders.described(location) if info.type is fs.FileType.Directory else files.described(location)
    if found is None:
        raise UserError(f"{location}: expected {_EXPECTED}")
    return found
