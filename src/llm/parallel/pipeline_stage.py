"""A stage of pipeline parallelism: some consecutive blocks of a GPT on one device.

The first stage also has the embeddings, the last one the final norm and the head. Modules of other stages are replaced
by one that passes the residual stream on. So a stage is still a GPT: the model's own code computes it, and parameters
keep their names.

In training a schedule sends the residual stream from stage to stage. Without gradients the replacement modules send it,
and every device calls the model as if it had all of it.
"""

from collections.abc import Callable, Iterable
from copy import deepcopy
from itertools import pairwise
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, distributed, nn

from llm.models.gpt import GPT
from llm.nn.layer_state import LayerState
from llm.nn.mixture_of_experts import MixtureOfExperts
from llm.nn.positions import NoPosition, Position

M = TypeVar("M", bound=nn.Module)


def spans(num_layers: int, stages: int) -> list[range]:
    """Return the blocks of each stage. Earlier stages get the remainder, because the last one has the head.

    Raises:
        ValueError: there are more stages than blocks.
    """
    if stages > num_layers:
        raise ValueError(
            f"{stages} stages need a block each, and num_layers={num_layers}: use {num_layers} devices or fewer"
        )
    ends = [-(-num_layers * stage // stages) for stage in range(stages + 1)]
    return [range(*pair) for pair in pairwise(ends)]


class Stage:
    """One device's part of a GPT, which is divided in place.

    Args:
        model: the model, the same on every device.
        index: number and rank of this stage.
        count: number of stages.

    Attributes:
        whole: the whole model, without values.
        span: numbers of this stage's blocks.
        states: states that a schedule has received from the previous stage.
        shares_logits: whether all devices get the last stage's logits.

    Raises:
        ValueError: the model cannot be divided into so many stages.
    """

    def __init__(self, model: nn.Module, *, index: int, count: int) -> None:
        if not isinstance(model, GPT):
            raise ValueError(
                f"pipeline parallelism divides a GPT, and this is a {type(model).__name__}: use hardware=fsdp"
            )
        if any(isinstance(module, MixtureOfExperts) for module in model.modules()):
            raise ValueError(
                "pipeline parallelism sends the residual stream only, not the losses that balance experts: use "
                "hardware=fsdp"
            )
        for number, link in enumerate(model.blocks.links):
            if link is not None:
                raise ValueError(
                    f"pipeline parallelism sends the residual stream only, not the {link.name.replace('_', ' ')} that "
                    f"layer {number + 1} reads of layer {link.layer + 1}: use hardware=fsdp"
                )
        self.model, self.index, self.count = model, index, count
        self.span = spans(len(model.blocks), count)[index]
        self.whole = without_values(model)
        self.states: Tensor | None = None
        self.shares_logits = True
        self.dim, self.dtype = model.embedding.embedding_dim, model.embedding.weight.dtype
        self._divide(model)

    @property
    def is_first(self) -> bool:
        """Whether this stage gets the tokens."""
        return self.index == 0

    @property
    def is_last(self) -> bool:
        """Whether this stage computes the logits."""
        return self.index == self.count - 1

    @property
    def tied(self) -> nn.Parameter | None:
        """This stage's copy of a trained matrix that is both embedding and head."""
        if self.whole.head.weight is not self.whole.embedding.weight or self.count == 1:
            return None
        copy = self.model.embedding.weight if self.is_first else self.model.head.weight
        is_copy = (self.is_first or self.is_last) and copy.requires_grad
        return cast(nn.Parameter, copy) if is_copy else None

    def receive(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T C"]:
        """Return the previous stage's states of these tokens."""
        if self.states is not None:
            return self.states
        states = torch.empty(*tokens.shape, self.dim, dtype=self.dtype, device=tokens.device)
        distributed.recv(states, self.index - 1)
        return states

    def send(self, states: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        """Return the states. Send them to the next stage if no schedule does."""
        states = states.to(self.dtype)
        if not torch.is_grad_enabled():
            distributed.send(states.contiguous(), self.index + 1)
        return states

    def share(self, logits: Float[Tensor, "*B V"]) -> Float[Tensor, "*B V"]:
        """Send the last stage's logits to every device; the other stages pass a tensor to receive them."""
        distributed.broadcast(logits, self.count - 1)
        return logits

    def _divide(self, model: GPT) -> None:
        for number in set(range(len(model.blocks))) - set(self.span):
            model.blocks[number] = RemoteBlock()
        if not self.is_first:
            model.add_module("embedding", Call(self.receive))
            # Positions that are added to the embedding belong to the first stage.
            if type(model.position).embed is not Position.embed:
                model.position = NoPosition()
            model.add_module("dropout", nn.Identity())
        if self.is_last:
            model.head.register_forward_hook(self._share_logits)
        else:
            model.add_module("final_norm", Call(self.send))
            model.add_module("head", RemoteHead(self, model.vocab_size))
        model.flops_per_token = self.whole.flops_per_token

    def _share_logits(self, head: nn.Module, states: object, logits: Tensor) -> Tensor:
        if torch.is_grad_enabled() or not self.shares_logits:
            return logits
        return self.share(logits.to(self.dtype).contiguous())


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Call the function."""
        return self.function(*args, **kwargs)


class RemoteBlock(nn.Module):
    """A block of another stage: it passes the residual stream on."""

    def prepare(self, *_: object, **__: object) -> dict[str, Any]:
        """Return nothing, because nothing is computed here."""
        return {}

    def forward(
        self, x: Float[Tensor, "B T C"], *, cache: LayerState | None = None, **inputs: Any
    ) -> Float[Tensor, "B T C"]:
        """Return the stream as it is."""
        if cache is not None:
            cache.length += x.shape[1]
        return x

    def new_cache(self, *_: object, **__: object) -> LayerState:
        """Return a state without tensors."""
        return RemoteState()


class RemoteState(LayerState):
    """The state of a block of another stage: only its length is known here."""

    is_bounded = False

    def tensors(self) -> Iterable[Tensor]:
        """Return nothing."""
        return ()

    def select(self, rows: Int[Tensor, "rows"]) -> None:
        """Do nothing."""

    def can_rewind(self, count: int) -> bool:
        """Return True: the stage that has the state decides."""
        return True


class RemoteHead(nn.Module):
    """The head of a stage before the last: it returns its input in training, otherwise the last stage's logits."""

    weight: Tensor

    def __init__(self, stage: Stage, vocab_size: int) -> None:
        super().__init__()
        self.stage, self.vocab_size = stage, vocab_size
        # For callers that read the head's device.
        self.register_buffer("weight", torch.empty(0, dtype=stage.dtype), persistent=False)

    def forward(self, x: Float[Tensor, "*B C"]) -> Float[Tensor, "*B width"]:
        """Return the residual stream or the logits."""
        if torch.is_grad_enabled() or not self.stage.shares_logits:
            return x
        return self.stage.share(x.new_empty(*x.shape[:-1], self.vocab_size, dtype=self.stage.dtype))


def without_values(model: M) -> M:
    """Return a copy on `meta`: names, shapes and ties, without values."""
    known: dict[int, Any] = {id(buffer): buffer.to("meta") for buffer in model.buffers()}
    for parameter in model.parameters():
        known[id(parameter)] = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
    return deepcopy(model, known)
