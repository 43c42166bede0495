"""Scaling laws: the model size and number of tokens with the lowest loss for a compute budget."""

import math
from dataclasses import dataclass

# Training FLOPs for each parameter and token, forward and backward (Kaplan et al. 2020).
FLOPS = 6


@dataclass(frozen=True)
class ScalingLaw:
    """The law L(N, D) = E + A / N^α + B / D^β: the loss of N parameters trained on D distinct tokens.

    Hoffmann et al. 2022 ("Training compute-optimal large language models", equation 2, approach 3). Training takes
    C = 6·N·D FLOPs, so one pair of N and D has the lowest loss for a given C. A fit is valid for its data, tokenizer
    and range of sizes. Elsewhere, N and D are a first guess, and the loss is not comparable.

    Attributes:
        entropy: E, the lowest possible loss in nats per token.
        parameter_scale: A.
        token_scale: B.
        parameter_exponent: α.
        token_exponent: β.
    """

    entropy: float
    parameter_scale: float
    token_scale: float
    parameter_exponent: float
    token_exponent: float

    def loss(self, parameters: float, tokens: float) -> float:
        """Return the loss in nats per token."""
        return (
            self.entropy
            + self.parameter_scale / parameters**self.parameter_exponent
            + self.token_scale / tokens**self.token_exponent
        )

    def optimum(self, flops: float) -> tuple[float, float]:
        """Return the numbers of parameters and tokens with the lowest loss for a budget of FLOPs.

        N = G (C/6)^a and D = (C/6)^b / G with G = (αA / βB)^(1/(α+β)), a = β/(α+β), b = α/(α+β)
        (the same paper, equation 4).
        """
        alpha, beta = self.parameter_exponent, self.token_exponent
        ratio = (alpha * self.parameter_scale) / (beta * self.token_scale)
        product = flops / FLOPS  # N · D
        parameters = ratio ** (1 / (alpha + beta)) * product ** (beta / (alpha + beta))
        return parameters, product / parameters


# The published fit. Its exponents do not agree with the paper's other two approaches.
HOFFMANN = ScalingLaw(1.69, 406.4, 410.7, 0.34, 0.28)
# The same experiments, fitted again: Besiroglu et al. 2024, "Chinchilla scaling: a replication attempt". This fit
# agrees with the other two approaches and with twenty tokens a parameter.
BESIROGLU = ScalingLaw(1.8172, 482.01, 2085.43, 0.3478, 0.3658)

# The smallest and largest training FLOPs of the runs that both fits use.
FITTED = (6e18, 3e21)


def twenty_tokens(flops: float) -> tuple[float, float]:
    """Return N and D by the rule of thumb D = 20·N, so N = √(C / (6 · 20))."""
    parameters = math.sqrt(flops / (FLOPS * 20))
    return parameters, 20 * parameters
