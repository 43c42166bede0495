"""The rules across several sections of a run's configuration."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from llm.config.rules import Rule


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


LONGEST_NAME = 200  # bytes; files hold 255, and what lies beside a run is named after it
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


RULES: tuple[Rule, ...] = (
    within_context,
    adapts_what_was_learned,
    resumes_exactly,
    named_as_a_folder,
    projects_can_be_named,
)
