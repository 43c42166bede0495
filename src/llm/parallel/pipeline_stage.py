"""How a GPT is divided among devices that compute one after another: pipeline parallelism's stages.

Each device keeps a run of blocks, the first one the embeddings, the last one the final norm and the head.
What a device does not keep leaves a passage in its place, through which the stream goes as it is. So a
stage is a GPT still: the model's own code computes it, and parameters keep their names.

In training a schedule carries the stream from stage to stage. Where only a result is wanted, without
gradients, the passages carry it themselves: all devices call the model, as if each had the whole of it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, distributed, nn

from llm.models.gpt import GPT
from llm.nn.attention import Attention
from llm.nn.kv_cache import Cache
from llm.nn.positions import NoPosition, Position


def spans(num_layers: int, stages: int) -> list[range]:
    """The blocks of each stage, as evenly as can be; earlier ones have the odd ones, for the last has the head.

    Raises:
        ValueError: there are more stages than blocks.
    """
    if stages > num_layers:
        raise ValueError(
            f"{stages} stages need a block each, and num_layers={num_layers}: use {num_layers} devices or fewer"
        )
    ends = [-(-num_layers * stage // stages) for stage in range(stages + 1)]
    return [range(*pair) for pair in pairwise(ends)]


def stages_of(model: nn.Module, count: int) -> list[range]:
    """The blocks of each of a model's stages.

    Raises:
        ValueError: the model is no GPT, or has too few blocks.
    """
    if not isinstance(model, GPT):
        raise ValueError(
            f"a pipeline's stages are those of a GPT, and this is a {type(model).__name__}: use hardware=fsdp"
        )
    return spans(len(model.blocks), count)


class Stage:
    """One device's part of a GPT, which is divided in place.

    Args:
        model: the same on every device.
        index: the number of this stage.
        count: how many there are, each of them the rank of its number.

    Attributes:
        whole: the model as it was, without its contents.
        span: the numbers of the blocks that are kept.

    Raises:
        ValueError: the model cannot be divided into so many.
    """

    def __init__(self, model: nn.Module, *, index: int, count: int) -> None:
        self.span = stages_of(model, count)[index]
        model = cast(GPT, model)
        self.model = model
        self.index, self.count = index, count
        self.whole = without_contents(model)
        self.states: Tensor | None = None  # what a schedule has brought
        self.shares_logits = True
        self.dim, self.dtype = model.embedding.embedding_dim, model.embedding.weight.dtype
        self._divide(model)

    @property
    def is_first(self) -> bool:
        """Whether tokens come in here."""
        return self.index == 0

    @property
    def is_last(self) -> bool:
        """Whether logits come out here."""
        return self.index == self.count - 1

    @property
    def tied(self) -> nn.Parameter | None:
        """This device's copy of a trained matrix that the first stage has for embedding, the last for head."""
        if self.whole.head.weight is not self.whole.embedding.weight or self.count == 1:
            return None
        copy = self.model.embedding.weight if self.is_first else self.model.head.weight
        is_copy = (self.is_first or self.is_last) and copy.requires_grad
        return cast(nn.Parameter, copy) if is_copy else None

    @contextmanager
    def given(self, states: Sequence[Tensor]) -> Iterator[None]:
        """Let the stream come in with these states of the stage before; the first stage has none."""
        self.states = states[0] if states else None
        try:
            yield
        finally:
            self.states = None

    @contextmanager
    def keeping_logits(self) -> Iterator[None]:
        """Let logits stay where they come out, for those who have no need of them on every device."""
        self.shares_logits = False
        try:
            yield
        finally:
            self.shares_logits = True

    def receive(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T C"]:
        """The states of these tokens after the stage before."""
        if self.states is not None:
            return self.states
        states = torch.empty(*tokens.shape, self.dim, dtype=self.dtype, device=tokens.device)
        distributed.recv(states, self.index - 1)
        return states

    def send(self, states: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        """Hand states on to the next stage, where no schedule does."""
        states = states.to(self.dtype)
        if not torch.is_grad_enabled():
            distributed.send(states.contiguous(), self.index + 1)
        return states

    def share(self, logits: Float[Tensor, "*B V"]) -> Float[Tensor, "*B V"]:
        """Give every device the last one's logits; the others hand in memory for them."""
        distributed.broadcast(logits, self.count - 1)
        return logits

    def new_cache(
        self, batch_size: int, capacity: int | None = None, *, dtype: torch.dtype | None = None
    ) -> Cache:
        """As of `GPT.new_cache`, with room for this stage's blocks alone."""
        kept = {
            number: cast(Attention, self.model.blocks[number].attention).new_cache(
                batch_size, capacity or self.model.context_length, dtype=dtype
            )
            for number in self.span
        }
        # A passage leaves its cache alone; the first one kept tells the length for all.
        first = kept[self.span.start]
        return Cache([kept.get(number, first) for number in range(len(self.model.blocks))])

    def _divide(self, model: GPT) -> None:
        for number in set(range(len(model.blocks))) - set(self.span):
            model.blocks[number] = MiddleStage()
        if not self.is_first:
            model.add_module("embedding", FirstStage(self))
            model.position = after_the_first(model.position)
            model.add_module("dropout", nn.Identity())
        if self.is_last:
            model.head.register_forward_hook(self._share_logits)
        else:
            model.final_norm = LastStage(self)
            model.add_module("head", RemoteHead(self, model.vocab_size))
        model.new_cache = self.new_cache
        model.num_parameters = self.whole.num_parameters
        model.flops_per_token = self.whole.flops_per_token

    def _share_logits(self, head: nn.Module, states: object, logits: Tensor) -> Tensor:
        if torch.is_grad_enabled() or not self.shares_logits:
            return logits
        return self.share(logits.to(self.dtype).contiguous())


class MiddleStage(nn.Module):
    """A block that is elsewhere."""

    def forward(self, x: Float[Tensor, "B T C"], **context: object) -> Float[Tensor, "B T C"]:
        """The stream as it is."""
        return x


class FirstStage(nn.Module):
    """In place of the embedding: where the stream comes in from the stage before."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.receive = stage.receive

    def forward(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T C"]:
        """The states of these tokens, which earlier stages have computed."""
        return self.receive(tokens)


class LastStage(nn.Module):
    """In place of the final norm: where the stream leaves for the next stage."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.send = stage.send

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        """The stream as it is."""
        return self.send(x)


class RemoteHead(nn.Module):
    """In place of the head: hands the stream on in training, and the last stage's logits in evaluation."""

    weight: Tensor

    def __init__(self, stage: Stage, vocab_size: int) -> None:
        super().__init__()
        self.stage, self.vocab_size = stage, vocab_size
        # For those who ask a head where its device is.
        self.register_buffer("weight", torch.empty(0, dtype=stage.dtype), persistent=False)

    def forward(self, x: Float[Tensor, "*B C"]) -> Float[Tensor, "*B width"]:
        """The stream as it is, or logits."""
        if torch.is_grad_enabled() or not self.stage.shares_logits:
            return x
        return self.stage.share(x.new_empty(*x.shape[:-1], self.vocab_size, dtype=self.stage.dtype))


def after_the_first(position: Position) -> Position:
    """What later stages need of a kind of position: nothing of what is added to the embeddings."""
    return position if type(position).embed is Position.embed else NoPosition()


def without_contents(model: GPT) -> GPT:
    """A copy whose parameters have names, shapes and ties, and no memory."""
    contents = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
        for p in model.parameters()
    }
    return deepcopy(model, contents)
