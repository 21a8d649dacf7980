"""Values that a shell, sbatch or Slurm would read something into arrive as they are."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.errors import ProfileError
from nemotron_style.runtime.launch.base import attempt_of

HOSTILE = {
    "SPACED": " two  spaces and a tab\t.",
    "QUOTED": "'single' \"double\" `touch {x}`",
    "CALLED": "$(touch {x}) ${{HOME}} $HOME \\$HOME \\",
    "ENDED": "; touch {x} && touch {x} | touch {x} & #comment",
    "WIDE": "Grüße, 世界, \N{PARTY POPPER}",
    "LINES": "one\n#SBATCH --nodes=7\ntouch {x}\r\nlast\n",
    "PATTERN": "%j %% %n *?[a-z] {{a,b}} ~ !! \x1b[31m\x7f",
    "EMPTY": "",
}


def fill(x: Path) -> dict[str, str]:
    return {name: value.format(x=x) for name, value in HOSTILE.items()}


def read_environment(path: Path) -> dict[str, str]:
    pairs = path.read_bytes().decode().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if pair)


def test_hostile_values_arrive_byte_for_byte_in_a_hostile_place(site: Any, tmp_path: Path) -> None:
    x, seen = tmp_path / "X", tmp_path / "seen"
    place = tmp_path / "sp ace; touch PWN #1 100%j 'q' $(touch PWN) é,"
    place.mkdir()
    values = fill(x)
    handle = site.submit(
        "mill/grow",
        workdir=str(place),
        store=str(place / "store"),
        env=values,
        setup=(f"env -0 > {seen}; pwd > {seen}.place",),
    )
    state = site.wait(handle)
    assert state.state == "COMPLETED", site.told(handle)
    arrived = read_environment(seen)
    assert {name: arrived.get(name) for name in values} == values
    assert Path(f"{seen}.place").read_text() == f"{place}\n"
    assert not x.exists()
    assert [path.name for path in tmp_path.rglob("*PWN*")] == [place.name]
    assert attempt_of(handle).log.read_text().count("4/4") == 1
    assert (handle.run_dir / f"job-{site.job_id(handle)}.txt").is_file()
    kept = site.cluster.run("scontrol", "write", "batch_script", site.job_id(handle), "-")
    assert kept == (handle.run_dir / "job.sbatch").read_text()


def test_a_secret_goes_by_its_name_and_no_other_goes_along(
    site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = "named 'and' $(odd)\nof two lines"
    monkeypatch.setenv("MILL_TOKEN", value)
    monkeypatch.setenv("OTHER_API_KEY", "another-secret-value")
    monkeypatch.setenv("SBATCH_ACCOUNT", "nobody")
    monkeypatch.setenv("SLURM_NNODES", "7")
    seen = tmp_path / "seen"
    handle = site.submit("mill/grow", secrets=("MILL_TOKEN",), setup=(f"env -0 > {seen}",))
    assert site.wait(handle).state == "COMPLETED", site.told(handle)
    arrived = read_environment(seen)
    assert arrived["MILL_TOKEN"] == value
    assert "OTHER_API_KEY" not in arrived
    assert "SBATCH_ACCOUNT" not in arrived
    assert arrived["SLURM_NNODES"] == "1"
    for path in handle.run_dir.rglob("*"):
        if path.is_file():
            assert b"$(odd)" not in path.read_bytes(), path


def test_a_secret_is_read_from_a_file_of_the_node(
    site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MILL_TOKEN", raising=False)
    seen, secrets = tmp_path / "seen", tmp_path / "secrets"
    secrets.write_text("MILL_TOKEN=from the file\nUNASKED_TOKEN=left there\n")
    secrets.chmod(0o600)
    told = {"secrets": ("MILL_TOKEN",), "secrets_file": str(secrets)}
    handle = site.submit("mill/grow", setup=(f"env -0 > {seen}",), **told)
    assert site.wait(handle).state == "COMPLETED", site.told(handle)
    arrived = read_environment(seen)
    assert arrived["MILL_TOKEN"] == "from the file"
    assert "UNASKED_TOKEN" not in arrived
    secrets.chmod(0o644)
    handle = site.submit("mill/grow", "steps=3", **told)
    state = site.wait(handle)
    assert (state.state, state.exit_code) == ("FAILED", 2)


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\\b", "a\tb", "a\x00b"])
@pytest.mark.parametrize("key", ["account", "constraint", "memory", "gres"])
def test_values_that_a_directive_cannot_hold_are_refused(site: Any, key: str, value: str) -> None:
    plan = site.plan("mill/grow").model_copy(update={"site": {key: value}})
    with pytest.raises(ProfileError) as caught:
        site.launcher.compile(plan)
    (problem,) = caught.value.problems
    assert (problem.where, problem.key, problem.got) == ("profile site", key, repr(value))


def test_hostile_directives_stay_one_value(site: Any, tmp_path: Path) -> None:
    hostile = f'x\' y; touch {tmp_path}/X #z "$(touch {tmp_path}/X)"'
    plan = site.plan("mill/grow", constraint=hostile)
    (problem,) = site.launcher.check(plan)
    assert "nvalid feature" in problem.got or "nvalid" in problem.got
    text = site.launcher.compile(plan).files["job.sbatch"]
    (line,) = (line for line in text.splitlines() if "constraint" in line)
    assert shlex.split(line.removeprefix("#SBATCH ")) == [f"--constraint={hostile}"]
    assert not (tmp_path / "X").exists()
