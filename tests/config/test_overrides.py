"""Overrides of a command line."""

import pytest

from llm.config.overrides import differing_words, key_of, values


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("seed=1", "seed"),
        ("+trainer.max_steps=2", "trainer.max_steps"),
        ("++a.b=x=y", "a.b"),
        ("~callbacks.samples", "callbacks.samples"),
        ("model/norm=rms", "model.norm"),
        ("model/norm@model.final_norm=rms", "model.norm"),
    ],
)
def test_key_of_an_override(word, key):
    assert key_of(word) == key


def test_values_keep_what_follows_the_first_equals_sign():
    assert values(["model=gpt", "weights.path=a=1,b=2"]) == {
        "model": "gpt",
        "weights.path": "a=1,b=2",
    }


def test_words_that_not_all_jobs_share_keep_their_order():
    jobs = [["model=gpt", "seed=1", "size=nano"], ["size=nano", "seed=2", "model=gpt", "x=1"]]
    assert differing_words(jobs) == [["seed=1"], ["seed=2", "x=1"]]
    assert differing_words(jobs[:1]) == [[]]
    assert differing_words([]) == []
