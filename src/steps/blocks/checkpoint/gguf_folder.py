"""A model in a GGUF file as a Hugging Face folder, by transformers' own reader.

The file holds weights, sizes, tokenizer and chat template of one model, often quantised. What it
holds is dequantised to float32, which keeps every number of it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from nemotron_style.runtime.errors import InputError, Problem

NEEDED = ("transformers", "gguf", "accelerate")


def unpack_gguf(path: Path, work: Path) -> Path:
    """The folder of a model in safetensors: ``path`` itself, or ``work``, where its one ``.gguf``
    is unpacked.

    The model is held whole in float32 meanwhile. Raises InputError where there are several such
    files, packages are missing, or transformers cannot read the file.
    """
    files = sorted(path.glob("*.gguf"))
    if not files or any(path.glob("*.safetensors")):
        return path
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        what = "several GGUF files, and a model is one of them"
        fix = "give the file itself, or a folder that holds it alone"
        raise InputError(Problem(where=str(path), what=what, got=names, fix=fix))
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        what, fix = (
            f"reading GGUF needs {' and '.join(missing)}",
            "pip install 'nemotron-style[hf]'",
        )
        raise InputError(Problem(where=str(files[0]), what=what, fix=fix))
    _unpack(files[0], work)
    return work


def _unpack(file: Path, work: Path) -> None:
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    options = {"gguf_file": file.name, "local_files_only": True, "trust_remote_code": False}
    more = {}
    if hasattr(transformers, "GgufConfig"):  # earlier versions dequantise unasked
        more["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            file.parent, dtype=torch.float32, **options, **more
        )
        model.save_pretrained(work)
        del model
        transformers.AutoTokenizer.from_pretrained(file.parent, **options).save_pretrained(work)
    except Exception as error:  # of a damaged file, or an architecture that it does not know
        what, got = "transformers cannot read this GGUF file", str(error)[:300]
        raise InputError(Problem(where=str(file), what=what, got=got)) from error
