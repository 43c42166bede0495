import random

import pytest

from llm.generation.stopping import StopStrings


def pieces_of(text, rng):
    """Cut a text at random positions."""
    cuts = sorted(rng.sample(range(len(text) + 1), k=rng.randint(0, len(text))))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def run(text_pieces, stops):
    stopping = StopStrings(stops)
    shown = "".join(stopping.add(piece) for piece in text_pieces)
    return shown + stopping.close(), stopping.stopped


def expected_of(text, stops):
    """Cut by definition: read one character at a time until a stop string is complete."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


def test_text_is_cut_at_the_first_stop_string_however_it_is_divided():
    rng = random.Random(0)
    for _ in range(2000):
        text = "".join(rng.choices("ab", k=rng.randint(0, 12)))
        stops = ["".join(rng.choices("ab", k=rng.randint(1, 5))) for _ in range(rng.randint(0, 3))]
        pieces = pieces_of(text, rng)
        assert run(pieces, stops) == expected_of(text, stops), (pieces, stops)


def test_no_part_of_a_stop_string_is_returned():
    stopping = StopStrings(["\n\nUser:"])
    shown = [stopping.add(piece) for piece in ["Fine.", "\n", "\nUs", "er", ": hi"]]
    assert shown == ["Fine.", "", "", "", ""]
    assert stopping.stopped
    assert stopping.close() == ""


def test_text_that_begins_like_a_stop_string_is_returned_later():
    stopping = StopStrings(["END"])
    assert [stopping.add(piece) for piece in ["an EN", "D"[:0], "TRY, the E"]] == [
        "an ",
        "",
        "ENTRY, the ",
    ]
    assert not stopping.stopped
    assert stopping.close() == "E"


def test_text_is_returned_at_once_without_stop_strings():
    stopping = StopStrings([])
    assert stopping.add("anything") == "anything"
    assert stopping.close() == ""


@pytest.mark.parametrize("stops", [[""], ["a", ""], "text"])
def test_empty_stop_strings_and_wrong_types_are_refused(stops):
    with pytest.raises(ValueError, match="list of strings"):
        StopStrings(stops)
