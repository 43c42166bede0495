"""`llm train … check=true`: what a run, or each point of a sweep, would be and cost; nothing is trained."""

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from llm.apps.estimating import MFU, Estimate, estimate
from llm.apps.refusing import require_division
from llm.apps.training import adopted
from llm.config.build import build, mistakes_at
from llm.config.composition import Point
from llm.config.errors import ConfigError
from llm.hardware import Hardware
from llm.planning.matching import Matched, unequal
from llm.units import duration, flops, number, percent, size


def show(points: Sequence[Point]) -> None:
    """Print a table with a row for each point.

    Raises:
        ConfigError: a point cannot be built, or this machine has not what it asks for.
    """
    estimates = [estimate(adopted(point.config, point.overrides)) for point in points]
    for each in estimates:
        with mistakes_at("hardware"):
            hardware = each.counted
        require_division(each.config, hardware)
    with mistakes_at("hardware"):
        rows = check_table(labels(points), estimates)
    put(rows, *map(note, notes(estimates)))


def require_divisible(points: Sequence[Point]) -> None:
    """Refuse points that as many devices as they name cannot divide, wherever they are going to run.

    Raises:
        ConfigError: they cannot; each line begins with the overrides of its point.
    """
    problems = []
    for label, point in zip(labels(points), points, strict=True):
        with mistakes_at("hardware"):
            hardware: Hardware = build(point.config.hardware)
        if hardware.strategy is None or hardware.devices == "auto" or hardware.world == 1:
            continue
        try:
            require_division(adopted(point.config, point.overrides), hardware)
        except ConfigError as error:
            problems += [f"{label} | {problem}" for problem in error.problems]
    if problems:
        raise ConfigError(*problems)


def show_matched(points: Sequence[Point], matched: Sequence[Matched]) -> None:
    """Print what was changed to make the points of a sweep equal, and what remains unequal."""
    rows = new_table("matched to the first", "parameters", "FLOPs/token", "tokens", "FLOPs")
    for label, point, left in zip(labels(points), matched, unequal(matched), strict=True):
        name = "\n".join([label, *(f"  {word}" for word in point.overrides)])
        rows.add_row(name, *(percent(each) for each in left.values()))
    put(rows)


def labels(points: Sequence[Point]) -> list[str]:
    """What tells each point from the others, or all its words where it is alone."""
    ours = [[word for word in point.overrides if not word.startswith("hydra")] for point in points]
    if len(points) == 1:
        return [
            " ".join(word for word in ours[0] if not word.startswith("check=")) or "as configured"
        ]
    common = set.intersection(*map(set, ours))
    return [" ".join(word for word in words if word not in common) for words in ours]


def check_table(names: Sequence[str], estimates: Sequence[Estimate]) -> Table:
    """A row for each point: what it is, what it reads and computes, what that takes."""
    names_of = ("parameters", "FLOPs/token", "tokens", "FLOPs", "memory", "time")
    rows = new_table("point", *names_of)
    for name, each in zip(names, estimates, strict=True):
        cost, memory = each.cost, each.memory
        if cost is None:
            rows.add_row(name, "needs data")
            continue
        rows.add_row(
            name,
            number(cost.parameters),
            flops(cost.flops_per_token),
            "needs data" if cost.tokens is None else number(cost.tokens),
            flops(cost.flops),
            size(memory and memory.total),
            duration(each.seconds()),
        )
    return rows


def notes(estimates: Sequence[Estimate]) -> Iterator[str]:
    """What a reader of the table has to know."""
    first = estimates[0]
    yield (
        "memory: tensors that one device holds at most, in a step without compilation; the process itself "
        "takes half a GiB more"
    )
    if first.device.flops is not None:
        yield (
            f"time: {first.world} × {first.device.name} at {MFU:.0%} of {first.device.flops / 1e12:.3g} TFLOP/s; "
            "tiny models reach less, and validating is not counted"
        )
    if any(each.cost is None or each.cost.tokens is None for each in estimates):
        yield "needs data: the vocabulary, or how many tokens there are, is known once the data have been read"
    crowded = [each for each in estimates if each.memory and each.memory.total > each.device.memory]
    if crowded:
        room = size(first.device.memory)
        yield f"{len(crowded)} of {len(estimates)} take more than the {room} of {first.device.name}"


def new_table(*names: str) -> Table:
    """An empty table: a column of names, which may break, and columns of figures."""
    rows = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    rows.add_column(names[0], overflow="fold")
    for name in names[1:]:
        rows.add_column(name, justify="right", no_wrap=True)
    return rows


def note(text: str) -> Text:
    """A line that says what a table means."""
    return Text(f"· {text}", style="dim")


def put(*parts: RenderableType) -> None:
    """Print tables and lines; where no terminal is, plain and as wide as they are."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 10_000
    for part in parts:
        console.print(part, soft_wrap=not console.is_terminal and not isinstance(part, Table))
