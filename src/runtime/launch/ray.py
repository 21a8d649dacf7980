"""A Ray cluster inside one job: the last lines of ``launch.sh`` where many machines take part.

The first machine starts Ray's head, waits for the others, and runs the command; the others lend
their machines to it until it is done. Each announces the same two resources that NeMo-RL's own
launcher does: a unit for each of its workers, and the name of the cluster. What a job asks of a
single machine starts no cluster: a driver that finds none starts its own.
"""

from __future__ import annotations

import json
import shlex

from nemotron_style.runtime.launch.launch_sh import Ending, fill, quote_attempts, record_exit
from nemotron_style.runtime.run.plan import Plan

# What NeMo-RL binds by itself lies apart from these, in every version: generation, NeMo-Gym and
# vLLM below 9000 or above 11000.
FIRST_PORT, PORTS = 9000, 900
WORKER_PORTS = 10002, 11000
SECONDS_TO_GATHER = 600
SECONDS_BETWEEN_LOOKS = 2

CLUSTER = r"""
units=<<units>> patience=<<patience>> pause=<<pause>>
resources=<<resources>>
over=<<attempts>>/"$NEMOTRON_STYLE_ATTEMPT"/exit-0  # written when the command is done
ports='<<ports>>'
export RAY_ADDRESS="$MASTER_ADDR:$MASTER_PORT"
ulimit -Sn 65535 2>/dev/null || ulimit -Sn "$(ulimit -Hn)" || true  # a socket for each worker
take_part() { if [ "$NODE_RANK" = 0 ]; then lead; else join; fi; }
in_time() { [ "$SECONDS" -lt "$((started + patience))" ]; }
started=$SECONDS told=''
count_units() {
  local shown
  shown=$(ray status --address "$RAY_ADDRESS" 2>/dev/null |
    sed -n 's|^.*/\([0-9]*\)[.0-9]* worker_units.*$|\1|p' | head -n 1) || true
  echo "${shown:-0}"
}
lead() {
  local code=0 address  # Ray knows its machines by number, not by name
  address=$(getent ahostsv4 "$MASTER_ADDR" | awk '{print $1; exit}') || true
  # shellcheck disable=SC2086  # two words
  ray start --head --node-ip-address="${address:-$MASTER_ADDR}" --port="$MASTER_PORT" $ports \
    --resources="$resources" --disable-usage-stats || return 1
  until [ "$(count_units)" -ge "$units" ]; do
    if ! in_time; then
      echo "ray: $(count_units) of $units worker units after $patience seconds" >&2
      ray stop || true
      return 1
    fi
    sleep "$pause" || return 143
  done
  echo "ray: $units worker units at $RAY_ADDRESS"
  <<command>> || code=$?
  ray stop || true
  return "$code"
}
join() {
  trap 'told=1' TERM
  # shellcheck disable=SC2086
  until ray start --address="$RAY_ADDRESS" $ports --resources="$resources" \
    --disable-usage-stats; do
    if [ -e "$over" ] || ! in_time; then
      echo "ray: no head at $RAY_ADDRESS after $patience seconds" >&2
      return 1
    fi
    sleep "$pause" || return 143
  done
  until [ -e "$over" ] || [ -n "$told" ]; do sleep "$pause" || true; done
  ray stop || true
}
"""


def run_on_ray(plan: Plan, command: str, *, end: Ending = record_exit) -> str:
    """End a script by forming the cluster around ``command``.

    The exit code of the first machine is that of the command. ``end`` runs a machine's part and
    must leave its exit code in the attempt's folder, where all machines see it.
    """
    # Workers of each machine: where a compiler counted its GPUs, as many as it counted.
    units = int(plan.resources.get("gpus") or plan.site.get("gpus_per_node") or 1)
    low, high = WORKER_PORTS
    values = {
        "ports": f"--min-worker-port={low} --max-worker-port={high}",
        "units": plan.nodes * units,
        "patience": SECONDS_TO_GATHER,
        "pause": SECONDS_BETWEEN_LOOKS,
        "resources": shlex.quote(
            json.dumps({"worker_units": units, "slurm_managed_ray_cluster": 1})
        ),
        "attempts": quote_attempts(plan),
        "command": command,
    }
    return f"{fill(CLUSTER, values)}\n{end(plan, 'take_part')}"
