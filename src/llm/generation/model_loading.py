"""Loading of a model for commands that do not train."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from llm.config.build import config_errors_at
from llm.config.errors import ConfigError
from llm.generation.decoding import generates, window_start
from llm.hardware import Hardware
from llm.models.classifier import Classifier
from llm.nn.init import SkipInit
from llm.nn.stacked_linear import StackedLinear
from llm.weights.base import Weights


def weights_are_trained(config: Mapping[str, Any]) -> Iterator[str]:
    """Refuse `weights=scratch`."""
    if config.get("weights", "") is None:
        yield "weights: scratch has learned nothing; use weights=run weights.path=…"


def use_hardware(hardware: Hardware) -> Hardware:
    """Return the hardware with every `auto` replaced, and set the number of threads.

    Raises:
        ConfigError: this machine does not have this hardware.
    """
    with config_errors_at("hardware", Hardware):
        hardware = hardware.resolve()
    if hardware.threads:
        torch.set_num_threads(hardware.threads)
    return hardware


def load_language_model(weights: Weights, hardware: Hardware) -> nn.Module:
    """Return the model of the weights, on the device of the hardware.

    Raises:
        ConfigError: the weights do not fit, or the model cannot generate text.
    """
    with SkipInit():
        model = weights.model()
    if isinstance(model, Classifier):
        raise ConfigError(
            f"weights.path: {weights.path} is a classifier or a reward model and cannot generate text; "
            "use llm classify, or name the run that it was finetuned from"
        )
    if not generates(model):
        raise ConfigError(
            f"weights.path: {weights.path} is a {type(model).__name__}, which cannot generate text; name a "
            "model that can, such as a GPT"
        )
    return store_by_columns(place_model(model, hardware))


def store_by_columns(model: nn.Module) -> nn.Module:
    """Store a model's float32 matrices on the CPU by columns: the same numbers in another order in memory.

    Generation mostly multiplies a matrix by the vector of one token, which takes as long as reading the matrix. If the
    matrix is stored by columns, this takes 0.6 (a head of 50,257 x 768) to 0.8 of the time
    (`experiments/generation_speed`). A batch of many tokens gains nothing, so training and classification keep torch's
    order.
    """
    for layer in model.modules():
        if not isinstance(layer, nn.Linear):
            continue
        matrix = layer.weight.data
        if matrix.device.type == "cpu" and matrix.dtype == torch.float32:
            layer.weight.data = matrix.t().contiguous().t()
    return model


def place_model(model: nn.Module, hardware: Hardware) -> nn.Module:
    """Move a model to its device and convert its matrices to the precision of the matrix products.

    `autocast` would convert each float32 matrix at every call, which for one token takes longer than the product.
    The results are identical.
    """
    model = model.to(hardware.accelerator)
    dtype = low_precision(hardware)
    if dtype is not None:
        for layer in model.modules():
            if isinstance(layer, nn.Linear | StackedLinear):
                for name, parameter in layer.named_parameters(recurse=False):
                    # A tied head gets a matrix of its own: the embedding is read in float32.
                    converted = parameter.detach().to(dtype)
                    setattr(layer, name, nn.Parameter(converted, requires_grad=False))
    return model


def low_precision(hardware: Hardware) -> torch.dtype | None:
    """Return the dtype of matrix products, or None if it is float32."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(str(hardware.precision))


def autocast(hardware: Hardware) -> torch.autocast:
    """Return the autocast context for the precision of matrix products."""
    dtype = low_precision(hardware)
    device = torch.device(hardware.accelerator).type
    return torch.autocast(device, dtype, enabled=dtype is not None)


def report_truncation(
    model: nn.Module, prompts: Sequence[Sequence[int]], *, key: str = "prompt"
) -> None:
    """Report on standard error how many prompts are longer than the context, so that only their end is read.

    Args:
        model: a model with `context_length`.
        prompts: the tokens of each prompt.
        key: config key of the prompts.
    """
    context: int = model.context_length  # pyright: ignore[reportAssignmentType]
    long = [len(prompt) for prompt in prompts if len(prompt) > context]
    if not long:
        return
    which = (
        f"{max(long):,} tokens" if len(prompts) == 1 else f"{len(long)} of {len(prompts)} prompts"
    )
    read = max(long) - window_start(max(long), context)
    print(
        f"note: {key}: {which}, more than the model's context of {context:,}; of the longest "
        f"the last {read:,} tokens are read",
        file=sys.stderr,
    )
