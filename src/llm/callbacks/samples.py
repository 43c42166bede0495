"""Texts generated during training."""

import re
from collections.abc import Sequence
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback
from rich.panel import Panel
from rich.text import Text
from torch import nn

from llm import distributed
from llm.config.errors import ConfigError
from llm.data.base import DataModule
from llm.files import open_for_appending, read_utf8
from llm.generation.decoding import generates
from llm.generation.generation_settings import GenerationSettings
from llm.generation.sampling import Sampler
from llm.generation.text_generation import complete_prompts, first_tokens
from llm.runs import Run
from llm.tasks.base import Task
from llm.terminal.console import new_console


class Samples(Callback):
    """Continuations of prompts after each validation, printed and kept in `samples.txt` and W&B.

    The seed is always the same, so that texts of different steps are comparable. Sampling has its own random
    generators, so it does not change the training.

    Args:
        prompts: texts to continue; an empty one starts a new document.
        max_tokens: number of tokens to generate for each.
        sampler: how to choose among the logits.
        seed: seed of the sampling.
    """

    def __init__(
        self,
        prompts: Sequence[str] = ("",),
        *,
        max_tokens: int = 60,
        sampler: Sampler | None = None,
        seed: int = 0,
    ) -> None:
        if max_tokens < 1:
            raise ValueError(f"max_tokens={max_tokens}: is too small; use 1 or more")
        self.prompts = list(prompts)
        self.settings = GenerationSettings(
            max_tokens=max_tokens, sampler=sampler or Sampler(temperature=0.7, top_k=50), seed=seed
        )

    def suits(self, task: Task, data: DataModule) -> bool:
        """Return whether the model generates text."""
        return generates(task.model)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Raise a ConfigError if the tokenizer cannot encode a prompt."""
        try:
            for prompt in self.prompts:
                first_tokens(trainer.datamodule.tokenizer, prompt)  # pyright: ignore
        except ValueError as error:
            raise ConfigError(f"callbacks.samples.prompts: {error}") from error

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove the samples of steps that are trained again."""
        file = Run(Path(trainer.default_root_dir)).samples
        if trainer.is_global_zero and file.is_file():
            done = trainer.global_step
            kept = [(step, text) for step, text in read_samples(file) if 0 < done >= step]
            file.unlink()
            append_samples(file, kept)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Generate and keep texts, on the first rank, or on all if the model is sharded."""
        assert isinstance(pl_module, Task)
        if trainer.sanity_checking:  # before the first step
            return
        if trainer.is_global_zero or pl_module.is_sharded:
            pairs = self.write(pl_module.model, trainer.datamodule)  # pyright: ignore[reportAttributeAccessIssue]
            if trainer.is_global_zero:
                self._write_and_show(trainer, pairs)
        distributed.barrier()  # its timeout is longer than that of the next reduction of gradients

    def _write_and_show(self, trainer: L.Trainer, pairs: Sequence[tuple[str, str]]) -> None:
        file, step = Run(Path(trainer.default_root_dir)).samples, trainer.global_step
        append_samples(file, [(step, prompt + text) for prompt, text in pairs])
        for prompt, text in pairs:
            shown = text if text.strip() else ("(empty)", "dim")
            panel = Panel(Text.assemble(prompt, shown), title=f"step {step}", title_align="left")
            new_console(highlight=True).print(panel)
        for logger in trainer.loggers:
            if log_texts := getattr(logger, "log_texts", None):  # see `WandbLogger`
                log_texts("samples", read_samples(file), step=step)

    def write(self, model: nn.Module, data: DataModule) -> list[tuple[str, str]]:
        """Return the prompts, each with its continuation."""
        texts = complete_prompts(
            model, data.tokenizer, prompts=self.prompts, settings=self.settings
        )
        return list(zip(self.prompts, texts, strict=True))


def append_samples(file: Path, texts: Sequence[tuple[int, str]]) -> None:
    """Append texts to a file of samples, each with its step."""
    with open_for_appending(file) as lines:
        lines.writelines(f"=== step {step}\n{text}\n" for step, text in texts)


def read_samples(file: Path) -> list[tuple[int, str]]:
    """Return the texts of a file of samples, each with its step."""
    _, *parts = re.split(r"^=== step (\d{1,18})\n", read_utf8(file), flags=re.MULTILINE)
    return [
        (int(step), text.removesuffix("\n"))
        for step, text in zip(parts[::2], parts[1::2], strict=True)
    ]
