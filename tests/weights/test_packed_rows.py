import pytest
import torch

from llm.checkpoints.lazy_tensor import in_memory
from llm.weights.packed_rows import PackedRows

PACKED = PackedRows("h.{}.matrix", 2, {"query": 1, "gate": 2}).at(3)


def test_rows_of_the_groups_alternate():
    whole = torch.arange(6)[:, None]
    query, gate = PACKED.split(whole)
    assert query.flatten().tolist() == [0, 3]
    assert gate.flatten().tolist() == [1, 2, 4, 5]
    assert torch.equal(PACKED.join([query, gate]), whole)


def test_parts_are_read_when_they_are_needed():
    whole = torch.randn(6, 4)
    found = PACKED.unpack(in_memory({"h.3.matrix": whole})["h.3.matrix"])
    assert [*found] == ["h.3.matrix[query]", "h.3.matrix[gate]"]
    assert [part.shape for part in found.values()] == [(2, 4), (4, 4)]
    assert torch.equal(found["h.3.matrix[gate]"].read(), whole[[1, 2, 4, 5]])


@pytest.mark.parametrize("shape", [(7, 4), (9, 4), ()])
def test_parts_of_a_tensor_with_other_rows_have_its_shape(shape):
    found = PACKED.unpack(in_memory({"h.3.matrix": torch.zeros(shape)})["h.3.matrix"])
    assert [part.shape for part in found.values()] == [shape, shape]
