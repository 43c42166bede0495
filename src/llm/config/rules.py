"""The top of the tree: which sections a configuration has, and the rules that span several of them.

Below this level the constructors say what is right; up here there is no constructor, so this table is
the signature. The types stand in functions, called for the sections that are there: a command without a
trainer does not pay for the import of Lightning, and this layer imports nothing above it.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from llm.config.texts import PATHS


def _class(path: str) -> Callable[[], Any]:
    module, _, name = path.rpartition(".")
    return lambda: getattr(importlib.import_module(module), name)


def _factory(given: list[Any], path: str) -> Callable[[], Any]:
    return lambda: Callable[given, _class(path)()]  # pyright: ignore[reportInvalidTypeForm]


def _by_name(kind: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: Mapping[str, kind() | None]


def _or_none(kind: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: kind() | None


def _plain(hint: Any) -> Callable[[], Any]:
    return lambda: hint


SECTIONS: dict[str, Callable[[], Any]] = {
    # parts
    "model": _class("torch.nn.Module"),
    "size": _class("llm.models.size.Size"),
    "tokenizer": _plain(Any),
    "data": _class("lightning.pytorch.LightningDataModule"),
    "task": _class("lightning.pytorch.LightningModule"),
    "optimizer": _factory([Any], "torch.optim.Optimizer"),
    "schedule": _plain(Callable[[int, int], float]),
    "hardware": _class("llm.hardware.Hardware"),
    "trainer": _class("llm.training.trainer.TrainerSettings"),
    "weights": _plain(Any),
    "adapter": _class("llm.adapters.base.Adapter"),
    "reward": _or_none(_class("llm.rewards.base.RewardFunction")),
    "sampler": _class("llm.generation.sampling.Sampler"),
    "template": _or_none(_class("llm.data.examples.template.ChatTemplate")),
    "rows": _class("llm.data.column.Column"),
    "files": _factory([str], "llm.data.corpora.text_files.TextFiles"),
    "judge": _or_none(_class("llm.evaluation.openai_client.OpenAI")),
    "callbacks": _by_name(_class("lightning.pytorch.Callback")),
    "logger": _by_name(_factory([str, str], "lightning.pytorch.loggers.Logger")),
    "strategies": _by_name(_class("llm.hardware.Hardware")),
    # keys of every command, then of `train`, then of the other commands
    "seed": _plain(int),
    "trust": _plain(Sequence[str]),
    "name": _plain(str | None),
    "output_dir": _plain(str),
    "rerun": _plain(bool),
    "resume": _plain(Literal["exact", "allow_changes"]),
    "dry_run": _plain(bool),
    "match": _plain(Literal["parameters", "flops", "tokens"] | Sequence[str] | None),
    "gpu": _plain(str | None),
    "mfu": _plain(float),
    "prompt": _plain(str | Sequence[str]),
    "prompts_file": _plain(str | None),
    "max_tokens": _plain(int),
    "best_of": _plain(int),
    "stop": _plain(str | Sequence[str]),
    "system": _plain(str | None),
    "text": _plain(str | None),
    "file": _plain(str | None),
    "batch_size": _plain(int),
    "part": _plain(Literal["test", "validation"] | None),
    "test_path": _plain(str | None),
    "malformed": _plain(Literal["stop", "skip"]),
    "against": _plain(str | None),
    "output": _plain(str),
    "runs": _plain(Sequence[str]),
    "by": _plain(str | None),
    "confidence": _plain(float),
    "seeds": _plain(Literal["folded", "rows"]),
    "watch": _plain(bool),
    "max_shard_gb": _plain(float),
    "overwrite": _plain(bool),
    "dtype": _plain(Literal["float32", "bfloat16", "float16"] | None),
}

# Full keys that may be missing: the app fills them in when it builds.
DEFERRED: tuple[str, ...] = ("model.vocab_size", "task.model.num_classes")


def within_context(config: Mapping[str, Any]) -> Iterator[str]:
    """Training rows are no longer than the model's context; that of given weights is known when they are read."""
    if config.get("weights") is not None:
        return
    parts = [config.get(name) for name in ("data", "model")]
    given = [part.get("context_length") for part in parts if isinstance(part, Mapping)]
    lengths = [length for length in given if isinstance(length, int)]
    if len(lengths) == 2 and lengths[0] > lengths[1]:
        yield (
            f"data.context_length: {lengths[0]} is more than the model's {lengths[1]}; "
            "set size.context_length, which both follow"
        )


def chosen_by_a_reward(config: Mapping[str, Any]) -> Iterator[str]:
    """Where there are several answers, a reward chooses; where there is one, it would not be asked."""
    number = config.get("best_of")
    if not isinstance(number, int):
        return
    if number < 1:
        yield f"best_of: {number} is not a number of answers; give 1, or more and a reward"
    elif (number > 1) != (config.get("reward") is not None):
        yield (
            "best_of: several answers and a reward that chooses go together; give both, such as "
            "best_of=8 reward=run reward.path=outputs/reward/…"
        )


def adapts_what_was_learned(config: Mapping[str, Any]) -> Iterator[str]:
    """An adapter freezes weights, so somebody must have trained them."""
    if config.get("adapter") is not None and "weights" in config and config["weights"] is None:
        yield (
            "adapter: it would freeze weights that nobody has trained; give some with weights=run "
            "weights.path=…, or leave it out with adapter=none"
        )


def resumes_exactly(config: Mapping[str, Any]) -> Iterator[str]:
    """Checkpoints hold the random states as well, or a resumed run would silently be another."""
    callbacks = config.get("callbacks")
    nodes = callbacks.values() if isinstance(callbacks, Mapping) else ()
    made = {str(node.get("_target_")) for node in nodes if isinstance(node, Mapping)}
    kept = "llm.callbacks.checkpoints.Checkpoints", "llm.callbacks.rng_state.RandomStates"
    if kept[0] in made and kept[1] not in made:
        yield (
            "callbacks.random_states: is left out, so a run that goes on from a checkpoint would draw other random "
            "numbers; keep it, or leave out callbacks.checkpoints too and save nothing"
        )


LONGEST_NAME = 200  # bytes; files hold 255, and what stands beside a run is named after it
LONGEST_PART = 255  # bytes of one part of a path


# What the name of a folder cannot have, or should not: a hidden one is not listed.
_UNFIT: dict[str, Callable[[str], bool]] = {
    "a slash": lambda name: "/" in name,
    "a backslash": lambda name: "\\" in name,
    "a leading dot": lambda name: name.startswith("."),
}


def named_as_a_folder(config: Mapping[str, Any]) -> Iterator[str]:
    """A run's name is that of one folder, which can be seen and listed."""
    name = config.get("name")
    if not isinstance(name, str) or not name:
        return
    wrong = [what for what, is_there in _UNFIT.items() if is_there(name)]
    if wrong:
        yield f"name: {name} has {' and '.join(wrong)}, and is to be the name of a folder; leave that out"
    elif not name.isprintable():
        yield f"name: {name!r} has characters that cannot be printed; leave them out"
    elif (length := len(name.encode("utf-8", "replace"))) > LONGEST_NAME:
        yield f"name: {name[:20]}… has {length} bytes; give {LONGEST_NAME} at most"


def paths_can_be_files(config: Mapping[str, Any]) -> Iterator[str]:
    """No part of a path is longer than the name of a file can be."""
    for key in sorted(PATHS):
        value: Any = config
        for word in key.split("."):
            value = value.get(word) if isinstance(value, Mapping) else None
        for path in value if isinstance(value, list) else [value]:
            parts = path.split("/") if isinstance(path, str) else ()
            longest = max((len(part.encode("utf-8", "replace")) for part in parts), default=0)
            if longest > LONGEST_PART:
                yield f"{key}: {path[:20]}… cannot be a file's; no part of it may have more than {LONGEST_PART} bytes"
            elif isinstance(path, str) and "\0" in path:
                yield f"{key}: {path!r} cannot be a file's; leave out the NUL"


LONGEST_PROJECT = 128  # characters, as W&B has it
FOREIGN = frozenset("/\\#?%:")  # which W&B refuses in the name of a project


def projects_can_be_named(config: Mapping[str, Any]) -> Iterator[str]:
    """A project of Weights & Biases has a name that W&B takes, which it would say only when training begins."""
    loggers = config.get("logger")
    for name, node in (loggers if isinstance(loggers, Mapping) else {}).items():
        project = node.get("project") if isinstance(node, Mapping) else None
        if not isinstance(project, str):
            continue
        key = f"logger.{name}.project"
        if found := sorted(FOREIGN & {*project}):
            team = f"; a team is named by logger.{name}.entity" if "/" in found else ""
            yield f"{key}: {project!r:.60} contains {' '.join(found)}, which W&B refuses; leave it out{team}"
        elif not 0 < len(project) <= LONGEST_PROJECT:
            yield f"{key}: has {len(project)} characters; give 1 to {LONGEST_PROJECT}"


# Rules over the whole configuration: each takes the plain tree, every reference written out, and yields lines
# like those of the check.
RULES: tuple[Callable[[Mapping[str, Any]], Iterator[str]], ...] = (
    within_context,
    chosen_by_a_reward,
    adapts_what_was_learned,
    resumes_exactly,
    named_as_a_folder,
    paths_can_be_files,
    projects_can_be_named,
)
