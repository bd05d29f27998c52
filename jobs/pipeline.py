"""A whole recipe as a Ray job, from texts to the report; the options are those of `contrans run`."""

from contrans_dist.cli import run_script
from contrans_dist.cli.runs import run

SUBMIT = """As a Ray job, from a checkout of the repository (recipe and texts may be files in it):

`ray job submit --working-dir . -- python jobs/pipeline.py RECIPE.yaml --out s3://bucket/run`"""

if __name__ == "__main__":
    run_script(run, SUBMIT)
