"""Communication of ranks, on one rank and on three."""

import random
from pathlib import Path

import pytest
from ranks import environment_of, on_ranks

from llm import distributed
from llm.distributed import MaxVote, World


def test_a_process_without_rank_variables_is_alone(monkeypatch):
    for name in (*distributed.NAMES, "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    assert distributed.world() == World(rank=0, size=1, local_rank=0, local_size=1)
    assert distributed.is_first()
    distributed.join_ranks("cpu")
    distributed.barrier()
    assert distributed.broadcast("x") == "x"
    assert distributed.gather("x") == ["x"]
    assert distributed.gather_to_first("x", owner=0) == "x"
    assert MaxVote().largest(3) == 3
    with distributed.first_on_each_machine():
        pass


@pytest.mark.parametrize("missing", [*distributed.NAMES, "TORCHELASTIC_RUN_ID"])
def test_process_with_some_rank_variables_is_alone(monkeypatch, missing):
    for name, value in environment_of(rank=1, world=2, port=1).items():
        monkeypatch.setenv(name, value)
    assert distributed.world() == World(rank=1, size=2, local_rank=1, local_size=2)
    assert not distributed.is_first()
    monkeypatch.delenv(missing)
    assert distributed.world() == World()


@pytest.mark.parametrize("rank", [0, 1])
def test_gathered_states_return_to_their_ranks_or_are_merged_on_the_first(monkeypatch, rank):
    for name, value in environment_of(rank, world=2, port=1).items():
        monkeypatch.setenv(name, value)
    assert distributed.state_of_this_rank([5, 7], merge=sum) == (5, 7)[rank]
    for gathered in ([12], [3, 4, 5]):
        assert distributed.state_of_this_rank(gathered, merge=sum) == (12, None)[rank]


def talk(folder: str) -> dict[str, object]:
    distributed.join_ranks("cpu")
    rank = distributed.world().rank
    vote, made = MaxVote(), Path(folder) / "made"
    cast = [(rank + 1) * 10**step if rank == step else 0 for step in range(4)]
    counted = [vote.largest(number) for number in cast]
    with distributed.first_on_each_machine():
        was_made = made.exists()
        made.touch()
    return {
        "gathered": distributed.gather((rank, random.Random(rank).random())),
        "broadcast": distributed.broadcast(f"of {rank}"),
        "from_first": distributed.gather_to_first(f"of {rank}", owner=0),
        "from_last": distributed.gather_to_first(f"of {rank}", owner=2),
        "counted": counted,
        "was_made": was_made,
    }


def test_three_ranks_gather_broadcast_and_vote(tmp_path):
    found = on_ranks(3, talk, str(tmp_path))
    expected = [(rank, random.Random(rank).random()) for rank in range(3)]
    for rank, each in enumerate(found):
        assert each["gathered"] == expected
        assert each["broadcast"] == "of 0"
        assert each["from_first"] == ("of 0" if rank == 0 else None)
        assert each["from_last"] == ("of 2" if rank == 0 else None)
        assert each["counted"] == [0, 1, 20, 300], "each vote is counted at the next call"
        assert each["was_made"] == (rank > 0), "the first rank runs the block before the others"
