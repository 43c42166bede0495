"""Losses, pure functions: of the next token (cross-entropy), of preferences, of policy gradients."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llm.nn.ignore_index import IGNORE_INDEX


def cross_entropy(logits: Float[Tensor, "*N V"], targets: Int[Tensor, "*N"]) -> Float[Tensor, ""]:
    """The mean of -log softmax(logits)[target] over the targets that are not ignored.

    Args:
        logits: one row of scores a token; half-precision ones are raised to float32 first,
            for the sum of 50,000 exponentials does not fit in eight bits.
        targets: the right ids, -100 where none is learned.

    Returns:
        The loss in nats a token; 0, with a zero gradient, where every target is ignored.
    """
    losses, mask = _token_losses(logits, targets)
    return losses.sum() / mask.sum().clamp(min=1)


def cross_entropy_sum(
    logits: Float[Tensor, "*N V"], targets: Int[Tensor, "*N"]
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """The parts of a mean over many batches: add both up, divide once.

    Args:
        logits: one row of scores a token.
        targets: the right ids, -100 where none is learned.

    Returns:
        The sum of the losses in nats, in float64, which a million tokens do not wear out, and
        the number of targets that are not ignored. Both stay on the device of the logits, but
        on Apple's, which knows no float64: there the sum is on the CPU.
    """
    losses, mask = _token_losses(logits, targets)
    if losses.device.type == "mps":
        losses = losses.cpu()
    return losses.sum(dtype=torch.float64), mask.sum()


def _token_losses(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of each token, 0 where ignored, and where it is not ignored; both flat."""
    targets = targets.flatten()
    logits = logits.reshape(len(targets), logits.shape[-1])
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="none")
    return losses, targets != IGNORE_INDEX


# Preferences


def sequence_log_probabilities(
    logits: Float[Tensor, "B T V"],
    targets: Int[Tensor, "B T"],
    reduction: Literal["sum", "mean"] = "sum",
) -> Float[Tensor, "B"]:
    """The log p(y | x) of each row: its targets' log-probabilities, summed or averaged.

    The sum is the probability that DPO is derived from; it favours short answers, as every token
    costs. The mean forgets the length (Meng et al. 2024, SimPO, section 2.2).

    Args:
        logits: one row of scores a token.
        targets: the response y, -100 at the prompt x and at padding.
        reduction: over the tokens of a row.

    Returns:
        Nats, at most 0; 0 for a row without targets.
    """
    log_probabilities = token_log_probabilities(logits, targets)
    if reduction == "sum":
        return log_probabilities.sum(-1)
    return log_probabilities.sum(-1) / (targets != IGNORE_INDEX).sum(-1).clamp(min=1)


def token_log_probabilities(
    logits: Float[Tensor, "B T V"], targets: Int[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """The log p(target) of each token, in nats; 0 where the target is ignored."""
    losses, _ = _token_losses(logits, targets)
    return -losses.view_as(targets)


def ranking_loss(
    chosen: Float[Tensor, "B"], rejected: Float[Tensor, "B"], label_smoothing: float = 0.0
) -> Float[Tensor, "B"]:
    """-log σ(r_chosen - r_rejected): how surprised Bradley and Terry's model is at each preference.

    A reward model is trained with it on the scores that it gives (Ouyang et al. 2022, InstructGPT,
    equation 1), and DPO on implicit rewards (`dpo_loss`).

    Args:
        chosen: rewards of the preferred responses.
        rejected: rewards of the others, row by row.
        label_smoothing: the share ε of preferences that are taken to be the wrong way round:
            -(1 - ε) log σ(m) - ε log σ(-m) at a margin m.

    Returns:
        The loss of each pair, ln 2 at a margin of 0.
    """
    margin = chosen - rejected
    right, wrong = F.logsigmoid(margin), F.logsigmoid(-margin)
    return -(1 - label_smoothing) * right - label_smoothing * wrong


def implicit_rewards(
    policy: Float[Tensor, "B"], reference: Float[Tensor, "B"], beta: float
) -> Float[Tensor, "B"]:
    """β (log π(y | x) - log π_ref(y | x)): the reward that a policy is the best answer to.

    Up to a term in x alone, which a difference cancels (Rafailov et al. 2023, DPO, section 5).

    Args:
        policy: log-probabilities of responses under the model in training.
        reference: the same under the model it started as.
        beta: how much a departure from the reference costs; small ones leave more freedom.
    """
    return beta * (policy - reference)


def dpo_loss(
    policy_chosen: Float[Tensor, "B"],
    policy_rejected: Float[Tensor, "B"],
    reference_chosen: Float[Tensor, "B"],
    reference_rejected: Float[Tensor, "B"],
    beta: float,
    label_smoothing: float = 0.0,
) -> Float[Tensor, "B"]:
    """Direct preference optimisation (Rafailov et al. 2023, equation 7), a loss for each pair.

    It is the ranking loss of implicit rewards; with label smoothing, Mitchell's conservative DPO
    (2023, "A note on DPO with noisy preferences").

    Args:
        policy_chosen: log π(y_w | x), as all of these a number a pair, in nats.
        policy_rejected: log π(y_l | x).
        reference_chosen: log π_ref(y_w | x).
        reference_rejected: log π_ref(y_l | x).
        beta: see `implicit_rewards`.
        label_smoothing: see `ranking_loss`.
    """
    return ranking_loss(
        implicit_rewards(policy_chosen, reference_chosen, beta),
        implicit_rewards(policy_rejected, reference_rejected, beta),
        label_smoothing,
    )


# Policy gradients


def group_advantages(rewards: Float[Tensor, "B G"]) -> Float[Tensor, "B G"]:
    """How much better than its group each response is, in the group's standard deviations.

    Shao et al. 2024 (DeepSeekMath), section 4.1.2: the group's mean takes the place of a learned
    critic. A group of equal rewards has nothing to teach: its advantages are 0. Liu et al. 2025
    (Dr. GRPO) leave the division out: it gives more weight to questions that are nearly always right or
    wrong.

    Args:
        rewards: of G responses to each of B prompts.
    """
    centred = rewards - rewards.mean(-1, keepdim=True)
    return centred / (rewards.std(-1, keepdim=True) + 1e-4)


def policy_gradient_loss(
    log_probabilities: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B"],
    mask: Bool[Tensor, "B T"],
) -> Float[Tensor, ""]:
    """Minus the advantage of a response, at each of its tokens: REINFORCE (Williams 1992).

    The gradient is -A ∇ log π, written as that of -A π / π_old with π_old = π held fixed, the ratio
    that PPO and GRPO clip: with one update a batch it is 1 and there is nothing to clip. The mean is
    over all tokens of the batch, as in DAPO (Yu et al. 2025). The mean over each response first, as
    in the GRPO paper, makes long wrong answers cheap, which Dr. GRPO shows.

    Args:
        log_probabilities: of the response's tokens under the policy, with gradient.
        advantages: one a response.
        mask: True at the response's tokens.
    """
    ratio = (log_probabilities - log_probabilities.detach()).exp()
    return -masked_mean(ratio * advantages[:, None], mask)


def kl_estimate(policy: Float[Tensor, "*N"], reference: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """An estimate of KL(π ‖ π_ref) from tokens that π drew: r - 1 - log r with r = π_ref / π.

    Unbiased, never negative, and of small variance: k3 of Schulman 2020 ("Approximating KL
    divergence"), equation 4 of the GRPO paper.

    Args:
        policy: log-probabilities of the tokens under the policy.
        reference: the same under the reference.
    """
    log_ratio = reference - policy
    return log_ratio.exp() - 1 - log_ratio


def masked_mean(values: Float[Tensor, "*N"], mask: Bool[Tensor, "*N"]) -> Float[Tensor, ""]:
    """Return the mean of the values in the mask; 0 if it is empty."""
    return (values * mask).sum() / mask.sum().clamp(min=1)
