"""A small part of SmolLM2 with its own words, template and weights, for steps that take seconds.

Of the model there are the first layers, of the vocabulary the first tokens: in a byte-level BPE
those are the control tokens, the bytes and the earliest merges, so every text can still be said.
"""

from __future__ import annotations

import json
from pathlib import Path

LAYERS, TOKENS = 2, 2048


def cut_smollm2(source: Path, target: Path, *, answer_length: float = 12.0) -> Path:
    """Write the small model as a Hugging Face folder.

    What is left of the model says nothing, and would never end. Its ``<|im_end|>`` is made as
    likely as answers of about ``answer_length`` tokens want.
    """
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    model.model.layers = model.model.layers[:LAYERS]
    model.config.num_hidden_layers = LAYERS
    model.resize_token_embeddings(TOKENS)
    words = _cut_tokenizer(source, target)
    prompt = words.apply_chat_template(
        [{"role": "user", "content": "Name a river."}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    end = words.eos_token_id
    with torch.no_grad():
        hidden = model.model(**prompt).last_hidden_state[0, -1]
        others = (model.lm_head.weight @ hidden).logsumexp(0)
        wanted = others - torch.tensor(answer_length - 1).log()
        row = model.lm_head.weight[end]
        row += (wanted - row @ hidden) / hidden.square().sum() * hidden
    model.save_pretrained(target)
    return target


def _cut_tokenizer(source: Path, target: Path):
    import transformers

    words = transformers.AutoTokenizer.from_pretrained(source)
    words.save_pretrained(target)
    file = target / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    model = content["model"]
    kept = {text: number for text, number in model["vocab"].items() if number < TOKENS}
    merges = [one.split(" ") if isinstance(one, str) else one for one in model["merges"]]
    model["merges"] = [one for one in merges if {one[0], one[1], "".join(one)} <= kept.keys()]
    model["vocab"] = kept
    file.write_text(json.dumps(content), encoding="utf-8")
    return transformers.AutoTokenizer.from_pretrained(target)
