"""What a run prints before it begins, and what its record says of its size."""

from typing import Any

from torch import nn

from llm.callbacks.throughput import SupportsFlops
from llm.data.base import DataModule
from llm.hardware import describe_hardware
from llm.optim.muon import Muon
from llm.runs import Run, display_path
from llm.tasks.base import Task
from llm.terminal.announce import say
from llm.training.advice import few_steps
from llm.training.prepared_run import PreparedRun


def run_summary(prepared: PreparedRun, run: Run) -> str:
    """Say in a few lines what is about to happen, with the numbers that were derived."""
    task, data, steps = prepared.task, prepared.data, prepared.steps
    settings, weights = prepared.config.trainer, prepared.config.weights
    tokens = round(data.tokens_per_batch * settings.accumulate)
    epochs = steps * settings.accumulate / data.batches_per_epoch
    lines = [
        f"run       {display_path(run.path)}" + (" (goes on)" if run.last.exists() else ""),
        f"data      {data.describe()}",
        f"model     {describe_model(task)}",
        f"budget    {steps:,} steps × {tokens:,} tokens = {steps * tokens:,} tokens, {epochs:.2f} epochs",
        f"hardware  {describe_hardware(prepared.hardware)}",
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


def say_undivided(prepared: PreparedRun) -> None:
    """Say that there is only one device, if a strategy for several was chosen."""
    chosen = prepared.config.hardware.strategy
    if chosen is not None and prepared.hardware.strategy is None:
        name = type(chosen).__name__
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
    total, trained = count_parameters(model), count_trained(model)
    line = f"{name}, {total:,} parameters"
    return line if trained == total else f"{line}, of which {trained:,} are trained"


def size_record(prepared: PreparedRun) -> dict[str, Any]:
    """Return how much a run learns from, and how large its model is, for its record."""
    task, data = prepared.task, prepared.data
    row = max(1, round(data.tokens_per_row))
    flops = task.model.flops_per_token(row) if isinstance(task.model, SupportsFlops) else None
    return {
        "data": data.fingerprint,
        "corpus": getattr(data, "corpus", None),
        "vocabulary": getattr(data, "vocabulary", None),
        "parameters": count_parameters(task.model),
        "trained_parameters": count_trained(task.model),
        "flops_per_token": flops,
        "tokens_per_step": round(data.tokens_per_batch * prepared.config.trainer.accumulate),
        "devices": prepared.hardware.world,
        "max_steps": prepared.steps,
    }


def count_parameters(model: nn.Module) -> int:
    """Return how many parameters a model has."""
    return sum(each.numel() for each in model.parameters())


def count_trained(model: nn.Module) -> int:
    """Return how many parameters of a model are trained."""
    return sum(each.numel() for each in model.parameters() if each.requires_grad)
