"""Our GPT equals Hugging Face's GPT-2 and Llama, read from folders: logits, gradients, padding and cache.

In float32 the two differ by about 1e-6, from the order of sums; a wrong epsilon of the norms changes the
logits by more than 1e-5.
"""

import json
import shutil
from typing import Any

import huggingface_hub
import pytest
import torch
import torch.nn.functional as F

from llm.config.build import build
from llm.config.check import check_nodes
from llm.config.deferred import Deferred
from llm.config.errors import ConfigError
from llm.models.size import Size
from llm.weights.gpt2 import GPT2Weights
from llm.weights.llama import LlamaWeights

TOKENS = torch.randint(97, (3, 40), generator=torch.Generator().manual_seed(0))
PRECISIONS = [(torch.float64, 1e-10), (torch.float32, 1e-5)]


@pytest.fixture(params=PRECISIONS, ids=["float64", "float32"])
def pair(request, ours, theirs):
    """Our model, theirs, and the tolerance."""
    dtype, tolerance = request.param
    if dtype == torch.float64:
        request.getfixturevalue("precise")
    return ours.to(dtype), theirs.to(dtype), tolerance


@torch.no_grad()
def test_logits_are_equal(pair):
    ours, theirs, tolerance = pair
    torch.testing.assert_close(ours(TOKENS), theirs(TOKENS).logits, rtol=0, atol=tolerance)


@torch.no_grad()
def test_logits_of_texts_padded_on_the_left_are_equal(pair):
    ours, theirs, tolerance = pair
    real = torch.arange(40) >= torch.tensor([[0], [13], [25]])
    positions = (real.cumsum(1) - 1).clamp(min=0)
    expected = theirs(TOKENS, attention_mask=real.long(), position_ids=positions).logits
    found = ours(TOKENS, attention_mask=real)
    torch.testing.assert_close(found[real], expected[real], rtol=0, atol=tolerance)


@torch.no_grad()
def test_logits_in_steps_with_a_cache_are_equal(pair):
    ours, theirs, tolerance = pair
    cache = ours.new_cache(batch_size=3)
    steps = [ours(part, cache=cache) for part in TOKENS.split([17, 1, 1, 21], dim=1)]
    expected = theirs(TOKENS).logits
    torch.testing.assert_close(torch.cat(steps, 1), expected, rtol=0, atol=tolerance)


def test_gradients_are_equal(pair, family, weights):
    ours, theirs, tolerance = pair
    for logits in (ours(TOKENS), theirs(TOKENS).logits):
        F.cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten()).backward()
    gradients = {n: p.grad for n, p in ours.named_parameters(remove_duplicate=False)}
    found = weights.key_map(weights.settings).to_theirs(gradients)
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=0, atol=tolerance)


def test_import_and_export_restore_the_weights(weights, ours, theirs):
    back = weights.key_map(weights.settings).to_theirs(ours.state_dict())
    expected = theirs.state_dict()
    assert back.keys() == expected.keys()
    assert all(torch.equal(back[name], expected[name]) for name in expected)


def test_wrong_epsilon_changes_the_logits(ours, theirs):
    for module in ours.modules():
        if hasattr(module, "eps"):
            module.eps *= 3
    assert (ours(TOKENS) - theirs(TOKENS).logits).abs().max() > 1e-5


def test_config_has_the_nodes_that_training_adopts(weights):
    config = weights.config
    assert set(config) == {"model", "size", "tokenizer"}
    check_nodes(
        config, {"size": Size, "model": Deferred[torch.nn.Module], "tokenizer": Deferred[Any]}
    )
    node = config.tokenizer.weights
    assert build(node) == weights
    assert config.model.vocab_size == 97
    config.model.dropout = 0.5
    assert config.model.attention.dropout == 0.5


FEW = pytest.mark.parametrize("family", ["gpt2", "llama-grouped"], indirect=True, scope="session")


@FEW
def test_shards_half_precision_and_torch_files_give_the_same_weights(
    family, theirs, ours, tmp_path
):
    expected = ours.state_dict()

    def same(folder, tolerance=0.0):
        for name, tensor in family.weights(str(folder)).model().state_dict().items():
            assert tensor.dtype == torch.float32
            torch.testing.assert_close(tensor, expected[name], rtol=tolerance, atol=0)

    theirs.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len([*(tmp_path / "shards").glob("*.safetensors")]) > 2
    same(tmp_path / "shards")
    (tmp_path / "torch").mkdir()
    shutil.copy(tmp_path / "shards" / "config.json", tmp_path / "torch")
    torch.save(theirs.state_dict(), tmp_path / "torch" / "pytorch_model.bin")
    same(tmp_path / "torch")
    theirs.bfloat16().save_pretrained(tmp_path / "half")
    same(tmp_path / "half", tolerance=2**-8)


@FEW
def test_context_can_be_shortened_but_not_extended(weights, theirs):
    short = type(weights)(weights.path, context_length=16)
    assert (short.config.size.context_length, short.config.model.context_length) == (16, 16)
    model = short.model()
    assert model.context_length == 16
    torch.testing.assert_close(model(TOKENS), theirs(TOKENS).logits, rtol=0, atol=1e-5)
    with pytest.raises(ConfigError, match=r"weights.context_length: 65 is more than the 64"):
        _ = type(weights)(weights.path, context_length=65).config
    with pytest.raises(ValueError, match=r"context_length=0: give 1"):
        type(weights)(weights.path, context_length=0)


@FEW
def test_fingerprint_depends_on_the_content(weights, tmp_path):
    shutil.copytree(weights.path, tmp_path / "copy")
    assert type(weights)(str(tmp_path / "copy")).fingerprint == weights.fingerprint
    file = tmp_path / "copy" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert type(weights)(str(tmp_path / "copy")).fingerprint != weights.fingerprint


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        ("gpt2", {"model_type": "bert"}, "model of type bert"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "idx=True is not"),
        ("gpt2", {"activation_function": "tanh"}, "function=tanh is not"),
        ("gpt2", {"n_layer": None}, "n_layer=None is not a positive integer"),
        ("gpt2", {"n_embd": "wide"}, "n_embd=wide is not a positive integer"),
        ("llama", {"model_type": "gpt2"}, "model of type gpt2"),
        ("llama", {"attention_bias": True}, "attention_bias=True is not"),
        ("llama", {"hidden_act": "relu"}, "hidden_act=relu is not"),
        ("llama", {"rope_parameters": {"rope_type": "yarn"}}, "rope_type=yarn is not"),
    ],
)
def test_unreadable_folders_are_reported_in_one_line(name, changes, problem, tmp_path, families):
    family = families[name]
    family.make().save_pretrained(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(ConfigError, match=problem) as error:
        family.weights(str(tmp_path)).model()
    assert "\n" not in str(error.value)


def test_files_of_older_libraries_are_read(tmp_path, families):
    """Before version 5 the base and the scaling of the rotation were separate keys."""
    changes = families["llama-3"].changes
    families["llama-3"].make(**changes).save_pretrained(tmp_path)
    expected = LlamaWeights(str(tmp_path)).config.model.position
    scaling = {
        key: value for key, value in changes["rope_parameters"].items() if key != "rope_theta"
    }
    edit(tmp_path, rope_parameters=None, rope_theta=500.0, rope_scaling=scaling)
    assert LlamaWeights(str(tmp_path)).config.model.position == expected


@FEW
def test_files_that_are_missing_are_named(weights, family, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(weights.path, folder)

    def message():
        with pytest.raises(ConfigError) as error:
            family.weights(str(folder)).model()
        return str(error.value)

    index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors").rename(folder / "elsewhere")
    assert "has no weights" in message()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "has no model-00001-of-00002.safetensors" in message()
    (folder / "config.json").write_text("{half")
    assert "config.json: is not JSON" in message()
    (folder / "config.json").unlink()
    assert "has no config.json" in message()


@FEW
def test_a_name_on_the_hub_is_fetched(family, weights, theirs, monkeypatch, tmp_path):
    asked = []

    def fetch(name, allow_patterns, local_files_only):
        asked.append((name, allow_patterns))
        return weights.path

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    monkeypatch.chdir(tmp_path)
    fetched = family.weights("someone/some-model_1.0")
    assert asked == []  # not before it is needed
    torch.testing.assert_close(fetched.model()(TOKENS), theirs(TOKENS).logits, rtol=0, atol=1e-5)
    ((name, patterns),) = asked
    assert name == "someone/some-model_1.0"
    assert {"config.json", "model*.safetensors", "merges.txt"} <= set(patterns)
    settings = {"generation_config.json", "chat_template.jinja", "special_tokens_map.json"}
    assert settings <= set(patterns)


def test_torch_files_are_fetched_only_without_safetensors(tmp_path, monkeypatch):
    asked = []

    def fetch(name, allow_patterns, local_files_only):
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    with pytest.raises(ConfigError, match=r"no config.json"):
        GPT2Weights("gpt2").model()
    assert "pytorch_model*.bin" not in asked[0]
    assert "pytorch_model*.bin" in asked[1]


def test_a_missing_network_is_reported_with_a_remedy(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"models/gpt2 is not a folder, .* give the folder") as e:
        GPT2Weights("models/gpt2").model()
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("path", ["no/such/folder", "../nothing", "with space"])
def test_path_that_is_neither_a_folder_nor_a_name_is_refused(path):
    with pytest.raises(ValueError, match=r"neither a folder nor a name"):
        LlamaWeights(path)
