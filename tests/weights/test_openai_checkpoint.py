"""GPT-2 in OpenAI's format equals the same weights in Hugging Face's format."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from llm.config.errors import ConfigError
from llm.tokenizers.bpe import BPETokenizer
from llm.weights.gpt2 import GPT2Weights

HERE = Path(__file__).parent / "openai"
TOKENS = torch.randint(265, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(HERE / "original", tmp_path, dirs_exist_ok=True)
    return tmp_path


@torch.no_grad()
def test_weights_equal_those_of_the_converted_checkpoint(folder):
    ours = GPT2Weights(str(folder)).model()
    converted = GPT2Weights(str(HERE / "converted")).model().state_dict()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, converted[name])
    theirs = AutoModelForCausalLM.from_pretrained(HERE / "converted").eval()
    torch.testing.assert_close(ours(TOKENS), theirs(TOKENS).logits, rtol=0, atol=1e-5)
    logits = ours.double()(TOKENS)
    torch.testing.assert_close(logits, theirs.double()(TOKENS).logits, rtol=0, atol=1e-10)


def test_the_tokenizer_is_that_of_its_two_files(folder):
    tokenizer = GPT2Weights(str(folder)).tokenizer()
    assert isinstance(tokenizer, BPETokenizer)
    ids = json.loads((folder / "encoder.json").read_text())
    expected = [ids[token] for token in ("the", "Ġ", "th", "ing", "Ġ", "an")]
    assert tokenizer.encode("the thing an") == expected
    assert tokenizer.end_of_text == ids["<|endoftext|>"]


def test_files_that_do_not_fit_are_named(folder):
    hparams = json.loads((folder / "hparams.json").read_text())
    (folder / "hparams.json").write_text(json.dumps(hparams | {"n_layer": 1}))
    with pytest.raises(ConfigError, match=r"unexpected: model/h1/attn/c_attn/w"):
        GPT2Weights(str(folder)).model()
    (folder / "hparams.json").write_text(json.dumps(hparams | {"n_vocab": 266}))
    with pytest.raises(ConfigError, match=r"model/wte has 265 rows, .* vocab_size=266"):
        GPT2Weights(str(folder)).model()
    (folder / "hparams.json").write_text(json.dumps({"n_layer": 2}))
    with pytest.raises(ConfigError, match=r"n_head=None is not a positive integer"):
        GPT2Weights(str(folder)).model()
    (folder / "vocab.bpe").write_text("#version: 0.2\nt h\nq\n")
    with pytest.raises(ConfigError, match=r"vocab.bpe and encoder.json: merge 1: .* is not a pair"):
        GPT2Weights(str(folder)).tokenizer()
    (folder / "vocab.bpe").write_text("#version: 0.2\nt h\n")
    with pytest.raises(ConfigError, match=r"the vocabulary does not match the merges"):
        GPT2Weights(str(folder)).tokenizer()


def test_fingerprint_depends_on_every_file(folder):
    before = GPT2Weights(str(folder)).fingerprint
    for name in ("hparams.json", "encoder.json", "vocab.bpe", "model.ckpt.data-00000-of-00001"):
        data = bytearray((folder / name).read_bytes())
        data[-1] ^= 1
        (folder / name).write_bytes(data)
        after = GPT2Weights(str(folder)).fingerprint
        assert after != before
        before = after
