"""A Ray cluster inside one job: the last lines of ``launch.sh`` where many machines take part.

The first machine starts Ray's head, waits for the others, and runs the command; the others lend
their machines to it until it is done. Each tells of itself by the same two resources that
NeMo-RL's own launcher announces: a unit for each of its workers, and the name of the cluster.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable
from functools import partial

from nemotron_style.runtime.launch.base import record_exit
from nemotron_style.runtime.run.attempt import ATTEMPT_VARIABLE

SECONDS_TO_GATHER = 600
SECONDS_BETWEEN_LOOKS = 2
UNITS = "worker_units"


def run_on_ray(
    *,
    nodes: int,
    units: int,
    folder: str,
    ending: Callable[[str], list[str]] | None = None,
) -> Callable[[str], list[str]]:
    """For ``write_script``: lines that form the cluster around a command.

    ``units`` are the workers of each machine; ``folder`` is shell text for where the attempts are
    kept, which all machines see. The exit code of the first machine is that of the command.
    ``ending`` runs a command and leaves its exit code, where ``record_exit`` does not fit.
    """
    end = ending or partial(record_exit, folder=folder)
    resources = shlex.quote(json.dumps({UNITS: units, "slurm_managed_ray_cluster": 1}))
    settings = [
        f"units={nodes * units} patience={SECONDS_TO_GATHER} pause={SECONDS_BETWEEN_LOOKS}",
        f"resources={resources}",
        f'over={folder}/"${ATTEMPT_VARIABLE}"/exit-0  # written when the command is done',
        'export RAY_ADDRESS="$MASTER_ADDR:$MASTER_PORT"',
    ]

    def write(command: str) -> list[str]:
        lead = fill(LEAD, command)
        return [
            *settings,
            *SHARED.strip().splitlines(),
            *lead,
            *JOIN.strip().splitlines(),
            *end("take_part"),
        ]

    return write


def fill(lines: str, command: str) -> Iterable[str]:
    """The lines with ``command`` in its place."""
    return lines.strip().replace("COMMAND", command).splitlines()


SHARED = r"""
take_part() { if [ "$NODE_RANK" = 0 ]; then lead; else join; fi; }
in_time() { [ "$SECONDS" -lt "$((started + patience))" ]; }
started=$SECONDS told=''
"""

LEAD = r"""
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
  COMMAND || code=$?
  ray stop || true
  return "$code"
}
"""

JOIN = r"""
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
