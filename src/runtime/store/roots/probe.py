"""Whether a bucket keeps the promise that a store needs: that of two creations one fails."""

from __future__ import annotations

import uuid

from nemotron_style.runtime.errors import Problem, StoreError
from nemotron_style.runtime.store.roots.object_path import ObjectPath

NO_EXCLUSIVE_CREATE = (
    "does not honour conditional writes (If-None-Match): it created one object twice, so that two "
    "runs could get the same version"
)


def check_bucket(root: ObjectPath) -> list[Problem]:
    """What is wrong with a bucket, asked by creating one object twice; it is removed again."""
    probe = root / "staging" / f"probe-{uuid.uuid4().hex}"
    try:
        probe.bucket.create(probe.key, b"")
        # The first may be refused where its answer was lost on the way; the second never wins.
        twice = probe.bucket.create(probe.key, b"")
        probe.bucket.delete([probe.key])
    except StoreError as error:
        return list(error.problems)
    fix = "choose a bucket that does, or a folder"
    return [Problem(where=str(root), what=NO_EXCLUSIVE_CREATE, fix=fix)] if twice else []
