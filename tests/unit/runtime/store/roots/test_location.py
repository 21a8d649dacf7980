"""Which root a store has, and where its runs are when that is a bucket."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nemotron_style.runtime.errors import UsageError
from nemotron_style.runtime.store.roots.location import (
    choose_scratch,
    default_root,
    find_url,
    open_root,
    scratch_of,
)


def test_a_file_url_is_a_folder_and_a_bucket_has_a_shortest_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NEMOTRON_STYLE_HOME", raising=False)
    assert default_root(f"file://{tmp_path}/store") == tmp_path / "store"
    assert open_root(f"file://{tmp_path}/store") == (tmp_path / "store", None)
    assert default_root("S3://Bucket/a/b/") == "s3://Bucket/a/b"
    assert str(open_root("s3://bucket/a")[0] / "x") == "s3://bucket/a/x"
    assert find_url("/a/s3:/b") is None


@pytest.mark.parametrize(
    "url", ["s3://", "s3://bucket//x", "s3://bucket/../x", "s3://b/x?y", "s3://b/a\nb", "s3:///x"]
)
def test_a_url_that_could_lead_elsewhere_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="is not the URL of a store"):
        find_url(url)


def test_the_scratch_folder_is_that_of_the_environment_then_the_profile_then_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("NEMOTRON_STYLE_SCRATCH", raising=False)
    own = scratch_of("s3://b/x")
    assert own.parent == tmp_path / "cache" / "nemotron-style"
    assert own != scratch_of("s3://b-x")
    assert choose_scratch("s3://b/x", "/shared") == Path("/shared") / own.name
    monkeypatch.setenv("NEMOTRON_STYLE_SCRATCH", str(tmp_path))
    assert choose_scratch("s3://b/x", "/shared") == tmp_path / own.name
    assert choose_scratch(tmp_path, "/shared") is None


def test_a_path_of_a_bucket_is_no_path_of_this_machine() -> None:
    place = open_root("memory://name/a")[0] / "x" / "y.txt"
    assert (place.name, place.parent.name) == ("y.txt", "x")
    with pytest.raises(TypeError, match=r"Store.fetch brings an artifact here"):
        os.stat(place)
