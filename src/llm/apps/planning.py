"""What `llm plan` prints: a model and its budget, the memory of each strategy, and what the budget could buy."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from omegaconf import DictConfig
from rich.box import SIMPLE_HEAD
from rich.table import Table

from llm.apps.checking import adopted, put
from llm.apps.estimating import Estimate, estimate
from llm.config.build import build
from llm.config.check import check
from llm.config.errors import ConfigError
from llm.hardware import Hardware, Strategy
from llm.planning.cost import Cost, context
from llm.planning.memory import KINDS, Memory, Timeline
from llm.planning.scaling import BESIROGLU, HOFFMANN, twenty_tokens
from llm.planning.units import UNKNOWN, duration, flops, number, size

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
    put(*summary(planned, config.mfu))
    if planned.timeline is not None:
        put(*memory_tables(planned, config))
    if planned.cost.flops is not None:
        put(*optimum_table(planned.cost, planned.cost.flops))


def summary(planned: Estimate, mfu: float) -> Iterator[str]:
    """What is planned, and how long it takes."""
    cost, device = planned.cost, planned.device
    assert cost is not None
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
    yield f"time      {duration(planned.seconds(mfu))} at an MFU of {mfu:g}, which is assumed: set mfu= to what you measure"


def memory_tables(planned: Estimate, config: DictConfig) -> Iterator[Table | str]:
    """A row for each strategy; then what checkpointing and precision would change under the chosen one."""
    timeline, device, world = planned.timeline, planned.device, planned.world
    assert timeline is not None
    plans = strategies(planned, config)
    rows = _table("strategy", *KINDS, "sum", f"fits {size(device.memory)}")
    refused = []
    for name, strategy in plans.items():
        try:
            held = peak(planned, strategy, timeline)
        except ValueError as error:
            refused.append(f"{name}: {error}")
            continue
        is_chosen = type(strategy) is type(planned.hardware.strategy) or len(plans) == 1
        mark = "[green]✓[/]" if held.total <= USABLE * device.memory else "[red]✗[/]"
        cells = (*map(size, held), size(held.total), mark)
        rows.add_row(name, *cells, style="bold" if is_chosen else "")
    yield rows
    yield from refused
    batch = config.data.batch_size
    yield (
        f"a micro-batch of {batch} rows of {context(config)} tokens, which {world} devices share; tensors at the moment "
        f"when most are held, without compilation; ✓ leaves {1 - USABLE:.0%} of the memory to the rest"
    )
    yield variants(planned)


def strategies(planned: Estimate, config: DictConfig) -> dict[str, Strategy | None]:
    """Every strategy there is for several devices, the chosen one as it was chosen; and doing without."""
    if planned.world == 1:
        return {ALONE: None}
    chosen = planned.hardware.strategy
    plans: dict[str, Strategy | None] = {ALONE: None}
    for name, hardware in build(config.strategies).items():
        is_chosen = type(hardware.strategy) is type(chosen)
        plans[name] = chosen if is_chosen else hardware.strategy
    return plans


def peak(planned: Estimate, strategy: Strategy | None, timeline: Timeline) -> Memory:
    """The most that a device holds under a strategy.

    Raises:
        ValueError: the strategy does not work on these devices, or with this batch.
    """
    if strategy is None:
        return timeline.peak()
    world, batch = planned.world, planned.config.data.batch_size
    strategy.check(_resolved(planned, strategy))
    groups = strategy.data_parallel(world)
    if batch % groups:
        raise ValueError(f"data.batch_size={batch} cannot be shared by {groups}; choose a multiple")
    shares = strategy.shares(world)
    held = timeline.peak(shares)
    if groups == 1 or shares.weights == 1 or planned.cost is None:
        return held
    return _with_borrowed(held, planned.cost, shares.weights, groups)


def _resolved(planned: Estimate, strategy: Strategy) -> Hardware:
    return replace(
        planned.hardware,
        strategy=strategy,
        accelerator=planned.device.accelerator,
        precision=planned.device.precision,
        devices=planned.world // planned.hardware.num_nodes,
    )


def _with_borrowed(held: Memory, cost: Cost, divided: float, groups: int) -> Memory:
    """What fully sharded training holds for a moment, whole over its groups, on top of its shares.

    The tables and the head, which stay gathered, the block that computes and the next one; and the
    gradients of one of them before they are scattered.
    """
    others = groups / divided * (1 - 1 / groups)  # of a whole weight, what a device does not have
    number_size = held.weights * divided / cost.parameters
    weights = (cost.embedding + 2 * cost.block) * number_size * others
    gradients = max(cost.embedding, cost.block) * number_size * others
    return held._replace(weights=held.weights + weights, gradients=held.gradients + gradients)


def variants(planned: Estimate) -> Table:
    """The same step with and without activation checkpointing, in 32 bits and in 16."""
    rows = _table("precision", "checkpointing", "activations", "logits", "sum")
    shorter = torch.float16 if planned.device.precision == "fp16" else torch.bfloat16
    strategy = planned.hardware.strategy if planned.world > 1 else None
    for dtype in (torch.float32, shorter):
        for checkpointing in (False, True):
            timeline = planned.timeline_with(checkpointing, dtype)
            if timeline is None:
                continue
            held = peak(planned, strategy, timeline)
            is_chosen = (dtype, checkpointing) == (
                planned.device.dtype,
                planned.hardware.activation_checkpointing,
            )
            rows.add_row(
                "32" if dtype == torch.float32 else str(shorter).removeprefix("torch."),
                "on" if checkpointing else "off",
                *map(size, (held.activations, held.logits, held.total)),
                style="bold" if is_chosen else "",
            )
    return rows


def optimum_table(cost: Cost, budget: float) -> Iterator[Table | str]:
    """What size the budget would be best spent on, by two fits and a rule, beside the plan."""
    assert cost.tokens is not None
    rows = _table(f"{flops(budget)} FLOPs", "parameters", "tokens", "tokens/parameter", "loss")
    sizes = {
        "this plan": (cost.parameters, cost.tokens),
        "Besiroglu et al. 2024": BESIROGLU.optimum(budget),
        "Hoffmann et al. 2022": HOFFMANN.optimum(budget),
        "20 tokens a parameter": twenty_tokens(budget),
    }
    for name, (parameters, tokens) in sizes.items():
        law = HOFFMANN if name.startswith("Hoffmann") else BESIROGLU
        loss = law.loss(parameters, tokens)
        rows.add_row(name, number(parameters), number(tokens), f"{tokens / parameters:.3g}", f"{loss:.3f}")
    yield rows
    yield (
        "losses are those of Hoffmann's models on their text and tokens (by their fit, or by Besiroglu's of the same "
        "runs), of 6 FLOPs a parameter and token, which the plan's own exceed: what to expect of sizes, not of yours"
    )


def _table(first: str, *others: str) -> Table:
    rows = Table(box=SIMPLE_HEAD, pad_edge=False)
    rows.add_column(first, no_wrap=True)
    for name in others:
        rows.add_column(name, justify="right", no_wrap=True)
    return rows
