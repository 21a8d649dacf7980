"""Which keys of a profile belong to which executor.

A profile may extend one that is written for another executor, or for none: what it inherits and
cannot use is left out. A key that a profile itself sets, and its executor does not know, is a
mistake.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nemotron_style.runtime.errors import Problem

LOCAL, SLURM, LEPTON = "local", "slurm", "lepton"
OWN_KEYS: Mapping[str, tuple[str, ...]] = {
    LOCAL: ("engine",),
    SLURM: (
        *("account", "partition", "attached_partition", "detached_partition", "qos", "gres"),
        *("constraint", "reservation", "exclusive", "tunnel", "host", "user", "identity"),
    ),
    LEPTON: (
        *("resource_shape", "node_group", "node_reservation", "image_pull_secrets", "priority"),
        *("upload", "custom_spec"),
    ),
}
OWNER = {key: executor for executor, keys in OWN_KEYS.items() for key in keys}

Links = Sequence[tuple[str, Mapping[str, Any]]]


def sort_keys(links: Links, known: Sequence[str]) -> tuple[list[str], list[Problem]]:
    """What to leave out of a chain of profiles, and a problem for each key out of place.

    ``links`` are (where, table) of the profile and of what it extends, itself first; ``known``
    are all keys that there are.
    """
    executor = _state(links) or LOCAL
    if executor not in OWN_KEYS:
        return [], []  # told of elsewhere
    inherited = [key for _, table in links[1:] for key in table]
    left_out = [key for key in inherited if OWNER.get(key, executor) != executor]
    return left_out, list(_misplaced(links, executor, known))


def _misplaced(links: Links, executor: str, known: Sequence[str]) -> Iterator[Problem]:
    for at, (where, table) in enumerate(links):
        meant = _state(links[at:])
        for key in table:
            owner = OWNER.get(key, executor)
            shared = at > 0 and meant in (None, owner)
            if owner == executor or shared:
                continue
            takes = [name for name in known if OWNER.get(name, executor) == executor]
            what = f"belongs to the {owner} executor, and this profile's is {executor}"
            fix = f'take it out, or set executor = "{owner}"'
            yield Problem(where=where, key=key, what=what, allowed=", ".join(takes), fix=fix)


def _state(links: Links) -> str | None:
    """The executor that a profile names, or the nearest that it extends."""
    return next((table["executor"] for _, table in links if "executor" in table), None)
