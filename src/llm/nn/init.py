"""Initial values of the parameters: each function initializes a model.

| name             | matrices and embeddings                                | biases |
| ---------------- | ------------------------------------------------------ | ------ |
| gpt2             | N(0, 0.02), `output` projections by 1/√(2·layers)      | 0      |
| zero_writes      | as gpt2, `output` projections 0                        | 0      |
| truncated_normal | as gpt2, nothing beyond three standard deviations      | 0      |
| torch_default    | as torch makes them: uniform, embeddings N(0, 1)       | torch  |
| xavier_uniform   | uniform, variance 2 / (inputs + outputs)               | 0      |
| xavier_normal    | normal, variance 2 / (inputs + outputs)                | 0      |
| kaiming_uniform  | uniform, variance 2 / inputs                           | 0      |
| kaiming_normal   | normal, variance 2 / inputs                            | 0      |
| orthogonal       | orthogonal rows or columns                             | 0      |

Norms begin with scale 1 and shift 0.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from llm.nn.stacked_linear import StackedLinear


def gpt2(model: nn.Module, std: float = 0.02) -> None:
    """Initialize as GPT-2: normal, with smaller residual projections (Radford et al. 2019, 2.3).

    The sum of the outputs of N = 2 · layers sublayers has N times the variance of one. So the projections
    that write to the residual stream, those named `output`, are scaled by 1/√N.
    """
    _draw(model, lambda weight: nn.init.normal_(weight, std=std))
    _scale_residual_writes(model)


def zero_writes(model: nn.Module, std: float = 0.02) -> None:
    """Initialize as `gpt2`, but with residual projections of 0: every block begins as the identity.

    A classifier that pools its states by their mean then begins as a bag of words. Zhang et al. 2019 ("Fixup
    initialization") and Bachlechner et al. 2021 ("ReZero") use it to train very deep networks.
    """
    gpt2(model, std)
    for weight in _residual_writes(model):
        nn.init.zeros_(weight)


def truncated_normal(model: nn.Module, std: float = 0.02) -> None:
    """Initialize as `gpt2`, from a normal distribution cut at three standard deviations."""
    _draw(model, lambda w: nn.init.trunc_normal_(w, std=std, a=-3 * std, b=3 * std))
    _scale_residual_writes(model)


def torch_default(model: nn.Module) -> None:
    """Initialize as PyTorch: U(±1/√inputs) for linear layers, N(0, 1) for embeddings."""
    for module in model.modules():
        _reset(module)


def xavier_uniform(model: nn.Module) -> None:
    """Initialize as in Glorot and Bengio 2010, equation 16."""
    _draw(model, nn.init.xavier_uniform_)


def xavier_normal(model: nn.Module) -> None:
    """Initialize with the variance of Glorot and Bengio 2010, equation 12, from a normal distribution."""
    _draw(model, nn.init.xavier_normal_)


def kaiming_uniform(model: nn.Module) -> None:
    """Initialize with the variance of He et al. 2015, equation 10, from a uniform distribution."""
    _draw(model, lambda weight: nn.init.kaiming_uniform_(weight, nonlinearity="relu"))


def kaiming_normal(model: nn.Module) -> None:
    """Initialize as in He et al. 2015, equation 10, from a normal distribution."""
    _draw(model, lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"))


def orthogonal(model: nn.Module) -> None:
    """Initialize with random orthogonal matrices, as in Saxe et al. 2014."""
    _draw(model, nn.init.orthogonal_)


def _draw(model: nn.Module, draw: Callable[[Tensor], object]) -> None:
    """Draw every matrix and embedding, set biases to 0 and reset all other modules."""
    for module in model.modules():
        if any(parameter.is_meta for parameter in module.parameters(recurse=False)):
            continue  # an outline has no values; drawing thousands of experts would take seconds
        if isinstance(module, StackedLinear):
            for (
                matrix
            ) in module.weight:  # one by one: the variance depends on the shape of a matrix
                draw(matrix)
        elif isinstance(module, nn.Linear | nn.Embedding):
            draw(module.weight)
        else:
            _reset(module)
            continue
        if (bias := getattr(module, "bias", None)) is not None:
            nn.init.zeros_(bias)


def _scale_residual_writes(model: nn.Module) -> None:
    writes = _residual_writes(model)
    for weight in writes:
        weight.data.mul_(len(writes) ** -0.5)


def _residual_writes(model: nn.Module) -> list[nn.Parameter]:
    return [p for name, p in model.named_parameters() if name.endswith("output.weight")]


def _reset(module: nn.Module) -> None:
    if callable(reset := getattr(module, "reset_parameters", None)):
        reset()


class SkipInit(TorchFunctionMode):
    """A context that leaves new parameters undrawn, for a model whose weights are then read from a file.

    Drawing 135 million parameters takes several times as long as reading them. Buffers are still computed.
    """

    DRAWS = (
        *(Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_),
        *(nn.init.xavier_normal_, nn.init.xavier_uniform_),
        *(nn.init.kaiming_normal_, nn.init.kaiming_uniform_),
    )

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Return a tensor unchanged instead of filling it with random numbers."""
        kwargs = kwargs or {}
        # torch passes most calls of nn.init here as a whole, so DRAWS has these functions too.
        if func in self.DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
