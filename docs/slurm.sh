#!/bin/bash
# A run under SLURM that goes on by itself when its time is up or another job takes its place:
#
#   sbatch docs/slurm.sh --config davit --config.data.source=patches --workdir=runs/davit
#
# The arguments are those of `glomjax train`. Adapt the lines below to the cluster; for several
# processes (one for each node, or for each GPU) raise the number of tasks alone: srun tells each
# of them what it is. The folder of the run lies on a disk that all nodes share.
#SBATCH --job-name=glomjax
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gres=gpu:1
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# SIGTERM three minutes before the limit, in which the run saves where it is and ends.
#SBATCH --signal=TERM@180

cd "${SLURM_SUBMIT_DIR:-.}" || exit 2
# This shell gets SIGTERM as well where another job takes its place, and must outlive srun.
trap : TERM

srun "${PYTHON:-.venv/bin/python}" -m glomjax train "$@"
code=$?

# 143: SIGTERM came; 75: the time of --max-hours is up. The same command goes on from where it has
# saved. Anything else has come to its end, or is for somebody to look at; so has a job that scancel
# has ended, which is no longer running.
state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T 2> /dev/null)
case "$code $state" in
    "143 CANCELLED" | "143 COMPLETING") ;;
    143* | 75*)
        echo "the job is put back into the queue, and goes on from there"
        scontrol requeue "$SLURM_JOB_ID"
        ;;
esac
exit "$code"
