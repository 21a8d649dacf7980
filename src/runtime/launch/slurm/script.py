"""The text of a Slurm batch script.

Slurm runs the script on the first node of a job. It starts ``launch.sh`` once on every node and
records how that ended, so that the state of a job can be read without Slurm, long after Slurm has
forgotten it. The time limit is passed on to the workers through a file on the shared disk (a
signal would kill torchrun and orphan them).

Its argument is the number of the attempt that it was submitted as; when Slurm starts the same job
again, the attempts after it are its own.
"""

from __future__ import annotations

import json
import shlex

from nemotron_style.runtime.errors import ProfileError, raise_all
from nemotron_style.runtime.launch import ray
from nemotron_style.runtime.launch.launch_sh import fill
from nemotron_style.runtime.launch.slurm import job
from nemotron_style.runtime.run.attempt import ATTEMPT_VARIABLE
from nemotron_style.runtime.run.plan import Plan

# Set by our own scripts in the job's environment; an image must not replace them.
SCRIPT_VARIABLES = (ATTEMPT_VARIABLE, "MASTER_ADDR", "MASTER_PORT")

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
handle=$(printf '{"executor": "slurm", "id": "%s", "cluster": "%s", %s}' \
  "$SLURM_JOB_ID" "${SLURM_CLUSTER_NAME:-}" <<place>>)
if [ "$restart" -gt 0 ] && [ ! -d "$attempt" ]; then  # Slurm started the job again
  aside=$run/attempts/.$number.$SLURM_JOB_ID
  mkdir -p "$aside"
  printf '%s\n' "$handle" >"$aside/job.json"
  printf '{"state": "PENDING", "started": %s, "executor": "slurm", "detached": %s}\n' \
    "$(date +%s)" "$detached" >"$aside/attempt.json"
  mv -T "$aside" "$attempt"
fi
grep -qs '"id"' "$attempt/job.json" || put job.json "$handle"
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
# Another one after each restart: where Slurm has no cgroups, what was killed may hold the old one.
export MASTER_PORT=$((<<first_port>> + (SLURM_JOB_ID + 331 * restart) % <<ports>>))
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
    trap '' USR1 USR2  # or one that is still to come would end the wait below
    trap 'exit 0' TERM  # which is how Slurm takes the job back
    for pause in 1 2 4 8 16 32; do  # a busy controller may refuse at first
      if scontrol requeue "$SLURM_JOB_ID"; then pause=600; fi
      # After a refusal too: what takes the job back ends a scontrol that has not heard the answer.
      sleep "$pause" & wait "$!"
    done
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


def write_batch_script(plan: Plan) -> str:
    """The whole text. Raises ``ProfileError`` with every value that it or Pyxis cannot hold."""
    raise_all(ProfileError, [*job.find_unwritable(plan), *job.find_unmountable(plan)])
    opening = {
        "run_dir": shlex.quote(str(plan.run_dir)),
        "requeues": int(plan.site.get("max_requeues", 0)),
        # How long workers may take to stop before the job is requeued all the same.
        "patience": max(1, job.count_grace(plan) * 3 // 4),
        "detached": str(plan.detached).lower(),
    }
    # sbatch reads quotes in its lines as a shell does.
    options = [
        f"#SBATCH --{name}" if value is None else f"#SBATCH --{name}={shlex.quote(value)}"
        for name, value in job.list_options(plan)
    ]
    parts = [
        "\n".join(["#!/bin/bash", *options]),
        fill(OPEN, opening),
        fill(BEGIN, {"place": shlex.quote(write_place(plan))}),
        RECORD,
        LISTEN,
        write_meeting(plan) if plan.nodes > 1 else "",
        write_import(plan),
        fill(STEP, {"srun": write_srun(plan)}),
        CONCLUDE,
    ]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def write_meeting(plan: Plan) -> str:
    """Lines that say where the processes of all nodes meet."""
    first, count = (ray.FIRST_PORT, ray.PORTS) if plan.launch == "ray" else (FIRST_PORT, PORTS)
    return fill(MEET, {"first_port": first, "ports": count})


def write_place(plan: Plan) -> str:
    """The part of ``job.json`` that tells the job from others of its number, as JSON."""
    place = {"name": plan.run_id, "folder": str(plan.run_dir)}
    return json.dumps(place, ensure_ascii=False)[1:-1]


def write_import(plan: Plan) -> str:
    """Lines that import a referenced image, unless it is there and not to be renewed."""
    if not plan.image or plan.image.startswith("/"):
        return ""
    values = {
        "image": shlex.quote(job.name_image_file(plan)),
        "again": '[ "$restart" -eq 0 ] || ' if plan.site.get("force_squash") else "",
        "origin": shlex.quote(job.write_uri(plan.image)),
    }
    return fill(IMPORT_IMAGE, values)


def write_srun(plan: Plan) -> str:
    """The command that starts one task on every node, over several lines."""
    flags = [f"srun --nodes={plan.nodes} --ntasks={plan.nodes} --ntasks-per-node=1"]
    cpus = plan.site.get("cpus_per_task")
    if cpus:
        flags.append(f"--cpus-per-task={cpus}")  # srun does not take the job's own
    # A node that fails ends the others. One that is done does not (--wait=0): the first node may
    # be busy with hashing and committing what all of them made.
    flags.append("--kill-on-bad-exit=1 --wait=0 --export=ALL")
    flags.append(r'--output="${attempt//\%/%%}/log-%n.txt"')
    if plan.image:
        flags += [
            f"--container-image={shlex.quote(job.name_image_file(plan))}",
            f"--container-mounts={shlex.quote(','.join(job.write_mounts(plan)))}",
            f"--container-workdir={shlex.quote(plan.workdir)}",
            f"--container-env={','.join(sorted({*SCRIPT_VARIABLES, *plan.env, *plan.secrets}))}",
            "--no-container-mount-home",
        ]
    return " \\\n  ".join(flags)
