"""The inside of a Lepton pod, as shell text: where it sits, and how its first process behaves."""

from __future__ import annotations

from functools import partial

from nemotron_style.runtime.launch.launch_sh import Ending, fill, quote_attempts, write_script
from nemotron_style.runtime.launch.ray import run_on_ray
from nemotron_style.runtime.run.plan import Plan

# The port at which processes meet, and tenths of a second for a log's last lines to arrive.
MEETING_PORT = 29400
TENTHS_FOR_LAST_LINES = 50

# Which of the job's pods this is, and where the first of them answers.
SEAT = """
export NODE_RANK="${LEPTON_JOB_WORKER_INDEX:?}"
service="${LEPTON_JOB_SERVICE_PREFIX:-${LEPTON_JOB_NAME:?}}"
export MASTER_ADDR="$service-0.${LEPTON_SUBDOMAIN:-$service-job-svc}"
export MASTER_PORT=<<port>>
"""

# Only the first process of a pod gets the signal that asks it to end, and the system gives that
# process no default for it. So the shell stays and passes it on. It does not wait for the worker
# itself, since a shell that is interrupted in that can forget how it ended; a second one, which no
# signal reaches, waits and says it.
STAY_FIRST = """
attempt=<<attempts>>/"$NEMOTRON_STYLE_ATTEMPT"
mkdir -p "$attempt"
worker= code= asked=
stop() {
  [ -z "$asked" ] || return 0
  asked=1
  echo "node $NODE_RANK was told to end" > "$attempt/stop"<<pass_on>>
}
trap stop TERM INT USR1
exec {log}> >(trap "" TERM INT USR1; exec tee -a "$attempt/log-$NODE_RANK.txt")
writer=$!
exec {words}< <(
  <<command>> >&"$log" 2>&1 {log}>&- &
  echo "$!"
  ended=0
  wait "$!" || ended=$?
  echo "$ended"
)
exec {log}>&-
hear() {  # a signal may come while it listens
  local heard
  while :; do
    heard=0; read -r "$1" <&"$words" || heard=$?
    [ "$heard" -gt 128 ] || return 0
  done
}
hear worker
hear code
for _ in {1..<<tenths>>}; do  # the last lines
  kill -0 "$writer" 2> /dev/null || break
  sleep 0.1
done
echo "${code:=137}" > "$attempt/.exit-$NODE_RANK"  # unsaid: it was killed
mv "$attempt/.exit-$NODE_RANK" "$attempt/exit-$NODE_RANK"
exit "$code"
"""
PASS_ON = '\n  [ -z "$worker" ] || kill -TERM "$worker" 2> /dev/null || true'


def write_pod_script(plan: Plan) -> str:
    """``launch.sh``, with which every pod starts. Raises ``ProfileError`` as ``write_script``."""
    seat = "export NODE_RANK=0" if plan.nodes == 1 else fill(SEAT, {"port": MEETING_PORT})
    end: Ending = stay_first
    if plan.launch == "ray" and plan.nodes > 1:
        # A shell function runs in this place, and no signal reaches what it has started; the
        # worker sees the file, and the other pods stay until it has saved.
        end = partial(run_on_ray, end=partial(stay_first, passes_on=False))
    return write_script(plan, seat=seat, end=end)


def stay_first(plan: Plan, command: str, *, passes_on: bool = True) -> str:
    """End a script so that its shell stays the pod's first process and answers for it.

    An order to end is passed on as the file that workers look for, and, if it ``passes_on``
    signals, once as a signal (a second one could hit a worker that has saved and is just leaving).
    Output goes to Lepton's log and to the attempt's; the exit code is left in a file, which tells
    the culprit from the pods that it took along.
    """
    values = {
        "attempts": quote_attempts(plan),
        "command": command,
        "pass_on": PASS_ON if passes_on else "",
        "tenths": TENTHS_FOR_LAST_LINES,
    }
    return fill(STAY_FIRST, values)
