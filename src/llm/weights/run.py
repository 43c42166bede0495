"""Weights, architecture and tokenizer out of a run directory of ours."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from torch import nn

from llm.config.build import build
from llm.config.check import check
from llm.config.errors import ConfigError
from llm.runs import Run, list_runs
from llm.tokenizers.tokenizer import Tokenizer, load
from llm.weights.checkpoint import DamagedCheckpointError, load_checkpoint


@dataclass(frozen=True)
class RunWeights:
    """What a finished or unfinished run has learned.

    Args:
        path: the run directory.
        checkpoint: its `best` weights (lowest validation loss) or its `last` ones.
        trust: packages that the run's configuration may name; what the run itself trusts does not count,
            for it may be a stranger's.
    """

    path: str
    checkpoint: Literal["best", "last"] = "best"
    trust: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not Run(Path(self.path)).config.is_file():
            raise ValueError(
                f"{self.path} is no run directory (it has no config.yaml); {_known_runs()}"
            )

    @property
    def run(self) -> Run:
        """The run directory."""
        return Run(Path(self.path))

    @property
    def config(self) -> DictConfig:
        """The run's composed configuration, resolved."""
        config = OmegaConf.load(self.run.config)
        assert isinstance(config, DictConfig)
        config.trust = list(self.trust)
        return config

    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer."""
        return load(self.run.tokenizer)

    def file(self) -> Path:
        """The checkpoint to read: the one asked for, or the last one where no best was written yet."""
        asked = self.run.best if self.checkpoint == "best" else self.run.last
        if asked.is_file() or not self.run.last.is_file():
            return asked
        return self.run.last

    def state_dict(self) -> dict[str, Any]:
        """The model's parameters by name.

        Raises:
            ConfigError: the run has no checkpoint yet, or its file is not what was written.
        """
        try:
            entries = load_checkpoint(self.file())["state_dict"]
        except (FileNotFoundError, DamagedCheckpointError) as error:
            raise ConfigError(f"weights.path: {error}") from error
        prefix = "model."
        return {
            key.removeprefix(prefix): value
            for key, value in entries.items()
            if key.startswith(prefix)
        }

    def model(self) -> nn.Module:
        """The model with its weights, in evaluation mode on the CPU.

        Its configuration is checked before anything is built: a run directory may be a stranger's.

        Raises:
            ConfigError: the configuration is no model's, or the checkpoint is missing or damaged.
        """
        config = self.config
        check(OmegaConf.create({"model": config.model, "trust": config.trust}))
        model = build(config.model)
        model.load_state_dict(self.state_dict())
        return model.eval()


def _known_runs() -> str:
    runs = list_runs(Path("outputs"))
    if not runs:
        return "there are none under outputs/ here: train one with `llm train`"
    return "runs here: " + ", ".join(str(run.path) for run in runs[:5])
