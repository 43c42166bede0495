import pytest
import torch
from sklearn import metrics

from llm.evaluation.classification_metrics import (
    Probabilities,
    WeightedLoss,
    confusion,
    faults,
    scores,
)
from llm.nn.ignore_index import IGNORE_INDEX


@pytest.mark.parametrize("num_classes", [2, 3, 7])
def test_metrics_are_those_of_scikit_learn(num_classes):
    draw = torch.Generator().manual_seed(num_classes)
    labels = torch.randint(num_classes, (200,), generator=draw)
    guesses = torch.randint(num_classes, (200,), generator=draw)
    predicted = torch.where(torch.rand(200, generator=draw) < 0.6, labels, guesses)
    mask = torch.rand(200, generator=draw) < 0.8
    collection, matrix = scores(num_classes), confusion(num_classes)
    shown = torch.where(mask, labels, IGNORE_INDEX)
    for rows in torch.arange(200).split(37):
        collection.update(predicted[rows], shown[rows])
        matrix.update(predicted[rows], shown[rows])
    pair = labels[mask], predicted[mask]
    expected = {
        "accuracy": metrics.accuracy_score(*pair),
        "balanced_accuracy": metrics.balanced_accuracy_score(*pair),
        "f1_macro": metrics.f1_score(*pair, average="macro"),
    }
    if num_classes == 2:
        expected["f1"] = metrics.f1_score(*pair)
    found = {name: value.item() for name, value in collection.compute().items()}
    assert found == pytest.approx(expected)
    assert matrix.compute().tolist() == metrics.confusion_matrix(*pair).tolist()


@pytest.mark.parametrize("first", [IGNORE_INDEX, 1])
def test_metrics_do_not_depend_on_the_first_batch(first):
    """A first batch for which all metrics are equal must not change how later ones are counted."""
    collection = scores(2)
    collection.update(torch.tensor([1, 1]), torch.tensor([first, first]))
    collection.reset()
    predicted, labels = torch.tensor([1, 0, 0, 1, 0, 0]), torch.tensor([1, 1, 0, 0, 0, 0])
    collection.update(predicted, labels)
    found = {name: value.item() for name, value in collection.compute().items()}
    assert found["f1"] == pytest.approx(metrics.f1_score(labels, predicted))
    assert found["balanced_accuracy"] == pytest.approx(
        metrics.balanced_accuracy_score(labels, predicted)
    )


def test_weighted_loss_is_the_sum_of_losses_over_the_sum_of_weights():
    loss = WeightedLoss()
    loss.update(torch.tensor(6.0), torch.tensor(2.0))
    loss.update(torch.tensor(1.0), torch.tensor(5.0))
    assert loss.compute().item() == pytest.approx(1.0)


def test_probabilities_follow_the_order_of_the_texts_without_padding():
    answers = Probabilities()
    logits = torch.randn(4, 3)
    answers.update(torch.tensor([2, 0]), torch.tensor([1, 1]), logits=logits[:2])
    answers.update(torch.tensor([1, 0]), torch.tensor([0, IGNORE_INDEX]), logits=logits[2:])
    rows, probabilities = answers.compute()
    assert rows.tolist() == [0, 1, 2]
    torch.testing.assert_close(probabilities, logits[[1, 2, 0]].softmax(-1))


def test_classifier_that_always_predicts_one_class_is_reported():
    found = faults(torch.tensor([[60, 0], [40, 0]]), ["ham", "spam"], is_weighted=False)
    assert found == ["all 100 texts are classified as ham"]
    assert faults(torch.zeros(2, 2, dtype=torch.int64), ["ham", "spam"], is_weighted=False) == []


@pytest.mark.parametrize(
    ("counts", "is_weighted", "told"),
    [
        ([[55, 5], [35, 5]], False, "accuracy 60.0%: always predicting ham gives 60.0%"),
        ([[56, 4], [33, 7]], False, "accuracy 63.0%: always predicting ham gives 60.0%"),  # ± 4.9 %
        ([[55, 5], [20, 20]], False, None),
        # The accuracy is below the 88 % of always predicting ham, but the balanced accuracy is above 50 %.
        ([[800, 80], [60, 60]], True, None),
        (
            [[440, 440], [60, 60]],
            True,
            "balanced accuracy 50.0%: always predicting ham gives 50.0%",
        ),
    ],
)
def test_classifier_is_compared_with_a_constant_prediction(counts, is_weighted, told):
    found = faults(torch.tensor(counts), ["ham", "spam"], is_weighted=is_weighted)
    assert [line.partition(",")[0] for line in found] == ([told] if told else [])
