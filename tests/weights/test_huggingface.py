"""Our models equal those of Hugging Face's library, read from folders: logits, gradients, padding, cache and text.

A variant of a family joins by one row of `VARIANTS` in tests/published_families.py.
"""

import copy
import json
import shutil
from typing import Any

import huggingface_hub
import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_module
from published_families import TOKENS, VARIANTS, YARN
from safetensors.torch import load_file, save_file
from small_runs import run_command
from transformers import AutoTokenizer

from llm.config.build import build
from llm.config.check import check_nodes
from llm.config.deferred import Deferred
from llm.config.errors import ConfigError
from llm.models.size import Size
from llm.terminal.console import printable
from llm.weights.gpt2 import GPT2Weights
from llm.weights.huggingface import Folder
from llm.weights.llama import LlamaWeights

OUTPUT = "layers.3.self_attn.o_proj.weight"
REAL = torch.arange(40) >= torch.tensor([[0], [13], [25]])


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


@torch.no_grad()
def test_logits_are_equal(ours, exact):
    assert_same(ours(TOKENS), exact(TOKENS))


@torch.no_grad()
def test_float32_is_as_exact_as_that_of_transformers(published, exact):
    expected = exact(TOKENS)
    own, theirs = published.ours(TOKENS), published.theirs(TOKENS).logits
    assert (own - expected).abs().max() <= 4 * (theirs - expected).abs().max()


@torch.no_grad()
def test_logits_of_texts_padded_on_the_left_are_equal(published, ours, exact):
    if published.theirs.config.model_type == "mamba2" and published.theirs.config.use_bias:
        pytest.skip("their padding passes the bias of the input projection into the convolution")
    inputs: dict[str, Any] = {"attention_mask": REAL.long()}
    if published.theirs.config.model_type != "mamba2":
        inputs["position_ids"] = (REAL.cumsum(1) - 1).clamp(min=0)
    assert_same(ours(TOKENS, attention_mask=REAL)[REAL], exact(TOKENS, **inputs)[REAL])


@torch.no_grad()
def test_logits_in_steps_with_a_cache_are_equal(ours, exact):
    cache = ours.new_cache(batch_size=3)
    steps = [ours(part, cache=cache) for part in TOKENS.split([17, 1, 1, 21], dim=1)]
    assert_same(torch.cat(steps, 1), exact(TOKENS))


@torch.no_grad()
def test_logits_beyond_the_context_are_equal(published, ours, exact):
    if published.theirs.config.model_type == "gpt2":
        pytest.skip("its positions are learned")
    tokens = TOKENS.repeat(1, 2)  # 80 of 64 tokens
    assert_same(ours(tokens), exact(tokens))


def test_gradients_are_equal(published, ours, exact, tmp_path):
    for logits in (ours(TOKENS), exact(TOKENS)):
        F.cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten()).backward()
    weights = published.weights
    gradients = {n: p.grad for n, p in ours.named_parameters(remove_duplicate=False)}
    found = weights.key_map(weights.settings).to_theirs(gradients)
    for name, expected in as_published(exact.model, tmp_path).items():
        assert expected.any(), name
        assert_same(found[name], expected)


def as_published(theirs, folder):
    """Return their gradients by the names that they have in files, which are not always those in memory."""
    holder = copy.deepcopy(theirs)
    for parameter, original in zip(holder.parameters(), theirs.parameters(), strict=True):
        parameter.data = original.grad
    theirs.zero_grad()
    holder.save_pretrained(folder)
    return {name: tensor.read() for name, tensor in Folder(folder).tensors().items()}


def test_import_and_export_restore_the_weights(published, tmp_path):
    weights = published.weights
    back = weights.key_map(weights.settings).to_theirs(published.ours.state_dict())
    expected = {n: t.read() for n, t in weights.folder.tensors().items()}
    absent = back.keys() - expected.keys()
    assert absent <= {*weights.key_map(weights.settings).shared}
    assert all(torch.equal(back[name], expected[name]) for name in expected)


def test_greedy_text_is_equal(published, capsys):
    with initialize_config_module("llm.conf", version_base="1.3"):
        words = ["weights=auto", f"weights.path={published.folder}", "prompt=Once", "max_tokens=20"]
        config = compose("generate", [*words, "sampler.temperature=0", "hardware.accelerator=cpu"])
    run_command(config)
    tokenizer = AutoTokenizer.from_pretrained(published.folder)
    given = tokenizer("Once", return_tensors="pt")
    made = published.theirs.generate(**given, max_new_tokens=20, do_sample=False)
    expected = printable(tokenizer.decode(made[0], skip_special_tokens=True))
    assert expected in capsys.readouterr().out


def test_wrong_epsilon_changes_the_logits(published, exact):
    changed = copy.deepcopy(published.ours).double()
    for module in changed.modules():
        if hasattr(module, "eps"):
            module.eps *= 3
    with torch.no_grad():
        assert (changed(TOKENS) - exact(TOKENS)).abs().max() > 1e-9


def test_config_has_the_nodes_that_training_adopts(published):
    weights = published.weights
    config = weights.config
    assert set(config) == {"model", "size", "tokenizer"}
    check_nodes(
        config, {"size": Size, "model": Deferred[torch.nn.Module], "tokenizer": Deferred[Any]}
    )
    node = config.tokenizer.weights
    assert build(node) == weights
    assert config.model.vocab_size == 257
    config.model.dropout = 0.5
    assert config.model.attention.dropout == 0.5


FEW = pytest.mark.parametrize("published", ["gpt2", "llama"], indirect=True, scope="session")


@FEW
def test_shards_half_precision_and_torch_files_give_the_same_weights(published, theirs, tmp_path):
    family, expected = published.family, published.ours.state_dict()

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
    torch.testing.assert_close(model(TOKENS), theirs(TOKENS).logits, rtol=0, atol=1e-4)
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
        ("llama", {"hidden_act": "tanh"}, "hidden_act=tanh is not"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic"}}, "rope_type=dynamic is not"),
        ("llama-yarn", {"rope_parameters": YARN | {"mscale": 2.0}}, "mscale=2.0 of the rotation"),
        (
            "qwen3",
            {"quantization_config": {"quant_method": "gptq"}},
            "is quantized .*; use the weights",
        ),
        (
            "llama",
            {"rms_norm_eps": "${oc.env:HOME}"},
            r"rms_norm_eps='\$\{oc.env:HOME\}' is not a ",
        ),
        ("llama", {"rope_parameters": [1]}, r"rope_parameters=\[1\] is not an object"),
        (
            "llama",
            {"rope_parameters": {"rope_theta": "x"}},
            "rope_theta='x' of the rotation is not a",
        ),
        ("llama", {"rope_parameters": {"rope_type": "linear"}}, "scaling linear has no factor"),
        (
            "llama",
            {"rope_parameters": {"partial_rotary_factor": 0.5}},
            "factor=0.5 of the rotation",
        ),
        ("qwen2", {"layer_types": ["full_attention"]}, r"layer_types=.* is not full_attention or "),
        (
            "qwen3",
            {"layer_types": ["banana"] * 4},
            "is not full_attention or sliding_attention for",
        ),
        ("qwen2-windows", {"max_window_layers": "x"}, "max_window_layers='x' is not an integer"),
        ("mistral", {"layer_types": ["full_attention"] * 4}, "layer_types=.* is not supported"),
        ("smollm3", {"no_rope_layers": [1, 1]}, "is not an integer for each of 4 layers"),
        ("gemma3", {"attn_logit_softcapping": 2.0}, "attn_logit_softcapping=2.0 is not supported"),
        ("gemma3", {"sliding_window_pattern": "x"}, "sliding_window_pattern='x' is not an integer"),
        ("mixtral", {"num_local_experts": 10**8}, "num_local_experts=100000000 is more than"),
        (
            "llama",
            {"num_key_value_heads": "???"},
            r"num_key_value_heads='\?\?\?' is not an integer",
        ),
        ("mamba2", {"time_step_limit": [0.0, 1.0]}, r"time_step_limit=\[0.0, 1.0\] is not"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, r"mlp_only_layers=\[0\] is not"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True is"),
        *(
            (
                name,
                {"rope_parameters": {"partial_rotary_factor": "${oc.env:HOME}"}},
                r"partial_rotary_factor='\$\{oc.env:HOME\}' of the rotation is not a number",
            )
            for name in ("gpt_neox", "qwen3_next")
        ),
        ("qwen3_next", {"hidden_act": "gelu"}, "hidden_act=gelu is not supported, only silu"),
        ("qwen3_next", {"mlp_only_layers": [0]}, r"mlp_only_layers=\[0\] is not"),
        ("qwen3_next", {"layer_types": ["linear_attention"] * 4}, "leaves no layer with full_att"),
        (
            "qwen3_next",
            {"layer_types": ["sliding_attention"] * 4},
            "is not full_attention or linear_attention for each of 4",
        ),
        (
            "qwen3_next",
            {"layer_types": None, "full_attention_interval": 0},
            "full_attention_interval=0 is not an integer from 1",
        ),
        ("qwen3_next", {"linear_num_key_heads": 3}, "num_key_heads=3"),
    ],
)
def test_unreadable_folders_are_reported_in_one_line(name, changes, problem, tmp_path):
    family = VARIANTS[name]
    family.make().save_pretrained(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(ConfigError, match=problem) as error:
        family.weights(str(tmp_path)).model()
    assert "\n" not in str(error.value)


def test_files_of_older_libraries_are_read(tmp_path):
    """Before version 5 the base and the scaling of the rotation were separate keys."""
    changes = VARIANTS["llama-3"].changes
    VARIANTS["llama-3"].make().save_pretrained(tmp_path)
    expected = LlamaWeights(str(tmp_path)).config.model.position
    scaling = {
        key: value for key, value in changes["rope_parameters"].items() if key != "rope_theta"
    }
    edit(tmp_path, rope_parameters=None, rope_theta=500.0, rope_scaling=scaling)
    assert LlamaWeights(str(tmp_path)).config.model.position == expected


def test_layers_that_predict_further_tokens_are_left_out(tmp_path):
    """Published files of Qwen3-Next have one more layer, which transformers ignores."""
    VARIANTS["qwen3_next"].make().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    expected = VARIANTS["qwen3_next"].weights(tmp_path).model()(TOKENS)
    tensors = load_file(file)
    further = {f"mtp.{name}": tensors[f"model.{name}"] for name in ("norm.weight", OUTPUT)}
    save_file(tensors | {name: tensor.clone() for name, tensor in further.items()}, file)
    assert torch.equal(VARIANTS["qwen3_next"].weights(tmp_path).model()(TOKENS), expected)


def test_an_interval_of_full_attention_is_read(tmp_path):
    """Published files of Qwen3-Next have it in the place of the types of the layers."""
    theirs = VARIANTS["qwen3_next"].make(layer_types=None, full_attention_interval=2)
    assert theirs.config.layer_types == ["linear_attention", "full_attention"] * 2
    theirs.save_pretrained(tmp_path)
    expected = VARIANTS["qwen3_next"].weights(tmp_path).model()(TOKENS)
    edit(tmp_path, layer_types=None, full_attention_interval=2, rope_parameters=None)
    assert torch.equal(VARIANTS["qwen3_next"].weights(tmp_path).model()(TOKENS), expected)


@FEW
def test_files_that_are_missing_are_named(published, weights, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(weights.path, folder)

    def message():
        with pytest.raises(ConfigError) as error:
            published.family.weights(folder).model()
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
def test_a_name_on_the_hub_is_fetched(published, weights, monkeypatch, tmp_path):
    asked = []

    def fetch(name, allow_patterns, local_files_only):
        asked.append((name, allow_patterns))
        return weights.path

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    monkeypatch.chdir(tmp_path)
    fetched = published.family.weights("someone/some-model_1.0")
    assert asked == []  # not before it is needed
    assert torch.equal(fetched.model()(TOKENS), published.ours(TOKENS))
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
