"""`llm export`: export a language model as a folder for Hugging Face's library."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import torch
from omegaconf import OmegaConf

from llm.config.base import Command
from llm.config.build import config_errors_at
from llm.config.rules import Rule
from llm.data.examples.jinja_template import JinjaTemplate
from llm.data.examples.template import ChatTemplate, Message, stored_template
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


@dataclass(frozen=True, kw_only=True)
class Export(Command):
    """Export a language model or a classifier for Hugging Face's library. An adapter is merged into its weights."""

    output: str
    max_shard_gb: float
    dtype: Literal["float32", "bfloat16", "float16"] | None
    overwrite: bool
    weights: Weights

    rules: ClassVar[Sequence[Rule]] = (weights_are_trained,)

    def run(self) -> list[Path]:
        """Write the folder, and print how to load it.

        Returns:
            The files.

        Raises:
            ConfigError: Hugging Face's library has no such model, or the folder has other files.
        """
        weights, folder = self.weights, Path(self.output)
        require_free_folder(folder, overwrite=self.overwrite, origin=weights.origin)
        tokenizer = weights.tokenizer()
        settings = settings_for(weights, tokenizer)
        with SkipInit():
            model = weights.merged()
        if (dtype := DTYPES.get(str(self.dtype or weights.dtype))) is not None:
            model = model.to(dtype)
        files = write_folder(
            model,
            tokenizer,
            folder=folder,
            max_shard_gb=self.max_shard_gb,
            overwrite=self.overwrite,
            settings=settings,
            origin=weights.origin,
            record=weights.record,
            labels=labels_of(weights),
        )
        for file in files:
            print(f"{file.stat().st_size:>15,} bytes  {printable(str(file))}")
        print(loading_lines(folder, is_classifier=isinstance(model, Classifier)))
        return files


def loading_lines(folder: Path, *, is_classifier: bool) -> str:
    """Return the code that loads an exported folder, and the command that trains a language model further."""
    quoted = repr(str(folder))
    kind = "AutoModelForSequenceClassification" if is_classifier else "AutoModelForCausalLM"
    lines = [
        "\nto load it:",
        f"  from transformers import {kind}, AutoTokenizer",
        f"  model = {kind}.from_pretrained({quoted})",
        f"  tokenizer = AutoTokenizer.from_pretrained({quoted})",
    ]
    if not is_classifier:
        words = ("train", "weights=auto", f"weights.path={folder}")
        command = shell.command_line(shell.program(), *words)
        lines += ["or, to train it further here:", f"  {command}"]
    return "\n".join(lines)


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
