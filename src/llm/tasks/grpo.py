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
from llm.tasks.reference import Reference, ReferenceTask


class Prompt(NamedTuple):
    """A prompt of a batch.

    Attributes:
        tokens: the tokens before the response.
        text: the same tokens as text, including those of the template.
        reference: the response in the data.
    """

    tokens: list[int]
    text: str
    reference: str


class GRPO(AveragedTask, ReferenceTask):
    """Draw several responses to each prompt and make those above the mean of their group more likely.

    For each prompt a group of G responses is drawn from the current policy and scored. The advantage of a
    response is its reward relative to its group (`group_advantages`) and applies to each of its tokens
    (`policy_gradient_loss`). A penalty of β times the divergence from the reference keeps the policy near it
    (`kl_estimate`). Each batch of responses is used for one update, so the probability ratio is 1 and is not
    clipped.

    Responses are drawn at temperature 1 from all tokens, because samples from another distribution would need
    importance weights. They depend only on the seed and the number of the batch, so a resumed run draws the
    same.

    Training logs the mean reward, its mean standard deviation within a group (at 0 there is nothing to learn),
    the divergence per token in nats and the length of a response in tokens. The validation `loss` is β times
    the divergence minus the reward, for one response per prompt.

    Args:
        model: the policy, a language model.
        reward: scores responses.
        reference: the model that the policy is kept near.
        group_size: G, the number of responses to a prompt.
        max_tokens: most tokens of a response; fewer if the longest prompt of the batch leaves less of the
            context.
        beta: cost of a nat of divergence from the reference, in units of the reward.
        seed: seed of the responses.
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
            ValueError: the data do not mark where a prompt ends; the template has no token that ends a
                response; the model is divided among ranks; the reward was trained with another template; or
                the reference cannot be taken from this model.
        """
        if self.is_sharded:
            raise ValueError(
                "GRPO: each rank draws responses of different lengths, but a sharded model needs all ranks for "
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
                "GRPO needs a template with one special token that ends a response; use one such as "
                "data/template=alpaca"
            )
        require_template(self.reward, data.template)
        super().check(data)

    def setup(self, stage: str) -> None:
        """Take the tokenizer and the end token from the data, and the reference from the model."""
        data = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        self.tokenizer = data.tokenizer
        self.end_token = data.template.end_token(data.tokenizer)
        super().setup(stage)

    def compile_step(self) -> None:
        """Compile only the part with a gradient: shapes change with every token that is drawn."""
        self.log_probabilities = torch.compile(self.log_probabilities, dynamic=True)

    # Training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Store the index of the batch, on which the seed of the responses depends."""
        self.batch_number = batch_idx
        return super().training_step(batch, batch_idx)

    def step(self, batch: Batch) -> Tensor:
        """Return minus the objective; only its gradient has a meaning."""
        # The G responses to a prompt are adjacent: rewards (P · G) -> (P, G) for the advantages.
        prompts = [p for p in self.prompts(batch) for _ in range(self.group_size)]
        responses, rewards = self.respond(prompts, self.batch_number)
        groups = rewards.view(-1, self.group_size)
        # (P · G): one advantage per response, as only a whole response has a reward.
        advantages = group_advantages(groups).flatten()
        policy, kl, mask = self.compare(responses)
        spread = groups.std(-1).repeat_interleave(self.group_size)
        self.trained.update({**self.measure(rewards, kl=kl, mask=mask), "reward_std": spread})
        self._tokens = mask.sum()
        return policy_gradient_loss(
            policy, advantages=advantages, mask=mask
        ) + self.beta * masked_mean(kl, mask)

    def weight(self, batch: Batch) -> Tensor | None:
        """Return the number of tokens of the responses of the last step."""
        return self._tokens

    # Evaluation

    def evaluate(self, batch: Batch) -> None:
        """Draw one response to each prompt, with the same random numbers at each validation."""
        prompts = self.prompts(batch)
        self._evaluated_batches += 1
        if prompts:
            responses, rewards = self.respond(prompts, -self._evaluated_batches)
            _, kl, mask = self.compare(responses)
            self.evaluated.update(self.measure(rewards, kl=kl, mask=mask))

    def results(self) -> dict[str, float]:
        """Return the means over all responses since the last call."""
        self._evaluated_batches = 0
        return super().results()

    # Parts

    def prompts(self, batch: Batch) -> list[Prompt]:
        """Return the prompt of each row of `tokens` and `targets`; rows without targets are left out."""
        prompts = []
        for tokens, targets in zip(batch["tokens"], batch["targets"], strict=True):
            positions = (targets != IGNORE_INDEX).nonzero().flatten()
            if len(positions):
                # Of several responses in a conversation, the last one is drawn.
                before = (targets[: positions[-1]] == IGNORE_INDEX).nonzero().flatten()
                start = int(before[-1]) + 1 if len(before) else 0
                own = tokens[: start + 1].tolist()
                reference = targets[start : positions[-1] + 1].tolist()
                prompts.append(Prompt(own, self.tokenizer.decode(own), self.text(reference)))
        return prompts

    def respond(self, prompts: Sequence[Prompt], number: int) -> tuple[Batch, Tensor]:
        """Draw a response to each prompt; return `tokens` and `targets`, and the rewards (B)."""
        longest = max(len(prompt.tokens) for prompt in prompts)
        most = min(self.max_tokens, cast(int, self.model.context_length) - longest)
        responses = generate(
            self.model,
            [prompt.tokens for prompt in prompts],
            settings=GenerationSettings(
                max_tokens=most,
                sampler=Sampler(),
                seed=draw_seed(self.seed, number=number, rank=self.global_rank),
                end_tokens=(self.end_token,),
            ),
        )
        # A response shorter than the limit ended with its end token, which is learned too.
        responses = [own + [self.end_token] * (len(own) < most) for own in responses]
        rewards = checked_scores(
            self.reward,
            [prompt.text for prompt in prompts],
            [self.text(own) for own in responses],
            [prompt.reference for prompt in prompts],
        )
        rows = [
            join_response(prompt.tokens, own)
            for prompt, own in zip(prompts, responses, strict=True)
        ]
        batch = pad(rows, max(len(row["tokens"]) for row in rows))
        batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
        return batch, torch.tensor(rewards, device=self.device)

    def compare(self, responses: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probabilities, divergences from the reference and the mask of the responses, (B, T) each."""
        policy, reference = self.policy_and_reference(responses)
        return policy, kl_estimate(policy, reference), responses["targets"] != IGNORE_INDEX

    def log_probabilities(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the log-probability of each token of the responses under a model, (B, T), in nats."""
        return token_log_probabilities(model(batch["tokens"]), batch["targets"])

    def measure(self, rewards: Tensor, *, kl: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Return the metrics of each response, (B) each."""
        lengths = mask.sum(-1)
        divergence = (kl.detach() * mask).sum(-1) / lengths
        return {
            "loss": self.beta * divergence - rewards,
            "reward": rewards,
            "kl": divergence,
            "length": lengths.float(),
        }

    def text(self, tokens: Sequence[int]) -> str:
        """Return a response as text, without the token that ends it."""
        return self.tokenizer.decode([token for token in tokens if token != self.end_token])


def join_response(prompt: Sequence[int], response: Sequence[int]) -> dict[str, list[int]]:
    """Return a prompt and its response as `tokens` and `targets`; those of the prompt are ignored."""
    tokens = [*prompt, *response]
    return {"tokens": tokens[:-1], "targets": [IGNORE_INDEX] * (len(prompt) - 1) + list(response)}


def draw_seed(seed: int, *, number: int, rank: int) -> int:
    """Return the seed of the responses to one batch; validation batches have negative numbers."""
    # SeedSequence turns neighbouring numbers into unrelated seeds.
    entropy = [seed % 2**32, abs(number), int(number < 0), rank]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])
