import matplotlib.image
import pytest
import torch

from llm.callbacks.predictions import draw_confusion


@pytest.mark.parametrize("num_classes", [2, 12])
def test_a_confusion_matrix_is_darkest_where_most_texts_are(num_classes, tmp_path):
    counts = torch.ones(num_classes, num_classes, dtype=torch.int64)
    counts += 99 * torch.eye(num_classes, dtype=torch.int64)
    names = [f"a class with a rather long name {n}" for n in range(num_classes)]
    draw_confusion(counts, names, picture=tmp_path / "confusion.png", title="test part")
    picture = matplotlib.image.imread(tmp_path / "confusion.png")
    assert min(picture.shape[:2]) > 250
    draw_confusion(counts.flip(0), names, picture=tmp_path / "flipped.png", title="test part")
    assert (matplotlib.image.imread(tmp_path / "flipped.png") != picture).any()


def test_a_class_without_texts_is_drawn(tmp_path):
    counts = torch.tensor([[3, 1], [0, 0]])
    draw_confusion(counts, ["a", "b"], picture=tmp_path / "confusion.png", title="")
    assert (tmp_path / "confusion.png").stat().st_size > 1000
