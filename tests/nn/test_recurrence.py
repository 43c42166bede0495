"""The check that a function computes the recurrence of a layer."""

from functools import partial

import pytest
import torch

from llm.nn.lstm import LSTM, naive_lstm


def test_a_function_of_a_user_must_take_the_arguments_of_the_definition():
    def fitting(inputs, state, *, input_weight, recurrent_weight, bias, real, starts):
        return naive_lstm(
            inputs,
            state,
            input_weight=input_weight,
            recurrent_weight=recurrent_weight,
            bias=bias,
            real=real,
            starts=starts,
        )

    def wrapping(inputs, state, **arguments):
        return naive_lstm(inputs, state, **arguments)

    def without_padding(inputs, state, *, input_weight, recurrent_weight, bias, starts):
        return inputs, state

    x = torch.randn(1, 3, 4)
    for function in (fitting, wrapping, partial(fitting)):
        assert LSTM(4, recurrence=function)(x).shape == (1, 3, 4)
    with pytest.raises(ValueError, match="recurrence: without_padding does not compute"):
        LSTM(4, recurrence=without_padding)
