import subprocess
import sys

import pytest

from llm.data.corpora import preprocessing
from llm.data.corpora.preprocessing import (
    Lemmatize,
    Lowercase,
    NormalizeUnicode,
    RemoveSpecialCharacters,
    RemoveStopWords,
    Stem,
    steps_of,
)
from llm.data.errors import DataError


@pytest.mark.parametrize(
    ("step", "before", "after"),
    [
        (Lowercase(), "The ÉTUDE\n", "the étude\n"),
        (NormalizeUnicode(), "e\u0301 ﬁ", "\u00e9 ﬁ"),
        (NormalizeUnicode("NFD"), "\u00e9", "e\u0301"),
        (NormalizeUnicode("NFKC"), "ﬁne Ａ", "fine A"),
        (RemoveSpecialCharacters(), "Hi, @you #1 – naïve!\n\tहिन्दी", "Hi, you 1  naïve!\n\tहिन्दी"),
        (RemoveSpecialCharacters(keep=""), "don't stop.", "dont stop"),
        (RemoveSpecialCharacters(keep="]^-\\"), "a]b^c-d\\e[f", "a]b^c-d\\ef"),
        (RemoveSpecialCharacters(keep="", replacement=" "), "and/or…?", "and or "),
        (RemoveSpecialCharacters(keep="", replacement=r"\1"), "a.b", r"a\1b"),
        (RemoveStopWords("en"), "The cat is on the mat.\nDon’t!", "cat mat.\n!"),
        (RemoveStopWords("de"), "Der Hund und die Katze", "Hund Katze"),
        (Stem("english"), "running cats, 3 ponies\n", "run cat, 3 poni\n"),
        (Stem("german"), "katzen", "katz"),
        (Lemmatize("en"), "mice were running 3 times\n", "mouse be run 3 time\n"),
        (Lemmatize("de"), "Häuser", "Haus"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_step_does_its_one_thing(step, before: str, after: str):
    assert step(before) == after


def test_steps_come_as_a_list_or_by_name_in_order():
    steps = [Lowercase(), Stem("english")]
    assert steps_of(steps) == tuple(steps)
    assert steps_of({"b": steps[0], "a": steps[1]}) == tuple(steps)


def test_the_fingerprint_holds_the_settings():
    steps = [
        Lowercase(),
        NormalizeUnicode("NFC"),
        NormalizeUnicode("NFKC"),
        RemoveSpecialCharacters(keep="."),
        RemoveSpecialCharacters(keep=".", replacement=" "),
        Stem("english"),
        Stem("german"),
    ]
    prints = {step.fingerprint() for step in steps}
    assert len(prints) == len(steps)
    special = RemoveSpecialCharacters(keep=".")
    special("used once")
    assert special.fingerprint() in prints


def test_the_version_of_a_library_is_part_of_the_fingerprint(monkeypatch: pytest.MonkeyPatch):
    before = Stem("english").fingerprint()
    monkeypatch.setattr(preprocessing.metadata, "version", lambda library: "0.0")
    assert Stem("english").fingerprint() != before


@pytest.mark.parametrize(
    ("step", "value", "message"),
    [
        (NormalizeUnicode, "NFX", "form=NFX is unknown; use NFC, NFD, NFKC or NFKD"),
        (RemoveStopWords, "xx", "language=xx is unknown; use one of ar, "),
        (Stem, "klingon", "language=klingon is unknown; use one of arabic, "),
        (Lemmatize, "xx", "language=xx is unknown; use one of ar, ast, "),
    ],
)
def test_unknown_settings_are_named(step, value: str, message: str):
    with pytest.raises(ValueError, match=message):
        step(value)


@pytest.mark.parametrize(
    ("step", "module"),
    [(RemoveStopWords, "stop_words"), (Stem, "snowballstemmer"), (Lemmatize, "simplemma")],
)
def test_a_missing_library_is_named_with_its_installation(
    step, module: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        DataError, match=rf"{step.library}; run pip install 'llm-hydra\[preprocessing\]'"
    ):
        step("en")


def test_the_libraries_are_imported_only_when_they_are_used():
    code = (
        "import sys, llm.data.corpora.preprocessing as p; p.Lowercase()('A'); "
        "print(sorted({'stop_words', 'snowballstemmer', 'simplemma'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
