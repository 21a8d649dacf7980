"""Hashing in several threads."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron_style.runtime.store import digest


def test_files_hashed_in_threads_have_their_own_hashes_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        (tmp_path / f"{number:02d}").write_bytes(bytes([number]) * (20_000 - 900 * number))
    found = digest.find_files(tmp_path)
    alone = [digest.hash_file(each) for each in found]
    monkeypatch.setattr(digest, "_WORTH_THREADS", 0)
    monkeypatch.setattr(digest, "_count_cores", lambda: 4)
    assert digest.hash_files(found) == alone
    (tmp_path / "07").unlink()
    with pytest.raises(FileNotFoundError):
        digest.hash_files(found)
