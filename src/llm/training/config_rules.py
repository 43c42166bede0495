"""Rules that span several sections of a run's configuration."""

from collections.abc import Iterator, Mapping
from typing import Any

from llm.config.plain import items_of, value_at
from llm.config.rules import Rule


def rows_fit_context(config: Mapping[str, Any]) -> Iterator[str]:
    """Require that training rows fit into the context of the model."""
    rows, most = (value_at(config, f"{name}.context_length") for name in ("data", "model"))
    if not (isinstance(rows, int) and isinstance(most, int) and rows > most):
        return
    if (path := value_at(config, "weights.path")) is not None:
        yield f"data.context_length: {rows} is more than the {most} tokens of {path}; use {most} or less"
    else:
        yield (
            f"data.context_length: {rows} is more than the model's {most}; "
            "set size.context_length, which sets both"
        )


def data_have_a_batch_size(config: Mapping[str, Any]) -> Iterator[str]:
    """Require the number of rows in a batch, which plans, sweeps and devices are computed from."""
    data = config.get("data")
    if isinstance(data, Mapping) and "_target_" in data and "batch_size" not in data:
        yield (
            f"data.batch_size: {data['_target_']} has no such argument, which is the number of rows in a batch; add "
            "it to the function and to its config"
        )


def streams_fit_training(config: Mapping[str, Any]) -> Iterator[str]:
    """Require as many streams of a contiguous text as an optimizer step has rows, and whole models."""
    if not (order := value_at(config, "data.order")):  # the windows are shuffled
        return
    count, accumulate = order.get("accumulate", 1), value_at(config, "trainer.accumulate")
    if count != accumulate:
        yield (
            f"data.order.accumulate: {count} is not trainer.accumulate={accumulate}; set trainer.accumulate, which it "
            "follows"
        )
    if value_at(config, "hardware.strategy._target_") == "llm.parallel.pipeline.Pipeline":
        yield (
            "hardware: a pipeline does not carry the state of recurrent layers, which data/order=contiguous needs; use "
            "hardware=ddp or hardware=fsdp"
        )


def adapter_has_weights(config: Mapping[str, Any]) -> Iterator[str]:
    """Require trained weights for an adapter, because it freezes them."""
    if config.get("adapter") is not None and "weights" in config and config["weights"] is None:
        yield (
            "adapter: it would freeze untrained weights; choose trained ones with weights=run "
            "weights.path=…, or use adapter=none"
        )


def checkpoints_save_random_states(config: Mapping[str, Any]) -> Iterator[str]:
    """Require random states in checkpoints; without them a resumed run would silently differ."""
    made = {value_at(node, "_target_") for _, _, node in items_of(config.get("callbacks"))}
    both = "llm.callbacks.checkpoints.Checkpoints", "llm.callbacks.rng_state.RandomStates"
    if both[0] in made and both[1] not in made:
        yield (
            "callbacks.random_states: is left out, so a resumed run would draw other random numbers; "
            "keep it, or leave out callbacks.checkpoints too and save nothing"
        )


LONGEST_NAME = 200  # bytes; file names have at most 255, and files beside a run add to its name


def name_is_a_folder_name(config: Mapping[str, Any]) -> Iterator[str]:
    """Require that a run's name can be the name of a visible folder; a hidden one is not listed."""
    name = config.get("name")
    if not isinstance(name, str) or not name:
        return
    wrong = [word for word, sign in (("a slash", "/"), ("a backslash", "\\")) if sign in name]
    if name.startswith("."):
        wrong.append("a leading dot")
    if wrong:
        yield f"name: {name} has {' and '.join(wrong)}, which a folder name must not contain; leave it out"
    elif not name.isprintable():
        yield f"name: {name!r} has characters that cannot be printed; leave them out"
    elif (length := len(name.encode("utf-8", "replace"))) > LONGEST_NAME:
        yield f"name: {name[:20]}… has {length} bytes; use {LONGEST_NAME} at most"


LONGEST_PROJECT = 128  # characters, W&B's limit
FORBIDDEN = frozenset("/\\#?%:")  # characters that W&B refuses in the name of a project


def project_name_is_valid(config: Mapping[str, Any]) -> Iterator[str]:
    """Require a project name that W&B accepts. W&B would refuse it only when training begins."""
    for name, _, node in items_of(config.get("logger")):
        project, key = value_at(node, "project"), f"logger.{name}.project"
        if not isinstance(project, str):
            continue
        if found := sorted(FORBIDDEN & {*project}):
            team = f"; set a team in logger.{name}.entity" if "/" in found else ""
            yield f"{key}: {project!r:.60} contains {' '.join(found)}, which W&B refuses; leave it out{team}"
        elif not 0 < len(project) <= LONGEST_PROJECT:
            yield f"{key}: has {len(project)} characters; use 1 to {LONGEST_PROJECT}"


RULES: tuple[Rule, ...] = (
    rows_fit_context,
    data_have_a_batch_size,
    streams_fit_training,
    adapter_has_weights,
    checkpoints_save_random_states,
    name_is_a_folder_name,
    project_name_is_valid,
)
