"""Notes below a table: differences that make its rows less comparable."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from statistics import fmean

from llm.comparison.rows import TablePart, TableRow, natural
from llm.units import format_number

# Budgets that differ by a smaller share count as equal, because finetuning counts padding.
TOLERANCE = 0.01


def table_notes(
    parts: Sequence[TablePart], keys: Sequence[str], *, by: str | None, confidence: float
) -> list[str]:
    """Return the lines below a table, most important first; the arguments are those of `Table`.

    Args:
        parts: its parts.
        keys: the settings in which its rows differ.
        by: the chosen metric to rank by.
        confidence: confidence of the intervals.
    """
    rows = [row for part in parts for row in part.rows]
    found = chain(
        _changed(rows),
        _apart(parts),
        *(_counted(part, by) for part in parts),
        _drawn(rows),
        *(_unlike(part, keys) for part in parts),
        _repeated(rows, confidence),
    )
    return list(dict.fromkeys(found))


def _changed(rows: Sequence[TableRow]) -> Iterator[str]:
    """Note each run whose settings changed when it was resumed."""
    for result in chain(*(row.results for row in rows)):
        if result.changes:
            yield f"{result.name} was changed during training: {', '.join(result.changes)}"


def _apart(parts: Sequence[TablePart]) -> Iterator[str]:
    """Note that the data differ."""
    labels = [part.label for part in parts if part.label]
    if len(labels) < 2:
        return
    yield f"different data ({', '.join(labels)}): each is ranked separately"
    seeds = {
        frozenset(str(result.seed) for row in part.rows for result in row.results)
        for part in parts
        if part.label
    }
    if len(seeds) > 1 and max(Counter(label.split()[0] for label in labels).values()) > 1:
        yield "the seed decides which texts are held out: compare runs with the same seeds"


def _counted(part: TablePart, by: str | None) -> Iterator[str]:
    """Note that tokenizers, or other units of a loss, differ."""
    if part.tokenizers == 1:
        return
    by = by or "bits_per_byte"
    unranked = "no row is ranked: choose another metric with by="
    ranking = f"rows are ranked by {by}" if part.ranked else unranked
    yield f"different tokenizers: losses per token are not comparable and are left out; {ranking}"


def _drawn(rows: Sequence[TableRow]) -> Iterator[str]:
    """Note that repetitions were measured on different texts."""
    if any(len(row.data) > 1 for row in rows):
        yield "each seed draws its own held-out texts: metrics of different seeds are not measured on the same texts"


def _unlike(part: TablePart, keys: Sequence[str]) -> Iterator[str]:
    """Note that budgets or seeds differ among ranked rows."""
    ranked = part.rows[: part.ranked]
    tokens = {row: fmean(values) for row in ranked if (values := row.values("tokens"))}
    if tokens and max(tokens.values()) > (1 + TOLERANCE) * min(tokens.values()):
        ends = min(tokens, key=lambda row: tokens[row]), max(tokens, key=lambda row: tokens[row])
        least, most = (
            f"{format_number(tokens[row])} tokens ({row_label(row, keys)})" for row in ends
        )
        yield f"not the same budget: from {least} to {most}"
    seeds = {row: sorted({str(r.seed) for r in row.counted}, key=natural) for row in ranked}
    if len(set(map(tuple, seeds.values()))) > 1:
        fewest = min(seeds, key=lambda row: len(seeds[row]))
        yield f"not the same seeds: {row_label(fewest, keys)} has only {', '.join(seeds[fewest])}"


def _repeated(rows: Sequence[TableRow], confidence: float) -> Iterator[str]:
    """Explain ± if there are repetitions."""
    if any(len(row.counted) > 1 for row in rows):
        yield (
            f"± is the {confidence:.0%} interval of a mean over seeds (Student's t); a row's number is one more than "
            "the number of rows whose whole interval is better"
        )


def row_label(row: TableRow, keys: Sequence[str]) -> str:
    """Return the overrides that identify a row, or the name of its first run."""
    words = [f"{key}={value}" for key, value in zip(keys, row.settings, strict=True) if value]
    return " ".join(words) or row.results[0].name
