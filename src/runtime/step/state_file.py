"""Files that the attempts of a run leave to each other: whole, or as they were before."""

from nemotron_style.runtime.atomic import read_json as read_state
from nemotron_style.runtime.atomic import write_json as write_state
from nemotron_style.runtime.atomic import write_text as write_whole

__all__ = ["read_state", "write_state", "write_whole"]
