"""Harvest hidden states as a Ray job; the options are those of `contrans harvest`."""

from contrans_dist.cli import run_script
from contrans_dist.cli.stages import harvest

SUBMIT = """As a Ray job, from a checkout of the repository (`--texts` may be a file in it):

`ray job submit --working-dir . -- python jobs/harvest.py --model MODEL --texts FILE --out s3://bucket/set`"""

if __name__ == "__main__":
    run_script(harvest, SUBMIT)
