"""The report of `llm evaluate`, as JSON and as a table."""

import math
from collections.abc import Mapping
from typing import Any

from rich.table import Table


def plain_report(report: Any) -> Any:
    """Return a report for JSON, with null for numbers that are not finite."""
    if isinstance(report, Mapping):
        return {name: plain_report(value) for name, value in report.items()}
    return None if isinstance(report, float) and not math.isfinite(report) else report


def report_table(report: Mapping[str, Any]) -> Table:
    """Return the report as a table of metrics with their intervals."""
    lines = Table(title=f"{report['run']}, {report['part']}", title_justify="left")
    lines.add_column("metric")
    lines.add_column("value", justify="right")
    lines.add_column("95 % interval", justify="right")
    for section in ("metrics", "quality", "judge", "against"):
        for name, value in report.get(section, {}).items():
            lines.add_row(*row(name, value))
        lines.add_section()
    return lines


def row(name: str, value: Any) -> tuple[str, str, str]:
    """Return a line of the table: a name, a count, or a metric with or without an interval."""
    if isinstance(value, str):
        return f"{name} {value}", "", ""
    if not isinstance(value, Mapping):
        return name, shown(value), ""
    interval = f"{shown(value['low'])} to {shown(value['high'])}"
    return name, shown(value["mean"]), "" if value["low"] is None else interval


def shown(value: float | None) -> str:
    """Return a metric with four significant digits, or a count."""
    if value is None:
        return "none"
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}"
