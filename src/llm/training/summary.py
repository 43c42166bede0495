"""What a run prints before it begins, and what its record says of its size."""

from typing import Any

from omegaconf import DictConfig
from torch import nn

from llm.callbacks.throughput import SupportsFlops
from llm.data.base import DataModule
from llm.hardware import Hardware, describe_hardware
from llm.optim.muon import Muon
from llm.runs import Run, display_path
from llm.tasks.base import Task
from llm.terminal.announce import say
from llm.training.advice import few_steps
from llm.training.trainer import TrainerSettings
from llm.weights.base import Weights


def run_summary(
    run: Run,
    task: Task,
    data: DataModule,
    hardware: Hardware,
    steps: int,
    settings: TrainerSettings,
    weights: Weights | None,
) -> str:
    """What is about to happen, in a few lines, with the numbers that were derived."""
    tokens = round(data.tokens_per_batch * settings.accumulate)
    epochs = steps * settings.accumulate / data.batches_per_epoch
    lines = [
        f"run       {display_path(run.path)}" + (" (goes on)" if run.last.exists() else ""),
        f"data      {data.describe()}",
        f"model     {describe_model(task)}",
        f"budget    {steps:,} steps × {tokens:,} tokens = {steps * tokens:,} tokens, {epochs:.2f} epochs",
        f"hardware  {describe_hardware(hardware)}",
    ]
    if data.is_bounded:
        lines.append(f"note      {data.describe_validation()}")
    if weights is not None:
        lines.append(f"weights   {weights.path}: model, size and tokenizer are theirs")
    if untrained := untrained_tokens(task, data):
        lines.append(
            f"note      {', '.join(untrained)}: new to these weights, their rows of the embedding are drawn at random "
            "and the adapter does not train them; choose a data/template whose tokens the weights know, or adapter=none"
        )
    if task.is_adapted and getattr(task.make_optimizer, "func", None) is Muon:
        lines.append(
            "note      Muon turns the factors of an update one by one: optimizer=adamw suits adapters"
        )
    lines += [
        f"note      {key} {change}, from step {each['from_step']} on"
        for each in run.record.get("segments") or ()
        for key, change in each["changes"].items()
    ]
    advice = few_steps(
        settings,
        steps,
        rows=data.train_rows,
        batches_per_epoch=data.batches_per_epoch,
        schedule=task.schedule,
    )
    lines += [f"note      {line}" for line in advice]
    if "stopped_at" in run.record and run.last.exists():
        lines.append(
            "note      this run was done: its learning rate follows the longer schedule now"
        )
    return "\n".join(lines)


def untrained_tokens(task: Task, data: DataModule) -> list[str]:
    """The special tokens that a model learns nothing of: its weights do not know them, and it is frozen."""
    before = getattr(data, "spec", None)  # the tokenizer of the weights
    body: Any = getattr(task.model, "body", task.model)
    if not task.is_adapted or body.embedding.weight.requires_grad or before is None:
        return []
    return [name for name in data.tokenizer.special_tokens if name not in before.special_tokens]


def say_undivided(config: DictConfig, hardware: Hardware) -> None:
    """Tell who chose a way to divide the work that there is one device only."""
    chosen = config.hardware.get("strategy")
    if chosen is not None and hardware.strategy is None:
        name = chosen._target_.rpartition(".")[2]
        say(
            f"note      {name}: one device only, so nothing is divided (hardware.devices=2 asks for two)"
        )


def describe_model(task: Task) -> str:
    """The model in a few words: what it is, how large, and how much of it is trained."""
    model = task.model
    name = type(model).__name__
    body = getattr(model, "body", None)
    if body is not None:
        name = f"{name} over {type(body).__name__}"
    total, trained = count_parameters(model), count_parameters(model, trained=True)
    line = f"{name}, {total:,} parameters"
    return line if trained == total else f"{line}, of which {trained:,} are trained"


def size_record(
    task: Task, data: DataModule, settings: TrainerSettings, steps: int, hardware: Hardware
) -> dict[str, Any]:
    """How much a run learns from, and how large a model, for its record."""
    row = max(1, round(data.tokens_per_row))
    flops = task.model.flops_per_token(row) if isinstance(task.model, SupportsFlops) else None
    return {
        "data": data.fingerprint,
        "corpus": getattr(data, "corpus", None),
        "vocabulary": getattr(data, "vocabulary", None),
        "parameters": count_parameters(task.model),
        "trained_parameters": count_parameters(task.model, trained=True),
        "flops_per_token": flops,
        "tokens_per_step": round(data.tokens_per_batch * settings.accumulate),
        "devices": hardware.world,
        "max_steps": steps,
    }


def count_parameters(model: nn.Module, trained: bool = False) -> int:
    """How many parameters a model has, or how many of them are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trained)
