"""What makes every command start sooner; imported before all that takes time to import."""

from __future__ import annotations

import atexit
import gc

# A command makes a few hundred thousand objects, nearly all of them for as long as it lives, and is
# done. To look through them for rings that nobody needs took a fifth of its time.
gc.set_threshold(100_000, 50, 50)
atexit.register(gc.freeze)  # at the end too: the process ends, and frees them all
