"""What `llm plan` prints: a model and its budget, the memory of each strategy, and what the budget could buy."""

from collections.abc import Iterator, Sequence

import torch
from omegaconf import DictConfig
from rich.console import RenderableType
from rich.table import Table

from llm.apps.estimating import Estimate, estimate
from llm.apps.refusing import require_division
from llm.apps.tables import new_table, note, put
from llm.apps.training import adopted
from llm.config.build import build, mistakes_at
from llm.config.check import check
from llm.config.errors import ConfigError
from llm.hardware import Strategy
from llm.planning.cost import context
from llm.planning.memory import KINDS, Memory
from llm.planning.scaling import BESIROGLU, FLOPS, HOFFMANN, twenty_tokens
from llm.units import UNKNOWN, common, duration, flops, number, size

# What a GPU's tensors may fill: its driver and what lies between tensors take the rest.
USABLE = 0.9
ALONE = "one device"


def plan(config: DictConfig, overrides: Sequence[str] = ()) -> None:
    """Print what a composed configuration of `llm plan` asks for.

    Args:
        config: the composed tree.
        overrides: the words of the command line.

    Raises:
        ConfigError: the configuration is wrong, or what it asks for is not known before its data are read.
    """
    check(config)
    if not 0 < config.mfu <= 1:
        raise ConfigError(f"mfu={config.mfu}: give a share of the matrix rate, above 0 and up to 1")
    planned = estimate(adopted(config, overrides), config.gpu)
    if planned.cost is None or planned.cost.tokens is None:
        raise ConfigError(
            "how much there is to train on is known once the data have been read; give trainer.max_tokens or "
            "max_steps, of a task that pretrains, and a tokenizer or model.vocab_size"
        )
    with mistakes_at("hardware"):
        hardware = planned.on(planned.strategy)
    require_division(planned.config, hardware)
    put(*summary(planned, config.mfu))
    if planned.timeline is not None:
        put(*memory_tables(planned, config))
    put(*optimum_table(planned.cost.parameters, planned.cost.tokens))


def summary(planned: Estimate, mfu: float) -> Iterator[str]:
    """What is planned, and how long it takes."""
    cost, device = planned.cost, planned.device
    assert cost is not None
    assert cost.tokens is not None
    blocks = cost.parameters - cost.embedding
    trained = f", {number(cost.trained)} of them trained" if cost.trained < cost.parameters else ""
    assert cost.tokens_per_step is not None
    yield (
        f"model     {number(cost.parameters)} parameters: {number(cost.embedding)} in embeddings and head, "
        f"{number(blocks)} in the rest{trained}"
    )
    yield (
        f"budget    {number(cost.tokens)} tokens = {cost.steps:,} steps × {cost.tokens_per_step:,} tokens, "
        f"{cost.tokens / cost.parameters:.3g} tokens a parameter"
    )
    yield f"compute   {flops(cost.flops)} FLOPs, {flops(cost.flops_per_token)} a token"
    rate = UNKNOWN if device.flops is None else f"{device.flops / 1e12:.3g} TFLOP/s"
    yield (
        f"devices   {planned.world} × {device.name} of {rate} and {size(device.memory)}, "
        f"precision {device.precision}"
    )
    yield (
        f"time      {duration(planned.seconds(mfu))} at an MFU of {mfu:g}, an assumption: set mfu= to yours"
    )


def memory_tables(planned: Estimate, config: DictConfig) -> Iterator[RenderableType]:
    """A row for each strategy; then what checkpointing and precision would change under the chosen one."""
    timeline, refused = planned.timeline, []
    held: dict[str, Memory] = {}
    assert timeline is not None
    for name, strategy in strategies(planned, config).items():
        try:
            held[name] = planned.peak(strategy, timeline)
        except ValueError as error:
            refused.append(f"{name}: {error}")
    unit, shown = common(max(memory.total for memory in held.values()))
    rows = new_table(f"{unit} a device", *KINDS, "sum", "")
    for name, memory in held.items():
        fits = memory.total <= USABLE * planned.device.memory
        mark = "[green]✓[/]" if fits else "[red]✗[/]"
        style = "bold" if name == chosen(planned, config) else ""
        rows.add_row(name, *map(shown, (*memory, memory.total)), mark, style=style)
    yield rows
    yield from map(note, refused)
    shared = (
        "" if planned.world == 1 else f", which {planned.world} devices share (one has it alone)"
    )
    yield note(
        f"memory of each device for a micro-batch of {config.data.batch_size} × {context(config)} tokens{shared}: "
        "its tensors when most are held, without compilation; old gradients may be gone by then. ✓ leaves "
        f"a tenth of the device's {size(planned.device.memory)}"
    )
    if "tensor_parallel" in held:
        yield note(
            "tensor_parallel: activations and logits are those of a whole group, an upper bound: the heads and the "
            "feed-forward layers' own are divided within it, what the layers pass on is not"
        )
    yield variants(planned)


def strategies(planned: Estimate, config: DictConfig) -> dict[str, Strategy | None]:
    """Every strategy there is for several devices, the chosen one as it was chosen; and doing without."""
    plans: dict[str, Strategy | None] = {ALONE: None}
    if planned.world > 1:
        plans |= {name: hardware.strategy for name, hardware in build(config.strategies).items()}
        plans[chosen(planned, config)] = planned.strategy
    return plans


def chosen(planned: Estimate, config: DictConfig) -> str:
    """The name of the chosen strategy: that of the group's option, or of its class where it is none of them."""
    if planned.strategy is None:
        return ALONE
    node, options = config.hardware.strategy, config.strategies.items()
    same = [name for name, option in options if option.strategy == node]
    alike = [name for name, option in options if option.strategy._target_ == node._target_]
    return next(iter((*same, *alike)), type(planned.strategy).__name__)


def variants(planned: Estimate) -> Table:
    """The same step with and without activation checkpointing, in 32 bits and in 16."""
    shorter = torch.float16 if planned.device.precision == "fp16" else torch.bfloat16
    held = {
        (dtype, checkpointing): planned.peak(planned.strategy, timeline)
        for dtype in (torch.float32, shorter)
        for checkpointing in (False, True)
        if (timeline := planned.timeline_with(checkpointing, dtype)) is not None
    }
    unit, shown = common(max(memory.total for memory in held.values()))
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
    """What size the budget would be best spent on, by two fits and a rule, beside the plan."""
    budget = FLOPS * parameters * tokens
    rows = new_table(f"6·N·D = {flops(budget)}", "parameters N", "tokens D", "D/N", "loss")
    sizes = {
        "this plan": (parameters, tokens),
        "best by Besiroglu et al. 2024": BESIROGLU.optimum(budget),
        "best by Hoffmann et al. 2022": HOFFMANN.optimum(budget),
        "20 tokens a parameter": twenty_tokens(budget),
    }
    for name, (n, d) in sizes.items():
        loss = BESIROGLU.loss(n, d)
        rows.add_row(name, number(n), number(d), f"{d / n:.3g}", f"{loss:.3f}")
    yield rows
    yield note(
        "the loss is what Besiroglu's fit of Hoffmann's runs says of their text and their tokens: it compares sizes, "
        "and is not what yours will be"
    )
