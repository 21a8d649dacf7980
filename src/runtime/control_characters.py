"""Control characters in text from elsewhere, written out so that they do nothing."""

from __future__ import annotations

import re

# C0 (but tab and newline), DEL, C1, marks and overrides of direction, other line ends, halves of
# surrogate pairs, annotations, invisible tags.
CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
    "\ufff9-\ufffb\U000e0000-\U000e007f]"
)


def show_controls(text: str) -> str:
    """``text`` with every control character but tab and newline written out: ``\\x1b``."""
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)
