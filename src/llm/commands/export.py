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
from llm.config.rules import Rule
from llm.data.examples.jinja_template import JinjaTemplate
from llm.data.examples.template import ChatTemplate, Message, stored_template
from llm.files import read_object
from llm.generation.model_loading import weights_are_trained
from llm.models.classifier import Classifier
from llm.nn.init import SkipInit
from llm.terminal import shell
from llm.terminal.console import printable
from llm.tokenizers.base import Tokenizer
from llm.tokenizers.huggingface import HuggingFaceTokenizer
from llm.weights.base import Weights
from llm.weights.folder_export import require_free_folder, write_folder
from llm.weights.folder_settings import FolderSettings
from llm.weights.gguf_export import TYPES, require_free_file, write_gguf
from llm.weights.model_card import EAGER
from llm.weights.ollama import SUFFIX
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
    """Export a language model for Hugging Face's library or llama.cpp, or a classifier for the former.

    An adapter is merged into its weights.
    """

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
        tokenizer = weights.tokenizer()
        settings = settings_for(weights, tokenizer)
        with SkipInit():
            model = weights.merged()
        dtype = str(self.dtype or weights.dtype)
        common: Any = {
            "overwrite": self.overwrite,
            "settings": settings,
            "origin": weights.origin,
        }
        if self.format == "gguf":
            dtype = dtype if dtype in TYPES else "float32"
            files = write_gguf(model, tokenizer, path=output, dtype=dtype, **common)
            lines = gguf_lines(output)
        else:
            files = write_folder(
                model.to(DTYPES[dtype]) if dtype in DTYPES else model,
                tokenizer,
                folder=output,
                max_shard_gb=self.max_shard_gb,
                record=weights.record,
                labels=labels_of(weights),
                **common,
            )
            lines = loading_lines(output, is_classifier=isinstance(model, Classifier))
        for file in files:
            print(f"{file.stat().st_size:>15,} bytes  {printable(str(file))}")
        print(lines)
        return files


def gguf_lines(file: Path) -> str:
    """Return the commands that run an exported GGUF file, and the one that trains it further."""
    words = ("train", "weights=gguf", f"weights.path={file}")
    return (
        "\nto run it:\n"
        f"  llama-cli -m {shlex.quote(str(file))}\n"
        f"  ollama create NAME -f {shlex.quote(str(file.with_suffix(SUFFIX)))}\n"
        "or, to train it further here:\n"
        f"  {shell.command_line(shell.program(), *words)}"
    )


def loading_lines(folder: Path, *, is_classifier: bool) -> str:
    """Return the code that loads an exported folder, and the command that trains a language model further."""
    quoted = repr(str(folder))
    kind = "AutoModelForSequenceClassification" if is_classifier else "AutoModelForCausalLM"
    lines = [
        "\nto load it:",
        f"  from transformers import {kind}, AutoTokenizer",
        f"  model = {kind}.from_pretrained({quoted}{_loading_options(folder)})",
        f"  tokenizer = AutoTokenizer.from_pretrained({quoted})",
    ]
    if not is_classifier:
        words = ("train", "weights=auto", f"weights.path={folder}")
        command = shell.command_line(shell.program(), *words)
        lines += ["or, to train it further here:", f"  {command}"]
    return "\n".join(lines)


def _loading_options(folder: Path) -> str:
    """Return further arguments of `from_pretrained`."""
    is_capped = read_object(folder / "config.json").get("attn_logit_softcapping") is not None
    return EAGER if is_capped else ""


def labels_of(weights: Weights) -> Sequence[str]:
    """Return the names of a classifier's classes; for another model, one that it does not use."""
    classes = OmegaConf.select(weights.config, "data.classes")
    return [*classes] if classes else ["reward"]


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
