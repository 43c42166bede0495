"""Weights of a kind that their files tell."""

from collections.abc import Sequence
from pathlib import Path

from llm.config.errors import ConfigError, suggestion
from llm.weights.base import Weights
from llm.weights.families import FAMILIES
from llm.weights.gguf import GGUFWeights
from llm.weights.gpt2 import GPT2Weights
from llm.weights.huggingface import Folder, download
from llm.weights.run import RunWeights


def is_run(path: str) -> bool:
    """Return whether a path is a run directory."""
    return (Path(path) / "run.json").is_file()


def open_weights(
    path: str, *, context_length: int | None = None, trust: Sequence[str] = ()
) -> Weights:
    """Return the weights of a run, of a folder, of a GGUF file, or of a name on Hugging Face's hub.

    Args:
        path: a run directory, a folder in the format of Hugging Face or OpenAI, a .gguf file, or a name on the hub.
        context_length: a context length shorter than the model's, in tokens; a run has its own.
        trust: packages that the configuration of a run may name.

    Raises:
        ConfigError: there are no such files, or they are of an unknown family.
    """
    folder = Path(path)
    if folder.suffix == ".gguf" and folder.is_file():
        return GGUFWeights(path, context_length=context_length)
    if folder.is_file():
        raise ConfigError(
            f"weights.path: {path} is a file, but not a .gguf file; give a folder, a run, a .gguf file or a name"
        )
    if is_run(path):
        if context_length is not None:
            raise ConfigError(
                f"weights.context_length: {path} is a run, which has its own context length; leave it out"
            )
        return RunWeights(path, trust=trust)
    if (folder / "hparams.json").is_file():
        return GPT2Weights(path, context_length=context_length)
    found = Folder(folder if folder.is_dir() else download(path)).settings.get("model_type")
    if found not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ConfigError(
            f"weights.path: {path} is a model of type {found}, which is not supported; the types are {known}"
            + (f"; {suggestion(found, FAMILIES)}" if isinstance(found, str) else "")
        )
    return FAMILIES[found](path, context_length=context_length)
