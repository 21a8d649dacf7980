"""Small, tested building blocks that the recipes share."""

import warnings

# megatron-core says on import which optional kernels are missing; it then uses torch, as intended.
for _message in (
    "Transformer Engine and Apex are not installed",
    "Apex is not installed",
    "apex is not installed",
):
    warnings.filterwarnings("ignore", message=_message, category=UserWarning)
