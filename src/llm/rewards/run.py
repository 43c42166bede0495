"""The scores of a reward model that a run has trained."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from llm.config.errors import ConfigError
from llm.data.examples.collation import pad_with_mask
from llm.data.examples.template import ChatTemplate, stored_template
from llm.hardware import Hardware
from llm.models.classifier import Classifier
from llm.runs import require_run
from llm.terminal import shell
from llm.tokenizers.base import Tokenizer
from llm.weights.run import RunWeights


@dataclass(frozen=True)
class RunReward:
    """Scores of a reward model: any number, higher is better; only differences are meaningful.

    Prompts must use the template of the run. The name of a special token in a message is encoded as that token,
    unlike in training; in a response it is plain text.

    Args:
        path: folder of a run with `task=reward`.
        checkpoint: its `best` weights (lowest validation loss) or its `last` ones.
        batch_size: number of responses scored together.
        accelerator: device of the model.
        trust: packages that the run's configuration may use.
    """

    path: str
    checkpoint: Literal["best", "last"] = "best"
    batch_size: int = 16
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    trust: Sequence[str] = ()

    def __post_init__(self) -> None:
        require_run(self.path, "reward.path", tasks=("reward",))
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size}: is too small; use 1 or more")

    def __call__(
        self, prompts: Sequence[str], responses: Sequence[str], references: Sequence[str]
    ) -> list[float]:
        """Return a score for each response; the references are ignored.

        If prompt and response are longer than the model's context, only their end is read.
        """
        rows = [
            [*self._tokenizer.encode(prompt, special=True), *self._tokenizer.encode(response)]
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        starts = range(0, len(rows), self.batch_size)
        return [each for at in starts for each in self._score(rows[at : at + self.batch_size])]

    def require_template(self, template: ChatTemplate | None) -> None:
        """Require the template that the run was trained with.

        Raises:
            ValueError: the template is another.
        """
        own = stored_template(self._weights().config)
        if own is not None and own != template:
            raise ValueError(
                f"the reward model {self.path} was trained on prompts in another template than these: "
                "train both with the same data/template"
            )

    @torch.inference_mode()
    def _score(self, rows: Sequence[list[int]]) -> list[float]:
        rows = [row[-self._model.context_length :] for row in rows]
        batch = pad_with_mask([{"tokens": row} for row in rows])
        device = self._model.head.weight.device
        scores: Tensor = self._model(batch["tokens"].to(device), batch["attention_mask"].to(device))
        return scores.squeeze(-1).tolist()

    def _weights(self) -> RunWeights:
        return RunWeights(self.path, self.checkpoint, self.trust)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return self._weights().tokenizer()

    @cached_property
    def _model(self) -> Classifier:
        model = self._weights().model()
        if not (isinstance(model, Classifier) and model.num_classes == 1):
            raise ConfigError(
                f"reward.path: {self.path} is not a reward model; train one with "
                f"{shell.command_line(shell.program(), 'train', 'experiment=reward')}"
            )
        accelerator = Hardware(accelerator=self.accelerator, precision=32).resolve().accelerator
        return model.to(accelerator)
