"""Group-relative policy optimization: responses with a high reward become more likely (Shao et al. 2024)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from llm.data.base import DataModule
from llm.data.examples.collation import pad
from llm.data.examples.instruction import InstructionDataModule
from llm.generation.decoding import generate
from llm.generation.generation_settings import GenerationSettings
from llm.generation.sampling import Sampler
from llm.losses import (
    group_advantages,
    kl_estimate,
    masked_mean,
    policy_gradient_loss,
    token_log_probabilities,
)
from llm.nn.ignore_index import IGNORE_INDEX
from llm.rewards.base import RewardFunction, checked_scores, require_template
from llm.tasks.averaged_task import AveragedTask
from llm.tasks.base import CAUSAL, GENERATES, Batch
from llm.tasks.reference import Reference


class Prompt(NamedTuple):
    """A prompt of a batch.

    Attributes:
        tokens: the tokens before the answer.
        text: the same as text, including that of the template.
        reference: the answer in the data.
    """

    tokens: list[int]
    text: str
    reference: str


class GRPO(AveragedTask):
    """Draw several answers to each prompt and make those above the mean of their group more likely.

    For each prompt of a batch a group of G answers is drawn from the current policy and scored. The
    advantage of an answer is its reward relative to its group (`group_advantages`); it applies to each of
    its tokens (`policy_gradient_loss`). A penalty of β times the divergence from the reference keeps the
    policy near it (`kl_estimate`). Each batch of answers is used for one update, so nothing is clipped.

    Answers are drawn at temperature 1 from all tokens, without dropout: samples from another distribution
    would need importance weights. They depend only on the seed and the number of the batch, so a resumed
    run draws the same.

    Training logs the mean reward, its mean standard deviation within a group (at 0 there is nothing to learn),
    the divergence per token in nats and the length of an answer in tokens. The `loss` of the validation is
    β times the divergence minus the reward, for one answer per prompt.

    Args:
        model: the policy, a language model.
        reward: scores answers.
        reference: the model that the policy is kept near.
        group_size: G, the number of answers to a prompt.
        max_tokens: most tokens of an answer; fewer if the longest prompt of the batch leaves less of the
            context.
        beta: cost of a nat of divergence from the reference, in units of the reward.
        seed: seed of the answers.
        shared: the other arguments of `Task`.

    Raises:
        ValueError: a number is out of range.
    """

    data_module = InstructionDataModule
    requires: ClassVar[Mapping[str, str]] = {**CAUSAL, **GENERATES}
    command = "chat"
    metric_names = ("reward", "kl", "length")
    training_only = ("reward_std",)

    def __init__(
        self,
        model: nn.Module,
        *,
        reward: RewardFunction,
        reference: Reference,
        group_size: int = 8,
        max_tokens: int = 64,
        beta: float = 0.04,
        seed: int = 0,
        **shared: Any,
    ) -> None:
        super().__init__(model, **shared)
        for name, value, least in (("group_size", group_size, 2), ("max_tokens", max_tokens, 1)):
            if value < least:
                raise ValueError(f"{name}={value}: give {least} or more")
        if beta < 0:
            raise ValueError(f"beta={beta}: is negative; use 0 for no penalty, or more")
        self.reward, self.reference = reward, reference
        self.group_size, self.max_tokens, self.beta, self.seed = group_size, max_tokens, beta, seed
        self.batch_number = 0
        self._evaluated_batches = 0
        self._tokens: Tensor | None = None

    def check(self, data: DataModule) -> None:
        """Check data, template, model, reward and reference.

        Raises:
            ValueError: the data do not mark where a prompt ends, or the template has no token that ends an
                answer; the model is divided among ranks; the reward was trained with another template; or
                the reference cannot be taken from this model.
        """
        if self.is_sharded:
            raise ValueError(
                "GRPO: each rank draws answers of other lengths, and a divided model needs all ranks for "
                "every token; use hardware=ddp"
            )
        assert isinstance(data, InstructionDataModule)
        if data.loss_on != "response" or "document_ids" in data.encoded["train"][0]:
            raise ValueError(
                "GRPO needs rows of one prompt and its response; set data.loss_on=response and "
                "data/collation=padding"
            )
        if data.template.end_token(data.tokenizer) is None:
            raise ValueError(
                "GRPO needs a template with one special token that ends an answer; use one such as "
                "data/template=alpaca"
            )
        require_template(self.reward, data.template)
        self.reference.check(self.model)

    def setup(self, stage: str) -> None:
        """Take tokenizer and end token from the data, and the reference while the model has its base weights."""
        data = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        self.tokenizer = data.tokenizer
        self.end_token = data.template.end_token(data.tokenizer)
        if stage == "fit":
            self.reference.start(self.model)

    def on_train_start(self) -> None:
        """Turn dropout off."""
        super().on_train_start()
        self.model.eval()

    def compile_step(self) -> None:
        """Compile only the part with a gradient, because the shapes change with every token that is drawn."""
        self.log_probabilities = torch.compile(self.log_probabilities, dynamic=True)

    # Training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Remember the index of the batch, on which the seed of the answers depends."""
        self.batch_number = batch_idx
        return super().training_step(batch, batch_idx)

    def step(self, batch: Batch) -> Tensor:
        """Return minus the objective, of which only the gradient has a meaning."""
        # The G answers to a prompt are neighbours: rewards (P · G) -> (P, G) for the advantages.
        prompts = [p for p in self.prompts(batch) for _ in range(self.group_size)]
        answers, rewards = self.answer(prompts, self.batch_number)
        groups = rewards.view(-1, self.group_size)
        # One advantage per answer, (P · G), as only the whole answer has a reward.
        advantages = group_advantages(groups).flatten()
        policy, kl, mask = self.compare(answers)
        spread = groups.std(-1).repeat_interleave(self.group_size)
        self.trained.update({**self.measure(rewards, kl=kl, mask=mask), "reward_std": spread})
        self._tokens = mask.sum()
        return policy_gradient_loss(
            policy, advantages=advantages, mask=mask
        ) + self.beta * masked_mean(kl, mask)

    def weight(self, batch: Batch) -> Tensor | None:
        """Return the number of tokens of the answers of the last step."""
        return self._tokens

    # Evaluation

    def evaluate(self, batch: Batch) -> None:
        """Answer each prompt once, with the same random numbers at each validation."""
        prompts = self.prompts(batch)
        self._evaluated_batches += 1
        if prompts:
            answers, rewards = self.answer(prompts, -self._evaluated_batches)
            _, kl, mask = self.compare(answers)
            self.evaluated.update(self.measure(rewards, kl=kl, mask=mask))

    def results(self) -> dict[str, float]:
        """Return the means over all answers since the last call."""
        self._evaluated_batches = 0
        return super().results()

    # Parts

    def prompts(self, batch: Batch) -> list[Prompt]:
        """Return the prompt of each row of `tokens` and `targets`; rows without targets are left out."""
        prompts = []
        for tokens, targets in zip(batch["tokens"], batch["targets"], strict=True):
            positions = (targets != IGNORE_INDEX).nonzero().flatten()
            if len(positions):
                # In a conversation with several answers, the last one is to be answered.
                before = (targets[: positions[-1]] == IGNORE_INDEX).nonzero().flatten()
                start = int(before[-1]) + 1 if len(before) else 0
                own = tokens[: start + 1].tolist()
                reference = targets[start : positions[-1] + 1].tolist()
                prompts.append(Prompt(own, self.tokenizer.decode(own), self.text(reference)))
        return prompts

    def answer(self, prompts: Sequence[Prompt], number: int) -> tuple[Batch, Tensor]:
        """Draw an answer to each prompt; return `tokens` and `targets`, and the rewards (B)."""
        longest = max(len(prompt.tokens) for prompt in prompts)
        most = min(self.max_tokens, cast(int, self.model.context_length) - longest)
        answers = generate(
            self.model,
            [prompt.tokens for prompt in prompts],
            settings=GenerationSettings(
                max_tokens=most,
                sampler=Sampler(),
                seed=draw_seed(self.seed, number=number, rank=self.global_rank),
                end_tokens=(self.end_token,),
            ),
        )
        # An answer shorter than the limit ended with its end token, which is learned too.
        answers = [own + [self.end_token] * (len(own) < most) for own in answers]
        rewards = checked_scores(
            self.reward,
            [prompt.text for prompt in prompts],
            [self.text(answer) for answer in answers],
            [prompt.reference for prompt in prompts],
        )
        rows = [
            join_answer(prompt.tokens, own) for prompt, own in zip(prompts, answers, strict=True)
        ]
        batch = pad(rows, max(len(row["tokens"]) for row in rows))
        batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
        return batch, torch.tensor(rewards, device=self.device)

    def compare(self, answers: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probabilities, divergences from the reference and the mask of the answers, (B, T) each."""
        policy = self.log_probabilities(self.model, answers)
        with torch.no_grad(), self.reference.of(self.model) as model:
            reference = self.log_probabilities(model, answers)
        return policy, kl_estimate(policy, reference), answers["targets"] != IGNORE_INDEX

    def log_probabilities(self, model: nn.Module, answers: Batch) -> Tensor:
        """Return the log-probability of each token of the answers under a model, (B, T), in nats."""
        return token_log_probabilities(model(answers["tokens"]), answers["targets"])

    def measure(self, rewards: Tensor, *, kl: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Return the metrics of each answer, (B) each."""
        lengths = mask.sum(-1)
        divergence = (kl.detach() * mask).sum(-1) / lengths
        return {
            "loss": self.beta * divergence - rewards,
            "reward": rewards,
            "kl": divergence,
            "length": lengths.float(),
        }

    def text(self, tokens: Sequence[int]) -> str:
        """Return an answer as text, without the token that ends it."""
        return self.tokenizer.decode([token for token in tokens if token != self.end_token])


def join_answer(prompt: Sequence[int], answer: Sequence[int]) -> dict[str, list[int]]:
    """Return a prompt and its answer as `tokens` and `targets`; those of the prompt are ignored."""
    tokens = [*prompt, *answer]
    return {"tokens": tokens[:-1], "targets": [IGNORE_INDEX] * (len(prompt) - 1) + list(answer)}


def draw_seed(seed: int, *, number: int, rank: int) -> int:
    """Return the seed of the answers to one batch; validation batches have negative numbers."""
    # SeedSequence turns neighbouring numbers into unrelated seeds.
    entropy = [seed % 2**32, abs(number), int(number < 0), rank]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])
