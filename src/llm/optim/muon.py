"""Muon: momentum, orthogonalized by Newton-Schulz, for the matrices inside the blocks.

A gradient step on a matrix is dominated by a few directions, which hide rare ones that matter as much. Muon
replaces the momentum by the nearest matrix whose singular values are all about 1, so that all directions have
equal steps (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"). AdamW trains
embeddings, the head and vectors, which do not map hidden states to hidden states. Both are one optimizer here,
so that schedules, gradient scalers and checkpoints handle only one.
"""

# pyright: reportPrivateImportUsage=false
# The _foreach operations, one launch for a whole list, are private in name only.

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from llm.dtensor import from_local, local_slices, to_full, to_local
from llm.precision import cpu_computes_bfloat16

# The quintic p(x) = a x + b x³ + c x⁵ has a maximal slope at 0. It keeps singular values between about 0.7 and
# 1.2 instead of converging to 1, which trains as well.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def newton_schulz(
    matrices: Float[Tensor, "N R C"], steps: int = 5, *, dtype: torch.dtype = torch.bfloat16
) -> Float[Tensor, "N R C"]:
    """Push all singular values of each matrix towards 1 and keep its singular vectors.

    Each step applies the quintic to the singular values by products alone:
    X ← aX + (bA + cA²)X with A = XXᵀ. Matrices are stacked, because few large products are faster than many
    small ones.

    Args:
        matrices: a stack of matrices.
        steps: number of steps; five are enough for singular values down to a thousandth of the largest.
        dtype: the precision of the products. bfloat16 is enough, and fastest on most machines. A CPU that emulates it
            computes the products in float32 instead.

    Returns:
        The orthogonalized matrices, in `dtype`. A matrix of zeros stays zero.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    is_emulated = dtype == torch.bfloat16 and matrices.is_cpu and not cpu_computes_bfloat16()
    x = matrices.to(torch.float32 if is_emulated else dtype)
    x = x.mT if tall else x  # so that A is the smaller of the two Gram matrices
    # The Frobenius norm bounds the largest singular value, and the quintic needs that within 1.
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return (x.mT if tall else x).to(dtype)


class Muon(Optimizer):
    """An optimizer with Muon for the groups marked `hidden` and AdamW for all others.

    The step on a matrix of R rows and C columns is lr · sqrt(max(1, R/C)) · O, with O the
    orthogonalized Nesterov momentum: Jordan's convention, torch.optim.Muon's "original". Decay is
    decoupled: a weight first shrinks by lr · weight_decay. A fused projection of queries, keys and values
    counts as one matrix, a parameter of three dimensions (experts) as a stack of matrices.

    Only a whole matrix has singular values, so the direction of a sharded matrix (a DTensor) is gathered. Each
    device orthogonalizes it and keeps its shard.

    Args:
        params: groups from `llm.optim.groups`, at least one of them `hidden`.
        lr: learning rate of the hidden groups.
        momentum: weight of the past in the running mean of the gradients.
        weight_decay: decay of all groups that do not set their own.
        adamw_lr: learning rate of the others.
        betas: AdamW's weights of the past in its two running means.
        eps: added to the root of AdamW's second moment.
        precision: precision of the products that orthogonalize. Several devices sum gradients in another order
            than one, so their losses differ: in bfloat16 in the fourth digit, in float32 in the seventh.

    Raises:
        ValueError: a setting is out of range, no group is hidden, or a hidden group contains a vector.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 0.02,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        adamw_lr: float = 2e-3,
        betas: list[float] | tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        precision: Literal["bfloat16", "float32"] = "bfloat16",
    ):
        for name, value in (("lr", lr), ("adamw_lr", adamw_lr), ("weight_decay", weight_decay)):
            if value < 0:
                raise ValueError(f"{name}={value}: is negative; use 0 or more")
        if len(betas) != 2:
            raise ValueError(f"betas={betas}: is not a pair; use two numbers, such as [0.9, 0.95]")
        for name, value in (("momentum", momentum), ("betas", betas[0]), ("betas", betas[1])):
            if not 0 <= value < 1:
                raise ValueError(f"{name}: {value} is outside of [0, 1); use a number such as 0.95")
        groups = [
            group if group.get("hidden") else {"lr": adamw_lr, "hidden": False, **group}
            for group in params
        ]
        hidden = [parameter for g in groups if g.get("hidden") for parameter in g["params"]]
        if not hidden:
            raise ValueError(
                "Muon trains the matrices in a model's blocks, and none of them is trainable here; "
                "set optimizer=adamw"
            )
        if any(parameter.ndim < 2 for parameter in hidden):
            raise ValueError("Muon's hidden groups contain a vector; put only matrices there")
        self.precision = getattr(torch, precision)
        super().__init__(
            groups,
            {
                "lr": lr,
                "momentum": momentum,
                "weight_decay": weight_decay,
                "betas": tuple(betas),
                "eps": eps,
                # AdamW in one kernel; torch also reads this key when it loads the state.
                "fused": True,
            },
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: recomputes the loss and the gradients, as Lightning passes it.

        Returns:
            What the closure returned, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            if parameters:
                update = self._muon if group["hidden"] else self._adamw
                update(parameters, group)
        return loss

    def _muon(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        averages = [to_local(average) for average in self._state("momentum_buffer", parameters)]
        weights = [to_local(parameter) for parameter in parameters]
        gradients = _gradients(parameters)
        torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
        # Nesterov: look one step ahead along the average.
        directions = torch._foreach_lerp(gradients, averages, group["momentum"])
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])

        alike = defaultdict(list)
        for parameter, direction in zip(parameters, directions, strict=True):
            alike[parameter.shape, parameter.dtype, parameter.device].append((parameter, direction))
        for (shape, dtype, _), pairs in alike.items():
            stacked = torch.stack([to_full(from_local(direction, p)) for p, direction in pairs])
            orthogonal = newton_schulz(stacked.view(-1, *shape[-2:]), dtype=self.precision)
            orthogonal = orthogonal.to(dtype).view_as(stacked)
            rate = group["lr"] * math.sqrt(max(1, shape[-2] / shape[-1]))
            steps = [
                matrix[local_slices(p)] for matrix, (p, _) in zip(orthogonal, pairs, strict=True)
            ]
            torch._foreach_add_([to_local(p) for p, _ in pairs], steps, alpha=-rate)

    def _adamw(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        adamw(
            params=[to_local(parameter) for parameter in parameters],
            grads=_gradients(parameters),
            exp_avgs=[to_local(average) for average in self._state("exp_avg", parameters)],
            exp_avg_sqs=[to_local(average) for average in self._state("exp_avg_sq", parameters)],
            max_exp_avg_sqs=[],
            state_steps=self._state("step", parameters),
            fused=group["fused"],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _state(self, name: str, parameters: list[Tensor]) -> list[Tensor]:
        """Return one state tensor per parameter, initially zero; steps are float32 scalars."""
        for parameter in parameters:
            if name not in self.state[parameter]:
                self.state[parameter][name] = (
                    torch.zeros((), dtype=torch.float32, device=parameter.device)
                    if name == "step"
                    else torch.zeros_like(parameter)
                )
        return [self.state[parameter][name] for parameter in parameters]


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [to_local(p.grad) for p in parameters if p.grad is not None]
