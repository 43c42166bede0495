"""What a reader of a table has to know before believing it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from statistics import fmean

from llm.comparison.rows import TablePart, TableRow, natural
from llm.units import format_number

UNLIKE = 0.01  # share by which budgets may differ and still be called the same: finetuning counts padding


def table_notes(
    parts: Sequence[TablePart], keys: Sequence[str], *, by: str | None, confidence: float
) -> list[str]:
    """Lines below a table, most important first.

    Args:
        parts: what is in the table.
        keys: what its rows differ in.
        by: the figure that ranks, where one was chosen.
        confidence: of the intervals.
    """
    found = chain(
        _seeing(parts, keys),
        _changed(parts),
        _apart(parts),
        *(_counted(part, by) for part in parts),
        _drawn(parts),
        *(_unlike(part, keys) for part in parts),
        _repeated(parts, confidence),
    )
    return list(dict.fromkeys(found))


def _seeing(parts: Sequence[TablePart], keys: Sequence[str]) -> Iterator[str]:
    """A model saw what it was to predict."""
    for row in chain(*(part.rows for part in parts)):
        if any(each.sees_its_targets for each in row.results):
            yield f"{row_label(row, keys)}: BERT saw the tokens that it was to predict; its loss is not ranked"


def _changed(parts: Sequence[TablePart]) -> Iterator[str]:
    """A run went on with other values than it had begun with."""
    for result in chain(*(row.results for part in parts for row in part.rows)):
        if result.changes:
            yield f"{result.name} was changed as it learned: {', '.join(result.changes)}"


def _apart(parts: Sequence[TablePart]) -> Iterator[str]:
    """Data differ."""
    labels = [part.label for part in parts if part.label]
    if len(labels) < 2:
        return
    yield f"different data ({', '.join(labels)}): each is ranked by itself"
    seeds = {
        frozenset(str(result.seed) for row in part.rows for result in row.results)
        for part in parts
        if part.label
    }
    if len(seeds) > 1 and max(Counter(label.split()[0] for label in labels).values()) > 1:
        yield "the seed draws what is held out of many texts: compare runs of the same seeds"


def _counted(part: TablePart, by: str | None) -> Iterator[str]:
    """Tokenizers differ, or what else a loss is counted in."""
    if part.tokenizers == 1:
        return
    by = by or "bits_per_byte"
    ranking = f"{by} ranks" if part.ranked else "nothing ranks: choose a figure with by="
    yield f"different tokenizers: losses by token do not compare and are left out; {ranking}"


def _drawn(parts: Sequence[TablePart]) -> Iterator[str]:
    """Repetitions were measured on different texts."""
    if any(len(row.data) > 1 for part in parts for row in part.rows):
        yield "each seed draws its own texts to hold out: figures of different seeds are not of the same texts"


def _unlike(part: TablePart, keys: Sequence[str]) -> Iterator[str]:
    """Budgets or repetitions differ among rows that are ranked."""
    ranked = part.rows[: part.ranked]
    tokens = {row: fmean(values) for row in ranked if (values := row.values("tokens"))}
    if tokens and max(tokens.values()) > (1 + UNLIKE) * min(tokens.values()):
        ends = min(tokens, key=lambda row: tokens[row]), max(tokens, key=lambda row: tokens[row])
        least, most = (
            f"{format_number(tokens[row])} tokens ({row_label(row, keys)})" for row in ends
        )
        yield f"not the same budget: from {least} to {most}"
    seeds = {row: sorted({str(r.seed) for r in row.counted}, key=natural) for row in ranked}
    if len(set(map(tuple, seeds.values()))) > 1:
        fewest = min(seeds, key=lambda row: len(seeds[row]))
        yield f"not the same seeds: {row_label(fewest, keys)} has {', '.join(seeds[fewest])} alone"


def _repeated(parts: Sequence[TablePart], confidence: float) -> Iterator[str]:
    """What stands behind ±."""
    if any(len(row.counted) > 1 for part in parts for row in part.rows):
        yield (
            f"± is the {confidence:.0%} interval of a mean over seeds (Student's t); a row's number is one more than "
            "that of the rows whose whole interval is better than its own"
        )


def row_label(row: TableRow, keys: Sequence[str]) -> str:
    """A row in the words that made it."""
    words = [f"{key}={value}" for key, value in zip(keys, row.settings, strict=True) if value]
    return " ".join(words) or row.results[0].name
