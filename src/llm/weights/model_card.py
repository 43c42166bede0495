"""The model card of an exported folder: what the model is, how it was trained, and how to load it.

Mitchell et al. 2019, "Model cards for model reporting"; the header has the keys of Hugging Face's hub.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from llm.units import format_number

# Keys of a run's record that say how it was trained, and what the card calls them. No paths and no command line, which
# contains paths: a folder is for others.
RECORDED = {
    "task": "task",
    "seed": "seed",
    "steps": "optimizer steps",
    "tokens": "tokens",
    "best_step": "step of these weights",
    "devices": "devices",
    "machine": "machine",
    "started": "begun",
    "ended": "ended",
    "data": "digest of the data",
    "fingerprint": "digest of the configuration",
    "commit": "commit of the code",
}
CHOICES = ("data", "tokenizer", "model", "size", "optimizer", "schedule", "adapter")
MEASURED = ("train/loss", "val/", "eval/", "test/")


class Use(NamedTuple):
    """How a model is used.

    Attributes:
        pipeline: its kind on the hub.
        kind: the class that loads it.
        lines: code that uses `model` and `tokenizer`.
        options: further arguments that load it.
    """

    pipeline: str
    kind: str
    lines: Sequence[str]
    options: str = ""


# transformers' fast attention leaves out the bound of the scores.
EAGER = ', attn_implementation="eager"'
GENERATE = "print(tokenizer.decode(model.generate(**prompt, max_new_tokens=50)[0]))"
CONTINUE = Use(
    "text-generation",
    "AutoModelForCausalLM",
    ['prompt = tokenizer("Once upon a time", return_tensors="pt")', GENERATE],
)
CHAT = CONTINUE._replace(
    lines=[
        'messages = [{"role": "user", "content": "Who are you?"}]',
        "prompt = tokenizer.apply_chat_template(",
        '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True',
        ")",
        GENERATE,
    ]
)
CLASSIFY = Use(
    "text-classification",
    "AutoModelForSequenceClassification",
    [
        'logits = model(**tokenizer("This is a text.", return_tensors="pt")).logits',
        "print(model.config.id2label, logits.softmax(dim=-1))",
    ],
)


def model_card(name: str, *, size: int, title: str, record: Mapping[str, Any], use: Use) -> str:
    """Return a model card in Markdown.

    Args:
        name: name of the model.
        size: number of its parameters.
        title: the family that it is exported as.
        record: the record of its run; empty for an imported model.
        use: how it is used.
    """
    sections = [
        f"---\nlibrary_name: transformers\npipeline_tag: {use.pipeline}\n---",
        f"# {name}",
        f"A model with {format_number(size)} parameters in the format of {title}.",
        "\n".join(["```python", *_loading(use), *use.lines, "```"]),
    ]
    if record:
        sections += ["## Training", _table(_training(record), "setting", "value")]
        if measured := dict(_measured(record)):
            sections += ["## Results", _table(measured, "metric", "value")]
        versions = record.get("versions") or {}
        sections += ["## Versions", _table(versions, "package", "version")]
    return "\n\n".join(sections) + "\n"


def _loading(use: Use) -> list[str]:
    """Return the code that loads a folder."""
    return [
        f"from transformers import {use.kind}, AutoTokenizer",
        "",
        'folder = "."  # this folder, which may be moved',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        f"model = {use.kind}.from_pretrained(folder{use.options})",
    ]


def _training(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run's record says about the training."""
    tokens = (record.get("metrics") or {}).get("tokens")
    known = {**record, "tokens": None if tokens is None else int(tokens)}
    choices = record.get("choices") or {}
    chosen = {key: choices[key] for key in CHOICES if choices.get(key) not in (None, "none")}
    own = {label: known[key] for key, label in RECORDED.items() if known.get(key) is not None}
    return {**own, **chosen}


def _measured(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the metrics of the last step, rounded."""
    for name, value in (record.get("metrics") or {}).items():
        if name.startswith(MEASURED) and isinstance(value, int | float):
            yield name, f"{value:.4g}"


def _table(rows: Mapping[str, Any], *head: str) -> str:
    """Return a table in Markdown."""
    lines = [f"| {' | '.join(head)} |", "|---|---|"]
    shown = ((key, f"{value:,}" if type(value) is int else value) for key, value in rows.items())
    return "\n".join([*lines, *(f"| {key} | {value} |" for key, value in shown)])
