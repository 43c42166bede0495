from functools import partial

from llm.data.data_fingerprint import of_settings, of_tokenizer
from llm.tokenizers import bpe
from llm.tokenizers.byte import ByteTokenizer
from llm.tokenizers.char import CharTokenizer


def test_a_fitted_tokenizer_is_its_contents():
    assert of_tokenizer(CharTokenizer("ab")) == of_tokenizer(CharTokenizer("ab"))
    assert of_tokenizer(CharTokenizer("ab")) != of_tokenizer(CharTokenizer("ba"))
    assert of_tokenizer(CharTokenizer("ab")) != of_tokenizer(ByteTokenizer())


def test_a_factory_is_its_function_and_arguments():
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
    assert of_tokenizer(others[2]) == of_tokenizer(others[2]), "a function has a lasting name"


def test_what_has_no_lasting_name_is_never_found_again():
    def factory(texts):
        return ByteTokenizer()

    for spec in (factory, lambda texts: ByteTokenizer(), partial(bpe.train_bpe, learn=object())):
        assert of_tokenizer(spec) != of_tokenizer(spec)


def test_the_order_of_settings_does_not_matter():
    assert of_settings({"a": 1, "b": [2]}) == of_settings({"b": [2], "a": 1})
    assert of_settings({"a": 1}) != of_settings({"a": 2})
