"""What is wrong with a model of NeMo, seen before the conversion starts; no torch is imported."""

from __future__ import annotations

from nemotron_style.runtime.errors import InputError
from nemotron_style.runtime.step.compiled import CompiledJob, JobSite
from nemotron_style.steps.convert.nemo_to_megatron.archive import is_compressed, open_files
from nemotron_style.steps.convert.nemo_to_megatron.config import Config
from nemotron_style.steps.convert.nemo_to_megatron.description import describe


def compile_job(config: Config, site: JobSite) -> CompiledJob:
    """Notes on the model, and all that is wrong with its config, layout and tokenizer."""
    path = site.files.get("model")
    if path is None:
        return CompiledJob()
    if is_compressed(path):
        return CompiledJob(notes=("model: is compressed, and looked at when it is unpacked",))
    try:
        files = open_files(path)
        told = describe(files, config, has_tokenizer="tokenizer" in site.inputs)
    except InputError as error:
        return CompiledJob(problems=tuple(error.problems))
    sizes = told.sizes(vocab_size=1)
    shape = f"{sizes.num_layers} layers of {sizes.hidden_size}"
    return CompiledJob(notes=(f"model: {sizes.architecture}, {shape}, as {files.where} says",))
