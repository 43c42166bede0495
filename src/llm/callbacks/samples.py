"""What the model writes as it learns."""

from collections.abc import Sequence
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger
from rich.console import Console
from rich.panel import Panel
from rich.text import Text
from torch import nn

from llm.config.errors import ConfigError
from llm.data.module import DataModule
from llm.generation.decoding import generate
from llm.generation.sampling import Sampler
from llm.generation.text import first_tokens
from llm.runs import Run
from llm.tasks.task import Task
from llm.tokenizers.tokenizer import Tokenizer


class Samples(Callback):
    """After each validation, continue a few prompts; show them, keep them in `samples.txt` and in W&B.

    The same seed every time, so that texts of different steps compare. Sampling has random generators of
    its own: a run with samples trains exactly as one without.

    Args:
        prompts: texts to continue; an empty one begins a new document.
        max_tokens: how many tokens to write for each.
        sampler: how to choose among the logits.
        seed: of the sampling.
    """

    def __init__(
        self,
        prompts: Sequence[str] = ("",),
        max_tokens: int = 60,
        sampler: Sampler | None = None,
        seed: int = 0,
    ) -> None:
        if max_tokens < 1:
            raise ValueError(f"max_tokens={max_tokens}: give a number from 1 on")
        self.prompts = list(prompts)
        self.max_tokens = max_tokens
        self.sampler = sampler or Sampler(temperature=0.7, top_k=50)
        self.seed = seed

    def suits(self, task: Task, data: DataModule) -> bool:
        """Whether there is a model that writes."""
        return hasattr(task.model, "new_cache")

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse a prompt that the tokenizer cannot encode now, not after the first validation."""
        try:
            for prompt in self.prompts:
                first_tokens(trainer.datamodule.tokenizer, prompt)  # pyright: ignore
        except ValueError as error:
            raise ConfigError(f"callbacks.samples.prompts: {error}") from error

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write, show and keep."""
        if not trainer.is_global_zero:
            return
        assert isinstance(pl_module, Task)
        texts = self.write(pl_module.model, trainer.datamodule.tokenizer)  # pyright: ignore
        run = Run(Path(trainer.default_root_dir))
        with run.samples.open("a", encoding="utf-8") as file:
            file.writelines(f"=== step {trainer.global_step}\n{text}\n" for text in texts)
        for text in texts:
            Console().print(
                Panel(Text(text), title=f"step {trainer.global_step}", title_align="left")
            )
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                rows = [[trainer.global_step, text] for text in texts]
                logger.log_text("samples", columns=["step", "text"], data=rows)

    def write(self, model: nn.Module, tokenizer: Tokenizer) -> list[str]:
        """Prompts with their continuations."""
        prompts = [first_tokens(tokenizer, prompt) for prompt in self.prompts]
        outputs = generate(
            model,
            prompts,
            max_tokens=self.max_tokens,
            sampler=self.sampler,
            seed=self.seed,
            end_token=tokenizer.end_of_text,
        )
        return [
            prompt + tokenizer.decode(tokens)
            for prompt, tokens in zip(self.prompts, outputs, strict=True)
        ]
