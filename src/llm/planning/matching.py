"""Matching of runs in size or budget, so that they differ only in what is compared.

Two architectures of the same width seldom have the same number of parameters: a gated feed-forward layer has a third
matrix, an untied head a second embedding matrix. The width of the feed-forward layers is adjusted. This does not change
the residual stream, the heads and the context, and reaches the target to within one row of the matrices. If the new
width is below half or above twice the old one, the width of the model is adjusted first.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf

from llm.config.errors import ConfigError
from llm.config.texts import one_or_several
from llm.planning.cost import Cost, cost
from llm.units import format_number, percent

HIDDEN = "model.feed_forward.hidden_dim"
BOUNDS = (0.5, 2.0)  # relative to the width of the feed-forward layers
SIZES = ("parameters", "active_parameters")  # matched by widths; the others by steps
WIDEST = 1 << 17  # maximum width of a model in the search
NEAR = 0.05  # maximum relative difference that may remain


class Matched(NamedTuple):
    """A point of a sweep, matched to the first.

    Attributes:
        overrides: the changes, as overrides; empty for the first point.
        cost: its cost with the changes.
    """

    overrides: list[str]
    cost: Cost


def match(configs: Sequence[DictConfig], by: str | Sequence[str]) -> list[Matched]:
    """Match every point of a sweep to the first.

    Args:
        configs: the composed points; they are not changed.
        by: `parameters` or `active_parameters` (by the widths of the model), `flops` or `tokens` (by the steps of the
            run); one of the first two may be combined with one of the last two.

    Raises:
        ConfigError: there is only one point, the size of a point is not known before its data are read, or a point
            cannot be matched within `NEAR`.
    """
    measures = one_or_several(by)
    _require_valid(measures, len(configs))
    reference = _require_cost(configs[0])
    others = (_matched(point, reference, measures=measures) for point in configs[1:])
    return [Matched([], reference), *others]


def _require_valid(measures: Sequence[str], points: int) -> None:
    word = f"match={measures[0]}" if len(measures) == 1 else f"match=[{','.join(measures)}]"
    for both, what in (({"flops", "tokens"}, "the number of steps"), ({*SIZES}, "the widths")):
        if both <= {*measures}:
            raise ConfigError(f"{word}: both would set {what}; choose one of them")
    if points < 2:
        raise ConfigError(f"{word}: a single run has nothing to match; use several points with -m")


def _matched(point: DictConfig, reference: Cost, *, measures: Sequence[str]) -> Matched:
    changed: dict[str, object] = {}
    for what in measures:
        if what in SIZES:
            changed |= match_parameters(point, getattr(reference, what), what=what)
    now = _with(point, changed)
    for what in measures:
        if what not in SIZES:
            changed |= match_steps(now, what, target=getattr(reference, what))
    words = [f"{key}={'null' if value is None else value}" for key, value in changed.items()]
    now = _require_cost(_with(point, changed))
    _require_near(now, reference, measures=measures)
    return Matched(words, now)


def _require_near(now: Cost, reference: Cost, *, measures: Sequence[str]) -> None:
    for what in measures:
        value, target = getattr(now, what), getattr(reference, what)
        left = _excess(value, target)
        if left is not None and abs(left) > NEAR:
            raise ConfigError(
                f"match={what}: the first point has {format_number(target)}, and the nearest that another point can "
                f"have is {format_number(value)} ({percent(left)}); choose points that differ less"
            )


def match_parameters(
    point: DictConfig, target: int, *, what: str = "parameters"
) -> dict[str, object]:
    """Return the widths, by key, that bring the number of parameters nearest to `target`; empty if it is equal.

    Args:
        point: the point to change.
        target: number of parameters.
        what: `parameters` or `active_parameters`.
    """
    if _size(point, what) == target:
        return {}
    if point.get("weights") is not None:
        raise ConfigError(
            f"match={what}: the size of {point.weights.path} is fixed; train from weights=scratch"
        )
    hidden, is_within = _nearest_hidden(point, target, what)
    if is_within:
        return hidden
    dim = {"size.dim": _nearest_dim(point, target, what)}
    return dim | _nearest_hidden(_with(point, dim), target, what)[0]


def _size(point: DictConfig, what: str) -> int:
    return getattr(_require_cost(point), what)


def _nearest_hidden(point: DictConfig, target: int, what: str) -> tuple[dict[str, object], bool]:
    """Return the nearest width of the feed-forward layers within the bounds, by key, and whether no bound limits it.

    The number of parameters is linear in this width.
    """
    if OmegaConf.select(point, HIDDEN.rpartition(".")[0]) is None:
        return {}, False
    one, two = (_size(_with(point, {HIDDEN: width}), what) for width in (1, 2))
    row, own = two - one, _size(point, what)
    if row <= 0:  # the model does not use it
        return {}, False
    width = 1 + (own - one) // row
    wanted = max(1, 1 + round((target - one) / row))
    low, high = (round(bound * width) for bound in BOUNDS)
    nearest = min(max(wanted, low), high)
    return ({HIDDEN: nearest} if nearest != width else {}), wanted == nearest


def _nearest_dim(point: DictConfig, target: int, what: str) -> int:
    """Return the width of the model: a multiple of twice the number of heads, so that heads have an even width.

    Raises:
        ConfigError: the model does not use `size.dim`.
    """
    step = 2 * point.size.num_heads

    def parameters(steps: int) -> int:
        return _size(_with(point, {"size.dim": steps * step}), what)

    low, high = 1, 2
    if parameters(high) <= parameters(low):
        raise ConfigError(
            f"match={what}: model.dim={point.model.dim} fixes the width; set size.dim instead"
        )
    while parameters(high) < target and step * high < WIDEST:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if parameters(middle) < target else (low, middle)
    return step * min((low, high), key=lambda steps: abs(parameters(steps) - target))


def match_steps(point: DictConfig, what: str, *, target: int | None) -> dict[str, object]:
    """Return the changes of the budget, by key, that make a run use `target` tokens or FLOPs."""
    now = _require_cost(point)
    each = now.tokens_per_step
    if what == "flops":
        each = each and now.flops_per_token and each * now.flops_per_token
    if target is None or not each:
        raise ConfigError(
            f"match={what}: the number of {what} of a point is not known before its data are read; use a pretraining "
            "task, and set its budget in trainer.max_steps or max_tokens"
        )
    steps = max(1, round(target / each))
    if steps == now.steps:
        return {}
    others = {f"trainer.{key}": None for key in ("max_epochs", "max_tokens") if point.trainer[key]}
    return {"trainer.max_steps": steps, **others}


def remaining_differences(matched: Sequence[Matched]) -> list[dict[str, float | None]]:
    """Return for each point the relative difference of each measure from the first point."""
    first, measures = matched[0].cost, ("parameters", "flops_per_token", "tokens", "flops")
    return [
        {name: _excess(getattr(point.cost, name), getattr(first, name)) for name in measures}
        for point in matched
    ]


def _excess(value: int | None, reference: int | None) -> float | None:
    return None if value is None or not reference else value / reference - 1


def _with(point: DictConfig, changed: Mapping[str, object]) -> DictConfig:
    config = point.copy()
    for key, value in changed.items():
        OmegaConf.update(config, key, value)
    return config


def _require_cost(point: DictConfig) -> Cost:
    found = cost(point)
    if found is None:
        raise ConfigError(
            "match: the vocabulary size is not known before the data are read; choose a tokenizer with a fixed size "
            "(tokenizer=bpe, gpt2, byte), or train one of the points first"
        )
    return found
