"""``nemotron-style profiles``: where runs can take place."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from nemotron_style.runtime.cli.completion import complete_profile
from nemotron_style.runtime.cli.options import AsJson, command_group
from nemotron_style.runtime.cli.table import print_json, print_problems, print_table, render_pairs
from nemotron_style.runtime.errors import Problem, ProfileError
from nemotron_style.runtime.paths import show_path
from nemotron_style.runtime.profiles.files import is_base, read_profiles
from nemotron_style.runtime.profiles.model import Profile, load_profile

app = command_group("See where runs can take place.")

BASE = "extended by others; names no executor"
UNFIT = 2
ProfileName = Annotated[str, typer.Argument(autocompletion=complete_profile)]


@app.callback()
def _profiles() -> None:
    """A profile says where a run takes place; it never changes what the run computes."""


@app.command("list", epilog="\b\nExample:\n  nemotron-style profiles list")
def list_profiles(as_json: AsJson = False) -> None:
    """List the profiles of the package and of the project's env.toml.

    A table without an executor that others extend is no profile of its own.
    """
    whole: list[Profile] = []
    broken: dict[str, list[Problem]] = {}
    tables = read_profiles()
    bases = [name for name in tables if is_base(name, tables)]
    for name in sorted(set(tables).difference(bases)):
        try:
            whole.append(load_profile(name))
        except ProfileError as error:
            broken[name] = list(error.problems)
    if as_json:
        refused = {name: [one.as_dict() for one in problems] for name, problems in broken.items()}
        described = [describe(profile) for profile in whole]
        print_json({"profiles": described, "bases": sorted(bases), "broken": refused})
        return
    for name, problems in broken.items():
        print_problems(problems, label=f"profile {name} is left out")
    rows = [(each.name, str(each.executor), _origin(each), each.description) for each in whole]
    rows += [(name, "-", show_path(tables[name].path), BASE) for name in sorted(bases)]
    print_table(rows, header=("PROFILE", "EXECUTOR", "FILE", "WHAT IT IS"))


@app.command("show", epilog="\b\nExample:\n  nemotron-style profiles show slurm")
def show_profile(name: ProfileName, as_json: AsJson = False) -> None:
    """Show a profile with everything that it extends. Secrets are shown by name."""
    profile = load_profile(name)
    if as_json:
        print_json(describe(profile))
        return
    print(f"{profile.name} ({profile.executor}), from {_origin(profile)}\n")
    sys.stdout.write(render_pairs(_settings(profile).items()))


@app.command(
    "check",
    epilog="\b\nExamples:\n  nemotron-style profiles check slurm\n"
    "  nemotron-style profiles check slurm --json",
)
def check_one(name: ProfileName, as_json: AsJson = False) -> int:
    """Check whether runs with a profile could start; submit nothing. Exits with 0 or 2."""
    from nemotron_style.runtime.planning.profile_check import check_profile

    profile = load_profile(name)
    checks = check_profile(profile)
    sound = all(check.problem is None for check in checks)
    notes = list(profile.notes)
    if profile.ignored:
        notes.append(f"without effect here: {', '.join(profile.ignored)}")
    if as_json:
        results = [check.as_dict() for check in checks]
        print_json({"profile": profile.name, "ok": sound, "checks": results, "notes": notes})
        return 0 if sound else UNFIT
    rows = [("problem" if check.problem else "ok", check.name, check.text) for check in checks]
    rows += [("note", "", note) for note in notes]
    print_table(rows, header=("", "CHECK", "FOUND"))
    return 0 if sound else UNFIT


def describe(profile: Profile) -> dict[str, Any]:
    """A profile as plain data, with the file it stands in."""
    return {"origin": _origin(profile), "executor": profile.executor, **profile.summary()}


def _origin(profile: Profile) -> str:
    return show_path(profile.origin) if profile.origin else "built in"


def _settings(profile: Profile) -> dict[str, str]:
    settings = profile.summary() | {"mounts": [str(mount) for mount in profile.mounts]}
    named = {key: value for key, value in settings.items() if key not in ("name", "executor")}
    return {key: _join(value) for key, value in named.items() if value or key != "mounts"}


def _join(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
