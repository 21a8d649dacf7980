"""Config keys that other systems call otherwise, which overrides may use."""

from __future__ import annotations

from nemotron_style.runtime.catalog.manifest import Manifest


def meant_keys(manifest: Manifest) -> dict[str, str]:
    """The slot-bound key that each of its other names means."""
    bound = manifest.bound_keys.items()
    return {other: key for key, slot in bound for other in slot.other_keys}
