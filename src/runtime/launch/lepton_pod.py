"""The inside of a Lepton pod, as shell text: where it sits, and how its first process behaves."""

from __future__ import annotations

import shlex
from collections.abc import Callable

from nemotron_style.runtime.launch.base import ATTEMPT_VARIABLE
from nemotron_style.runtime.plan import Plan

MEETING_PORT = 29400
TENTHS_FOR_LAST_LINES = 50


def write_seat(plan: Plan) -> list[str]:
    """Lines that say which of the job's pods this is, and where the first of them answers."""
    if plan.nodes == 1:
        return ["export NODE_RANK=0"]
    return [
        'export NODE_RANK="${LEPTON_JOB_WORKER_INDEX:?}"',
        'service="${LEPTON_JOB_SERVICE_PREFIX:-${LEPTON_JOB_NAME:?}}"',
        'export MASTER_ADDR="$service-0.${LEPTON_SUBDOMAIN:-$service-job-svc}"',
        f"export MASTER_PORT={MEETING_PORT}",
    ]


def stay_first(plan: Plan) -> Callable[[str], list[str]]:
    """How ``launch.sh`` ends: the shell stays the pod's first process and answers for it.

    Only the first process of a pod gets the signal that asks it to end, and the system gives that
    process no default for it. So the shell passes it on: as the file that workers look for, and
    as a signal. Output goes to Lepton's log and to the attempt's; the exit code is left in a file,
    which tells the culprit from the pods that it took along.
    """
    folder = shlex.quote(str(plan.run_dir / "attempts"))

    def write(command: str) -> list[str]:
        return [
            f'attempt={folder}/"${ATTEMPT_VARIABLE}"',
            "worker= again=",
            'trap \'again=1; echo "node $NODE_RANK was told to end" > "$attempt/stop"; '
            '[ -z "$worker" ] || kill -TERM "$worker" 2> /dev/null || true\' TERM INT USR1',
            'mkdir -p "$attempt"',
            'exec {log}> >(trap "" TERM INT USR1; exec tee -a "$attempt/log-$NODE_RANK.txt")',
            "writer=$!",
            f'{command} >&"$log" 2>&1 {{log}}>&- &',
            "worker=$!",
            "exec {log}>&-",
            "code=0",
            "while :; do",
            "  again= ended=0",
            '  wait "$worker" || ended=$?  # a signal ends the wait, and not the worker',
            '  [ "$ended" = 127 ] || code=$ended',
            '  [ -n "$again" ] || break',
            "done",
            f"for _ in {{1..{TENTHS_FOR_LAST_LINES}}}; do",
            '  kill -0 "$writer" 2> /dev/null || break',
            "  sleep 0.1  # the last lines",
            "done",
            'echo "$code" > "$attempt/.exit-$NODE_RANK"',
            'mv "$attempt/.exit-$NODE_RANK" "$attempt/exit-$NODE_RANK"',
            'exit "$code"',
        ]

    return write


def start_script(plan: Plan) -> str:
    """The shell becomes ``launch.sh``."""
    return shlex.join(["exec", "bash", str(plan.run_dir / "launch.sh")])
