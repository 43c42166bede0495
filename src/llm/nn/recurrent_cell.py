"""What LSTM and GRU layers share: their parameters, and a recurrence over tokens with a kernel."""

from collections.abc import Callable
from typing import ClassVar, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from llm.nn.chunked_decay import document_starts
from llm.nn.document_rows import State
from llm.nn.recurrence import require_recurrence
from llm.nn.recurrent_mixer import RecurrentMixer, RecurrentState

Recurrence = Callable[..., tuple[Tensor, State]]


class RecurrentCell(RecurrentMixer):
    """A layer that computes a vector of gates from each token and the last output.

    Its matrices are no linear layers: the fused kernels need them as tensors, and they have an initialization of their
    own, U(±1/√C) as in torch. A recurrent matrix of small numbers would forget the past at once.

    Args:
        dim: width C of the model and of the state.
        dropout: probability for the output; connections between tokens are not dropped (Zaremba et al. 2014).
        recurrence: the function that computes the layer: `definition` or an equivalent.

    Raises:
        ValueError: `recurrence` computes another layer.

    Attributes:
        num_gates: number of gates, each of width C.
        num_biases: number of biases, each of width C.
        matrices: names of the matrices.
        state_names: names of the vectors of the state.
        definition: the written-out function of the layer.
    """

    num_gates: ClassVar[int]
    num_biases: ClassVar[int]
    matrices: ClassVar[tuple[str, ...]] = ("input_weight", "recurrent_weight")
    state_names: ClassVar[tuple[str, ...]]
    definition: ClassVar[Recurrence]

    def __init__(self, dim: int, *, dropout: float = 0.0, recurrence: Recurrence) -> None:
        super().__init__()
        self.dim = dim
        self.input_weight = nn.Parameter(torch.empty(self.num_gates * dim, dim))
        self.recurrent_weight = nn.Parameter(torch.empty(self.num_gates * dim, dim))
        self.bias = nn.Parameter(torch.empty(self.num_biases * dim))
        self.dropout = nn.Dropout(dropout)
        require_recurrence(recurrence, definition=type(self).definition)
        self.recurrence = recurrence
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the matrices and set the biases to 0."""
        bound = self.dim**-0.5
        nn.init.uniform_(self.input_weight, -bound, bound)
        nn.init.uniform_(self.recurrent_weight, -bound, bound)
        nn.init.zeros_(self.bias)

    def new_state(self, batch_size: int, *, dtype: torch.dtype | None = None) -> RecurrentState:
        """Return zeros: (B, C) for each vector of the state, in at least float32."""
        dtype = torch.promote_types(dtype or self.bias.dtype, torch.float32)
        zeros = torch.zeros(batch_size, self.dim, dtype=dtype, device=self.bias.device)
        return RecurrentState(**dict.fromkeys(self.state_names, zeros))

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        *,
        cache: RecurrentState | None = None,
        attention_mask: Bool[Tensor, "B T"] | None = None,
        document_ids: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T C"]:
        """Return the output of the cell at each token."""
        state = self.new_state(x.shape[0]) if cache is None else cache
        device = x.device.type
        # The kernels need one dtype: under autocast its own, otherwise that of x.
        is_autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if is_autocast else x.dtype
        recurrence = self.recurrence
        if torch.compiler.is_compiling():
            # Not compiled: torch's compiler fails on its own LSTM kernel and on documents, whose number varies, and
            # it would unroll a loop over tokens.
            recurrence = cast(Recurrence, torch.compiler.disable(recurrence))
        with torch.autocast(device, enabled=False):
            output, parts = recurrence(
                x.to(dtype),
                tuple(state.parts[name].to(dtype) for name in self.state_names),
                input_weight=self.input_weight.to(dtype),
                recurrent_weight=self.recurrent_weight.to(dtype),
                bias=self.bias.to(dtype),
                real=attention_mask,
                starts=None if document_ids is None else document_starts(document_ids),
            )
        if cache is not None:
            cache.advance(x.shape[1], **dict(zip(self.state_names, parts, strict=True)))
        return self.dropout(output)

    def mixing_flops(self, keys: int) -> int:
        """Return 0: the matrices that mix tokens are parameters, whose operations are counted with all others."""
        return 0
