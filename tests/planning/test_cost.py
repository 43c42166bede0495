"""The planned cost of a run, computed without weights, equals that of its model and data."""

import pytest
from torch import nn

from llm.config.build import build
from llm.config.errors import ConfigError
from llm.models.size import active_parameters
from llm.planning.cost import cost


@pytest.mark.parametrize(
    "model", ["gpt2", "llama", "gpt", "gpt model/feed_forward=geglu", "mixtral"]
)
def test_cost_equals_parameters_and_flops_of_the_model(model, composed):
    config = composed(f"model={model} size=nano")
    real, counted = build(config.model), cost(config)
    assert counted.parameters == counted.trained == sum(p.numel() for p in real.parameters())
    assert counted.active_parameters == active_parameters(real)
    outer = nn.ModuleList([real.embedding, real.position, real.head])
    assert counted.embedding == sum(p.numel() for p in outer.parameters())
    assert counted.block == sum(p.numel() for p in real.blocks[0].parameters())
    assert counted.flops_per_token == real.flops_per_token(64)


def test_a_budget_is_counted_in_steps_tokens_and_flops(composed):
    words = "size=nano data.batch_size=4 trainer.accumulate=3 trainer.max_steps={} trainer.max_tokens={}"
    counted = cost(composed(words.format(10, "null")))
    assert counted.tokens_per_step == 4 * 64 * 3
    assert counted.tokens == 7680
    assert counted.flops == 7680 * counted.flops_per_token
    assert cost(composed(words.format("null", "7.6e3"))).steps == 10  # rounded up


@pytest.mark.parametrize("rows", [0, -8])
def test_batch_without_rows_is_refused_with_the_message_of_the_data(rows, composed):
    config = composed(f"size=nano data.batch_size={rows} trainer.max_tokens=1000")
    message = rf"data[.:] ?batch_size={rows} is too small; use 1 or more"
    with pytest.raises(ConfigError, match=message):
        cost(config)
    with pytest.raises(ConfigError, match=message):
        build(config.data)


@pytest.mark.parametrize(
    ("tokenizer", "size"),
    [("byte", 257), ("gpt2", 50257), ("bpe tokenizer.vocab_size=700", 700)],
)
def test_vocab_size_is_that_of_the_configured_tokenizer(tokenizer, size, composed):
    config = composed(f"model=llama size=nano tokenizer={tokenizer}")
    rest = cost(composed("model=llama size=nano model.vocab_size=1"))
    assert cost(config).parameters == rest.parameters + 2 * 64 * (size - 1)


def test_values_that_depend_on_the_data_are_unknown_without_data(composed, tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    text.write_text("abcdefgh " * 500)
    config = composed(
        f"size=nano tokenizer=char data=text data.path={text} trainer.max_steps=null trainer.max_epochs=2"
    )
    assert cost(config) is None
    data = build(config.data)
    data.prepare_data()
    data.setup("fit")
    counted = cost(config)
    assert counted.embedding == 64 * data.tokenizer.vocab_size
    assert counted.steps == 2 * data.batches_per_epoch
    config.model.vocab_size = 97
    text.write_text("another text " * 500)
    assert cost(config).parameters > 0
    assert cost(config).steps is None


OWN_DATA = """
from llm.data.base import DataModule
from llm.data.corpora.text_files import FilesDataModule

def files(**settings) -> FilesDataModule:
    return FilesDataModule(**settings)

def some(**settings) -> DataModule | None:
    return FilesDataModule(**settings)

def plain(**settings):
    return FilesDataModule(**settings)
"""


@pytest.mark.parametrize(
    ("name", "tokens"), [("files", 8 * 64 * 10), ("some", None), ("plain", None)]
)
def test_the_data_of_a_function_are_counted_by_its_annotation(
    name, tokens, composed, tmp_path, monkeypatch
):
    (tmp_path / "own_data.py").write_text(OWN_DATA)
    monkeypatch.syspath_prepend(tmp_path)
    config = composed("size=nano data=text data.path=x.txt data.batch_size=8 trainer.max_steps=10")
    config.data._target_ = f"own_data.{name}"
    config.trust = ["own_data"]
    counted = cost(config)
    assert counted.steps == 10
    assert counted.tokens == tokens


def test_flops_of_a_partly_trained_model_are_unknown(composed):
    config = composed("size=nano adapter=lora")
    counted = cost(config)
    assert 0 < counted.trained < counted.parameters
    assert counted.flops_per_token is None
    assert counted.flops is None
    assert counted.tokens > 0


def test_classifier_has_two_classes_until_the_data_are_read(composed, tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_CACHE", str(tmp_path))  # empty: the data are not read
    counted = cost(composed("model=gpt2 size=nano experiment=spam"))
    body = cost(composed("model=gpt2 size=nano"))
    assert counted.parameters == body.parameters + 2 * 64 + 2
    assert counted.tokens is None  # unknown until the lengths of the messages are read
