"""ReLU² as a gated layer: relu(a)² = relu(a) · a, since relu(a) is 0 where it differs from a.

`GatedFeedForward` computes relu(gate(x)) · input(x). With equal matrices for gate and input it is a ReLU² layer. So a
model with ReLU² can be exported as a family whose layers are gated, such as Qwen3, with `hidden_act=relu`. Such a layer
has half as many parameters again, and takes half as many operations again.
"""

import copy
from typing import Any

import torch
from torch import nn

from llm.models.gpt import GPT
from llm.nn.activations import relu, relu_squared
from llm.nn.feed_forward import FeedForward, GatedFeedForward
from llm.weights.model_parts import blocks_of, unwrap_partial


def with_gated_relu(model: GPT) -> GPT:
    """Return a model that computes the same with gated layers in place of ReLU².

    It shares the parameters of the given model, which is itself returned if it has no such layer.
    """
    if not any(_is_relu_squared(block.feed_forward) for block in blocks_of(model)):
        return model
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    changed = copy.deepcopy(model, shared)
    for block in blocks_of(changed):
        if _is_relu_squared(block.feed_forward):
            block.feed_forward = _gated(block.feed_forward)
    return changed


def _is_relu_squared(layer: nn.Module | None) -> bool:
    return isinstance(layer, FeedForward) and unwrap_partial(layer.activation) is relu_squared


def _gated(layer: Any) -> GatedFeedForward:
    hidden_dim, dim = layer.input.weight.shape
    with torch.device("meta"):  # its own parameters are replaced
        gated = GatedFeedForward(dim, hidden_dim=hidden_dim, activation=relu)
    gated.gate, gated.input = copy.copy(layer.input), copy.copy(layer.input)
    gated.output = layer.output
    gated.dropout = layer.dropout
    return gated
