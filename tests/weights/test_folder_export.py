"""An exported folder is the same model for Hugging Face's library and when imported again."""

import pytest
import torch
from published_families import TOKENS, Exact
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm.config.errors import ConfigError
from llm.tokenizers import word
from llm.tokenizers.base import END_OF_TEXT
from llm.tokenizers.bpe import train_bpe
from llm.tokenizers.byte import ByteTokenizer
from llm.weights.auto import open_weights
from llm.weights.folder_export import write_folder
from llm.weights.tokenizer_files import settings_of

# Models that no published family has as they are, but with other names: missing biases, and ReLU².
MODELS = {
    "gpt2 without biases": (
        "model=gpt2",
        "model/attention=no_bias",
        "model.norm.bias=false",
        "model/feed_forward=gelu_exact",
        "model.feed_forward.bias=false",
        "model.feed_forward.hidden_dim=80",
        "model.norm.eps=1e-3",
        "model.tie_weights=false",
    ),
    "the default with ReLU²": (
        "model=gpt",
        "model/feed_forward=relu_squared",
        "size.num_kv_heads=1",
    ),
    "llama with ReLU² and biases": ("model=llama", "model/feed_forward=relu_squared"),
    "llama, biases of keys": ("model=llama", "model.attention.qkv_bias=true"),
}


@pytest.fixture(params=list(MODELS))
def renamed(request, build):
    model = build(*MODELS[request.param], vocab_size=257).eval()
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


@pytest.fixture
def gpt2(build):
    return build("model=gpt2", vocab_size=257).eval()


@torch.no_grad()
def test_exported_model_is_the_same_for_transformers_and_when_imported(published, exact, tmp_path):
    files = write_folder(
        published.ours, ByteTokenizer(), folder=tmp_path / "out", max_shard_gb=1e-5
    )
    assert sum(file.suffix == ".safetensors" for file in files) > 1
    assert_same(Exact(tmp_path / "out")(TOKENS), exact(TOKENS))
    weights = open_weights(str(tmp_path / "out"))
    back = weights.model().state_dict()
    for name, tensor in published.ours.state_dict().items():
        assert torch.equal(back[name], tensor)
    assert weights.tokenizer().end_of_text == 256


@torch.no_grad()
def test_parts_that_a_family_writes_in_another_way_are_exported(renamed, tmp_path):
    write_folder(renamed, ByteTokenizer(), folder=tmp_path / "out")
    expected = renamed.double()(TOKENS)
    assert_same(Exact(tmp_path / "out")(TOKENS), expected)
    assert_same(open_weights(str(tmp_path / "out")).model().double()(TOKENS), expected)


@torch.no_grad()
def test_tokenizer_of_a_model_with_the_parts_of_qwen2_stays_the_same(build, tmp_path, capsys):
    """transformers cuts the texts of Qwen2 by Qwen's rule: every digit by itself."""
    tokenizer = train_bpe(["in 1234 and 1234 we had 12 and 123"] * 9, vocab_size=268)
    model = build("model=qwen2", vocab_size=tokenizer.vocab_size).eval()
    write_folder(model, tokenizer, folder=tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert theirs.config.model_type == "llama"
    tokens = torch.tensor([tokenizer.encode("in 1234 and 123")])
    found = AutoTokenizer.from_pretrained(tmp_path / "out")("in 1234 and 123")["input_ids"]
    assert [found] == tokens.tolist()
    torch.testing.assert_close(theirs(tokens).logits, model(tokens), rtol=0, atol=1e-5)
    assert "note" not in capsys.readouterr().out
    windows = ["model/layers=local_global", "model.pattern=[local,full]"]
    write_folder(build("model=qwen2", *windows, vocab_size=268), tokenizer, folder=tmp_path / "w")
    assert "note: transformers cuts texts for Qwen2 in its own way" in capsys.readouterr().out


def test_export_leaves_the_model_as_it_is(build, tmp_path):
    model = build("model=gpt", vocab_size=257)
    before = {
        name: (id(parameter), parameter.clone()) for name, parameter in model.named_parameters()
    }
    write_folder(model, ByteTokenizer(), folder=tmp_path / "out")
    after = dict(model.named_parameters())
    assert before.keys() == after.keys()
    assert all(id(after[name]) == key for name, (key, _) in before.items())
    assert all(torch.equal(after[name], tensor) for name, (_, tensor) in before.items())


@pytest.mark.parametrize("published", ["gpt2", "qwen3_moe", "mamba2"], indirect=True)
def test_transformers_reports_no_problem_of_the_weights(published, tmp_path):
    write_folder(published.ours, ByteTokenizer(), folder=tmp_path / "out", max_shard_gb=1e-4)
    _, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert {name: found for name, found in report.items() if found} == {}


def test_exported_model_and_tokenizer_generate_in_transformers(gpt2, tmp_path):
    write_folder(gpt2, ByteTokenizer(), folder=tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.model_max_length == 64
    given = tokenizer("né", return_tensors="pt")
    made = theirs.generate(**given, max_new_tokens=5, do_sample=False)
    assert made[0, :3].tolist() == list("né".encode())
    assert theirs.generation_config.eos_token_id == 256


def test_other_models_and_tokenizers_are_refused(gpt2, tmp_path):
    with pytest.raises(ConfigError, match=r"a Linear has no counterpart"):
        write_folder(torch.nn.Linear(2, 2), ByteTokenizer(), folder=tmp_path / "out")
    with pytest.raises(ConfigError, match=r"kind word has no counterpart"):
        write_folder(gpt2, word.train_word(["one two"]), folder=tmp_path / "out")
    with pytest.raises(ConfigError, match=r"max_shard_gb: 0 is not positive"):
        write_folder(gpt2, ByteTokenizer(), folder=tmp_path / "out", max_shard_gb=0)
    assert not [*tmp_path.iterdir()]


def test_folder_with_other_files_is_not_overwritten_without_request(gpt2, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match=r"contains files that no export wrote; .*overwrite=true"):
        write_folder(gpt2, ByteTokenizer(), folder=folder)
    assert [file.name for file in folder.iterdir()] == ["thesis.txt"]
    write_folder(gpt2, ByteTokenizer(), folder=folder, overwrite=True)
    assert (folder / "thesis.txt").read_text() == "years of work"
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match=r"is a file; name a folder"):
            write_folder(gpt2, ByteTokenizer(), folder=folder / "thesis.txt", overwrite=overwrite)


def test_the_export_of_another_model_is_replaced_only_on_request(gpt2, tmp_path):
    folder = tmp_path / "out"
    talking = settings_of(ByteTokenizer()).with_chat_template(
        "{{ messages }}", 256, name=END_OF_TEXT
    )
    before = write_folder(gpt2, ByteTokenizer(), folder=folder, settings=talking, origin="one")
    content = {file: file.read_bytes() for file in before}
    with pytest.raises(ConfigError, match=r"another model or run; name another .*overwrite=true"):
        write_folder(gpt2, ByteTokenizer(), folder=folder, origin="two")
    assert {file: file.read_bytes() for file in folder.iterdir()} == content
    assert (
        write_folder(gpt2, ByteTokenizer(), folder=folder, settings=talking, origin="one") == before
    )
    after = write_folder(gpt2, ByteTokenizer(), folder=folder, overwrite=True, origin="two")
    assert {*folder.iterdir()} == {*after}
    assert "chat_template.jinja" not in {file.name for file in after}


def test_end_token_of_a_response_ends_generation(gpt2, tmp_path):
    tokenizer = ByteTokenizer(["<|endoftext|>", "<|end|>"])
    talking = settings_of(tokenizer).with_chat_template("{{ messages }}", 257, name="<|end|>")
    write_folder(gpt2, tokenizer, folder=tmp_path / "out", settings=talking)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert theirs.generation_config.eos_token_id == theirs.config.eos_token_id == [257, 256]
    assert theirs.generation_config.bos_token_id == 256
    found = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (found.eos_token, found.bos_token) == ("<|end|>", "<|endoftext|>")
    assert found.chat_template == "{{ messages }}"


def test_earlier_export_is_replaced_completely(gpt2, tmp_path):
    first = write_folder(gpt2, ByteTokenizer(), folder=tmp_path / "out", max_shard_gb=1e-4)
    assert any("00001-of" in file.name for file in first)
    second = write_folder(gpt2, ByteTokenizer(), folder=tmp_path / "out")
    assert {*(tmp_path / "out").iterdir()} == {*second}
    assert len({file.stat().st_mode for file in second}) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
