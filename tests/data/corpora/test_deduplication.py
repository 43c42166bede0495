import pytest

from llm.data.corpora.deduplication import distinct, grams, share_found

ONE = "one two three four five six seven eight nine"
OTHER = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen"


def test_runs_of_eight_words():
    assert grams(ONE) == {
        ("one", "two", "three", "four", "five", "six", "seven", "eight"),
        ("two", "three", "four", "five", "six", "seven", "eight", "nine"),
    }
    assert grams("Just Three words") == {("just", "three", "words")}


def test_the_share_of_runs_found_elsewhere():
    assert share_found([ONE], [f"before {ONE} after"]) == 1.0
    assert share_found([ONE], [OTHER]) == 0.0
    assert share_found([f"{ONE} {OTHER}"], [ONE]) == pytest.approx(2 / 11)


def test_paragraphs_of_earlier_texts_are_dropped():
    longer = f"{ONE} {OTHER}"
    assert list(distinct([longer, ONE, OTHER, "something else"], set(), most=0.3)) == [
        longer,
        "something else",
    ]
    assert list(distinct([ONE, longer], set(), most=0.3)) == [ONE, longer], (
        "little of it stood before"
    )
    assert list(distinct([ONE, ONE], set(), most=0.3)) == [ONE]
