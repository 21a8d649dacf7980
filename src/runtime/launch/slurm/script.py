"""The text of a Slurm batch script, from plain values.

Slurm runs the script on the first node of a job. It starts ``launch.sh`` once on every node and
writes down what became of it, so that the state of a job can be read without Slurm, long after
Slurm has forgotten it. What it finds out is for everybody on the shared disk: the time limit is
passed on to the workers through a file (a signal would kill torchrun and orphan them).

Its argument is the number of the attempt that it was submitted as; when Slurm starts the same job
again, the attempts after it are its own.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from nemotron_style.runtime.launch.launch_sh import fill

# Below the ports that the system hands out by itself, which begin at 32768.
FIRST_PORT, PORTS = 20000, 12000

OPEN = """
set -uo pipefail
unset SLURM_EXPORT_ENV  # or srun would pass on less than there is
run=<<run_dir>>
requeues=<<requeues>>
patience=<<patience>>
detached=<<detached>>
restart=${SLURM_RESTART_COUNT:-0}
number=$(($1 + restart))
attempt=$run/attempts/$number
export NEMOTRON_STYLE_ATTEMPT=$number
"""

BEGIN = r"""
put() {  # name, text: a file of the attempt, whole at once
  printf '%s\n' "$2" >"$attempt/.$1.$SLURM_JOB_ID"
  mv -f "$attempt/.$1.$SLURM_JOB_ID" "$attempt/$1"
}
handle=$(printf '{"executor": "slurm", "id": "%s"}' "$SLURM_JOB_ID")
if [ "$restart" -gt 0 ] && [ ! -d "$attempt" ]; then  # Slurm started the job again
  aside=$run/attempts/.$number.$SLURM_JOB_ID
  mkdir -p "$aside"
  printf '%s\n' "$handle" >"$aside/job.json"
  printf '{"state": "PENDING", "started": %s, "executor": "slurm", "detached": %s}\n' \
    "$(date +%s)" "$detached" >"$aside/attempt.json"
  mv -T "$aside" "$attempt"
fi
[ -e "$attempt/job.json" ] || put job.json "$handle"
if ! grep -qF "\"$SLURM_JOB_ID\"" "$attempt/job.json"; then
  echo "attempt $number belongs to another job; this one gives way"
  exit 1
fi
echo "attempt $number on $SLURM_JOB_NODELIST"
"""

RECORD = r"""
record() {  # state, exit code, reason
  put batch.json "$(printf '{"state": "%s", "exit_code": %s, "reason": "%s", "time": %s}' \
    "$1" "$2" "$3" "$(date +%s)")"
}
finish() { record "$@"; exit "$2"; }
worker() { sed -n 's/.*"state": *"\([A-Z]*\)".*/\1/p' "$attempt/attempt.json" | head -n 1; }
codes() { sed -n 's/.*"exit_code": *\([0-9]*\).*/\1/p' "$@" 2>/dev/null; }
culprit() {  # the code of whoever failed first: by the workers, else by the nodes, else by srun
  local code
  for code in $(codes "$attempt/attempt.json" "$attempt"/failure-*.json) \
    $(cat "$attempt"/exit-* 2>/dev/null); do
    case $code in 0 | 130 | 137 | 143) ;; *) echo "$code" && return ;; esac
  done
  echo "$1"
}
"""

LISTEN = r"""
interrupted='' limit='' late='' ended=''
on_limit() {
  interrupted=1 limit=1
  if [ "$restart" -lt "$requeues" ]; then
    record REQUEUED null 'the time limit is near'  # first: a worker that stops is not the end
    (sleep "$patience"; kill -USR2 "$$") &  # who does not stop by then begins again all the same
  fi
  put stop 'the time limit is near'
}
trap on_limit USR1
trap 'interrupted=1 late=1' USR2
trap 'interrupted=1 ended=1' TERM
restarts() { scontrol -o show job "$SLURM_JOB_ID" | sed -n 's/.* Restarts=\([0-9]*\).*/\1/p'; }
if [ "$restart" -gt 0 ]; then  # whatever ended the attempt before, it was not the end
  (attempt=$run/attempts/$((number - 1))
    grep -qs REQUEUED "$attempt/batch.json" || record REQUEUED null 'Slurm started it again')
fi
record RUNNING null ''
"""

MEET = r"""
# Addresses, because names need not resolve everywhere.
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_ADDR=$(scontrol -o show node "$head" |
  sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
export MASTER_ADDR=${MASTER_ADDR:-$head}
export MASTER_PORT=$((<<first_port>> + SLURM_JOB_ID % <<ports>>))
"""

IMPORT_IMAGE = """
image=<<image>>
if <<again>>[ ! -e "$image" ]; then
  mkdir -p "${image%/*}"
  rm -f "$image.$SLURM_JOB_ID"
  enroot import --output "$image.$SLURM_JOB_ID" <<origin>> &&
    mv -f "$image.$SLURM_JOB_ID" "$image" ||
    finish FAILED 1 'enroot could not import the image'
fi
"""

STEP = """
<<srun>> \\
  bash "$run/launch.sh" &
step=$!
while :; do  # a signal interrupts the waiting
  interrupted=''
  wait "$step"; code=$?
  [ -n "$interrupted" ] && [ -z "$late" ] || break
done
"""

CONCLUDE = r"""
if [ -e "$run/outputs.json" ]; then finish COMPLETED 0 ''; fi
if [ -e "$attempt/cancel.json" ]; then finish CANCELLED 130 'cancelled'; fi
if [ -n "$ended" ] && [ "$(restarts)" -gt "$restart" ]; then
  record REQUEUED null 'Slurm took its nodes'
  exit 0
fi
if [ -n "$limit" ] && [ "$(worker)" != FAILED ]; then
  if [ -z "$ended" ] && [ "$restart" -lt "$requeues" ]; then
    record REQUEUED null 'reached its time limit'
    trap 'exit 0' TERM  # which is how Slurm takes the job back
    if scontrol requeue "$SLURM_JOB_ID"; then sleep 600 & wait; fi
    trap '' TERM
  fi
  finish TIMEOUT 124 'reached its time limit'
fi
if [ -n "$ended" ]; then finish CANCELLED 130 'cancelled'; fi
if [ "$(worker)" = CANCELLED ]; then finish CANCELLED 130 'asked to stop'; fi
if [ "$(worker)" = COMPLETED ]; then finish COMPLETED 0 ''; fi
if [ "$code" -eq 0 ]; then finish FAILED 1 'ended without its outputs'; fi
finish FAILED "$(culprit "$code")" ''
"""


@dataclass(frozen=True, kw_only=True)
class Container:
    """What Pyxis is told. ``origin`` is set where ``image`` is yet to be imported from there."""

    image: str
    mounts: str
    variables: tuple[str, ...]
    workdir: str
    origin: str | None = None
    renew: bool = False


@dataclass(frozen=True, kw_only=True)
class BatchJob:
    """One job. ``directives`` are sbatch's long options in their order; None for a bare flag.

    ``patience`` are the seconds that workers have to stop in when they are told of the limit.
    """

    directives: tuple[tuple[str, str | None], ...]
    run_dir: str
    nodes: int
    detached: bool = False
    max_requeues: int = 0
    patience: int = 90
    cpus_per_task: int | None = None
    container: Container | None = None


def write_batch_script(job: BatchJob) -> str:
    """The whole text. Values must be free of control characters and backslashes."""
    opening = {
        "run_dir": shlex.quote(job.run_dir),
        "requeues": job.max_requeues,
        "patience": job.patience,
        "detached": str(job.detached).lower(),
    }
    parts = [
        "\n".join(["#!/bin/bash", *(write_directive(*each) for each in job.directives)]),
        fill(OPEN, opening),
        BEGIN,
        RECORD,
        LISTEN,
        fill(MEET, {"first_port": FIRST_PORT, "ports": PORTS}) if job.nodes > 1 else "",
        write_import(job.container) if job.container else "",
        fill(STEP, {"srun": write_srun(job)}),
        CONCLUDE,
    ]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def write_directive(name: str, value: str | None) -> str:
    """One ``#SBATCH`` line; sbatch reads quotes there as a shell does."""
    return f"#SBATCH --{name}" if value is None else f"#SBATCH --{name}={shlex.quote(value)}"


def escape_pattern(path: str) -> str:
    """A path where Slurm would replace ``%j`` and the like."""
    return path.replace("%", "%%")


def write_import(container: Container) -> str:
    """Lines that import the image where it has an ``origin`` and is not there yet."""
    if container.origin is None:
        return ""
    values = {
        "image": shlex.quote(container.image),
        "again": '[ "$restart" -eq 0 ] || ' if container.renew else "",
        "origin": shlex.quote(container.origin),
    }
    return fill(IMPORT_IMAGE, values)


def write_srun(job: BatchJob) -> str:
    """The command that starts one task on every node, over several lines."""
    flags = [f"srun --nodes={job.nodes} --ntasks={job.nodes} --ntasks-per-node=1"]
    if job.cpus_per_task:
        flags.append(f"--cpus-per-task={job.cpus_per_task}")  # srun does not take the job's own
    # A node that fails ends the others. One that is done does not (--wait=0): the first node may
    # be busy with hashing and committing what all of them made.
    flags.append("--kill-on-bad-exit=1 --wait=0 --export=ALL")
    flags.append(r'--output="${attempt//\%/%%}/log-%n.txt"')
    if job.container:
        flags += [
            f"--container-image={shlex.quote(job.container.image)}",
            f"--container-mounts={shlex.quote(job.container.mounts)}",
            f"--container-workdir={shlex.quote(job.container.workdir)}",
            f"--container-env={','.join(job.container.variables)}",
            "--no-container-mount-home",
        ]
    return " \\\n  ".join(flags)
