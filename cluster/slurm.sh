#!/usr/bin/env bash
# A Ray cluster in a Slurm allocation, for one script: a head on the first node, a worker on each other one. It ends with
# the script, and with its exit code.
#     sbatch cluster/slurm.sh jobs/pipeline.py RECIPE.yaml --out /shared/runs/one
# README.md beside this file says what to change (marked CHANGE).
#SBATCH --nodes=2  # CHANGE
#SBATCH --gpus-per-node=4  # CHANGE: of each node; without GPUs, take the line out
#SBATCH --cpus-per-task=32  # CHANGE: cores of each node
#SBATCH --job-name=contrans
#SBATCH --ntasks-per-node=1
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --open-mode=append
set -euo pipefail

nodes=${SLURM_JOB_NUM_NODES:?expected a job of Slurm: sbatch cluster/slurm.sh jobs/SCRIPT.py ...}
cores=${SLURM_CPUS_PER_TASK:-1}
port=$((20000 + SLURM_JOB_ID % 10000))
scratch=/tmp/ray-$SLURM_JOB_ID # a short name: Ray makes sockets in it
address=$(hostname --all-ip-addresses | cut --delimiter=' ' --fields=1)

# A token for this cluster alone, in a file that all nodes see and only its owner can read.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$HOME/.ray/slurm-$SLURM_JOB_ID"
(
    umask 077
    mkdir -p "$HOME/.ray"
    python -c 'import secrets; print(secrets.token_hex(32))' >"$RAY_AUTH_TOKEN_PATH"
)

# Each part of the cluster is a step that ends with the job. No `ray stop`: it ends every Ray on a node, by name.
steps=()
# shellcheck disable=SC2317  # the trap calls it
end() {
    for step in "${steps[@]}"; do kill -TERM "$step" 2>/dev/null || true; done
    wait
    rm -f "$RAY_AUTH_TOKEN_PATH"
    srun --nodes="$nodes" --ntasks="$nodes" --overlap rm -rf "$scratch"
}
trap end EXIT

ray_start() { # number of nodes, which is the first, and what `ray start` is told
    srun --nodes="$1" --ntasks="$1" --relative="$2" --cpus-per-task="$cores" --overlap \
        ray start --block --disable-usage-stats --log-color=false --temp-dir="$scratch" \
        --num-cpus="$cores" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" \
        --min-worker-port=0 --max-worker-port=0 "${@:3}" &
    steps+=($!)
}
ray_start 1 0 --head --node-ip-address="$address" --port="$port" --include-dashboard=false \
    --ray-client-server-port=$((port + 10000))
if ((nodes > 1)); then
    ray_start $((nodes - 1)) 1 --address="$address:$port"
fi

# Work is dealt out among the nodes that are there when it begins.
export RAY_ADDRESS="$address:$port"
python - "$nodes" "${steps[@]}" <<'PYTHON'
import os
import sys
import time

import ray

nodes, *steps = map(int, sys.argv[1:])
alive, end = 0, time.monotonic() + 300
while alive < nodes:
    try:
        for step in steps:
            os.kill(step, 0)
    except ProcessLookupError:
        sys.exit("contrans: Ray did not start on every node; the lines above say why")
    if time.monotonic() > end:
        sys.exit(f"contrans: Ray started on {alive} of {nodes} nodes in five minutes")
    try:
        if not ray.is_initialized():
            ray.init(log_to_driver=False, logging_level="ERROR")
        alive = sum(node["Alive"] for node in ray.nodes())
    except (ConnectionError, RuntimeError, ValueError):
        pass  # the head is still starting
    time.sleep(1)
PYTHON

# Slurm says two minutes before the end that it is near. The script then ends, and keeps what is finished.
python -u "$@" &
script=$!
trap 'kill -TERM "$script"' TERM INT
code=0
wait "$script" || code=$?
while kill -0 "$script" 2>/dev/null; do
    code=0
    wait "$script" || code=$?
done
exit "$code"
