"""How large a model, and on how many tokens: what loss a budget of computation can buy at best."""

import math
from dataclasses import dataclass

# Training FLOPs for each parameter and token, forward and backward (Kaplan et al. 2020).
FLOPS = 6


@dataclass(frozen=True)
class ScalingLaw:
    """L(N, D) = E + A / N^α + B / D^β: the loss of N parameters trained on D tokens, once each.

    Hoffmann et al. 2022 ("Training compute-optimal large language models", equation 2, approach 3).
    Computation costs C = 6·N·D, so of all N and D that cost C one pair has the lowest loss. A fit
    holds for the data, the tokenizer and the range of sizes that it was made on: elsewhere its N and D
    are a first guess and its loss is not yours.

    Attributes:
        entropy: E, nats a token that no model can do without.
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
        """Nats a token after training `parameters` on `tokens`."""
        return (
            self.entropy
            + self.parameter_scale / parameters**self.parameter_exponent
            + self.token_scale / tokens**self.token_exponent
        )

    def optimum(self, flops: float) -> tuple[float, float]:
        """The parameters and tokens that a budget of FLOPs is best divided into.

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
# The same experiments, fitted again: Besiroglu et al. 2024, "Chinchilla scaling: a replication attempt".
# It agrees with the other two approaches, and with twenty tokens a parameter.
BESIROGLU = ScalingLaw(1.8172, 482.01, 2085.43, 0.3478, 0.3658)

# Training FLOPs of the runs that both fits were made on, the least and the most.
FITTED = (6e18, 3e21)


def twenty_tokens(flops: float) -> tuple[float, float]:
    """The rule of thumb: D = 20·N, so N = √(C / (6 · 20))."""
    parameters = math.sqrt(flops / (FLOPS * 20))
    return parameters, 20 * parameters
