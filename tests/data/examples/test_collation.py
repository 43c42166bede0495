"""Collation: every example once, little padding, and packed rows equal padded ones."""

import numpy as np
import pytest
import torch

from llm.data.examples.collation import LengthGrouped, Packing, Padding, best_fit, pad_with_mask
from llm.losses import cross_entropy_sum
from llm.nn.ignore_index import IGNORE_INDEX

CONTEXT = 24


def examples(number=11, seed=0):
    """Prompts and responses of many lengths, one as long as the context."""
    random = np.random.default_rng(seed)
    made = []
    for length in [CONTEXT, *random.integers(2, CONTEXT, number - 1).tolist()]:
        tokens = random.integers(1, 97, length + 1).tolist()
        asked = int(random.integers(1, length))
        targets = [IGNORE_INDEX] * asked + tokens[asked + 1 :]
        made.append({"tokens": tokens[:-1], "targets": targets})
    return made


def loss_and_gradients(model, batches):
    """Return the total loss of some batches and its gradients."""
    model.zero_grad()
    total, asked = 0.0, 0
    for batch in batches:
        targets = batch["targets"]
        arguments = {name: value for name, value in batch.items() if name != "targets"}
        loss, number = cross_entropy_sum(model(**arguments), targets)
        loss.backward()
        total, asked = total + loss.item(), asked + number.item()
    return total, asked, [parameter.grad.clone() for parameter in model.parameters()]


@pytest.fixture(params=["learned", "rotary", "alibi"])
def model(request, build):
    torch.manual_seed(0)
    return build(f"model/position={request.param}")


def test_packed_padded_and_single_rows_are_equal_in_loss_and_gradients(model):
    rows = examples()
    single = loss_and_gradients(model, [Padding().batch([row], CONTEXT) for row in rows])
    padded = loss_and_gradients(model, [Padding(multiple=8).batch(rows, CONTEXT)])
    packing = Packing()
    packed = packing.arrange(rows, CONTEXT)
    assert len(packed) < len(rows)
    together = loss_and_gradients(model, [packing.batch(packed, CONTEXT)])
    apart = loss_and_gradients(model, [packing.batch([row], CONTEXT) for row in packed])
    for other in (padded, together, apart):
        assert other[0] == pytest.approx(single[0], rel=1e-5)
        assert other[1] == single[1]
        for got, expected in zip(other[2], single[2], strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_without_documents_packed_rows_would_not_be_equal(model):
    """Shows that the comparison above can fail: attention to the other documents of a row changes the loss."""
    packing = Packing()
    batch = packing.batch(packing.arrange(examples(), CONTEXT), CONTEXT)
    exact = loss_and_gradients(model, [batch])[0]
    blurred = loss_and_gradients(model, [{k: v for k, v in batch.items() if k != "document_ids"}])[
        0
    ]
    assert abs(exact - blurred) > 1e-3


def test_a_packed_row_holds_whole_examples_whose_positions_start_anew():
    rows = examples()
    found = []
    for row in Packing().arrange(rows, CONTEXT):
        assert len({len(values) for values in row.values()}) == 1
        assert len(row["tokens"]) <= CONTEXT
        documents = np.array(row["document_ids"])
        for document in range(documents.max() + 1):
            places = np.flatnonzero(documents == document)
            assert [row["positions"][at] for at in places] == list(range(len(places)))
            found.append({name: [row[name][at] for at in places] for name in ("tokens", "targets")})
    assert sorted(found, key=str) == sorted(rows, key=str)


@pytest.mark.parametrize("seed", range(5))
def test_best_fit_places_every_item_once_within_the_bound_and_always_alike(seed):
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 101, 300).tolist()
    bins = best_fit(lengths, 100)
    assert sorted(item for items in bins for item in items) == list(range(300))
    assert all(sum(lengths[item] for item in items) <= 100 for items in bins)
    fewest = -(-sum(lengths) // 100)
    assert len(bins) <= 11 / 9 * fewest + 1
    assert bins == best_fit(lengths, 100)


def test_padding_goes_to_the_longest_or_a_multiple_and_never_beyond_the_context():
    rows = [{"tokens": [5] * n, "targets": [6] * n} for n in (3, 9)]
    batch = Padding(multiple=1).batch(rows, 20)
    assert batch["tokens"].shape == batch["targets"].shape == (2, 9)
    assert batch["targets"][0].tolist() == [6, 6, 6, *[IGNORE_INDEX] * 6]
    assert Padding(multiple=8).batch(rows, 20)["tokens"].shape == (2, 16)
    assert Padding(multiple=8).batch(rows, 10)["tokens"].shape == (2, 10)


def test_grouping_by_length_fills_up_less():
    rows = [{"tokens": [1] * n, "targets": [1] * n} for n in range(1, 101)]
    lengths = [len(row["tokens"]) for row in rows]

    def filling(collation):
        sampler = collation.sampler(lengths, 10, seed=0)
        batches = [
            collation.batch([rows[n] for n in numbers], 100) for numbers in sampler.batches(0, 10)
        ]
        return sum(batch["tokens"].numel() for batch in batches) - sum(lengths)

    assert filling(LengthGrouped()) < filling(Padding()) / 5


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Padding(multiple=0), "multiple=0 .*; use 8, or 1 for the longest row"),
        (lambda: LengthGrouped(group=0), r"group=0 .*; use 1 \(no grouping\) or more"),
    ],
)
def test_values_out_of_range_are_refused(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()


@pytest.mark.parametrize("width", [None, 7])
def test_the_attention_mask_covers_the_tokens(width):
    rows = [{"tokens": [5] * length} for length in (3, 1, 4)]
    batch = pad_with_mask(rows, width)
    assert batch["tokens"].shape == (3, width or 4)
    assert batch["attention_mask"].sum(1).tolist() == [3, 1, 4]
    assert (batch["tokens"] == 5 * batch["attention_mask"]).all()
