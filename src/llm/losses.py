"""Losses as pure functions: cross-entropy, preference losses and policy gradients."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llm.nn.ignore_index import IGNORE_INDEX


def cross_entropy(logits: Float[Tensor, "*N V"], targets: Int[Tensor, "*N"]) -> Float[Tensor, ""]:
    """Return the mean of -log softmax(logits)[target] over the targets that are not ignored.

    Args:
        logits: one row of scores per token.
        targets: the correct ids, -100 for tokens that are not learned.

    Returns:
        The loss in nats per token; 0, with a zero gradient, if every target is ignored.
    """
    losses, mask = _token_losses(logits, targets)
    # clamp: a batch without targets gives 0 / 1 and not 0 / 0, which is NaN.
    return losses.sum() / mask.sum().clamp(min=1)


def cross_entropy_sum(
    logits: Float[Tensor, "*N V"], targets: Int[Tensor, "*N"]
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """Return sum and count of the losses of `cross_entropy`, for a mean over many batches.

    Returns:
        The sum in nats, in float64, and the number of targets that are not ignored. Both stay on the
        device of the logits, except on MPS, where the sum is on the CPU.
    """
    losses, mask = _token_losses(logits, targets)
    # Apple's GPUs have no float64.
    if losses.device.type == "mps":
        losses = losses.cpu()
    # float32 has 7 digits: a sum of a million losses would lose digits of each of them.
    return losses.sum(dtype=torch.float64), mask.sum()


def _token_losses(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of each token, 0 if ignored, and the mask of the others; both flat."""
    # (B, T) -> (B · T), and logits (B, T, V) -> (B · T, V): each token is one classification.
    targets = targets.flatten()
    logits = logits.reshape(len(targets), logits.shape[-1])
    # A softmax sums V exponentials, 50,000 for GPT-2: too many for bfloat16's 8 significant bits.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="none")
    return losses, targets != IGNORE_INDEX


# Preferences


def sequence_log_probabilities(
    logits: Float[Tensor, "B T V"],
    targets: Int[Tensor, "B T"],
    *,
    reduction: Literal["sum", "mean"] = "sum",
) -> Float[Tensor, "B"]:
    """Return log p(y | x) of each row: the log-probabilities of its targets, summed or averaged.

    DPO is derived for the sum, which favours short responses, as every token lowers it. The mean
    does not depend on the length (Meng et al. 2024, SimPO, section 2.2).

    Args:
        logits: one row of scores per token.
        targets: the response y, -100 at the prompt x and at padding.
        reduction: how the tokens of a row are combined.

    Returns:
        The log-probabilities in nats, at most 0; 0 for a row without targets.
    """
    log_probabilities = token_log_probabilities(logits, targets)
    if reduction == "sum":
        return log_probabilities.sum(-1)
    return log_probabilities.sum(-1) / (targets != IGNORE_INDEX).sum(-1).clamp(min=1)


def token_log_probabilities(
    logits: Float[Tensor, "B T V"], targets: Int[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """Return log p(target) of each token, in nats; 0 if the target is ignored."""
    losses, _ = _token_losses(logits, targets)
    return -losses.view_as(targets)


def ranking_loss(
    chosen: Float[Tensor, "B"], rejected: Float[Tensor, "B"], *, label_smoothing: float = 0.0
) -> Float[Tensor, "B"]:
    """Return -log σ(r_chosen - r_rejected), the negative log-likelihood of the Bradley-Terry model.

    A reward model minimizes it on its own scores (Ouyang et al. 2022, InstructGPT, equation 1), and
    DPO on `implicit_rewards` (Rafailov et al. 2023, equation 7). With label smoothing it is conservative
    DPO (Mitchell 2023, "A note on DPO with noisy preferences").

    Args:
        chosen: rewards of the preferred responses.
        rejected: rewards of the other responses, in the same order.
        label_smoothing: the assumed share ε of wrong preferences; the loss at a margin m is
            -(1 - ε) log σ(m) - ε log σ(-m).

    Returns:
        The loss of each pair; ln 2 at a margin of 0.
    """
    margin = chosen - rejected
    # logsigmoid is stable: log(sigmoid(-200)) would be log(0) in float32.
    right, wrong = F.logsigmoid(margin), F.logsigmoid(-margin)
    return -(1 - label_smoothing) * right - label_smoothing * wrong


def implicit_rewards(
    policy: Float[Tensor, "B"], reference: Float[Tensor, "B"], *, beta: float
) -> Float[Tensor, "B"]:
    """Return β (log π(y | x) - log π_ref(y | x)), the reward for which the policy π is optimal.

    It is exact up to a function of x, which cancels in differences (Rafailov et al. 2023, section 5).

    Args:
        policy: log-probabilities of responses under the model in training.
        reference: the same under the reference model.
        beta: cost of diverging from the reference; a smaller β allows more.
    """
    return beta * (policy - reference)


# Policy gradients


def group_advantages(rewards: Float[Tensor, "B G"]) -> Float[Tensor, "B G"]:
    """Return (reward - mean) / standard deviation of each response within its group.

    The mean of the group replaces a learned critic (Shao et al. 2024, DeepSeekMath, section 4.1.2).
    Liu et al. 2025 (Dr. GRPO) omit the division, because it gives more weight to prompts whose responses
    are nearly all right or nearly all wrong.

    Args:
        rewards: rewards of G responses to each of B prompts.
    """
    centred = rewards - rewards.mean(-1, keepdim=True)
    # 1e-4: if all rewards of a group are equal, its advantages are 0 and not 0 / 0.
    return centred / (rewards.std(-1, keepdim=True) + 1e-4)


def policy_gradient_loss(
    log_probabilities: Float[Tensor, "B T"],
    *,
    advantages: Float[Tensor, "B"],
    mask: Bool[Tensor, "B T"],
) -> Float[Tensor, ""]:
    """Return the policy gradient loss, whose gradient is -A ∇ log π: REINFORCE (Williams 1992).

    It is written as -A π / π_old with π_old = π. PPO and GRPO clip this ratio; with one update per batch
    it is 1. The mean is over all tokens of the batch, as in DAPO (Yu et al. 2025). A mean over each
    response first, as in the GRPO paper, penalizes long wrong responses less per token (Liu et al. 2025).

    Args:
        log_probabilities: of the response's tokens under the policy, with gradient.
        advantages: one per response.
        mask: True at the response's tokens.
    """
    # The ratio is exp(0) = 1, and its gradient is that of log π.
    ratio = (log_probabilities - log_probabilities.detach()).exp()
    # (B) -> (B, 1): all tokens of a response have the same advantage.
    return -masked_mean(ratio * advantages[:, None], mask)


def kl_estimate(policy: Float[Tensor, "*N"], reference: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """Return an estimate of KL(π ‖ π_ref) from tokens drawn from π: r - 1 - log r with r = π_ref / π.

    It is unbiased, never negative and has a small variance: k3 of Schulman 2020 ("Approximating KL
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
