"""`llm train … dry_run=true`: the size and cost of a run, or of each point of a sweep."""

from collections.abc import Iterator, Sequence

from omegaconf import OmegaConf
from rich.table import Table

from llm.config.build import config_errors_at
from llm.config.errors import collecting, raise_all
from llm.config.overrides import differing_words, key_of
from llm.hardware import Hardware
from llm.planning.matching import BOUNDS, Matched, remaining_differences
from llm.terminal.tables import new_table, note_line, print_tables
from llm.training.forecast import BOUND, MFU, Forecast, forecast
from llm.training.preflight import require_division
from llm.training.training_config import TrainingConfig
from llm.units import duration, flops, format_bytes, format_number, percent


def show_dry_run(points: Sequence[TrainingConfig]) -> None:
    """Print a table with a row for each point.

    Raises:
        ConfigError: a point cannot be built, or this machine lacks the requested hardware.
    """
    estimates = [forecast(point) for point in points]
    for each in estimates:
        with config_errors_at("hardware", Hardware):
            if each.hardware.strategy is not None:
                each.hardware.strategy.require()
            hardware = each.on(each.strategy)
        require_division(each.config, hardware)
    rows = estimates_table(labels(points), estimates)
    print_tables(rows, *map(note_line, dry_run_notes(estimates)))


def require_divisible(points: Sequence[TrainingConfig]) -> None:
    """Refuse points that the requested number of devices cannot divide.

    Raises:
        ConfigError: there are such points; each line begins with the overrides of one.
    """
    problems = []
    for label, point in zip(labels(points), points, strict=True):
        hardware = point.hardware
        if hardware.strategy is None or hardware.devices == "auto" or hardware.world == 1:
            continue
        lines: list[str] = []
        with collecting(lines):
            require_division(point.tree, hardware)
        problems += [f"{label} | {line}" for line in lines]
    raise_all(problems)


def show_matched(points: Sequence[TrainingConfig], matched: Sequence[Matched]) -> None:
    """Print the overrides that match each point of a sweep to the first, and what still differs."""
    rows = new_table("matched to the first", "parameters", "FLOPs/token", "tokens", "FLOPs")
    lines = zip(labels(points), points, matched, remaining_differences(matched), strict=True)
    for label, point, made, left in lines:
        name = "\n".join([label, *(f"  {change}" for change in point_changes(point, made))])
        rows.add_row(name, *(percent(each) for each in left.values()))
    print_tables(rows, *map(note_line, matching_notes(matched)))


def point_changes(point: TrainingConfig, made: Matched) -> Iterator[str]:
    """Yield the overrides that match a point, each with the value that it replaces."""
    for word in made.overrides:
        own = OmegaConf.select(point.composed.config, key_of(word))
        yield word if own is None else f"{word} (for {own})"


def matching_notes(matched: Sequence[Matched]) -> Iterator[str]:
    """Yield notes about the changes."""
    if any(key_of(word) == "size.dim" for made in matched for word in made.overrides):
        low, high = BOUNDS
        yield (
            f"size.dim: there are no feed-forward layers, or by their width alone they would become less than "
            f"{low:g} or more than {high:g} times as wide, so the width of the whole model was changed, which also "
            "changes the FLOPs"
        )
        if any(made.cost.active_parameters != made.cost.parameters for made in matched):
            yield (
                "a token uses some of the experts only: match=active_parameters compares the parameters that it uses"
            )


def labels(points: Sequence[TrainingConfig]) -> list[str]:
    """Return the overrides that differ between the points; all overrides of a single point.

    Names of runs, which a sweep makes of the other overrides, are left out.
    """
    ours = [
        [word for word in point.composed.own if not word.startswith(("dry_run=", "name="))]
        for point in points
    ]
    if len(points) == 1:
        return [" ".join(ours[0]) or "as configured"]
    return [" ".join(words) for words in differing_words(ours)]


def estimates_table(names: Sequence[str], estimates: Sequence[Forecast]) -> Table:
    """Return a table with the size, compute, memory and time of each point."""
    rows = new_table("point", "parameters", "FLOPs/token", "tokens", "FLOPs", "memory", "time")
    for name, each in zip(names, estimates, strict=True):
        cost, memory = each.cost, each.memory
        if cost is None:
            rows.add_row(name, "needs data")
            continue
        rows.add_row(
            name,
            format_number(cost.parameters),
            flops(cost.flops_per_token),
            "needs data" if cost.tokens is None else format_number(cost.tokens),
            flops(cost.flops),
            format_bytes(memory and memory.total),
            duration(each.seconds()),
        )
    return rows


def dry_run_notes(estimates: Sequence[Forecast]) -> Iterator[str]:
    """Yield notes about the table."""
    first = estimates[0]
    yield (
        "memory: tensors of one device at the peak of a step, without compilation; the process itself "
        "takes half a GiB more"
    )
    if first.device.flops is not None:
        yield (
            f"time: {first.world} × {first.device.name} at {MFU:.0%} of {first.device.flops / 1e12:.3g} TFLOP/s; "
            "tiny models reach less, and validation is not counted"
        )
    if any(each.is_bound for each in estimates):
        yield BOUND
    if any(each.cost is None or each.cost.tokens is None for each in estimates):
        yield "needs data: the vocabulary, or the number of tokens, is not known before the data are read"
    crowded = [each for each in estimates if each.memory and each.memory.total > each.device.memory]
    if crowded:
        room = format_bytes(first.device.memory)
        yield f"{len(crowded)} of {len(estimates)} take more than the {room} of {first.device.name}"
