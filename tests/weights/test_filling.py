import pytest
import torch
from torch import nn

from llm.config.errors import ConfigError
from llm.weights.filling import TOKEN_TABLES, fill


class Tied(nn.Module):
    def __init__(self, rows=5):
        super().__init__()
        self.embedding = nn.Embedding(rows, 3)
        self.head = nn.Linear(3, rows, bias=False)
        self.head.weight = self.embedding.weight


def test_what_is_filled_in_is_there_and_shared_parameters_stay_shared():
    source, model = Tied(), Tied()
    fill(model, source.state_dict(), "here")
    assert torch.equal(model.embedding.weight, source.embedding.weight)
    assert model.head.weight is model.embedding.weight
    assert model.embedding.weight.requires_grad


def test_half_precision_files_fill_single_precision_models():
    model = Tied()
    fill(model, {n: t.bfloat16() for n, t in Tied().state_dict().items()}, "here")
    assert model.embedding.weight.dtype == torch.float32


def test_new_tokens_begin_as_the_mean_of_the_old():
    source, model = Tied(5), Tied(7)
    fill(model, source.state_dict(), "here", TOKEN_TABLES)
    assert torch.equal(model.embedding.weight[:5], source.embedding.weight)
    mean = source.embedding.weight.mean(0)
    assert torch.allclose(model.embedding.weight[5:], mean.expand(2, 3))


def test_everything_that_does_not_fit_is_said_at_once():
    state = {"embedding.weight": torch.zeros(9, 3), "tail.weight": torch.zeros(1)}
    with pytest.raises(ConfigError) as refused:
        fill(Tied(), state, "weights.path")
    lines = str(refused.value)
    assert "weights.path: the weights do not fit" in lines
    assert "missing: head.weight" in lines
    assert "left over: tail.weight" in lines
    assert "embedding.weight is (9, 3) in the weights and (5, 3) in the model" in lines


def test_a_model_without_a_head_takes_none():
    model = Tied()
    model.head = nn.Identity()
    fill(model, Tied().state_dict(), "here")
