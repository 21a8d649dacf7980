"""What Pyxis is told, by a stand-in that srun really loads, and how images are squashed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.launch.base import attempt_of

ENROOT = """#!/bin/bash
echo "enroot $*" >>"$ENROOT_LOG"
[ "$1" = import ] && [ "$2" = --output ] || exit 9
case $4 in *refused*) echo "no such manifest" >&2; exit 1 ;; esac
echo squashed >"$3"
"""


@pytest.fixture
def enroot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for enroot on the path; its log."""
    program, log = tmp_path / "bin" / "enroot", tmp_path / "enroot.log"
    program.parent.mkdir()
    program.write_text(ENROOT)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setenv("ENROOT_LOG", str(log))
    return log


def read_seen(path: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in path.read_text().splitlines())


def test_pyxis_is_told_of_image_mounts_and_variables(
    site: Any, fake_pyxis: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILL_TOKEN", "whatever it is")
    image, seen, data = tmp_path / "nemo 25.sqsh", tmp_path / "seen", tmp_path / "da ta"
    image.write_text("")
    data.mkdir()
    handle = site.submit(
        "mill/grow",
        image=str(image),
        mounts=(f"{data}:/data:ro,rprivate", f"{tmp_path}:{tmp_path}"),
        python=sys.executable,
        env={"COLOUR": "red"},
        secrets=("MILL_TOKEN",),
        setup=(f"env | grep ^FAKE_PYXIS > {seen}",),
    )
    assert site.wait(handle).state == "COMPLETED", site.told(handle)
    assert read_seen(seen) == {
        "FAKE_PYXIS_IMAGE": str(image),
        "FAKE_PYXIS_MOUNTS": f"{data}:/data:ro+rprivate,{tmp_path}:{tmp_path}",
        "FAKE_PYXIS_WORKDIR": str(site.mill.root),
        "FAKE_PYXIS_ENV": "COLOUR,MASTER_ADDR,MASTER_PORT,MILL_TOKEN,NEMOTRON_STYLE_ATTEMPT",
        "FAKE_PYXIS_NO_HOME": "1",
    }


def test_what_the_job_needs_is_mounted_where_no_mount_covers_it(
    site: Any, fake_pyxis: Any, tmp_path: Path
) -> None:
    image, seen = tmp_path / "nemo.sqsh", tmp_path / "seen"
    image.write_text("")
    setup = (f"env | grep ^FAKE_PYXIS_MOUNTS > {seen}",)
    handle = site.submit("mill/grow", image=str(image), python=sys.executable, setup=setup)
    assert site.wait(handle).state == "COMPLETED", site.told(handle)
    home, root = site.mill.home, site.mill.root
    assert read_seen(seen)["FAKE_PYXIS_MOUNTS"] == f"{home}:{home},{root}:{root}"


def test_an_image_is_imported_once(site: Any, fake_pyxis: Any, enroot: Path) -> None:
    told = {"image": "nvcr.io/nvidia/nemo:25.04", "python": sys.executable}
    for steps in (1, 2):
        handle = site.submit("mill/grow", f"steps={steps}", **told)
        assert site.wait(handle).state == "COMPLETED", site.told(handle)
    (image,) = (site.mill.home / "images").iterdir()
    assert image.name.startswith("nvcr.io-nvidia-nemo-25.04-")
    assert image.suffix == ".sqsh"
    (line,) = enroot.read_text().splitlines()
    assert line.endswith(" docker://nvcr.io#nvidia/nemo:25.04")
    site.wait(site.submit("mill/grow", "steps=3", squash=True, **told))
    assert len(enroot.read_text().splitlines()) == 2


def test_an_image_that_is_refused_is_what_the_job_says(
    site: Any, fake_pyxis: Any, enroot: Path
) -> None:
    handle = site.submit("mill/grow", image="refused:1")
    state = site.wait(handle)
    assert (state.state, state.exit_code) == ("FAILED", 1)
    assert state.reason == "enroot could not import the image"
    assert "no such manifest" in "".join(site.launcher.logs(handle))
    assert not [*attempt_of(handle).path.glob("exit-*")]


def test_an_image_that_is_not_there_is_found_before(site: Any, tmp_path: Path) -> None:
    mount = f"{tmp_path}/nowhere:/data"
    plan = site.plan("mill/grow", image=f"{tmp_path}/no.sqsh", mounts=(mount, "/raid9:/raid9"))
    problems = [problem for problem in site.launcher.check(plan) if problem.key]
    assert [(problem.key, problem.got) for problem in problems] == [
        ("mounts[0]", f"{tmp_path}/nowhere"),
        ("image", f"{tmp_path}/no.sqsh"),
    ]
