"""The summary that a run prints when it begins, and the sizes in its record."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from llm.callbacks.throughput import SupportsFlops
from llm.data.base import DataModule
from llm.hardware import describe_hardware
from llm.nn.layer_schedule import describe_schedule
from llm.optim.muon import Muon
from llm.runs import Run, display_path
from llm.tasks.base import Task
from llm.training.advice import advise_budget
from llm.training.idle_options import idle_options
from llm.training.prepared_run import PreparedRun
from llm.weights.classifier_export import exported_as
from llm.weights.families import NoFamilyError


def run_summary(prepared: PreparedRun, run: Run) -> str:
    """Return a summary of the run in a few lines."""
    task, data, steps = prepared.task, prepared.data, prepared.steps
    settings, weights = prepared.config.trainer, prepared.config.weights
    tokens = round(data.tokens_per_batch * settings.accumulate)
    epochs = steps * settings.accumulate / data.batches_per_epoch
    lines = [
        f"run       {display_path(run.path)}" + (" (resumes)" if run.last.exists() else ""),
        f"data      {data.describe()}",
        f"model     {describe_model(task)}",
        f"budget    {steps:,} steps × {tokens:,} tokens = {steps * tokens:,} tokens, {epochs:.2f} epochs",
        f"hardware  {describe_hardware(prepared.hardware)}",
    ]
    if weights is not None:
        lines.append(f"weights   {weights.path}: model, size and tokenizer come from these weights")
    return "\n".join([*lines, *(f"note      {note}" for note in run_notes(prepared, run))])


def run_notes(prepared: PreparedRun, run: Run) -> Iterator[str]:
    """Yield notes on effects that the user may not expect."""
    task, data, steps = prepared.task, prepared.data, prepared.steps
    if data.is_bounded:
        yield data.describe_validation()
    if untrained := untrained_tokens(task, data):
        yield (
            f"{', '.join(untrained)}: new tokens with random embedding rows, which the adapter does not train; "
            "choose a data/template whose tokens the weights have, or adapter=none"
        )
    config = prepared.config
    yield from idle_options(config.tree, task.model, config.composed.own)
    if task.is_adapted and getattr(task.make_optimizer, "func", None) is Muon:
        yield "Muon orthogonalizes the two factors of an adapter separately: use optimizer=adamw for adapters"
    for each in run.record.get("segments") or ():
        for key, change in each["changes"].items():
            yield f"{key} {change}, from step {each['from_step']} on"
    yield from advise_budget(
        prepared.config.trainer,
        steps,
        rows=data.train_rows,
        batches_per_epoch=data.batches_per_epoch,
        schedule=task.schedule,
    )
    if "stopped_at" in run.record and run.last.exists():
        yield "this run was done: its learning rate now follows the longer schedule"
    yield from _export_notes(task)
    chosen = prepared.config.hardware.strategy
    if chosen is not None and prepared.hardware.strategy is None:
        name = type(chosen).__name__
        yield f"{name}: is not used, because there is only one device; use hardware.devices=2 for two"


def _export_notes(task: Task) -> Iterator[str]:
    """Yield a note if no published family has all parts of a model."""
    if task.is_adapted:  # adapters are merged by the export
        return
    try:
        exported_as(task.model)
    except NoFamilyError as error:
        yield f"llm export refuses this model: {error.reason}"


def untrained_tokens(task: Task, data: DataModule) -> list[str]:
    """Return the special tokens that are new to a model whose embedding is frozen."""
    before = getattr(data, "spec", None)  # the tokenizer of the weights
    body: Any = getattr(task.model, "body", task.model)
    if not task.is_adapted or body.embedding.weight.requires_grad or before is None:
        return []
    return [name for name in data.tokenizer.special_tokens if name not in before.special_tokens]


def describe_model(task: Task) -> str:
    """Return the class of a model, its numbers of parameters and trained ones, and its layers if they differ."""
    model = task.model
    name = type(model).__name__
    body = getattr(model, "body", None)
    if body is not None:
        name = f"{name} over {type(body).__name__}"
    total, trained = count_parameters(model)
    line = f"{name}, {total:,} parameters"
    if trained != total:
        line += f", of which {trained:,} are trained"
    schedule = getattr(getattr(body or model, "blocks", None), "schedule", ())
    return f"{line}; layers: {describe_schedule(schedule)}" if len({*schedule}) > 1 else line


def size_record(prepared: PreparedRun) -> dict[str, Any]:
    """Return the sizes of data and model for the run's record."""
    task, data = prepared.task, prepared.data
    parameters, trained = count_parameters(task.model)
    row = max(1, round(data.tokens_per_row))
    flops = task.model.flops_per_token(row) if isinstance(task.model, SupportsFlops) else None
    return {
        "data": data.fingerprint,
        "corpus": getattr(data, "corpus", None),
        "vocabulary": getattr(data, "vocabulary", None),
        "parameters": parameters,
        "trained_parameters": trained,
        "flops_per_token": flops,
        "tokens_per_step": round(data.tokens_per_batch * prepared.config.trainer.accumulate),
        "devices": prepared.hardware.world,
        "max_steps": prepared.steps,
    }


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Return how many parameters a model has, and how many of them are trained."""
    sizes = [(each.numel(), each.requires_grad) for each in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, is_trained in sizes if is_trained)
