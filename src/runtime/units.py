"""Numbers, durations, sizes and dates as people read them."""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime

DAY = 86400


def format_number(value: object) -> str:
    """A measured number in at most four significant digits (``0.4497``, ``12.76k``).

    Whole numbers, words and everything else stay as they are: a count is exact.
    """
    if not isinstance(value, float):
        return str(value)
    size = abs(value)
    if 1e4 <= size < 1e15:
        exponent = min(int(math.log10(size * 1.00005)) // 3, 4)  # 999960 is 1M, not 1000k
        return f"{value / 1000**exponent:.4g}{' kMGT'[exponent]}"
    return f"{value:.4g}"


def format_duration(seconds: float) -> str:
    """``0.4s``, ``8.3s``, ``1m 20s``, ``2h 5m`` or ``3d 4h``: the two largest units."""
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    days, hours = divmod(whole // 3600, 24)
    minutes, rest = divmod(whole, 3600)[1] // 60, whole % 60
    parts = [(days, "d"), (hours, "h"), (minutes, "m"), (rest, "s")]
    first = next((at for at, (number, _) in enumerate(parts) if number), 3)
    return " ".join(f"{number}{unit}" for number, unit in parts[first : first + 2] if number)


def format_rate(per_second: float) -> str:
    """``2.5/s``, or ``4.2s each`` for slow work."""
    if per_second < 1:
        return f"{format_duration(1 / per_second)} each"
    return f"{format_number(per_second)}/s"


def format_size(size: float) -> str:
    """``695 B``, ``3.4 MB``: three significant digits, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def format_age(seconds: float, *, now: float | None = None) -> str:
    """How long ago a time (in seconds since the epoch) was; the date, after a month."""
    age = (time.time() if now is None else now) - seconds
    if age > 30 * DAY:
        return datetime.fromtimestamp(seconds, tz=UTC).astimezone().strftime("%Y-%m-%d")
    for unit, length in (("d", DAY), ("h", 3600), ("m", 60)):
        if age >= length:
            return f"{int(age // length)}{unit} ago"
    return "just now"


def format_time(seconds: float) -> str:
    """A time in seconds since the epoch as date and clock of this machine."""
    return datetime.fromtimestamp(seconds, tz=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def format_clock(seconds: float) -> str:
    """``14:02`` for a time of today, else the date and the clock of this machine."""
    text = format_time(seconds)
    is_today = text[:10] == format_time(time.time())[:10]
    return text[11:16] if is_today else text[:16]
