"""`llm export`: export a language model as a folder for Hugging Face's library, or as a GGUF file for llama.cpp."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from omegaconf import OmegaConf

from llm.config.base import Command
from llm.config.build import config_errors_at
from llm.config.errors import ConfigError
from llm.config.rules import Rule
from llm.data.examples.jinja_template import JinjaTemplate
from llm.data.examples.template import ChatTemplate, Message, stored_template
from llm.files import read_object
from llm.generation.model_loading import weights_are_trained
from llm.nn.init import SkipInit
from llm.terminal import shell
from llm.terminal.console import printable
from llm.tokenizers.base import Tokenizer
from llm.tokenizers.huggingface import HuggingFaceTokenizer
from llm.weights.base import Weights
from llm.weights.folder_export import require_free_folder, write_folder
from llm.weights.folder_settings import FolderSettings
from llm.weights.gguf_export import TYPES, require_free_file, write_gguf
from llm.weights.ollama import NAME
from llm.weights.run import RunWeights
from llm.weights.tokenizer_files import as_huggingface, settings_of, token_name

# A conversation to compare the tokens of two templates.
PROBE = [
    Message("user", "Who are you?"),
    Message("assistant", "A model."),
    Message("user", "Name 2 colours, (please)!"),
]
# The precisions of exported weights.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def blocks_are_of_gguf(config: Mapping[str, Any]) -> Iterator[str]:
    """Refuse blocks of 8 bits in a folder."""
    if config.get("dtype") == "q8_0" and config.get("format") != "gguf":
        yield "dtype: q8_0 is a type of GGUF files; add format=gguf, or use bfloat16"


@dataclass(frozen=True, kw_only=True)
class Export(Command):
    """Export a language model for Hugging Face's library or llama.cpp. An adapter is merged into its weights."""

    output: str
    format: Literal["folder", "gguf"]
    max_shard_gb: float
    dtype: Literal["float32", "bfloat16", "float16", "q8_0"] | None
    overwrite: bool
    weights: Weights

    rules: ClassVar[Sequence[Rule]] = (weights_are_trained, blocks_are_of_gguf)

    def run(self) -> list[Path]:
        """Write the files, and print how to load them.

        Returns:
            The files.

        Raises:
            ConfigError: Hugging Face's library or llama.cpp has no such model, or the output has other files.
        """
        weights, output = self.weights, Path(self.output)
        require_free = require_free_folder if self.format == "folder" else require_free_file
        require_free(output, overwrite=self.overwrite, origin=weights.origin)
        require_language_model(weights)
        tokenizer = weights.tokenizer()
        settings = settings_for(weights, tokenizer)
        with SkipInit():
            model = weights.language_model()
        dtype = str(self.dtype or weights.dtype)
        common: Any = {
            "overwrite": self.overwrite,
            "settings": settings,
            "origin": weights.origin,
        }
        if self.format == "gguf":
            dtype = dtype if dtype in TYPES else "float32"
            files = write_gguf(model, tokenizer, path=output, dtype=dtype, **common)
        else:
            model = model.to(DTYPES[dtype]) if dtype in DTYPES else model
            shards = self.max_shard_gb
            files = write_folder(model, tokenizer, folder=output, max_shard_gb=shards, **common)
        for file in files:
            print(f"{file.stat().st_size:>15,} bytes  {printable(str(file))}")
        print(gguf_lines(output) if self.format == "gguf" else loading_lines(output))
        return files


def gguf_lines(file: Path) -> str:
    """Return the commands that run an exported GGUF file, and the one that trains it further."""
    words = ("train", "weights=gguf", f"weights.path={file}")
    return (
        "\nto run it:\n"
        f"  llama-cli -m {shlex.quote(str(file))}\n"
        f"  ollama create NAME -f {shlex.quote(str(file.with_name(NAME)))}\n"
        "or, to train it further here:\n"
        f"  {shell.command_line(shell.program(), *words)}"
    )


def loading_lines(folder: Path) -> str:
    """Return the code that loads an exported folder, and the command that trains it further."""
    quoted = repr(str(folder))
    family = read_object(folder / "config.json")["model_type"]
    words = ("train", f"weights={family}", f"weights.path={folder}")
    return (
        "\nto load it:\n"
        "  from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"  model = AutoModelForCausalLM.from_pretrained({quoted})\n"
        f"  tokenizer = AutoTokenizer.from_pretrained({quoted})\n"
        "or, to train it further here:\n"
        f"  {shell.command_line(shell.program(), *words)}"
    )


def settings_for(weights: Weights, tokenizer: Tokenizer) -> FolderSettings:
    """Return the special tokens, the chat template and the generation settings of some weights.

    They come from the folder of imported weights. A run adds the chat template of its training data.

    Raises:
        ConfigError: the template cannot be written for this tokenizer.
    """
    settings = weights.published or settings_of(tokenizer)
    if not settings.tokens:
        settings = replace(settings, tokens=settings_of(tokenizer).tokens)
    template = stored_template(weights.config) if isinstance(weights, RunWeights) else None
    if template is None:
        return settings
    with config_errors_at("data.template"):
        end = template.end_token(tokenizer)
        name = None if end is None else token_name(tokenizer, end)
        return settings.with_chat_template(
            as_jinja(template, tokenizer, settings.tokens), end, name=name
        )


def as_jinja(template: ChatTemplate, tokenizer: Tokenizer, tokens: Mapping[str, str]) -> str:
    """Return a template in Jinja that gives a prompt the same tokens as in training.

    Some tokenizers prepend a space to every text: to each piece of our template, but only once to the whole text of a
    Jinja template. Then the Jinja template contains the spaces. If the tokens still differ, a note is printed.
    """
    begin = "".join(token_name(tokenizer, token) for token in tokenizer.ends[0])
    try:
        exported = HuggingFaceTokenizer(as_huggingface(tokenizer).to_str())
        expected = template.encode_prompt(PROBE, tokenizer)
    except ValueError:  # no such tokenizer in the library, or it cannot encode PROBE
        return template.jinja(begin)
    for gap in ("", " "):
        jinja = template.jinja(begin, gap)
        if JinjaTemplate([jinja], tokens).encode_prompt(PROBE, exported) == expected:
            return jinja
    print(
        "note: the exported chat template gives a prompt other tokens than in training; "
        "generate from the tokens that llm chat uses"
    )
    return template.jinja(begin)


def require_language_model(weights: Weights) -> None:
    """Require a language model.

    Raises:
        ConfigError: the model is a classifier or a reward model.
    """
    config = weights.config
    whole = OmegaConf.select(config, "task.model._target_")
    if whole not in (None, config.model._target_):
        raise ConfigError(
            f"weights.path: {weights.path} contains a {whole.rpartition('.')[2]}; export a language model instead"
        )
