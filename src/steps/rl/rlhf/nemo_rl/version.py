"""Which NeMo-RL a configuration is for."""

from __future__ import annotations

from enum import StrEnum


class Version(StrEnum):
    """A NeMo-RL whose keys and rules are known, oldest first: ``version < Version.V0_7_0``."""

    V0_6_0 = "v0.6.0"
    V0_7_0 = "v0.7.0"
    HEAD = "head"  # the main branch of 2026-08-22, before v0.8.0
    V0_8_0 = "v0.8.0"

    @property
    def age(self) -> int:
        """The place in the order of release, from 0."""
        return list(Version).index(self)

    def __lt__(self, other: str) -> bool:
        return self.age < Version(other).age

    def __le__(self, other: str) -> bool:
        return self.age <= Version(other).age

    def __gt__(self, other: str) -> bool:
        return self.age > Version(other).age

    def __ge__(self, other: str) -> bool:
        return self.age >= Version(other).age
