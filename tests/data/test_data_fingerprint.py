import sys
from functools import partial
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

from llm.config.build import build
from llm.data.corpora import preprocessing
from llm.data.corpora.python_docs import PythonDocs
from llm.data.data_fingerprint import digest, of_settings, of_tokenizer, version_of
from llm.tokenizers import bpe
from llm.tokenizers.byte import ByteTokenizer
from llm.tokenizers.char import CharTokenizer

CONF = Path(__file__).parents[2] / "conf"


def test_trained_tokenizer_is_identified_by_its_contents():
    assert of_tokenizer(CharTokenizer("ab")) == of_tokenizer(CharTokenizer("ab"))
    assert of_tokenizer(CharTokenizer("ab")) != of_tokenizer(CharTokenizer("ba"))
    assert of_tokenizer(CharTokenizer("ab")) != of_tokenizer(ByteTokenizer())


def test_factory_is_identified_by_its_function_and_arguments():
    first = of_tokenizer(partial(bpe.train_bpe, vocab_size=300, min_frequency=2))
    assert first == of_tokenizer(partial(bpe.train_bpe, min_frequency=2, vocab_size=300))
    others = [
        partial(bpe.train_bpe, vocab_size=301, min_frequency=2),
        partial(bpe.train_bpe, vocab_size=300),
        partial(bpe.train_bpe, vocab_size=300, min_frequency=2, learn=bpe.learn_merges),
    ]
    names = {of_tokenizer(each) for each in others}
    assert len(names) == 3
    assert first not in names
    assert of_tokenizer(others[2]) == of_tokenizer(others[2]), (
        "a function of a module has a stable name"
    )


def test_objects_without_a_stable_name_get_a_new_fingerprint_each_time():
    def factory(texts):
        return ByteTokenizer()

    for spec in (factory, lambda texts: ByteTokenizer(), partial(bpe.train_bpe, learn=object())):
        assert of_tokenizer(spec) != of_tokenizer(spec)


def test_the_order_of_settings_does_not_matter():
    assert of_settings({"a": 1, "b": [2]}) == of_settings({"b": [2], "a": 1})
    assert of_settings({"a": 1}) != of_settings({"a": 2})


def options(folder):
    return sorted(path.stem for path in (CONF / folder).glob("*.yaml"))


def made_without_source(monkeypatch, make):
    """Compute a fingerprint in a process that cannot read Python files."""

    def read(path):
        assert path.suffix != ".py", path
        return original(path)

    original = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", read)
    return make()


@pytest.mark.parametrize("name", ["bpe", "char", "word"])
def test_tokenizer_of_the_package_is_identified_by_its_version_and_not_its_source(
    name, monkeypatch
):
    with initialize_config_module("llm.conf", version_base="1.3"):
        spec = build(compose(overrides=[f"+tokenizer={name}"]).tokenizer)
    found = made_without_source(monkeypatch, lambda: of_tokenizer(spec))
    function = spec.func if isinstance(spec, partial) else spec
    monkeypatch.setattr(sys.modules[function.__module__], "DATA_VERSION", 2)
    assert of_tokenizer(spec) != found


@pytest.mark.parametrize("name", options("data/preprocessing"))
def test_preprocessing_of_the_package_is_identified_by_its_version_and_not_its_source(
    name, monkeypatch
):
    if name in ("lemmatize", "stem", "remove_stop_words"):
        pytest.importorskip(
            {"lemmatize": "simplemma", "stem": "snowballstemmer"}.get(name, "stop_words")
        )
    with initialize_config_module("llm.conf", version_base="1.3"):
        config = compose(overrides=[f"+data/preprocessing={name}"])
    (step,) = build(config.data.preprocessing).values()
    found = made_without_source(monkeypatch, step.fingerprint)
    monkeypatch.setattr(preprocessing, "DATA_VERSION", 2)
    assert step.fingerprint() != found


def test_python_docs_are_identified_by_versions(monkeypatch):
    assert made_without_source(monkeypatch, PythonDocs().fingerprint).endswith(" 1 1 1")


def test_function_of_a_user_is_identified_by_its_source():
    assert version_of(test_function_of_a_user_is_identified_by_its_source) == digest(
        Path(__file__).read_bytes()
    )
