"""What a record tells is plain data without secrets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemotron_style.runtime.errors import ArtifactError
from nemotron_style.runtime.store.staged.evidence import reject_secret_values, to_plain


def test_secrets_are_found_as_json_writes_them_and_not_repeated() -> None:
    secret = 'pa"ss\\word-ü'
    text = json.dumps({"facts": {"note": f"token {secret}!"}}, indent=2, ensure_ascii=False)
    with pytest.raises(ArtifactError, match="note: holds a secret's value") as caught:
        reject_secret_values(text, ["unused-secret", secret], where="m")
    assert "pa" not in str(caught.value).replace("pass it", "")
    reject_secret_values(text, ["", "1", "absent-secret"], where="m")


def test_figures_that_are_no_numbers_are_kept_as_text() -> None:
    told = to_plain({"loss": float("nan"), "path": Path("a/b"), "pair": (1, None)}, key="metrics")
    assert told == {"loss": "nan", "path": "a/b", "pair": [1, None]}
    with pytest.raises(ArtifactError, match=r"facts\.a\[1\].*got object"):
        to_plain({"a": [1, object()]}, key="facts")
