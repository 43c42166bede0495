"""Group-relative policy optimisation: answers that a reward likes become likelier (Shao et al. 2024)."""

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from llm.data.base import DataModule
from llm.data.examples.collation import pad
from llm.data.examples.instruction import InstructionDataModule
from llm.generation.decoding import generate
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
from llm.tasks.averaged_task import MeansTask
from llm.tasks.base import CAUSAL, GENERATES, Batch, Groups
from llm.tasks.reference import Reference

FIGURES = ("reward", "kl", "length")


class Prompt(NamedTuple):
    """What is to be answered.

    Attributes:
        tokens: up to where the answer begins.
        text: the same as text, the template's included.
        reference: the answer that the data have.
    """

    tokens: list[int]
    text: str
    reference: str


class GRPO(MeansTask):
    """Answer each prompt several times, and make the answers likelier that were better than the others.

    For each prompt of a batch a group of G answers is drawn from the policy as it is, and scored. An
    answer's advantage is its reward relative to its group (`group_advantages`), which goes to each of its
    tokens (`policy_gradient_loss`); β times the divergence from the reference holds the policy near
    where it started (`kl_estimate`). Each batch of answers serves for one update, so nothing is clipped.

    Answers are drawn at temperature 1 from all tokens, without dropout: a draw from another distribution
    than the one that learns would need weights. What is drawn depends on the seed and the batch's number
    alone, so a resumed run draws what an uninterrupted one would.

    Logged: the mean reward, its mean standard deviation within a group (at 0 there is nothing to learn),
    the divergence a token in nats, and the length of an answer in tokens. The validation's `loss` is
    what is minimised, β times the divergence less the reward, of one answer a prompt.

    Args:
        model: the policy, a language model; as all that follows up to `parameter_groups`, see `Task`.
        optimizer: makes the optimizer.
        schedule: of the learning rate.
        parameter_groups: sorts the parameters.
        reward: scores answers.
        reference: what the policy is held near to.
        group_size: G, answers to a prompt.
        max_tokens: of an answer; fewer, for a whole batch, where its longest prompt leaves less of the
            context.
        beta: what a nat of divergence from the reference costs, in rewards.
        seed: of the answers.

    Raises:
        ValueError: a number is out of range.
    """

    data_module = InstructionDataModule
    requires: ClassVar[Mapping[str, str]] = {**CAUSAL, **GENERATES}
    command = "chat"

    def __init__(
        self,
        model: nn.Module,
        optimizer: Callable[[Groups], Optimizer],
        schedule: Callable[[int, int], float],
        parameter_groups: Callable[[nn.Module], Groups],
        reward: RewardFunction,
        reference: Reference,
        group_size: int = 8,
        max_tokens: int = 64,
        beta: float = 0.04,
        seed: int = 0,
    ) -> None:
        trained, evaluated = (*FIGURES, "reward_std"), ("loss", *FIGURES)
        super().__init__(model, optimizer, schedule, parameter_groups, trained, evaluated)
        for name, value, least in (("group_size", group_size, 2), ("max_tokens", max_tokens, 1)):
            if value < least:
                raise ValueError(f"{name}={value}: give {least} or more")
        if beta < 0:
            raise ValueError(f"beta={beta}: give 0 to let the policy go where it will, or more")
        self.reward, self.reference = reward, reference
        self.group_size, self.max_tokens, self.beta, self.seed = group_size, max_tokens, beta, seed
        self.batch_number = 0
        self._evaluated_batches = 0
        self._tokens: Tensor | None = None

    def check(self, data: DataModule) -> None:
        """Refuse data that do not say where a prompt ends, a template that does not say where an answer does.

        Raises:
            ValueError: they do not, the model is divided among ranks, which would have to write answers
                in step, the reward has learned from another template, or the model has no such reference.
        """
        if self.is_sharded:
            raise ValueError(
                "GRPO: ranks write answers of unlike lengths, and a divided model needs all of them at "
                "every token; use hardware=ddp"
            )
        assert isinstance(data, InstructionDataModule)
        if data.loss_on != "response" or "document_ids" in data.encoded["train"][0]:
            raise ValueError(
                "GRPO reads one prompt a row, which ends where the response begins; set "
                "data.loss_on=response and data/collation=padding"
            )
        if data.template.end_token(data.tokenizer) is None:
            raise ValueError(
                "GRPO needs a template with one special token that ends an answer; use one such as "
                "data/template=alpaca"
            )
        require_template(self.reward, data.template)
        self.reference.check(self.model)

    def setup(self, stage: str) -> None:
        """Learn how the data write answers; take the reference while the model has its base weights."""
        data = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        self.tokenizer = data.tokenizer
        self.end_token = data.template.end_token(data.tokenizer)
        if stage == "fit":
            self.reference.start(self.model)

    def on_train_start(self) -> None:
        """Turn dropout off: Lightning leaves each module in the mode that it finds it in."""
        super().on_train_start()
        self.model.eval()

    def compile_step(self) -> None:
        """Compile what has a gradient; drawing answers makes shapes that always change."""
        self.log_probabilities = torch.compile(self.log_probabilities, dynamic=True)

    # Training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Note the batch's number, by which answers are drawn."""
        self.batch_number = batch_idx
        return super().training_step(batch, batch_idx)

    def step(self, batch: Batch) -> Tensor:
        """Minus the objective, with its gradient; its value says little, look at the reward."""
        prompts = [p for p in self.prompts(batch) for _ in range(self.group_size)]
        answers, rewards = self.answer(prompts, self.batch_number)
        groups = rewards.view(-1, self.group_size)
        advantages = group_advantages(groups).flatten()
        policy, kl, mask = self.compare(answers)
        spread = groups.std(-1).repeat_interleave(self.group_size)
        self.trained.update({**self.figures_of(rewards, kl, mask), "reward_std": spread})
        self._tokens = mask.sum()
        return policy_gradient_loss(policy, advantages, mask) + self.beta * masked_mean(kl, mask)

    def weight(self, batch: Batch) -> Tensor | None:
        """How many tokens the answers of the last step have."""
        return self._tokens

    # Evaluation

    def evaluate(self, batch: Batch) -> None:
        """Answer each prompt once, with the same random numbers at each validation."""
        prompts = self.prompts(batch)
        self._evaluated_batches += 1
        if prompts:
            answers, rewards = self.answer(prompts, -self._evaluated_batches)
            _, kl, mask = self.compare(answers)
            self.evaluated.update(self.figures_of(rewards, kl, mask))

    def results(self) -> dict[str, float]:
        """The means over all answers since the last call."""
        self._evaluated_batches = 0
        return super().results()

    # Parts

    def prompts(self, batch: Batch) -> list[Prompt]:
        """What each row of `tokens` and `targets` asks; rows that ask for nothing are left out."""
        prompts = []
        for tokens, targets in zip(batch["tokens"], batch["targets"], strict=True):
            positions = (targets != IGNORE_INDEX).nonzero().flatten()
            if len(positions):
                # Of several answers in a conversation it is the last that is to be given.
                before = (targets[: positions[-1]] == IGNORE_INDEX).nonzero().flatten()
                start = int(before[-1]) + 1 if len(before) else 0
                own = tokens[: start + 1].tolist()
                reference = targets[start : positions[-1] + 1].tolist()
                prompts.append(Prompt(own, self.tokenizer.decode(own), self.text(reference)))
        return prompts

    def answer(self, prompts: Sequence[Prompt], number: int) -> tuple[Batch, Tensor]:
        """An answer to each prompt drawn from the policy, as `tokens` and `targets`, and its reward (B).

        All have the room that the longest prompt leaves, so near the end of the context an answer is cut
        sooner beside a longer prompt than alone.
        """
        longest = max(len(prompt.tokens) for prompt in prompts)
        most = min(self.max_tokens, cast(int, self.model.context_length) - longest)
        answers = generate(
            self.model,
            [prompt.tokens for prompt in prompts],
            most,
            Sampler(),
            seed=draw_seed(self.seed, number, self.global_rank),
            end_token=self.end_token,
        )
        # An answer that is shorter than it might be has ended, and it is to learn when to.
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
        """Of each token its log-probability, its divergence from the reference, and whether it counts."""
        policy = self.log_probabilities(self.model, answers)
        with torch.no_grad(), self.reference.of(self.model) as model:
            reference = self.log_probabilities(model, answers)
        return policy, kl_estimate(policy, reference), answers["targets"] != IGNORE_INDEX

    def log_probabilities(self, model: nn.Module, answers: Batch) -> Tensor:
        """The log-probability of each token of the answers under a model, (B, T), in nats."""
        return token_log_probabilities(model(answers["tokens"]), answers["targets"])

    def figures_of(self, rewards: Tensor, kl: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """What is logged of each answer, (B) each."""
        lengths = mask.sum(-1)
        divergence = (kl.detach() * mask).sum(-1) / lengths
        return {
            "loss": self.beta * divergence - rewards,
            "reward": rewards,
            "kl": divergence,
            "length": lengths.float(),
        }

    def text(self, tokens: Sequence[int]) -> str:
        """An answer as text, without the token that ends it."""
        return self.tokenizer.decode([token for token in tokens if token != self.end_token])


def join_answer(prompt: Sequence[int], answer: Sequence[int]) -> dict[str, list[int]]:
    """A prompt and its answer as `tokens` and `targets`, of which the prompt's are ignored."""
    tokens = [*prompt, *answer]
    return {"tokens": tokens[:-1], "targets": [IGNORE_INDEX] * (len(prompt) - 1) + list(answer)}


def draw_seed(seed: int, number: int, rank: int) -> int:
    """A seed for the answers to one batch; negative numbers are those of a validation."""
    entropy = [seed % 2**32, abs(number), int(number < 0), rank]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])
