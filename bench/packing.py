"""Cost of an update of ``sft/chat`` on ragged rows, as ratios of CPU time in one process.

    OMP_NUM_THREADS=1 python bench/packing.py [smoke]

An update of 64 conversations: forward, backward, clipping and AdamW, packed without padding, padded
with like lengths together, and padded four by four as they come, the usual form. With the
interpreter of an environment that has TRL (``make bench-trl``) also TRL's ``SFTTrainer`` on the
same rows and weights: ``padding_free``, four rows in a pass, and ``packing`` into rows of 1,024
tokens (``bfd``).

Lengths are log-normal with the median 190 and the deviation .95, between 16 and 1,024 tokens: a
prompt of a user of some tens of tokens with an answer of one to five hundred, and a few long ones.
They are drawn here from a fixed seed. All tokens but the first are trained, as TRL does.

*Equal:* weights, float32, rows, optimizer, attention by torch's fused kernel. *Not equal:* TRL's
``training_step`` is timed alone, on batches that its collator made beforehand, without its loop
and data loader, to its advantage; it takes means of passes where ours is one mean of all tokens.
"""

from __future__ import annotations

import importlib.util
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from measure import SMOKE, compare
from torch import Tensor, nn
from twin import hugging_face

from nemotron_style.steps.blocks.model import parallel
from nemotron_style.steps.blocks.model.language_model import build_model
from nemotron_style.steps.blocks.model.prefix_packing import Row, pack_rows
from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from nemotron_style.steps.blocks.settings.optimizer_config import OptimConfig
from nemotron_style.steps.blocks.training.microbatch import (
    accumulate_gradients,
    accumulate_nll,
    count_tokens,
)
from nemotron_style.steps.blocks.training.optimizer import build_optimizer

LONGEST, PASS_ROWS, LR = 1024, 4, 1e-5
ROWS = 8 if SMOKE else 64
CONFIG = ModelConfig(
    num_layers=4,
    hidden_size=256,
    ffn_hidden_size=704,
    num_attention_heads=8,
    num_query_groups=4,
    vocab_size=2048,
    max_sequence_length=LONGEST,
)


def chat_rows() -> list[Row]:
    """Rows of the lengths of chats, every token but the first trained."""
    draw = random.Random(0)
    lengths = [max(16, min(LONGEST, int(draw.lognormvariate(5.25, 0.95)))) for _ in range(ROWS)]
    return [
        Row([draw.randrange(CONFIG.vocab_size) for _ in range(n)], [False, *[True] * (n - 1)])
        for n in lengths
    ]


class Theirs:
    """Updates by TRL's trainer."""

    def __init__(self, model: nn.Module, rows: Sequence[Row], folder: Path, **how: Any) -> None:
        from datasets import Dataset
        from tokenizers import Tokenizer, models
        from transformers import PreTrainedTokenizerFast, PrinterCallback, ProgressCallback
        from trl import SFTConfig, SFTTrainer

        words = {str(number): number for number in range(CONFIG.vocab_size)}
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel(words, "0")), pad_token="0", eos_token="1"
        )
        settings = SFTConfig(
            output_dir=str(folder),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=PASS_ROWS,
            learning_rate=LR,
            lr_scheduler_type="constant",
            optim="adamw_torch_fused",
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            **how,
        )
        dataset = Dataset.from_list([{"input_ids": list(row.ids)} for row in rows])
        self.trainer = SFTTrainer(
            model=model, args=settings, train_dataset=dataset, processing_class=tokenizer
        )
        self.trainer.remove_callback(PrinterCallback)
        self.trainer.remove_callback(ProgressCallback)
        self.trainer.create_optimizer()
        self.model = model.train()
        taken = 1 if how.get("packing") else PASS_ROWS
        data = list(self.trainer.train_dataset)
        parts = [data[first : first + taken] for first in range(0, len(data), taken)]
        self.batches = [self.trainer.data_collator(part) for part in parts]
        self.trainer.current_gradient_accumulation_steps = len(self.batches)

    def step(self) -> None:
        for batch in self.batches:
            self.trainer.training_step(self.model, dict(batch), None)
        self.trainer.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
        self.trainer.optimizer.step()
        self.model.zero_grad()


def main() -> None:
    torch.set_num_threads(1)
    parallel.initialize(seed=0)
    rows = chat_rows()
    tokens = count_tokens(rows)
    model = build_model(CONFIG)
    optimizer = build_optimizer(model, OptimConfig(lr=LR))

    def update(most: int | None) -> None:
        nll = accumulate_nll(model, rows, max_responses=PASS_ROWS, max_tokens=most)
        optimizer.step(LR, step=1, loss=nll / tokens)

    def update_as_they_come() -> None:
        parts = [rows[first : first + PASS_ROWS] for first in range(0, ROWS, PASS_ROWS)]
        passes = [(pack_rows(part), None) for part in parts]
        nll = accumulate_gradients(model, passes, share_of_nll)
        optimizer.step(LR, step=1, loss=float(sum(nll)))

    def share_of_nll(logprobs_BNR: Tensor, _facts: None) -> tuple[Tensor, Tensor]:
        nll = -logprobs_BNR.sum() / tokens
        return nll, nll.detach()

    variants: dict[str, Callable[[], object]] = {
        "packed": lambda: update(PASS_ROWS * LONGEST),
        "padded, like lengths together": lambda: update(None),
        "padded, as they come": update_as_they_come,
    }
    with tempfile.TemporaryDirectory() as folder:
        if importlib.util.find_spec("trl"):
            free = {"padding_free": True, "max_length": None}
            packed = {"packing": True, "max_length": LONGEST}
            for name, how in (("TRL, padding_free", free), ("TRL, packing", packed)):
                other = hugging_face(model, CONFIG, torch.float32)
                variants[name] = Theirs(other, rows, Path(folder), **how).step
        else:
            print("TRL is not here: make bench-trl measures against it")
        compare(f"an update of {ROWS} chats, {tokens} tokens", variants, rounds=3)


if __name__ == "__main__":
    main()
