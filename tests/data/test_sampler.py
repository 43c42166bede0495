from itertools import islice

import numpy as np
import pytest

from llm.data.sampler import (
    LengthGroupedSampler,
    TrainingSampler,
    ValidationSampler,
    mix,
    permute,
)


def shuffles(size: int, number: int) -> np.ndarray:
    positions = np.tile(np.arange(size), number)
    keys = mix(np.array([7], dtype=np.uint64), np.arange(number, dtype=np.uint64))
    return permute(positions, size, keys=np.repeat(keys, size)).reshape(number, size)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 100, 1023, 1024, 1025])
def test_a_shuffle_is_a_bijection(size: int):
    shuffled = shuffles(size, 20)
    assert (np.sort(shuffled, axis=1) == np.arange(size)).all()


@pytest.mark.parametrize("size", [2, 3, 5, 8, 17, 64])
def test_every_window_is_equally_frequent_at_every_position(size: int):
    number = 4000
    shuffled = shuffles(size, number)
    counts = np.stack([np.bincount(column, minlength=size) for column in shuffled.T])
    chi_squared = ((counts - number / size) ** 2 / (number / size)).sum()
    freedom = (size - 1) ** 2
    # Five standard deviations: a uniform shuffle fails once in millions of seeds.
    assert chi_squared < freedom + 5 * np.sqrt(2 * freedom)


def test_shuffle_separates_neighbours_and_differs_between_epochs():
    first, second = shuffles(10_000, 2)
    assert np.abs(np.corrcoef(first, np.arange(10_000))[0, 1]) < 0.05
    assert np.abs(np.corrcoef(first, second)[0, 1]) < 0.05
    steps = np.abs(np.diff(first))
    assert np.mean(steps) == pytest.approx(
        10_000 / 3, rel=0.05
    )  # the mean distance of two uniform draws


def test_shuffle_of_a_huge_size_needs_little_memory():
    positions = np.arange(10**12, 10**12 + 1000)
    windows = permute(positions, 10**13, keys=np.full(1000, 3, dtype=np.uint64))
    assert len(set(windows)) == 1000
    assert windows.min() >= 0
    assert windows.max() < 10**13


def test_every_epoch_has_each_window_once_and_batches_may_cross_epochs():
    sampler = TrainingSampler(num_rows=10, batch_size=4, seed=0)
    stream = np.concatenate(list(islice(sampler, 25)))
    epochs = stream.reshape(10, 10)
    assert (np.sort(epochs, axis=1) == np.arange(10)).all()
    assert len({tuple(epoch) for epoch in epochs}) == 10


def test_batch_larger_than_the_data_repeats_windows():
    batch = next(iter(TrainingSampler(num_rows=3, batch_size=8, seed=0)))
    assert len(batch) == 8
    assert set(batch) == {0, 1, 2}


@pytest.mark.parametrize("start", [0, 1, 63, 64, 65, 200])
def test_batch_k_is_a_function_of_seed_and_k(start: int):
    whole = list(islice(TrainingSampler(37, 4, seed=5), start + 70))
    later = list(islice(TrainingSampler(37, 4, seed=5, start=start), 70))
    assert np.array_equal(whole[start:], later)
    other = list(islice(TrainingSampler(37, 4, seed=6, start=start), 70))
    assert not np.array_equal(other, later)


def test_negative_and_huge_seeds_are_accepted():
    batches = [next(iter(TrainingSampler(1000, 64, seed=seed))) for seed in (-1, 0, 2**63, 2**70)]
    assert len({tuple(batch) for batch in batches[:3]}) == 3


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_devices_divide_the_global_batch(world_size: int):
    whole = list(islice(TrainingSampler(37, 8, seed=1), 5))
    shares = [
        list(islice(TrainingSampler(37, 8, seed=1, rank=rank, world_size=world_size), 5))
        for rank in range(world_size)
    ]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert {len(part) for part in parts} == {8 // world_size}
        assert sorted(np.concatenate(parts)) == sorted(batch)


@pytest.mark.parametrize(("num_windows", "world_size"), [(1, 1), (8, 1), (21, 1), (21, 2), (17, 4)])
def test_validation_covers_every_window_once_in_equal_shares(num_windows: int, world_size: int):
    shares = [
        list(ValidationSampler(num_windows, 8, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    lengths = {tuple(map(len, share)) for share in shares}
    assert len(lengths) == 1, (
        "batches must have the same sizes on all devices, or sharded models hang"
    )
    assert len(shares[0]) == len(ValidationSampler(num_windows, 8))
    windows = np.sort(np.concatenate([np.concatenate(share) for share in shares]))
    assert np.array_equal(windows[:num_windows], np.arange(num_windows))
    assert np.all(windows[num_windows:] >= num_windows), "indices beyond the end are padding"
    assert num_windows <= len(windows) < num_windows + world_size
    if world_size == 1:
        assert all(len(batch) == 8 for batch in shares[0][:-1])


@pytest.mark.parametrize("world_size", [1, 3])
def test_validation_of_a_subset_is_spread_over_the_rows(world_size: int):
    samplers = [
        ValidationSampler(10, 3, number=4, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    rows = np.sort(np.concatenate([row for sampler in samplers for row in sampler]))
    assert rows[:4].tolist() == [0, 2, 5, 7]
    assert rows[4:].tolist() == [10] * (world_size - 1), "indices beyond the end are padding"
    assert {len(sampler) for sampler in samplers} == {2}


def grouped(seed: int = 0, start: int = 0, rank: int = 0, world_size: int = 1, number: int = 103):
    lengths = np.random.default_rng(1).integers(1, 500, number).tolist()
    return lengths, LengthGroupedSampler(
        lengths, 4, seed=seed, start=start, rank=rank, world_size=world_size, group=5
    )


@pytest.mark.parametrize("number", [3, 4, 40, 103])
def test_every_epoch_grouped_by_length_has_each_row_once(number: int):
    sampler = grouped(number=number)[1]
    stream = np.concatenate(list(islice(sampler, number)))  # four epochs
    epochs = stream.reshape(4, number)
    assert (np.sort(epochs, axis=1) == np.arange(number)).all()


def test_batches_have_rows_of_similar_length_and_are_not_sorted_by_length():
    lengths, sampler = grouped()
    batches = np.asarray(lengths)[sampler.batches(0, 25)]
    plain = np.asarray(lengths)[TrainingSampler(103, 4, seed=0).batches(0, 25)]
    assert np.ptp(batches, axis=1).mean() < np.ptp(plain, axis=1).mean() / 3
    groups = batches.mean(axis=1).reshape(5, 5)
    assert not any((np.diff(group) >= 0).all() for group in groups)


@pytest.mark.parametrize("start", [0, 1, 7, 25, 26, 63, 64, 65, 200])
def test_a_batch_grouped_by_length_is_a_function_of_seed_and_number(start: int):
    whole = list(islice(grouped()[1], start + 70))
    later = list(islice(grouped(start=start)[1], 70))
    assert np.array_equal(whole[start:], later)
    assert not np.array_equal(list(islice(grouped(seed=1, start=start)[1], 70)), later)


def test_devices_divide_the_batch_grouped_by_length():
    whole = list(islice(grouped()[1], 60))
    shares = [list(islice(grouped(rank=rank, world_size=2)[1], 60)) for rank in range(2)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert sorted(np.concatenate(parts)) == sorted(batch)
