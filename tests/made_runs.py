"""Run directories for the tests of comparisons."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm.runs import FORMAT, Run


def make(
    folder: Path,
    losses: Sequence[float] = (5.0, 4.0),
    *,
    settings: Mapping[str, str] | None = None,
    choices: Mapping[str, str] | None = None,
    seed: int = 0,
    tokens_per_step: int = 100,
    bytes_per_token: float = 4.0,
    rows: Sequence[Mapping[str, float]] | None = None,
    without: Sequence[str] = (),
    **record: Any,
) -> Run:
    """A run that validated every ten steps.

    Args:
        folder: folder of the run; its name is the name of the run.
        losses: the validation losses.
        settings: overrides of the run, without the seed.
        choices: chosen options.
        seed: its seed.
        tokens_per_step: training tokens of a step.
        bytes_per_token: mean number of bytes of a token.
        rows: rows of metrics.csv; None makes them from the losses.
        without: entries to leave out of run.json.
        record: entries of run.json that replace the defaults.
    """
    overrides = dict(settings or {"model": "gpt"})
    chosen = {"task": "pretraining", "data": "text", **overrides, **(choices or {})}
    if rows is None:
        rows = [
            {
                "step": 10 * place,
                "tokens": 10.0 * place * tokens_per_step,
                "train/loss": loss + 0.1,
                "speed/tokens_per_second": 1000.0 + place,
                "speed/mfu": 0.25,
                "val/loss": loss,
                "val/perplexity": math.exp(loss),
                "val/bits_per_byte": loss / math.log(2) / bytes_per_token,
            }
            for place, loss in enumerate(losses, start=1)
        ]
    steps = int(rows[-1]["step"]) if rows else 0
    entries = {
        "name": folder.name,
        "status": "done",
        "format": FORMAT,
        "fingerprint": folder.name,
        "seed": seed,
        "recipe": " ".join(f"{k}={v}" for k, v in overrides.items()),
        "task": chosen["task"],
        "choices": chosen,
        "overrides": {**overrides, "seed": str(seed)},
        "corpus": "c0ffee",
        "vocabulary": "bpe",
        "parameters": 1_000_000,
        "trained_parameters": 1_000_000,
        "flops_per_token": 6_000_000,
        "tokens_per_step": tokens_per_step,
        "max_steps": steps,
        "steps": steps,
        "stopped_at": steps,
        "seconds": 61.0,
        "peak_memory": 2**30,
        **record,
    }
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in entries.items() if name not in without}
    (folder / "run.json").write_text(json.dumps(kept), "utf-8")
    if rows:
        with (folder / "metrics.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
            writer.writeheader()
            writer.writerows(rows)
    return Run(folder)
