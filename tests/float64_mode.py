"""Computation in float64 by libraries that ask for float32."""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class Float64(TorchFunctionMode):
    """A context in which tensors that would become float32 become float64.

    transformers casts norms, rotary angles and softmax to float32 for any precision of the model. Without these casts
    its logits can be compared with ours to ten digits.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function of torch with float64 for float32."""
        if func is torch.Tensor.float:
            return args[0].double()
        wide = {torch.float32: torch.float64}
        args = [wide.get(each, each) if isinstance(each, torch.dtype) else each for each in args]
        kwargs = dict(kwargs or {})
        if isinstance(kwargs.get("dtype"), torch.dtype):
            kwargs["dtype"] = wide.get(kwargs["dtype"], kwargs["dtype"])
        return func(*args, **kwargs)
