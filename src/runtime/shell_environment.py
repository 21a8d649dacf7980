"""The part of the shell's environment that jobs, and the tools that we call, may see.

The rule: what a user sets for all their programs stays (paths, locale, proxies, libraries, caches,
threads, devices). What one launcher, tool or interpreter sets or reads as an *option* goes, since
it says something about another job, or changes what our command line says. What a job needs of it
stands in the profile's ``env`` or is set by whoever starts the job, after this.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

# A process's place among others, as torchrun tells it; a lone process has none.
RANK_NAMES = frozenset(
    (
        *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "NODE_RANK", "CROSS_RANK"),
        *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE"),
        *("LOCAL_SIZE", "CROSS_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"),
    )
)
RANK_PREFIXES = ("TORCHELASTIC_",)
# Where the processes meet: a profile may choose that.
_MEETING = ("MASTER_ADDR", "MASTER_PORT")
# Which job of ours a process belongs to.
_JOB_NAMES = ("NEMOTRON_STYLE_JOB", "NEMOTRON_STYLE_ATTEMPT", "NEMOTRON_STYLE_PARENT")

_PREFIXES = (
    *RANK_PREFIXES,
    *("PET_", "ACCELERATE_"),  # options of torchrun and accelerate
    # The same of other launchers, which libraries for training look for on their own.
    *("OMPI_", "PMI_", "PMIX_", "PRTE_", "MPI_LOCAL", "MV2_COMM_", "I_MPI_", "PALS_", "FLUX_"),
    *("JSM_NAMESPACE_", "LSB_", "PBS_", "LEPTON_JOB_"),
    # A job of Slurm around this shell, and the options of Slurm's commands.
    *("SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "SALLOC_", "SATTACH_", "SBCAST_", "SCANCEL_"),
    *("SCONTROL_", "SQUEUE_", "SINFO_", "SACCT_", "SACCTMGR_", "SPRIO_", "SSTAT_", "PYXIS_"),
    "GIT_",  # another repository, index or configuration
    "BASH_FUNC_",  # functions in the place of the commands that our scripts call
)
_NAMES = RANK_NAMES | frozenset(
    (
        *_JOB_NAMES,
        *("RAY_ADDRESS", "RAY_NAMESPACE", "RAY_JOB_ID", "RAY_JOB_CONFIG_JSON_ENV_VAR"),
        *("DOCKER_DEFAULT_PLATFORM", "PODMAN_USERNS"),  # defaults of `docker run`, `podman run`
        *("BASH_ENV", "BASHOPTS", "SHELLOPTS", "POSIXLY_CORRECT", "GLOBIGNORE", "CDPATH", "TMOUT"),
    )
)
_KEPT = frozenset(
    (
        *("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"),  # which cluster, and the login to it
        # `module load` in a profile's setup is such a function.
        *(f"BASH_FUNC_{name}%%" for name in ("module", "ml", "_module_raw", "switchml", "scl")),
        # Where modules are found, and how they are kept; not what the interpreter does.
        *("PYTHONPATH", "PYTHONUSERBASE", "PYTHONNOUSERSITE", "PYTHONSAFEPATH"),
        *("PYTHONPYCACHEPREFIX", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"),
        *("PYTHONFAULTHANDLER", "PYTHONHASHSEED", "PYTHONUTF8"),
    )
)
_PYTHON_OPTION = re.compile(r"PYTHON[A-Z]+")
# The variables that say where a container engine is.
ENGINE_HOSTS = ("DOCKER_HOST", "CONTAINER_HOST")


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that a job, or a tool that we call, inherits from the shell."""
    return {
        name: value
        for name, value in environment.items()
        if not _steers(name) and not (name in ENGINE_HOSTS and is_remote_engine(value))
    }


def find_rank_variables(environment: Mapping[str, str]) -> list[str]:
    """The names of variables that give a process a rank among others."""
    return [name for name in environment if name in RANK_NAMES or name.startswith(RANK_PREFIXES)]


def find_own_variables(environment: Mapping[str, str]) -> list[str]:
    """The names of variables that the launcher of a job sets, and no profile may."""
    ranks = [name for name in find_rank_variables(environment) if name not in _MEETING]
    return ranks + [name for name in environment if name in _JOB_NAMES]


def is_remote_engine(address: str) -> bool:
    """Whether the address of a container engine may lead to another machine."""
    return bool(address) and not address.startswith(("unix://", "/"))


def _steers(name: str) -> bool:
    if name in _KEPT:
        return False
    option = name in _NAMES or name.startswith(_PREFIXES)
    return option or _PYTHON_OPTION.fullmatch(name) is not None
