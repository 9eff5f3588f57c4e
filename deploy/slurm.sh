#!/usr/bin/env bash
# A run on a Slurm cluster, one Ray node a machine:
#
#   sbatch --nodes=2 deploy/slurm.sh my.yaml --shape node8 --runs s3://my-bucket/runs
#
# Submit the same line again, or let Slurm requeue it, and the run goes on from its last checkpoint.
# Before: a virtual environment with diptych on a disk that all machines share (DIPTYCH_ENV), and
# the bucket's credentials in ~/.aws, never in the command line.
#SBATCH --job-name=diptych
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
set -euo pipefail

if [ $# -eq 0 ]; then
  echo "usage: sbatch --nodes=N deploy/slurm.sh RECIPE [options of diptych train]" >&2
  exit 2
fi
env=${DIPTYCH_ENV:-$HOME/diptych}
export PATH="$env/bin:$PATH"
export RAY_AUTH_MODE=token

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
ip=$(getent ahostsv4 "${hosts[0]}" | awk 'NR == 1 {print $1}')
# A port of this job's own: two jobs of one user may share a machine's network.
port=$((20000 + SLURM_JOB_ID % 10000))

# This script runs on the first machine: the head. Its token file lies in the shared home.
diptych up --ip "$ip" --port "$port" --dashboard-port $((port + 10000))
trap 'diptych down || true' EXIT

if [ "${#hosts[@]}" -gt 1 ]; then
  others=$(IFS=,; echo "${hosts[*]:1}")
  # The step must live as long as the node does: Slurm ends what a step leaves behind.
  srun --nodes=$((${#hosts[@]} - 1)) --ntasks=$((${#hosts[@]} - 1)) --nodelist="$others" \
    bash -c "diptych join $ip:$port && exec sleep infinity" &
fi

diptych train "$@" --ray "$ip:$port" &
run=$!
# 120 s before the time is up, and when the job is taken: the run keeps a checkpoint and ends.
trap 'kill -TERM "$run"' TERM
code=0
wait "$run" || code=$?
if [ "$code" -gt 128 ]; then # the trap ended `wait`, not the run
  code=0
  wait "$run" || code=$?
fi
exit "$code"
