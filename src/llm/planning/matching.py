"""Runs made equal in size or in budget, so that what is compared differs in what is meant to differ.

Two architectures of one width seldom have as many parameters: a gated feed-forward layer has a third
matrix, an untied head a second table. So the width of the feed-forward layers is adjusted, which leaves the
stream, its heads and the context as they are and reaches a target to a row of the matrices; where that
would take it beyond half or twice its own width, the width of the model is adjusted first.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf

from llm.config.errors import ConfigError
from llm.planning.cost import Cost, cost
from llm.units import format_number, percent

HIDDEN = "model.feed_forward.hidden_dim"
BOUNDS = (0.5, 2.0)  # of a feed-forward layer's own width
WIDEST = 1 << 17  # no model's width is looked for beyond
NEAR = 0.05  # what may remain unequal


class Matched(NamedTuple):
    """A point of a sweep, made equal to the first.

    Attributes:
        overrides: what was changed, as words of a command line; none for the first.
        cost: what it is now.
    """

    overrides: list[str]
    cost: Cost


def match(configs: Sequence[DictConfig], by: str | Sequence[str]) -> list[Matched]:
    """Make every point of a sweep equal to the first.

    Args:
        configs: the points as they were composed; they stay as they are.
        by: `parameters` (of the model, by its widths), `flops` or `tokens` (of the run, by its steps);
            `parameters` may be joined with one of the others.

    Raises:
        ConfigError: there is nothing to match with, what a point has is not known before its data are read,
            or a point cannot be brought near to the first.
    """
    measures = [by] if isinstance(by, str) else list(by)
    _require_sense(measures, len(configs))
    reference = _known(configs[0])
    return [
        Matched([], reference),
        *(_matched(point, reference, measures=measures) for point in configs[1:]),
    ]


def _require_sense(measures: Sequence[str], points: int) -> None:
    word = f"match={measures[0]}" if len(measures) == 1 else f"match=[{','.join(measures)}]"
    if unknown := [each for each in measures if each not in ("parameters", "flops", "tokens")]:
        raise ConfigError(
            f"match: {unknown[0]} is not one of the choices; use parameters, flops or tokens"
        )
    if {"flops", "tokens"} <= {*measures}:
        raise ConfigError(f"{word}: both would set the number of steps; choose one of them")
    if points < 2:
        raise ConfigError(
            f"{word}: there is nothing to match a single run with; give several points with -m"
        )


def _matched(point: DictConfig, reference: Cost, *, measures: Sequence[str]) -> Matched:
    changed: dict[str, object] = {}
    if "parameters" in measures:
        changed |= match_parameters(point, reference.parameters)
    now = _with(point, changed)
    for what in measures:
        if what != "parameters":
            changed |= match_steps(now, what, target=getattr(reference, what))
    words = [f"{key}={'null' if value is None else value}" for key, value in changed.items()]
    now = _known(_with(point, changed))
    _require_near(now, reference, measures=measures)
    return Matched(words, now)


def _require_near(now: Cost, reference: Cost, *, measures: Sequence[str]) -> None:
    for what in measures:
        value, target = getattr(now, what), getattr(reference, what)
        left = _excess(value, target)
        if left is not None and abs(left) > NEAR:
            raise ConfigError(
                f"match={what}: {format_number(value)} is as near as a point comes to the first one's "
                f"{format_number(target)} ({percent(left)}); choose points that differ less"
            )


def match_parameters(point: DictConfig, target: int) -> dict[str, object]:
    """The widths at which a model has as near to `target` parameters as it can.

    Returns:
        Full keys and their values; none where it has as many already.
    """
    if _parameters(point) == target:
        return {}
    if point.get("weights") is not None:
        raise ConfigError(
            f"match=parameters: the model is that of {point.weights.path}, as large as it is"
        )
    hidden, is_within = _nearest_hidden(point, target)
    if is_within:
        return hidden
    dim = {"size.dim": _nearest_dim(point, target)}
    return dim | _nearest_hidden(_with(point, dim), target)[0]


def _nearest_hidden(point: DictConfig, target: int) -> tuple[dict[str, object], bool]:
    """The width of the feed-forward layers, and whether the bounds did not stand in its way.

    A model's parameters are a constant and a number for each row of its feed-forward matrices.
    """
    if OmegaConf.select(point, HIDDEN.rpartition(".")[0]) is None:
        return {}, False
    one, two = (_parameters(_with(point, {HIDDEN: width})) for width in (1, 2))
    row, own = two - one, _parameters(point)
    if row <= 0:  # nothing in the model follows it
        return {}, False
    width = 1 + (own - one) // row
    wanted = max(1, 1 + round((target - one) / row))
    low, high = (round(bound * width) for bound in BOUNDS)
    nearest = min(max(wanted, low), high)
    return ({HIDDEN: nearest} if nearest != width else {}), wanted == nearest


def _nearest_dim(point: DictConfig, target: int) -> int:
    """The width of the model, in steps that give every head an even whole width.

    Raises:
        ConfigError: the model does not follow `size.dim`.
    """
    step = 2 * point.size.num_heads

    def parameters(steps: int) -> int:
        return _parameters(_with(point, {"size.dim": steps * step}))

    low, high = 1, 2
    if parameters(high) <= parameters(low):
        raise ConfigError(
            f"match=parameters: model.dim={point.model.dim} fixes the width; leave it to size.dim"
        )
    while parameters(high) < target and step * high < WIDEST:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if parameters(middle) < target else (low, middle)
    return step * min((low, high), key=lambda steps: abs(parameters(steps) - target))


def match_steps(point: DictConfig, what: str, *, target: int | None) -> dict[str, object]:
    """The steps after which a run has seen `target` tokens, or computed as many FLOPs.

    Returns:
        Full keys and their values; none where its budget says so already.
    """
    now = _known(point)
    each = now.tokens_per_step
    if what == "flops":
        each = each and now.flops_per_token and each * now.flops_per_token
    if target is None or not each:
        raise ConfigError(
            f"match={what}: how many {what} a point takes is not known before its data are read; give the budget in "
            "trainer.max_steps or max_tokens, of a task that pretrains"
        )
    steps = max(1, round(target / each))
    if steps == now.steps:
        return {}
    others = {f"trainer.{key}": None for key in ("max_epochs", "max_tokens") if point.trainer[key]}
    return {"trainer.max_steps": steps, **others}


def unequal(matched: Sequence[Matched]) -> list[dict[str, float | None]]:
    """What remains: for each point, how much more than the first it has of each, as a fraction."""
    first = matched[0].cost
    measures: dict[str, Callable[[Cost], int | None]] = {
        "parameters": lambda cost: cost.parameters,
        "flops_per_token": lambda cost: cost.flops_per_token,
        "tokens": lambda cost: cost.tokens,
        "flops": lambda cost: cost.flops,
    }
    return [
        {name: _excess(of(point.cost), of(first)) for name, of in measures.items()}
        for point in matched
    ]


def _excess(value: int | None, reference: int | None) -> float | None:
    return None if value is None or not reference else value / reference - 1


def _with(point: DictConfig, changed: Mapping[str, object]) -> DictConfig:
    config = point.copy()
    for key, value in changed.items():
        OmegaConf.update(config, key, value)
    return config


def _parameters(point: DictConfig) -> int:
    return _known(point).parameters


def _known(point: DictConfig) -> Cost:
    found = cost(point)
    if found is None:
        raise ConfigError(
            "match: the size of the vocabulary is not known before the data are read; choose a tokenizer that says "
            "it (tokenizer=bpe, gpt2, byte), or train one of the points first"
        )
    return found
