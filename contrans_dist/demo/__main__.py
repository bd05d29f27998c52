"""`python -m contrans_dist.demo FOLDER`: the texts of the bundled models' world, as files."""

import sys
from pathlib import Path

from contrans_dist.demo import write_texts

if len(sys.argv) != 2:
    sys.exit("expected a folder: python -m contrans_dist.demo FOLDER")
write_texts(Path(sys.argv[1]))
print(*sorted(str(path) for path in Path(sys.argv[1]).iterdir()), sep="\n")
