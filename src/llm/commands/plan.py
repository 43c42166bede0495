"""`llm plan`: an estimate of a run's compute, time and memory."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from llm.config.build import config_errors_at
from llm.config.errors import ConfigError
from llm.hardware import Hardware, Strategy
from llm.planning.cost import Cost, context
from llm.planning.memory import KINDS, Memory
from llm.planning.scaling import BESIROGLU, FITTED, FLOPS, HOFFMANN, twenty_tokens
from llm.tasks.base import Task
from llm.terminal.tables import new_table, note_line, print_tables
from llm.training.forecast import BOUND, Forecast, forecast
from llm.training.preflight import require_division
from llm.training.training_config import TrainingConfig
from llm.units import UNKNOWN, common_unit, duration, flops, format_bytes, format_number
from llm.weights.classifier_export import exported_as
from llm.weights.families import NoFamilyError

# Share of a GPU's memory for tensors; the driver and fragmentation take the rest.
USABLE = 0.9
ALONE = "one device"
SMALLEST = 1e-3  # of the smallest budget of the fits; below it, their loss is not shown


@dataclass(frozen=True, kw_only=True)
class Plan(TrainingConfig):
    """Print the compute, time and memory that a run would take, on this machine or another."""

    strategies: Mapping[str, Hardware]
    gpu: str | None
    mfu: float

    def run(self) -> None:
        """Print the plan.

        Raises:
            ConfigError: the run does not support the hardware, or its size is not known before the data are read.
        """
        planned = forecast(self, self.gpu)
        cost = require_known(planned.cost)
        with config_errors_at("hardware", Hardware):
            hardware = planned.on(planned.strategy)
        require_division(planned.config, hardware)
        print_tables(*plan_summary(planned, cost, self.mfu))
        if planned.timeline is None:
            print_tables(
                note_line(
                    "the memory depends on the lengths in the batches, which are not known before the data are read"
                )
            )
        else:
            print_tables(*memory_tables(planned, self.strategies))
        if cost.tokens is not None and self.weights is None:
            print_tables(*optimum_table(cost.active_parameters, cost.tokens))


def require_known(cost: Cost | None) -> Cost:
    """Require that the sizes of the model and, for text, of the budget are known before the data are read.

    Raises:
        ConfigError: one is not known.
    """
    if cost is None:
        raise ConfigError(
            "tokenizer: the vocabulary size is not known before the data are read; choose a tokenizer with a fixed "
            "size, such as tokenizer=gpt2, or set model.vocab_size"
        )
    if cost.tokens is None and cost.tokens_per_step is not None:
        raise ConfigError(
            "trainer: the number of tokens is not known before the data are read; set trainer.max_tokens or "
            "trainer.max_steps"
        )
    return cost


def plan_summary(planned: Forecast, cost: Cost, mfu: float) -> Iterator[str]:
    """Yield the lines about the model, the budget, the compute, the devices and the time."""
    device = planned.device
    blocks = cost.parameters - cost.embedding
    trained = (
        f", {format_number(cost.trained)} of them trained" if cost.trained < cost.parameters else ""
    )
    is_sparse = cost.active_parameters < cost.parameters
    active = (
        f" ({format_number(cost.active_parameters)} active for each token)" if is_sparse else ""
    )
    yield (
        f"model     {format_number(cost.parameters)} parameters{active}: {format_number(cost.embedding)} in embeddings "
        f"and head, {format_number(blocks)} in the rest{trained}"
    )
    if not planned.outline.is_adapted:  # llm export merges an adapter first
        yield f"export    {describe_export(planned.outline)}"
    yield f"budget    {describe_budget(cost)}"
    yield f"compute   {describe_compute(cost)}"
    rate = UNKNOWN if device.flops is None else f"{device.flops / 1e12:.3g} TFLOP/s"
    yield (
        f"devices   {planned.world} × {device.name} of {rate} and {format_bytes(device.memory)}, "
        f"precision {device.precision}"
    )
    seconds = planned.seconds(mfu)
    yield (
        f"time      {UNKNOWN}: the FLOPs of the run or the peak rate of the device are not known"
        if seconds is None
        else f"time      {duration(seconds)} at an MFU of {mfu:g}, an assumption: set mfu= to yours"
    )


def describe_export(task: Task) -> str:
    """Return the published family as which the model is exported, or why there is none."""
    try:
        return f"as {exported_as(task.model)}"
    except NoFamilyError as error:
        return f"none: {error.reason}"


def describe_budget(cost: Cost) -> str:
    """Return the tokens and steps of a run, or why they are not known."""
    if cost.tokens is None:
        taken = "" if cost.steps is None else f"{cost.steps:,} steps; tokens "
        return (
            f"{taken}{UNKNOWN}: the lengths of the examples are not known before the data are read"
        )
    is_sparse = cost.active_parameters < cost.parameters
    per = "an active parameter" if is_sparse else "a parameter"
    return (
        f"{format_number(cost.tokens)} tokens = {cost.steps:,} steps × {cost.tokens_per_step:,} tokens, "
        f"{cost.tokens / cost.active_parameters:.3g} tokens {per}"
    )


def describe_compute(cost: Cost) -> str:
    """Return the FLOPs of a run, or why they are not known."""
    if cost.flops_per_token is not None:
        return f"{flops(cost.flops)} FLOPs, {flops(cost.flops_per_token)} a token"
    if cost.trained < cost.parameters:
        return (
            f"{UNKNOWN}: only a part of the model is trained, and the FLOPs of that are not counted"
        )
    return f"{UNKNOWN}: the model does not count its FLOPs"


def memory_tables(planned: Forecast, options: Mapping[str, Hardware]) -> Iterator[RenderableType]:
    """Yield a table with a row for each strategy, its notes, and the table of `variants`."""
    timeline, plans, refused = planned.timeline, strategies(planned, options), []
    held: dict[str, Memory] = {}
    assert timeline is not None
    for name, strategy in plans.items():
        try:
            held[name] = planned.peak(strategy, timeline)
        except ConfigError as error:
            refused.append(
                f"{name}: {str(error).removeprefix('hardware.strategy: ').removeprefix('hardware: ')}"
            )
    unit, shown = common_unit(max(memory.total for memory in held.values()))
    rows = new_table(f"{unit} a device", *KINDS, "sum", "")
    for name, memory in held.items():
        fits = memory.total <= USABLE * planned.room(plans[name])
        mark = Text("✓", style="green") if fits else Text("✗", style="red")
        style = "bold" if name == strategy_name(planned) else ""
        rows.add_row(name, *map(shown, (*memory, memory.total)), mark, style=style)
    yield rows
    yield from map(note_line, refused)
    yield from map(note_line, memory_notes(planned, {name: plans[name] for name in held}))
    yield variants(planned)


def memory_notes(planned: Forecast, plans: Mapping[str, Strategy | None]) -> Iterator[str]:
    """Yield notes about what the rows count."""
    config = planned.config
    shared = (
        ""
        if planned.world == 1
        else f", which {planned.world} devices share (with {ALONE}, it has all of it)"
    )
    yield (
        f"memory of each device for a micro-batch of {config.data.batch_size} × {context(config)} tokens{shared}: "
        "its tensors at the peak, without compilation; old gradients may be freed by then. ✓ leaves "
        f"a tenth of the device's {format_bytes(planned.device.memory)} free"
    )
    if planned.is_bound:
        yield BOUND
    if "tensor_parallel" in plans:
        yield (
            "tensor_parallel: activations and logits are counted for a whole group, an upper bound: inside attention "
            "and feed-forward layers they are divided among its devices, between layers they are not"
        )
    casting = [name for name, used in plans.items() if used and used.casts_weights]
    if casting and planned.device.dtype != torch.float32:
        yield (
            f"{', '.join(casting)}: counted with float32 weights, an upper bound: the engine keeps weights in "
            f"{planned.device.precision}, and float32 copies that are divided among the devices with the optimizer "
            "state"
        )


def strategies(planned: Forecast, options: Mapping[str, Hardware]) -> dict[str, Strategy | None]:
    """Return one device and, if the run has several, all strategies; the chosen one as configured."""
    plans: dict[str, Strategy | None] = {ALONE: None}
    if planned.world > 1:
        plans |= {name: hardware.strategy for name, hardware in options.items()}
        plans[strategy_name(planned)] = planned.strategy
    return plans


def strategy_name(planned: Forecast) -> str:
    """Return the name of the chosen strategy: of its option or, if none matches, of its class."""
    if planned.strategy is None:
        return ALONE
    node, options = planned.config.hardware.strategy, planned.config.strategies.items()
    same = [name for name, option in options if option.strategy == node]
    alike = [name for name, option in options if option.strategy._target_ == node._target_]
    return next(iter((*same, *alike)), type(planned.strategy).__name__)


def variants(planned: Forecast) -> Table:
    """Return a table of the step with and without activation checkpointing, in 32 and 16 bits."""
    shorter = torch.float16 if planned.device.precision == "fp16" else torch.bfloat16
    held = {
        (dtype, checkpointing): planned.peak(planned.strategy, timeline)
        for dtype in (torch.float32, shorter)
        for checkpointing in (False, True)
        if (timeline := planned.timeline_with(checkpointing=checkpointing, precision=dtype))
        is not None
    }
    unit, shown = common_unit(max(memory.total for memory in held.values()))
    rows = new_table(f"{unit} a device", "checkpointing", "activations", "logits", "sum")
    present = (planned.device.dtype, planned.hardware.activation_checkpointing)
    for (dtype, checkpointing), memory in held.items():
        rows.add_row(
            str(dtype).removeprefix("torch."),
            "on" if checkpointing else "off",
            *map(shown, (memory.activations, memory.logits, memory.total)),
            style="bold" if (dtype, checkpointing) == present else "",
        )
    return rows


def optimum_table(parameters: int, tokens: int) -> Iterator[RenderableType]:
    """Yield a table of the planned size and the optimal sizes for its budget, by two fits and one rule."""
    budget = FLOPS * parameters * tokens
    least, most = FITTED
    shows_loss = budget >= SMALLEST * least
    rows = new_table(f"6·N·D = {flops(budget)}", "parameters N", "tokens D", "D/N", "loss")
    sizes = {
        "this plan": (parameters, tokens),
        "best by Besiroglu et al. 2024": BESIROGLU.optimum(budget),
        "best by Hoffmann et al. 2022": HOFFMANN.optimum(budget),
        "20 tokens a parameter": twenty_tokens(budget),
    }
    for name, (n, d) in sizes.items():
        loss = f"{BESIROGLU.loss(n, d):.3f}" if shows_loss else UNKNOWN
        rows.add_row(name, format_number(n), format_number(d), f"{d / n:.3g}", loss)
    yield rows
    if not least <= budget <= most:
        yield note_line(
            f"the fits cover runs of {flops(least)} to {flops(most)} FLOPs; for {flops(budget)} they extrapolate"
        )
    if shows_loss:
        yield note_line(
            "the loss is that of Besiroglu's fit, for the text and tokenizer of Hoffmann's runs: it compares sizes, "
            "and does not predict the loss on your text"
        )
