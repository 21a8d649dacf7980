"""``exp_manager`` of NeMo-Aligner, whose keys decide little here."""

from __future__ import annotations

from nemotron_style.runtime.config.model import unused
from nemotron_style.steps.blocks.settings import training_config
from nemotron_style.steps.blocks.settings.fixed_value import fixed


class CheckpointCallback(training_config.CheckpointCallback):
    """``exp_manager.checkpoint_callback_params``; the ``save_top_k`` newest states stay."""

    monitor: str = fixed("val_loss", why="the produced model is chosen by the validation distance")
    mode: str = fixed("min", why="a smaller distance is better")
    save_nemo_on_train_end: bool = unused(False)
    save_best_model: bool = unused(False)


class ExpManager(training_config.ExpManager):
    """``exp_manager``, with the callback of this step."""

    checkpoint_callback_params: CheckpointCallback = CheckpointCallback()
