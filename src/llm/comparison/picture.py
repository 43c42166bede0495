"""The picture of a comparison: loss against training tokens and against training compute."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import (
    EngFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    ScalarFormatter,
)

from llm.comparison.interval import MeanInterval, mean_interval
from llm.comparison.result import Result
from llm.comparison.rows import TablePart, TableRow, natural
from llm.files import replacing

# Okabe and Ito's palette, which colour-blind readers can tell apart, without its yellow, which is faint on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
LINES = ("-", "--", ":", "-.")
LABELS = {
    "val/loss": "validation loss (nats)",
    "val/bits_per_byte": "validation bits per byte",
    "train/loss": "training loss (nats)",
}
WIDE = 20.0  # ratio of the ends of a range above which the x axis is logarithmic
STEEP = 2.5  # the same for the y axis
LONGEST = 44  # characters of a name in a legend
FEW = 4  # maximum number of curves for a legend inside the axes


class Panel(NamedTuple):
    """The content of one pair of axes.

    Attributes:
        part: the part of the table whose rows are drawn.
        metric: the metric on the y axis.
        is_compute: whether the x axis shows training FLOPs instead of tokens.
    """

    part: TablePart
    metric: str
    is_compute: bool


def draw_comparison(
    parts: Sequence[TablePart], path: Path, *, keys: Sequence[str], confidence: float
) -> bool:
    """Draw a comparison as a PNG, with a row of panels for each part.

    Args:
        parts: the parts of the table.
        path: the file to write.
        keys: the settings in which rows differ.
        confidence: confidence of the interval of a mean over seeds.

    Returns:
        Whether a run has a curve; if none has, no file is written.
    """
    grid = [panels for part in parts if (panels := _panels(part))]
    if not grid:
        return False
    across = max(map(len, grid))
    styles = _styles(parts, keys)
    figure = Figure(figsize=(5.2 * across, 3.9 * len(grid)), dpi=130, layout="constrained")
    all_axes = figure.subplots(len(grid), across, squeeze=False, sharey="row")
    for axes_of, panels in zip(all_axes, grid, strict=True):
        for axes in axes_of[len(panels) :]:
            axes.set_axis_off()
        for axes, panel in zip(axes_of, panels, strict=False):
            _draw(axes, panel, styles=styles, confidence=confidence)
        axes_of[0].set_ylabel(LABELS[panels[0].metric])
        if len(grid) > 1:
            axes_of[0].set_title(panels[0].part.label, loc="left")
        _legend(axes_of[len(panels) - 1])
    with replacing(path) as partial:
        figure.savefig(partial, format="png", metadata={"Software": None})
    return True


def _panels(part: TablePart) -> list[Panel]:
    """Return the panels of a part: loss against tokens, and against compute if known for every curve."""
    results = [each for row in part.rows for each in row.counted]
    # Losses per token are comparable with one tokenizer only.
    candidates = ("val/bits_per_byte",) if part.tokenizers > 1 else ("val/loss", "train/loss")
    for metric in candidates:
        if any(len(each.curve(metric)) > 1 for each in results):
            drawn = [each for each in results if each.curve(metric)]
            is_known = all(each.number("flops_per_token") for each in drawn)
            return [Panel(part, metric, axis) for axis in ((False, True) if is_known else (False,))]
    return []


def _draw(
    axes: Any, panel: Panel, *, styles: Mapping[TableRow, Mapping[str, str]], confidence: float
) -> None:
    """Draw thin lines for seeds, a thick line for their mean, a band for its interval."""
    for row in panel.part.rows:
        curves = [_curve(each, panel) for each in row.counted if each.curve(panel.metric)]
        if not curves:
            continue
        style = styles[row]
        x, means = _mean(curves, confidence)
        if len(curves) > 1:
            for curve in curves:
                axes.plot(
                    *zip(*curve.values(), strict=True), color=style["color"], lw=0.6, alpha=0.5
                )
        ends = [(m - margin, m + margin) for m, margin in means if margin is not None]
        if len(curves) > 2 and len(ends) == len(means):  # the band of two seeds is too wide
            axes.fill_between(x, *zip(*ends, strict=True), color=style["color"], alpha=0.1, lw=0)
        values, spacing = [each.mean for each in means], max(1, len(x) // 10)
        axes.plot(x, values, lw=1.8, ms=5, markevery=spacing, **style)
    _dress(axes, panel)


def _curve(result: Result, panel: Panel) -> dict[float, tuple[float, float]]:
    """Return the points of a run's curve by step."""
    scale = (panel.is_compute and result.number("flops_per_token")) or 1.0
    return {step: (tokens * scale, value) for step, tokens, value in result.curve(panel.metric)}


def _mean(
    curves: Sequence[dict[float, tuple[float, float]]], confidence: float
) -> tuple[list[float], list[MeanInterval]]:
    """Return the mean x and the mean y over repetitions at their common steps."""
    steps = sorted(set.intersection(*map(set, curves)))
    points = [[curve[step] for curve in curves] for step in steps]
    x = [fmean(x for x, _ in each) for each in points]
    return x, [mean_interval([y for _, y in each], confidence) for each in points]


def _dress(axes: Any, panel: Panel) -> None:
    """Set labels, units and scales."""
    axes.set(xlabel="training FLOPs" if panel.is_compute else "training tokens")
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    low, high = _ends(axes, 0)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    if high > WIDE * low > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(EngFormatter(sep="\N{NO-BREAK SPACE}"))
    low, high = _ends(axes, 1)
    if high > STEEP * low > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 6, 8)))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())


def _ends(axes: Any, of: int) -> tuple[float, float]:
    values = [value for line in axes.lines for value in line.get_data()[of]]
    return min(values), max(values)


def _styles(parts: Sequence[TablePart], keys: Sequence[str]) -> dict[TableRow, dict[str, str]]:
    """Return label and style per row: colour and marker by the model, or else the first key; line by the other keys."""
    rows = [row for part in parts for row in part.rows]
    labels = [_label(row, keys, data=part.label) for part in parts for row in part.rows]
    models = [at for at, key in enumerate(keys) if key.replace(".", "/").split("/")[0] == "model"]
    leading = models or [0][: len(keys)]
    main = _indices([tuple(row.settings[at] for at in leading) for row in rows])
    rest = _indices(
        [tuple(s for at, s in enumerate(row.settings) if at not in leading) for row in rows]
    )
    return {
        row: {
            "label": label,
            "color": COLORS[hue % len(COLORS)],
            "marker": MARKERS[(hue + shade // len(LINES)) % len(MARKERS)],
            "linestyle": LINES[shade % len(LINES)],
        }
        for row, label, hue, shade in zip(rows, labels, main, rest, strict=True)
    }


def _indices(values: Sequence[tuple[str | None, ...]]) -> list[int]:
    """Return the index of each value among the sorted distinct values."""
    found = sorted(set(values), key=lambda value: tuple(map(natural, value)))
    return [found.index(value) for value in values]


def _label(row: TableRow, keys: Sequence[str], *, data: str) -> str:
    """Return a row's settings, without those in the label of the data, and its status unless it is done."""
    words = [
        f"{key.split('.')[-1]}={value}"
        for key, value in zip(keys, row.settings, strict=True)
        if value is not None and f"{key}={value}" not in data.split()
    ]
    name = " ".join(words) or row.results[0].name
    if len(keys) == 1:
        name = str(row.settings[0])
    elif len(name) > LONGEST:
        name = f"{name[:LONGEST]}…"
    return name if row.is_done else f"{name} ({row.status})"


def _legend(axes: Any) -> None:
    """Add the legend: inside the axes if there are few curves, otherwise beside them."""
    number = len(axes.get_legend_handles_labels()[0])
    if number > FEW:
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.02, 1.0))
    elif number:
        axes.legend(frameon=False, fontsize=8)
