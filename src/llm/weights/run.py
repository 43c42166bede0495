"""Weights, architecture and tokenizer from a run directory."""

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

from omegaconf import DictConfig, OmegaConf
from torch import nn

from llm import network
from llm.adapters.base import Adapted, Adapter, adapter_state
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
from llm.weights.state_loading import TABLES, fill, fill_state

Result = TypeVar("Result")

SECTIONS = {"model": Deferred[nn.Module], "adapter": Adapter | None}
# The runs that are being loaded; each is the base of the one before it.
_OPENED: ContextVar[tuple[Path, ...]] = ContextVar("opened", default=())


@dataclass(frozen=True)
class RunWeights(Weights):
    """The weights of a finished or unfinished run.

    Args:
        path: the run directory.
        checkpoint: the `best` weights (lowest validation loss) or the `last` ones.
        trust: packages that the run's configuration may name; its own `trust` is ignored, because it may be untrusted.
        base: new path of the weights that an adapter was trained on, if they were moved.
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

    @property
    def record(self) -> Mapping[str, Any]:
        """The content of the run's `run.json`."""
        return self.run.record

    @cached_property
    def config(self) -> DictConfig:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The run's configuration; the head is untied if its adapter updates the head."""
        config = read_config(self.run.config, self.trust)
        is_written = requested_checkpoint(self.run, self.checkpoint).exists()
        if config.get("adapter") is not None and is_written:
            updated = any(name.startswith("head.lora.") for name in self.parameters())
            config.model.tie_weights = config.model.tie_weights and not updated
        return config

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the checkpoint."""
        return self._read(digest_of)[:16]

    @property
    def origin(self) -> str:
        """A digest of the run's path and start time."""
        begun = f"{self.run.path.resolve()} {self.run.record.get('started')}"
        return hashlib.sha256(begun.encode()).hexdigest()[:16]

    @property
    def published(self) -> FolderSettings | None:
        """The settings of the published folder that the run started from, perhaps through other runs.

        Raises:
            ConfigError: their record is damaged.
        """
        recorded = self.run.record.get("published")
        try:
            return None if recorded is None else FolderSettings(**recorded)
        except (AttributeError, TypeError, ValueError) as error:
            raise ConfigError(f"weights.path: {self.path}: run.json: published: {error}") from None

    def tokenizer(self) -> Tokenizer:
        """Return the run's tokenizer."""
        with config_errors_at("weights.path"):
            return load(self.run.tokenizer)

    def model(self) -> nn.Module:
        """Return the model that the run trained, with its adapter, in evaluation mode on the CPU.

        Checks the configuration before building anything, because a run directory may be untrusted.

        Raises:
            ConfigError: the configuration is not a model's, the checkpoint is missing or damaged, or the
                weights that an adapter was trained on are missing or have changed.
        """
        with opened(self.run):
            config = self.config
            adapter = config.get("adapter")
            parts = {"model": config.task.model, "adapter": adapter, "trust": config.trust}
            with self.named():
                built = check_nodes(OmegaConf.create(parts), SECTIONS)
                require_memory(built["model"].outline)
            model = built["model"].build()
            base = self.base_weights(config) if adapter is not None else None
            initialize(model, base, adapter=built["adapter"])
            self.restore(model, is_adapted=base is not None)
            return model.eval()

    @contextmanager
    def named(self) -> Iterator[None]:
        """Add the name of the run's configuration file to every problem of a ConfigError in the context."""
        try:
            yield
        except ConfigError as error:
            lines = [f"{self.run.config}: {problem}" for problem in error.problems]
            raise ConfigError(*lines) from error

    def restore(self, model: nn.Module, *, is_adapted: bool) -> None:
        """Fill a model that has the architecture of the run's model.

        Args:
            model: the model, with its adapter if it has one.
            is_adapted: whether the checkpoint contains only what the adapter trained.

        Raises:
            ConfigError: the checkpoint is missing or damaged, or does not fit.
        """
        if is_adapted:
            fill_state(adapter_state(model), self.parameters(), problems={})
        else:
            fill(model, self.parameters())

    def load(self, model: nn.Module) -> None:
        """Fill a language model with the run's parameters, after merging the adapter.

        Raises:
            ConfigError: see `model`; or the adapter cannot be merged.
        """
        if self.config.get("adapter") is None:
            # The run trained a language model, or a classifier with one as its body.
            state = self.parameters()
            fill(model, _below("body.", state) or state, grow=TABLES)
            return
        trained = self.merged()
        fill(model, in_memory(getattr(trained, "body", trained).state_dict()), grow=TABLES)

    def merged(self) -> nn.Module:
        """Return the model, a classifier included, with its adapter merged into the weights.

        Raises:
            ConfigError: see `model`; or the adapter cannot be merged.
        """
        trained = self.model()
        merge_updates(trained)
        if any(isinstance(module, Adapted) for module in trained.modules()):
            raise ConfigError(
                f"weights.path: {self.path} has a prefix adapter, which cannot be merged into the weights; "
                "start from its base, or from a run with another adapter"
            )
        return trained

    def parameters(self) -> dict[str, LazyTensor]:
        """Return the tensors of the checkpoint by name, unread.

        Raises:
            ConfigError: the run has no checkpoint yet, it is damaged, or another run wrote it.
        """
        opening = self._read(open_checkpoint_weights)
        self.run.require_wrote(opening.path, opening.header.get("run"))
        return _below("model.", opening.weights)

    def file(self) -> Path:
        """Return the path of the verified checkpoint.

        Raises:
            ConfigError: there is none.
        """
        return self._read(open_checkpoint_weights).path

    def _read(self, read: Callable[[Path], Result]) -> Result:
        """Read the checkpoint with a function that verifies it.

        Raises:
            ConfigError: there is none, or it is damaged.
        """
        try:
            return read_usable(self.run, read, checkpoint=self.checkpoint)
        except (FileNotFoundError, DamagedCheckpointError) as error:
            raise ConfigError(f"weights.path: {error}; {self._remedies()}") from error

    def _remedies(self) -> str:
        """Return what the user can do if the checkpoint cannot be read."""
        is_best = requested_checkpoint(self.run, self.checkpoint) == self.run.best
        has_other = self.run.has_last if is_best else self.run.best.exists()
        name = "last" if is_best else "best"
        other = f"weights.checkpoint={name} reads the run's other checkpoint, " if has_other else ""
        return f"{other}llm train with rerun=true trains it again"

    def base_weights(self, config: DictConfig) -> Weights | None:
        """Return the weights that the run's adapter was trained on; None if the checkpoint contains them.

        Downloads them only if `base` names them, because the run may be untrusted.

        Raises:
            ConfigError: they are missing, or have changed since.
        """
        if config.weights is None:
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
                f"weights.path: {self.path} has an adapter for {path}, which cannot be read "
                f"({error}); give the new path with +weights.base=…"
            ) from error
        if found != self.run.record.get("base", found):
            raise ConfigError(
                f"weights.path: {self.path} has an adapter for {path}, whose weights have "
                "changed since: give the path of the old ones with +weights.base=…, or train the adapter again"
            )
        return weights


def require_weights(config: DictConfig) -> Weights:
    """Build the node `weights` of a configuration.

    Raises:
        ConfigError: it is not a source of weights, or cannot be built.
    """
    require_source(config)
    return check_nodes(config, {"weights": Weights})["weights"]


def require_source(config: DictConfig) -> None:
    """Require that the node `weights` of a configuration is a source of weights, whose files may be missing.

    Raises:
        ConfigError: it is something else.
    """
    node = config.weights
    target = OmegaConf.select(node, "_target_") if isinstance(node, DictConfig) else None
    made = locate(str(target), config.trust) if target else None
    made = get_type_hints(made).get("return") if inspect.isfunction(made) else made
    if not (inspect.isclass(made) and issubclass(made, Weights)) or "path" not in node:
        raise ConfigError(
            f"weights: {target} in the run's config.yaml is not a source of weights; {RESTORE}"
        )


@contextmanager
def opened(run: Run) -> Iterator[None]:
    """Refuse cycles: loading a run may load the run that its adapter was trained on.

    Raises:
        ConfigError: this run is being loaded already.
    """
    place, outer = run.path.resolve(), _OPENED.get()
    if place in outer:
        raise ConfigError(
            f"weights.path: {run.path} starts from itself (weights.path in its config.yaml); "
            "give the path of its weights with +weights.base=…"
        )
    token = _OPENED.set((*outer, place))
    try:
        yield
    finally:
        _OPENED.reset(token)


def read_config(file: Path, trust: Sequence[str]) -> DictConfig:
    """Return a run's saved configuration, which may be untrusted.

    Args:
        file: the `config.yaml` of a run, without interpolations.
        trust: replaces the value of every key `trust`.

    Raises:
        ConfigError: a value is an interpolation, such as of an environment variable; or the file is not a run's.
    """
    config = read_yaml(file)

    def checked(value: Any) -> Any:
        if isinstance(value, str) and has_interpolation(value):
            raise ConfigError(
                f"{file}: {value} is an interpolation, which would be resolved on this machine; write the value itself"
            )
        if isinstance(value, list):
            return [checked(each) for each in value]
        if isinstance(value, dict):
            trusted = {"trust": list(trust)} if "trust" in value else {}
            return {key: checked(each) for key, each in value.items()} | trusted
        return value

    plain = checked(OmegaConf.to_container(config, resolve=False))
    for key in ("task", "model"):
        if not (isinstance(plain.get(key), dict) and "_target_" in plain[key]):
            raise ConfigError(
                f"{file}: has no {key}, so it is not the configuration of a run; {RESTORE}"
            )
    return OmegaConf.create({**plain, "trust": list(trust)})


def _below(prefix: str, state: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Return the tensors whose names have a prefix, by the rest of the name."""
    found = {name: stored for name, stored in state.items() if name.startswith(prefix)}
    return {name.removeprefix(prefix): stored for name, stored in found.items()}
