"""What a composed configuration would cost: counted on a model without weights, on a machine or without it."""

import inspect
import json
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from llm.config.allowlist import locate
from llm.config.build import build, config_errors_at
from llm.data.examples.preference import PreferenceDataModule
from llm.hardware import Hardware, Strategy
from llm.planning.cost import Cost, completed, context, cost, mean_row
from llm.planning.device import Device, named, present
from llm.planning.memory import Memory, Timeline, measure_step
from llm.tasks.base import Batch, Task
from llm.training.activation_checkpointing import checkpoint_activations
from llm.training.preflight import outline
from llm.training.training_config import TrainingConfig
from llm.weights.model_setup import initialize

# The share of the matrix rate that training is taken to reach, where nobody says better: PaLM reached 46 %,
# Llama 3 from 38 to 43 %, a GPT of two million parameters on two CPU cores 39 %. Tiny models reach a tenth.
MFU = 0.4
BOUND = "memory is an upper bound: the examples are not on this machine yet, so rows are counted as long as the context"


@dataclass(frozen=True)
class Forecast:
    """A run before it runs.

    Attributes:
        config: its configuration, adopted from weights where it begins from some.
        hardware: as it was composed.
        device: what it is planned for, one of `world`; on a CPU a rank's share of it.
        world: how many devices it is planned for.
    """

    config: DictConfig
    hardware: Hardware
    device: Device
    world: int

    @cached_property
    def cost(self) -> Cost | None:
        """What it computes; None where its vocabulary is not known yet."""
        return cost(self.config)

    @property
    def is_bound(self) -> bool:
        """Whether rows are counted as long as they may be, because nobody knows how long they are."""
        return mean_row(self.config) is None

    @cached_property
    def timeline(self) -> Timeline | None:
        """The memory of its steps on one device; None where that depends on what is in a batch."""
        return self.timeline_with()

    def timeline_with(
        self, *, checkpointing: bool | None = None, precision: torch.dtype | None = None
    ) -> Timeline | None:
        """The same under another choice of activation checkpointing or precision."""
        config = completed(self.config)
        if config is None:
            return None
        if checkpointing is None:
            checkpointing = self.hardware.activation_checkpointing
        node = {
            "task": OmegaConf.to_container(config.task, resolve=True),
            "adapter": config.get("adapter"),
            "trust": config.trust,
            "rows": config.data.batch_size * _rows_of_an_example(config),
            "context": context(config),
            "accumulate": config.trainer.accumulate,
            "checkpointing": checkpointing,
            "accelerator": self.device.accelerator,
            "dtype": str(precision or self.device.dtype).removeprefix("torch."),
        }
        return _timeline(json.dumps(OmegaConf.to_container(OmegaConf.create(node))))

    @property
    def memory(self) -> Memory | None:
        """The most that one device holds, under the strategy that was chosen.

        Raises:
            ValueError: as `peak` does.
        """
        return None if self.timeline is None else self.peak(self.strategy, self.timeline)

    @property
    def strategy(self) -> Strategy | None:
        """The chosen one; a single device needs none."""
        return self.hardware.strategy if self.world > 1 else None

    @property
    def counted(self) -> Hardware:
        """The hardware with its devices counted, and with no strategy for one alone.

        Raises:
            ValueError: several devices have no strategy, or this machine lacks what theirs needs.
        """
        if self.hardware.strategy is not None:
            self.hardware.strategy.require()
        return self.on(self.strategy)

    @cached_property
    def outline(self) -> Task:
        """The task with a model that has shapes and no weights."""
        return outline(completed(self.config) or self.config)

    def peak(self, strategy: Strategy | None, timeline: Timeline) -> Memory:
        """The most that one device holds under a strategy.

        Raises:
            ValueError: the strategy does not work on these devices, with this batch, or divides no such task.
        """
        if strategy is None:
            return timeline.peak()
        strategy.check(self.on(strategy))
        strategy.fits(self.outline, self.world)
        groups, pieces = strategy.data_parallel(self.world), strategy.pieces(self.world)
        rows = self.config.data.batch_size
        if rows % pieces:
            raise ValueError(
                f"data.batch_size={rows} cannot be shared by {pieces}; choose a multiple"
            )
        shares = strategy.shares_of(self.outline.model, self.world)
        held = timeline.peak(shares, keeps_gradients=strategy.keeps_gradients)
        if groups == 1 or shares.weights == 1 or self.cost is None:
            return held
        return with_borrowed(held, self.cost, shares.weights, groups)

    def on(self, strategy: Strategy | None) -> Hardware:
        """The hardware as a strategy finds it.

        Raises:
            ValueError: several devices have no strategy.
        """
        return replace(
            self.hardware,
            strategy=strategy,
            accelerator=self.device.accelerator,
            precision=self.device.precision,
            devices=self.world // self.hardware.num_nodes,
        )

    def room(self, strategy: Strategy | None) -> float:
        """The memory that a device has, in bytes; a single rank has that of its machine's CPU to itself."""
        alone = strategy is None and self.device.accelerator == "cpu"
        return self.device.memory * (self.world // self.hardware.num_nodes if alone else 1)

    def seconds(self, mfu: float = MFU) -> float | None:
        """How long the run takes at this share of the devices' matrix rate."""
        flops, rate = self.cost and self.cost.flops, self.device.flops
        return None if flops is None or rate is None else flops / (rate * self.world * mfu)


def forecast(run: TrainingConfig, gpu: str | None = None) -> Forecast:
    """Estimate what a run would be; little is computed before it is needed.

    Args:
        run: what it is trained from.
        gpu: a GPU that it is planned for, such as `h100`; None for what this machine has.

    Raises:
        ConfigError: no such GPU is known, or this machine lacks what the configuration asks for.
    """
    hardware = run.hardware
    with config_errors_at("hardware"):
        device = present(hardware) if gpu is None else named(gpu, hardware)
    devices = hardware.devices
    if devices == "auto":
        devices = torch.cuda.device_count() if gpu is None and device.accelerator == "cuda" else 1
    if device.accelerator == "cpu":
        device = device.shared(devices)
    return Forecast(run.tree, hardware, device, devices * hardware.num_nodes)


def with_borrowed(held: Memory, cost: Cost, divided: float, groups: int) -> Memory:
    """What fully sharded training holds for a moment on top of its shares.

    That is the tables and the head, which stay gathered, the block that computes and the next one; and
    the gradients of one of them before they are scattered.

    Args:
        held: its shares.
        cost: how large these parts are.
        divided: by what the weights are divided.
        groups: among how many of that many a weight is gathered.
    """
    lacking = groups / divided * (1 - 1 / groups)  # the part of a weight that others have
    each = held.weights * divided / cost.parameters  # bytes of a number
    weights = (cost.embedding + 2 * cost.block) * each * lacking
    gradients = max(cost.embedding, cost.block) * each * lacking
    return held._replace(weights=held.weights + weights, gradients=held.gradients + gradients)


@cache
def _timeline(text: str) -> Timeline | None:
    """Points of a sweep that differ in their seed alone are weighed once."""
    node: Any = OmegaConf.create(json.loads(text))
    try:
        return measure_step(
            partial(_make_task, node),
            partial(_make_batch, node.rows, node.context),
            dtype=getattr(torch, node.dtype),
            accumulate=node.accumulate,
            accelerator=node.accelerator,
        )
    except (
        RuntimeError
    ):  # a step that looks at its batch: shapes that follow from contents, answers drawn
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
    """What any task finds in a batch, rows as long as they can be."""
    tokens = torch.zeros(rows, length, dtype=torch.long)
    labels = torch.zeros(rows, dtype=torch.long)
    real = torch.ones(rows, length, dtype=torch.bool)
    return {"tokens": tokens, "targets": tokens.clone(), "labels": labels, "attention_mask": real}


def _rows_of_an_example(config: DictConfig) -> int:
    """Two where a chosen response stands beside a rejected one."""
    target = locate(config.data._target_, config.trust)
    return 2 if inspect.isclass(target) and issubclass(target, PreferenceDataModule) else 1
