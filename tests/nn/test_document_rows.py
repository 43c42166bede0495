"""Documents of packed and padded rows as rows of their own."""

import torch

from llm.nn.document_rows import run_by_document


def running_sum(data, batch_sizes, state):
    """A recurrent kernel that adds up its inputs."""
    (total,) = state
    outputs, end = [], total.clone()
    for step in data.split(batch_sizes.tolist()):
        end[: len(step)] += step
        outputs.append(end[: len(step)].clone())
    return torch.cat(outputs), (end,)


def test_sums_skip_padding_and_begin_anew_in_each_document():
    x = torch.tensor([[1.0, 2, 4, 8, 16], [1, 1, 1, 1, 1], [9, 9, 9, 9, 9]])[..., None]
    real = torch.tensor([[1, 0, 1, 1, 1], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0]]).bool()
    starts = torch.tensor([[0, 0, 0, 1, 0], [0, 0, 1, 0, 1], [0, 0, 0, 0, 0]]).bool()
    state = (torch.tensor([[100.0], [200.0], [300.0]]),)
    output, (last,) = run_by_document(running_sum, x, state, real=real, starts=None)
    assert output[..., 0].tolist() == [
        [101, 0, 105, 113, 129],
        [0, 201, 202, 203, 0],
        [0, 0, 0, 0, 0],
    ]
    assert last.flatten().tolist() == [129, 203, 300]
    output, (last,) = run_by_document(running_sum, x, state, real=real, starts=starts)
    assert output[..., 0].tolist() == [[101, 0, 105, 8, 24], [0, 201, 1, 2, 0], [0, 0, 0, 0, 0]]
    assert last.flatten().tolist() == [24, 0, 300]
