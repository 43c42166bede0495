"""Weights, architecture and tokenizer out of a run directory of ours."""

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from omegaconf import DictConfig, OmegaConf
from torch import nn

from llm import network
from llm.adapters.base import Adapted, Adapter, load_adapter_state
from llm.adapters.lora import merge_updates
from llm.checkpoints.checkpoint_file import (
    digest_of,
    open_checkpoint_weights,
    read_usable,
    requested_checkpoint,
)
from llm.checkpoints.checksums import DamagedCheckpointError
from llm.checkpoints.lazy_tensor import LazyTensor, in_memory
from llm.config.allowlist import locate
from llm.config.build import config_errors_at
from llm.config.check import check_nodes
from llm.config.deferred import Deferred
from llm.config.errors import ConfigError
from llm.config.resolvers import has_interpolation
from llm.files import RESTORE, read_yaml
from llm.models.size import require_memory
from llm.runs import Run, require_run
from llm.tokenizers.base import Tokenizer, load
from llm.weights.base import Weights
from llm.weights.folder_settings import FolderSettings
from llm.weights.model_setup import initialize
from llm.weights.state_loading import TABLES, fill

Result = TypeVar("Result")

# What is built of a run's model.
SECTIONS = {"model": Deferred[nn.Module], "adapter": Adapter | None}
# The runs that are being loaded, each for the one before it.
_OPENED: ContextVar[tuple[Path, ...]] = ContextVar("opened", default=())


@dataclass(frozen=True)
class RunWeights(Weights):
    """What a finished or unfinished run has learned.

    Args:
        path: the run directory.
        checkpoint: its `best` weights (lowest validation loss) or its `last` ones.
        trust: packages that the run's configuration may name; what the run itself trusts does not count,
            for it may be a stranger's.
        base: where the weights lie that an adapter was trained on, if they were moved since.
    """

    path: str
    checkpoint: Literal["best", "last"] = "best"
    trust: Sequence[str] = ()
    base: str | None = None

    def __post_init__(self) -> None:
        require_run(self.path, "weights.path")

    @property
    def run(self) -> Run:
        """The run directory."""
        return Run(Path(self.path))

    @cached_property
    def config(self) -> DictConfig:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The run's composed configuration, resolved, for those who take its language model further.

        An update of a tied head, folded in, unties it from the embedding.
        """
        config = read_config(self.run.config, self.trust)
        if (
            config.get("adapter") is not None
            and requested_checkpoint(self.run, self.checkpoint).exists()
        ):
            updated = any(name.startswith("head.lora.") for name in self.parameters())
            config.model.tie_weights = config.model.tie_weights and not updated
        return config

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the checkpoint."""
        return self._read(digest_of)[:16]

    @property
    def origin(self) -> str:
        """A digest of where the run is and when it was begun."""
        begun = f"{self.run.path.resolve()} {self.run.record.get('started')}"
        return hashlib.sha256(begun.encode()).hexdigest()[:16]

    @property
    def published(self) -> FolderSettings | None:
        """What the published folder said that the run, or the run that it began from, got its weights from.

        Raises:
            ConfigError: the record of it is damaged.
        """
        recorded = self.run.record.get("published")
        try:
            return None if recorded is None else FolderSettings(**recorded)
        except (AttributeError, TypeError, ValueError) as error:
            raise ConfigError(f"weights.path: {self.path}: run.json: published: {error}") from None

    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer."""
        with config_errors_at("weights.path"):
            return load(self.run.tokenizer)

    def model(self) -> nn.Module:
        """The whole model that the run trained, in evaluation mode on the CPU.

        That is a language model, or a classifier around one; an adapter is in its place. The
        configuration is checked before anything is built: a run directory may be a stranger's.

        Raises:
            ConfigError: the configuration is no model's, the checkpoint is missing or damaged, or the
                weights that an adapter was trained on are gone or others.
        """
        with opened(self.run):
            return self._model(self.config)

    def _model(self, config: DictConfig) -> nn.Module:
        adapter = config.get("adapter")
        parts = {"model": config.task.model, "adapter": adapter, "trust": config.trust}
        with self.named():
            built = check_nodes(OmegaConf.create(parts), SECTIONS)
            require_memory(built["model"].outline)
        model = built["model"].build()
        base = self.base_weights(config) if adapter is not None else None
        if adapter is not None:
            initialize(model, base, adapter=built["adapter"])
        self.restore(model, is_adapted=base is not None)
        return model.eval()

    @contextmanager
    def named(self) -> Iterator[None]:
        """Around the check of the run's configuration: say in which file its problems are.

        Raises:
            ConfigError: with every problem behind the file's name.
        """
        try:
            yield
        except ConfigError as error:
            lines = [f"{self.run.config}: {problem}" for problem in error.problems]
            raise ConfigError(*lines) from error

    def restore(self, model: nn.Module, *, is_adapted: bool) -> None:
        """Fill a model that was built as the run's was with what the run learned.

        Args:
            model: the model, under its adapter if it has one.
            is_adapted: whether the checkpoint holds only what the adapter trained.

        Raises:
            ConfigError: the checkpoint is missing or damaged, or does not fit.
        """
        parameters = self.parameters()
        if is_adapted:
            with config_errors_at("weights.path"):
                load_adapter_state(model, {name: t.read() for name, t in parameters.items()})
        else:
            fill(model, parameters)

    def load(self, model: nn.Module) -> None:
        """Fill a language model with the run's, an adapter of it folded in.

        Raises:
            ConfigError: as for `model`, or the adapter cannot be folded into weights.
        """
        if self.config.get("adapter") is None:
            fill(model, language_model_part(self.parameters()), grow=TABLES)
            return
        trained = self.model()
        merge_updates(trained)
        if any(isinstance(module, Adapted) for module in trained.modules()):
            raise ConfigError(
                f"weights.path: {self.path} holds a prefix, which cannot be folded into weights; "
                "start from its base, or from a run with another adapter"
            )
        fill(model, in_memory(getattr(trained, "body", trained).state_dict()), grow=TABLES)

    def parameters(self) -> dict[str, LazyTensor]:
        """Return the tensors of the checkpoint by name, unread.

        Raises:
            ConfigError: the run has no checkpoint yet, its file is not what was written, or another run wrote it.
        """
        opening = self._read(open_checkpoint_weights)
        self.run.require_wrote(opening.path, opening.header.get("run"))
        prefix = "model."
        return {
            name.removeprefix(prefix): stored
            for name, stored in opening.weights.items()
            if name.startswith(prefix)
        }

    def file(self) -> Path:
        """Return the path of the checkpoint that is read, after verifying it.

        Raises:
            ConfigError: there is none.
        """
        return self._read(open_checkpoint_weights).path

    def _read(self, read: Callable[[Path], Result]) -> Result:
        """Read the checkpoint with a function that raises if it is not what was written.

        Raises:
            ConfigError: there is none that can be read.
        """
        try:
            return read_usable(self.run, read, checkpoint=self.checkpoint)
        except (FileNotFoundError, DamagedCheckpointError) as error:
            raise ConfigError(f"weights.path: {error}; {self._otherwise()}") from error

    def _otherwise(self) -> str:
        """What to do where the checkpoint cannot be read."""
        is_best = requested_checkpoint(self.run, self.checkpoint) == self.run.best
        has_other = self.run.has_last if is_best else self.run.best.exists()
        name = "last" if is_best else "best"
        other = f"weights.checkpoint={name} reads the run's other one, " if has_other else ""
        return f"{other}llm train with rerun=true trains it again"

    def base_weights(self, config: DictConfig) -> Weights | None:
        """The weights that the run's adapter was trained on, and no others.

        They are not fetched, unless `base` says so: the run may be a stranger's.

        Raises:
            ConfigError: they are gone, or have changed since.
        """
        if config.weights is None:  # a checkpoint of drawn weights holds them all
            return None
        if self.base is not None and isinstance(config.weights, DictConfig):
            config.weights.path = self.base
        path = OmegaConf.select(config, "weights.path")
        try:
            weights = require_weights(config)
            with network.offline(self.path) if self.base is None else nullcontext():
                found = weights.fingerprint
        except ConfigError as error:
            raise ConfigError(
                f"weights.path: {self.path} holds an adapter of {path}, which cannot be read "
                f"({error}); say where its weights lie now with +weights.base=…"
            ) from error
        if found != self.run.record.get("base", found):
            raise ConfigError(
                f"weights.path: {self.path} holds an adapter of {path}, whose weights have "
                "changed since: say with +weights.base=… where the old ones lie, or train the adapter again"
            )
        return weights


def require_weights(config: DictConfig) -> Weights:
    """Return the weights of a configuration whose node `weights` makes weights and nothing else.

    Raises:
        ConfigError: it cannot, or makes something else.
    """
    require_source(config)
    return check_nodes(config, {"weights": Weights})["weights"]


def require_source(config: DictConfig) -> None:
    """Require that the node `weights` of a configuration names a source of weights, which need not exist.

    Raises:
        ConfigError: it names something else.
    """
    node = config.weights
    target = OmegaConf.select(node, "_target_") if isinstance(node, DictConfig) else None
    made = locate(str(target), config.trust) if target else None
    if not (inspect.isclass(made) and issubclass(made, Weights)) or "path" not in node:
        raise ConfigError(
            f"weights: {target} in the run's config.yaml is not a source of weights; {RESTORE}"
        )


@contextmanager
def opened(run: Run) -> Iterator[None]:
    """Guard the loading of a run, which may load the run that its adapter was trained on, against cycles.

    Raises:
        ConfigError: that is the run itself, or one that is being loaded for it.
    """
    place, outer = run.path.resolve(), _OPENED.get()
    if place in outer:
        raise ConfigError(
            f"weights.path: {run.path} begins from itself (weights.path in its config.yaml); "
            "say where its weights lie with +weights.base=…"
        )
    token = _OPENED.set((*outer, place))
    try:
        yield
    finally:
        _OPENED.reset(token)


def read_config(file: Path, trust: Sequence[str]) -> DictConfig:
    """A run's saved configuration, which may be a stranger's: plain values, and nothing that it trusts itself.

    Args:
        file: the `config.yaml` of a run; it is saved resolved, so that nothing in it needs looking up.
        trust: packages that take the place of those that the configuration trusts, wherever it says so.

    Raises:
        ConfigError: a value would be looked up elsewhere, such as in this machine's environment.
    """
    config = read_yaml(file)
    plain = OmegaConf.to_container(config, resolve=False)
    for part in _parts(plain):
        looked_up = [
            value for value in _items(part) if isinstance(value, str) and has_interpolation(value)
        ]
        if looked_up:
            raise ConfigError(
                f"{file}: {looked_up[0]} would be looked up on this machine, and a saved configuration has "
                "no need of that; write the value itself"
            )
        if isinstance(part, dict) and "trust" in part:
            part["trust"] = list(trust)
    assert isinstance(plain, dict)
    for key in ("task", "model"):
        if not (isinstance(plain.get(key), dict) and "_target_" in plain[key]):
            raise ConfigError(
                f"{file}: has no {key}, so it is not the configuration of a run; {RESTORE}"
            )
    return OmegaConf.create({**plain, "trust": list(trust)})


def _parts(plain: Any) -> Iterator[dict[Any, Any] | list[Any]]:
    """Every dictionary and every list of a tree of plain data, its top first."""
    yield plain
    for child in _items(plain):
        if isinstance(child, dict | list):
            yield from _parts(child)


def _items(part: dict[Any, Any] | list[Any]) -> list[Any]:
    return list(part.values() if isinstance(part, dict) else part)


def language_model_part(state: Mapping[str, LazyTensor]) -> Mapping[str, LazyTensor]:
    """Of a classifier's parameters those of the language model inside it, or all of a language model's."""
    inner = {
        key.removeprefix("body."): value for key, value in state.items() if key.startswith("body.")
    }
    return inner or state
