from llm.data.corpora.deduplication import drop_repeated, grams

ONE = "one two three four five six seven eight nine"
OTHER = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen"


def test_runs_of_eight_words():
    assert grams(ONE) == {
        ("one", "two", "three", "four", "five", "six", "seven", "eight"),
        ("two", "three", "four", "five", "six", "seven", "eight", "nine"),
    }
    assert grams("Just Three words") == {("just", "three", "words")}


def test_paragraphs_of_earlier_texts_are_dropped():
    longer = f"{ONE} {OTHER}"
    assert list(drop_repeated([longer, ONE, OTHER, "something else"], set(), most=0.3)) == [
        longer,
        "something else",
    ]
    assert list(drop_repeated([ONE, longer], set(), most=0.3)) == [ONE, longer], (
        "little of it stood before"
    )
    assert list(drop_repeated([ONE, ONE], set(), most=0.3)) == [ONE]
