"""What makes every command start sooner; imported before all that takes time to import."""

from __future__ import annotations

import atexit
import gc
import sys
from importlib import import_module
from types import ModuleType
from typing import Any

# A command makes a few hundred thousand objects, nearly all of them for as long as it lives, and is
# done. To look through them for rings that nobody needs took a fifth of its time.
gc.set_threshold(100_000, 50, 50)
atexit.register(gc.freeze)  # at the end too: the process ends, and frees them all


class _NoPlugins(ModuleType):
    """Stands where pydantic looks for plug-ins: in what each installed package says of itself.

    A command needs none of them, and the search took a tenth of its time.
    """

    @staticmethod
    def get_plugins() -> tuple[()]:
        """No plug-ins."""
        return ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        sys.modules.pop(self.__name__)  # a pydantic that asks for something else gets its own
        return getattr(import_module(self.__name__), name)


_LOADER = "pydantic.plugin._loader"
sys.modules.setdefault(_LOADER, _NoPlugins(_LOADER))
