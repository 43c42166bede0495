"""Forecast of the parameters, FLOPs, memory and time of a run, from a model without weights."""

import json
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from llm.config.build import build, config_errors_at
from llm.data.examples.preference import PreferenceDataModule
from llm.hardware import Hardware, Strategy
from llm.planning.cost import Cost, context, cost, fill_in_sizes, makes, mean_row, plain_text
from llm.planning.device import Device, named_device, present_device
from llm.planning.memory import Memory, Timeline, measure_step
from llm.tasks.base import Batch, Task
from llm.training.activation_checkpointing import checkpoint_activations
from llm.training.preflight import outline, require_division
from llm.training.training_config import TrainingConfig
from llm.weights.model_setup import initialize

# Default share of the peak FLOP rate that training reaches. PaLM reached 46 %, Llama 3 from 38 to 43 %, a GPT with two
# million parameters on two CPU cores 39 %. Tiny models reach a tenth.
MFU = 0.4
BOUND = (
    "memory is an upper bound: the examples are not on this machine yet, so every row is assumed to fill the "
    "context"
)


@dataclass(frozen=True)
class Forecast:
    """The forecast of a run.

    Attributes:
        config: its configuration, with the architecture of its weights.
        hardware: the configured hardware, in which values may still be `auto`.
        device: one of the devices; on a CPU, a rank's share of it.
        world: number of devices.
    """

    config: DictConfig
    hardware: Hardware
    device: Device
    world: int

    @cached_property
    def cost(self) -> Cost | None:
        """Its parameters, tokens and FLOPs; None if its vocabulary is not known yet."""
        return cost(self.config)

    @property
    def is_bound(self) -> bool:
        """Whether the lengths of rows are unknown, so that every row is assumed to fill the context."""
        return mean_row(self.config) is None

    @cached_property
    def timeline(self) -> Timeline | None:
        """The memory of a step on one device over time; None if it depends on the content of a batch."""
        return self.timeline_with()

    def timeline_with(
        self, *, checkpointing: bool | None = None, precision: torch.dtype | None = None
    ) -> Timeline | None:
        """Return the timeline with another choice of activation checkpointing or precision."""
        config = fill_in_sizes(self.config)
        if config is None:
            return None
        if checkpointing is None:
            checkpointing = self.hardware.activation_checkpointing
        # A preference is two rows: the chosen and the rejected response.
        rows_of_an_example = 2 if makes(config, PreferenceDataModule) else 1
        text = plain_text(
            config,
            ("task", "adapter", "trust"),
            rows=config.data.batch_size * rows_of_an_example,
            context=context(config),
            accumulate=config.trainer.accumulate,
            checkpointing=checkpointing,
            accelerator=self.device.accelerator,
            dtype=str(precision or self.device.dtype).removeprefix("torch."),
        )
        return _timeline(text)

    @property
    def memory(self) -> Memory | None:
        """The peak memory of one device, with the chosen strategy; errors as in `peak`."""
        return None if self.timeline is None else self.peak(self.strategy, self.timeline)

    @property
    def strategy(self) -> Strategy | None:
        """The chosen strategy; None for a single device."""
        return self.hardware.strategy if self.world > 1 else None

    @cached_property
    def outline(self) -> Task:
        """The task with its model on `meta`."""
        return outline(fill_in_sizes(self.config) or self.config)

    def peak(self, strategy: Strategy | None, timeline: Timeline) -> Memory:
        """Return the peak memory of one device with a strategy.

        Raises:
            ConfigError: the strategy does not work with these devices, this batch or this task.
        """
        if strategy is None:
            return timeline.peak()
        require_division(self.config, self.on(strategy), self.outline)
        groups = strategy.data_parallel(self.world)
        shares = strategy.shares_of(self.outline.model, self.world)
        held = timeline.peak(shares, keeps_gradients=strategy.keeps_gradients)
        if groups == 1 or shares.weights == 1 or self.cost is None:
            return held
        return add_gathered(held, self.cost, shares.weights, groups)

    def on(self, strategy: Strategy | None) -> Hardware:
        """Return the hardware with this strategy, and with its accelerator, precision and number of devices set.

        Raises:
            ValueError: there are several devices but no strategy.
        """
        return replace(
            self.hardware,
            strategy=strategy,
            accelerator=self.device.accelerator,
            precision=self.device.precision,
            devices=self.world // self.hardware.num_nodes,
        )

    def room(self, strategy: Strategy | None) -> float:
        """Return the memory of a device in bytes; for a single rank on a CPU, all memory of the machine."""
        alone = strategy is None and self.device.accelerator == "cpu"
        return self.device.memory * (self.world // self.hardware.num_nodes if alone else 1)

    def seconds(self, mfu: float = MFU) -> float | None:
        """Return the duration of the run at an MFU; None if it is not known."""
        flops, rate = self.cost and self.cost.flops, self.device.flops
        return None if flops is None or rate is None else flops / (rate * self.world * mfu)


def forecast(run: TrainingConfig, gpu: str | None = None) -> Forecast:
    """Return the forecast of a run. Its values are computed when they are first used.

    Args:
        run: the configuration of the run.
        gpu: name of a GPU, such as `h100`; None for the devices of this machine.

    Raises:
        ConfigError: the GPU is not known, or this machine lacks the requested hardware.
    """
    hardware = run.hardware
    with config_errors_at("hardware", Hardware):
        device = present_device(hardware) if gpu is None else named_device(gpu, hardware)
    devices = hardware.devices
    if devices == "auto":
        devices = torch.cuda.device_count() if gpu is None and device.accelerator == "cuda" else 1
    if device.accelerator == "cpu":
        device = device.shared(devices)
    return Forecast(run.tree, hardware, device, devices * hardware.num_nodes)


def add_gathered(held: Memory, cost: Cost, divided: float, groups: int) -> Memory:
    """Add the weights that a rank gathers from other ranks to the peak memory of sharded training.

    A rank gathers the embeddings and the head, which it keeps for the whole step, and the current and the next block.
    It also holds all gradients of the largest of these until they are reduced and scattered.

    Args:
        held: the memory of the shards.
        cost: sizes of the embeddings and blocks.
        divided: number of shards of each weight.
        groups: number of these shards that are gathered.
    """
    # The share of each weight that is gathered from other ranks.
    missing = groups / divided * (1 - 1 / groups)
    size = held.weights * divided / cost.parameters  # bytes per parameter
    weights = (cost.embedding + 2 * cost.block) * size * missing
    gradients = max(cost.embedding, cost.block) * size * missing
    return held._replace(weights=held.weights + weights, gradients=held.gradients + gradients)


@cache
def _timeline(text: str) -> Timeline | None:
    """Measure the memory of a step; cached, because the points of a sweep may differ only in their seed."""
    node: Any = OmegaConf.create(json.loads(text))
    try:
        return measure_step(
            partial(_make_task, node),
            partial(_make_batch, node.rows, node.context),
            dtype=getattr(torch, node.dtype),
            accumulate=node.accumulate,
            accelerator=node.accelerator,
        )
    except RuntimeError:  # the step depends on the content of its batch, as sampling does
        return None


def _make_task(node: DictConfig) -> Task:
    task: Task = build(node.task)
    initialize(task.model, None, adapter=build(node.adapter))
    if reference := getattr(task, "reference", None):
        reference.start(task.model)
    if node.checkpointing:
        checkpoint_activations(task.model)
    return task


def _make_batch(rows: int, length: int) -> Batch:
    """Return a batch with the keys that any of the tasks reads."""
    tokens = torch.zeros(rows, length, dtype=torch.long)
    labels = torch.zeros(rows, dtype=torch.long)
    real = torch.ones(rows, length, dtype=torch.bool)
    return {"tokens": tokens, "targets": tokens.clone(), "labels": labels, "attention_mask": real}
