import torch
from torch import nn

from llm.nn.embeddings import ScaledEmbedding


def test_vectors_are_those_of_the_matrix_times_the_root_of_the_width():
    scaled, tokens = ScaledEmbedding(7, 16), torch.tensor([[3, 0], [6, 3]])
    assert scaled.state_dict().keys() == nn.Embedding(7, 16).state_dict().keys()
    torch.testing.assert_close(scaled(tokens), 4 * scaled.weight[tokens])
