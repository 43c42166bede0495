"""Token embeddings that are scaled."""

import math

from jaxtyping import Float, Int
from torch import Tensor, nn


class ScaledEmbedding(nn.Embedding):
    """Embeddings multiplied by √C (Vaswani et al. 2017, section 3.4; Gemma).

    The head often shares the matrix, and needs small entries, such as 0.02, for small logits. The residual stream
    begins with embeddings, whose entries √C brings near 1.
    """

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, tokens: Int[Tensor, "*B"]
    ) -> Float[Tensor, "*B C"]:
        """Return the scaled vectors of the tokens."""
        return super().forward(tokens) * math.sqrt(self.embedding_dim)
