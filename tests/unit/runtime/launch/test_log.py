"""Logs that are read while they are written."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron_style.runtime.launch.log import LogReader


@pytest.mark.parametrize("character", ["a", "ü", "€", "𝄞"])
def test_a_character_that_is_half_written_waits_for_the_rest(
    tmp_path: Path, character: str
) -> None:
    path, data = tmp_path / "log", character.encode()
    for cut in range(len(data)):
        reader = LogReader(path)
        path.write_bytes(b"x" + data[:cut])
        assert reader.read() == "x"
        path.write_bytes(b"x" + data)
        assert reader.read() == character
        assert reader.read() == ""
    path.write_bytes(b"x\xff\xffy")
    assert LogReader(path).read() == "x\ufffd\ufffdy"


def test_a_file_that_is_not_there_yet_is_empty(tmp_path: Path) -> None:
    reader = LogReader(tmp_path / "log")
    assert reader.read() == ""
    (tmp_path / "log").write_text("one\n")
    assert reader.read() == "one\n"
