"""``launch.sh``: what every machine of a job runs, whoever starts it there.

It goes to the work directory, exports the environment, runs the profile's setup lines, starts the
services beside the step, and ends with the command of the worker. In the templates ``<<name>>``
stands where a value goes; values are quoted by whoever fills them in.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping

from nemotron_style.runtime.errors import Problem, ProfileError, raise_all
from nemotron_style.runtime.run.plan import Plan
from nemotron_style.runtime.shell_environment import find_own_variables

WORKER = "nemotron_style.runtime.worker"
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

# The last lines of a script, from the plan and the command that they run.
Ending = Callable[[Plan, str], str]

# A driver of Ray joins the cluster that it finds, and hands its environment to all workers, which
# would take themselves for ranks of MPI or tasks of Slurm.
LEAVE_OTHERS = 'unset RAY_ADDRESS "${!SLURM_@}" "${!PMI_@}" "${!PMIX_@}" "${!MPI_@}" "${!OMPI_@}"'

# Only the named secrets, and no other line of the file, reach the environment. Of a pipe nothing is
# read, for which the job would wait as long as it may run.
READ_SECRETS = """
secrets=<<path>>
[ -f "$secrets" ] && [ "$(stat -Lc %a "$secrets")" = 600 ] || { echo <<refusal>> >&2; exit 2; }
while IFS= read -r line || [ -n "$line" ]; do
  case "$line" in <<names>>) export "${line?}" ;; esac
done < "$secrets"
"""

# On the first machine only. The step asks the service to stop; and it ends by itself once its
# parent, this shell and what it becomes, is gone.
START_SERVICE = """
if [ "${NODE_RANK:-0}" = 0 ]; then
  beside=<<attempts>>/"$NEMOTRON_STYLE_ATTEMPT"
  mkdir -p "$beside"
  NEMOTRON_STYLE_PARENT=$$ <<command>> >"$beside/log-0.txt" 2>&1 </dev/null &
fi
"""

# Signals go to every process of the job; this shell survives them to write the exit code down.
RECORD_EXIT = """
trap : TERM USR1
code=0
<<command>> || code=$?
echo "$code" > <<attempts>>/"$NEMOTRON_STYLE_ATTEMPT"/"exit-$NODE_RANK"
exit "$code"
"""


def fill(template: str, values: Mapping[str, object]) -> str:
    """A template with each ``<<name>>`` replaced by its value.

    In one pass, so that a value which looks like a marker stays as it is.
    """
    return re.sub(r"<<(\w+)>>", lambda marker: str(values[marker[1]]), template.strip("\n"))


def quote_attempts(plan: Plan) -> str:
    """The folder of a run's attempts as shell text."""
    return shlex.quote(str(plan.run_dir / "attempts"))


def exec_command(plan: Plan, command: str) -> str:
    """End a script by becoming ``command``."""
    return f"exec {command}"


def record_exit(plan: Plan, command: str) -> str:
    """End a script by running ``command``, and leave its exit code in the attempt's folder.

    Where many machines take part, this is how the culprit is told from those that it took along.
    """
    return fill(RECORD_EXIT, {"command": command, "attempts": quote_attempts(plan)})


def write_script(plan: Plan, *, seat: str = "", end: Ending = exec_command) -> str:
    """The text of ``launch.sh``.

    ``seat`` are lines that say which of the machines this is: they set ``NODE_RANK`` and, for more
    than one, ``MASTER_ADDR`` and ``MASTER_PORT``.

    Raises ``ProfileError`` for environment variables that a shell cannot hold.
    """
    raise_all(ProfileError, [*_check_environment(plan)])
    lines = [
        "#!/usr/bin/env bash",
        "set -euo pipefail",
        *([seat] if seat else []),
        *([LEAVE_OTHERS] if plan.launch == "ray" else []),
        f"cd {shlex.quote(plan.workdir)}",
        *write_exports(plan),
        *plan.setup,
        *(start_service(plan, name) for name in plan.services),
        end(plan, write_command(plan)),
    ]
    return "\n".join(lines) + "\n"


def write_exports(plan: Plan) -> Iterator[str]:
    """The profile's environment, the code, the secrets, and defaults for threads."""
    yield from (f"export {name}={shlex.quote(value)}" for name, value in sorted(plan.env.items()))
    if plan.snapshot:
        path = shlex.quote(plan.snapshot.path)
        yield f'export PYTHONPATH={path}"${{PYTHONPATH:+:$PYTHONPATH}}"'
    if plan.site.get("secrets_file") and plan.secrets:
        yield read_secrets(plan)
    if "OMP_NUM_THREADS" not in plan.env:
        # Every process would otherwise start a thread on each core, and they would fight.
        share = f"(n = $(nproc) / {plan.processes + len(plan.services)}) > 0 ? n : 1"
        yield f'export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-$(({share}))}}"'
    if "GOMP_SPINCOUNT" not in plan.env:
        # Idle threads of GNU OpenMP wait by spinning. By default they spin so long that two runs
        # on the same cores are many times slower instead of half as fast; where they hardly spin
        # at all, a small model alone gains nothing from its second thread.
        yield 'export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-10000}"'
    if "MKL_CBWR" not in plan.env:
        # Without it MKL's sums depend on where arrays lie in memory once two threads share a
        # product, and a run that goes on would differ in its last bits. On processors of other
        # makers the setting would select the slowest code, and the sums are equal without it.
        setting = 'export MKL_CBWR="${MKL_CBWR:-AUTO,STRICT}"'
        yield f"if grep -qs GenuineIntel /proc/cpuinfo; then {setting}; fi"


def read_secrets(plan: Plan) -> str:
    """Lines that export the plan's secrets out of a file that only its owner may read."""
    path = plan.site["secrets_file"]
    return fill(
        READ_SECRETS,
        {
            "path": shlex.quote(path),
            "refusal": shlex.quote(f"{path}: must be a file of mode 600"),
            "names": "|".join(f"{name}=*" for name in plan.secrets),
        },
    )


def start_service(plan: Plan, name: str) -> str:
    """Lines that start a service beside the step."""
    command = shlex.join([plan.python, "-m", WORKER, str(plan.run_dir / "plan.json"), name])
    attempts = quote_attempts(plan.services[name])
    return fill(START_SERVICE, {"attempts": attempts, "command": command})


def write_command(plan: Plan) -> str:
    """The command that executes a plan on one of its machines, as shell text."""
    target = [WORKER, str(plan.run_dir / "plan.json")]
    if not plan.has_ranks:
        return shlex.join([plan.python, "-m", *target])
    start = shlex.join([plan.python, "-m", "torch.distributed.run"])
    # By a file of this user's: with --standalone it would listen on every address of the machine
    # for state that it unpickles.
    meeting = '--rdzv-backend c10d --rdzv-conf store_type=file --rdzv-endpoint "$(mktemp)"'
    meeting += " --local-addr 127.0.0.1"
    if plan.nodes > 1:
        # Static rendezvous: rank 0 is on the machine that the address names, always.
        meeting = f'--nnodes {plan.nodes} --node-rank "$NODE_RANK"'
        meeting += ' --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT"'
    return f"{start} {meeting} --nproc-per-node {plan.processes} {shlex.join(['-m', *target])}"


def _check_environment(plan: Plan) -> Iterator[Problem]:
    if plan.snapshot and ":" in plan.snapshot.path:
        what = "a job finds its code by PYTHONPATH, which cannot hold a path with a colon"
        fix = "choose another store with $NEMOTRON_STYLE_HOME"
        yield Problem(where=f"store {plan.store}", what=what, fix=fix)
    for name, value in plan.env.items():
        if not VARIABLE.fullmatch(name):
            what = "is not a name of an environment variable"
            yield Problem(where=plan.where, key="env", what=what, got=repr(name))
        if "\0" in value:
            what = "holds a null character, which no environment can"
            yield Problem(where=plan.where, key=f"env.{name}", what=what)
    for name in find_own_variables(plan.env):
        what = "is set for each process by whoever starts the job"
        yield Problem(where=plan.where, key=f"env.{name}", what=what, fix="take it out")
