"""A Ray cluster inside one job: the last lines of ``launch.sh`` where many machines take part.

The first machine starts Ray's head, waits for the others, and runs the command; the others lend
their machines to it until it is done. Each announces the same two resources that NeMo-RL's own
launcher does: a unit for each of its workers, and the name of the cluster.
"""

from __future__ import annotations

import json
import shlex

from nemotron_style.runtime.launch.launch_sh import Ending, fill, quote_attempts, record_exit
from nemotron_style.runtime.run.plan import Plan

SECONDS_TO_GATHER = 600
SECONDS_BETWEEN_LOOKS = 2

CLUSTER = r"""
units=<<units>> patience=<<patience>> pause=<<pause>>
resources=<<resources>>
over=<<attempts>>/"$NEMOTRON_STYLE_ATTEMPT"/exit-0  # written when the command is done
export RAY_ADDRESS="$MASTER_ADDR:$MASTER_PORT"
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
  local code=0
  ray start --head --node-ip-address="$MASTER_ADDR" --port="$MASTER_PORT" \
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
  until ray start --address="$RAY_ADDRESS" --resources="$resources" --disable-usage-stats; do
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
    units = int(plan.site.get("gpus_per_node") or 1)  # workers of each machine
    values = {
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
