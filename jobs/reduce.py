"""Concept vectors, map and transplanted vectors as a Ray job; the options are those of `contrans reduce`."""

from contrans_dist.cli import run_script
from contrans_dist.cli.reducing import reduce

SUBMIT = """As a Ray job, from a checkout of the repository:

`ray job submit --working-dir . -- python jobs/reduce.py --source-contrast URI --target-contrast URI
--source-corpus URI --target-corpus URI --out s3://bucket/reduced`"""

if __name__ == "__main__":
    run_script(reduce, SUBMIT)
