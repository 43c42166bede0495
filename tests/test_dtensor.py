"""Shards of a tensor: their slices of the whole, and the whole from its shards."""

from typing import Any

import torch
from ranks import on_ranks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from llm import distributed
from llm.dtensor import from_local, is_dtensor, local_slices, to_full, to_local

WHOLE = torch.arange(35.0).view(7, 5)  # neither 7 rows nor 5 columns are divided evenly by 2 or 4
LAYOUTS = {
    "rows": ((4,), [Shard(0)]),
    "columns": ((4,), [Shard(1)]),
    "copies": ((4,), [Replicate()]),
    "rows and columns": ((2, 2), [Shard(0), Shard(1)]),
    "columns, twice": ((2, 2), [Replicate(), Shard(1)]),
}


def shards() -> dict[str, Any]:
    """Return the result of each function on this rank, by layout."""
    distributed.join_ranks("cpu")
    found = {}
    for name, (shape, placements) in LAYOUTS.items():
        tensor = distribute_tensor(WHOLE, init_device_mesh("cpu", shape), placements)
        doubled = from_local(to_local(tensor) * 2, tensor)
        found[name] = {
            "is_dtensor": is_dtensor(tensor),
            "local": to_local(tensor).tolist(),
            "slices": [(each.start, each.stop) for each in local_slices(tensor)],
            "full": to_full(tensor).tolist(),
            "doubled": to_full(doubled).tolist(),
        }
    return found


def test_shards_are_slices_of_the_full_tensor():
    ranks = on_ranks(4, shards)
    for name in LAYOUTS:
        seen = torch.zeros_like(WHOLE)
        for found in (rank[name] for rank in ranks):
            rows, columns = (slice(*each) for each in found["slices"])
            assert found["is_dtensor"]
            assert found["local"] == WHOLE[rows, columns].tolist(), name
            assert found["full"] == WHOLE.tolist(), name
            assert found["doubled"] == (2 * WHOLE).tolist(), name
            seen[rows, columns] += 1
        copies = {"copies": 4, "columns, twice": 2}.get(name, 1)
        assert torch.equal(seen, torch.full_like(WHOLE, copies)), name


def test_a_plain_tensor_is_whole_and_is_not_copied():
    assert not is_dtensor(WHOLE)
    assert not is_dtensor("a string")
    assert to_local(WHOLE) is to_full(WHOLE) is from_local(WHOLE, like=WHOLE) is WHOLE
    assert local_slices(WHOLE) == (slice(0, 7), slice(0, 5))
    assert local_slices(torch.tensor(1.0)) == ()
