"""Score a steered model as a Ray job; the options are those of `contrans evaluate`."""

from contrans_dist.cli import run_script
from contrans_dist.cli.steered import evaluate

SUBMIT = """As a Ray job, from a checkout of the repository (`--data` may be a file in it; repeat `--vector`):

`ray job submit --working-dir . -- python jobs/evaluate.py --model MODEL --benchmark emotions --data FILE
--vector s3://bucket/reduced/vectors/vector/fear.safetensors --out s3://bucket/evaluation`"""

if __name__ == "__main__":
    run_script(evaluate, SUBMIT)
