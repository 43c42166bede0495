"""Responses of the model: to a few validation conversations during training, to the test part at the end."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import nn

from llm import distributed
from llm.callbacks.samples import Samples
from llm.data.base import DataModule
from llm.data.examples.instruction import Demonstration, InstructionDataModule
from llm.data.examples.preference import Pair, PreferenceDataModule
from llm.evaluation.response_scores import response_metrics, write_responses
from llm.generation.batch_responses import respond
from llm.generation.decoding import generates
from llm.generation.generation_settings import GREEDY, GenerationSettings
from llm.generation.sampling import Sampler
from llm.runs import RESULTS
from llm.tasks.base import Task
from llm.terminal.bars import progress_bar


class ResponseSamples(Samples):
    """Samples of responses to validation conversations, the first ones before training starts.

    Args:
        number: number of conversations.
        max_tokens: maximum length of a response, in tokens.
        sampler: how to choose among the logits; None takes the most likely token.
        seed: seed of the sampling.
    """

    def __init__(
        self,
        number: int = 3,
        *,
        max_tokens: int = 60,
        sampler: Sampler | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__((), max_tokens=max_tokens, sampler=sampler or GREEDY, seed=seed)
        if number < 0:
            raise ValueError(f"number={number}: is negative; use 0 or more")
        self.number = number

    def suits(self, task: Task, data: DataModule) -> bool:
        """Return whether the model generates and the data have a chat template."""
        return super().suits(task, data) and hasattr(data, "template")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write samples before the first step."""
        super().on_train_start(trainer, pl_module)
        if trainer.global_step == 0:
            self.on_validation_end(trainer, pl_module)

    def write(self, model: nn.Module, data: Any) -> list[tuple[str, str]]:
        """Return the prompts of the conversations, each with its response."""
        conversations = data.raw["validation"][: self.number]
        responses = generate_responses(data, conversations, model=model, settings=self.settings)
        prompts = [data.template.render(conversation.prompt) for conversation in conversations]
        return list(zip(prompts, responses, strict=True))


class Responses(Callback):
    """Responses to the test part, written to `responses.json`, with the metrics `test/rouge_l` and `test/exact_match`.

    Args:
        max_tokens: maximum length of a response, in tokens.
        sampler: how to choose among the logits; None takes the most likely token.
        batch_size: number of responses generated together.
        seed: seed of the sampling.
    """

    def __init__(
        self,
        *,
        max_tokens: int = 256,
        sampler: Sampler | None = None,
        batch_size: int = 16,
        seed: int = 0,
    ) -> None:
        for name, value in (("max_tokens", max_tokens), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name}={value}: is too small; use 1 or more")
        self.batch_size = batch_size
        self.settings = GenerationSettings(
            max_tokens=max_tokens, sampler=sampler or GREEDY, seed=seed
        )

    def suits(self, task: Task, data: DataModule) -> bool:
        """Return whether the model generates and the data are instructions."""
        return generates(task.model) and isinstance(data, InstructionDataModule)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write responses and record metrics on the first rank; all ranks generate if the model is sharded."""
        assert isinstance(pl_module, Task)
        if pl_module.tested != "test":
            return
        if trainer.is_global_zero or pl_module.is_sharded:
            data: InstructionDataModule = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
            rows = response_rows(
                data,
                data.raw["test"],
                model=pl_module.model,
                settings=self.settings,
                batch_size=self.batch_size,
            )
            if trainer.is_global_zero:
                file = Path(trainer.default_root_dir) / RESULTS["responses"]
                metrics = response_metrics(write_responses(file, rows))
                pl_module.record({f"test/{name}": fmean(each) for name, each in metrics.items()})
        distributed.barrier()


def generate_responses(
    data: InstructionDataModule | PreferenceDataModule,
    conversations: Sequence[Demonstration | Pair],
    *,
    model: nn.Module,
    settings: GenerationSettings,
    batch_size: int = 16,
) -> list[str]:
    """Return a model's responses to conversations, with a progress bar on a terminal.

    The data's template decides where a response ends; the other arguments are those of `respond`.
    """
    template, tokenizer = data.template, data.tokenizer
    end = template.end_token(tokenizer)
    settings = replace(settings, end_tokens=() if end is None else (end,), stops=template.stops)
    with progress_bar() as bar:
        task = bar.add_task("responses", total=len(conversations))
        return respond(
            model,
            tokenizer,
            prompts=[template.encode_prompt(each.prompt, tokenizer) for each in conversations],
            settings=settings,
            batch_size=batch_size,
            advance=lambda number: bar.advance(task, number),
        )


def response_rows(
    data: InstructionDataModule, conversations: Sequence[Demonstration], **settings: Any
) -> list[dict[str, Any]]:
    """Return the entries of `responses.json`: a model's responses, each with its conversation and reference.

    The arguments are those of `generate_responses`.
    """
    responses = generate_responses(data, conversations, **settings)
    return [
        {
            "instruction": conversation.instruction,
            "input": conversation.context,
            "messages": [{"role": m.role, "content": m.content} for m in conversation.prompt],
            "reference": conversation.reference,
            "response": response,
        }
        for conversation, response in zip(conversations, responses, strict=True)
    ]
