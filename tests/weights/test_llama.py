"""Our GPT with Llama's parts is Hugging Face's Llama: logits, gradients, both ways of the map.

Theirs casts to float32 inside its norms and rotary embedding whatever the model's precision; for
the comparison in float64 those casts are undone.
"""

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

from llm.weights import llama

TOKENS = torch.randint(97, (2, 40), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=[4, 2, 1], ids=["multi-head", "grouped", "multi-query"])
def theirs(request):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=request.param,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def ours(build, theirs):
    kv_heads = theirs.config.num_key_value_heads
    model = build("model=llama", "size.num_heads=4", f"size.num_kv_heads={kv_heads}").eval()
    model.load_state_dict(llama.from_huggingface(theirs.state_dict(), model))
    return model


@pytest.fixture
def precise(monkeypatch):
    """Their norm and rotary embedding in the model's own precision."""

    def norm(self, x):
        return self.weight * (
            x / (x.square().mean(-1, keepdim=True) + self.variance_epsilon).sqrt()
        )

    def rotary(self, x, position_ids):
        width = self.config.hidden_size // self.config.num_attention_heads
        frequencies = 10000.0 ** (-torch.arange(0, width, 2, dtype=x.dtype) / width)
        angles = (position_ids[..., None].to(x.dtype) * frequencies).repeat(1, 1, 2)
        return angles.cos(), angles.sin()

    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", norm)
    monkeypatch.setattr(modeling_llama.LlamaRotaryEmbedding, "forward", rotary)


def difference(ours, theirs):
    with torch.no_grad():
        return (ours(TOKENS) - theirs(TOKENS).logits).abs().max().item()


def test_logits_in_float64(ours, theirs, precise):
    assert difference(ours.double(), theirs.double()) < 1e-10


def test_logits_in_float32(ours, theirs):
    assert difference(ours, theirs) < 1e-5


def test_a_wrong_epsilon_would_be_noticed(ours, theirs):
    for module in ours.modules():
        if hasattr(module, "eps"):
            module.eps = 1e-6
    assert difference(ours, theirs) > 1e-5


def test_gradients(ours, theirs, precise):
    for model in (ours.double(), theirs.double()):
        logits = model(TOKENS)
        logits = logits if isinstance(logits, torch.Tensor) else logits.logits
        F.cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten()).backward()
    mapped = llama.from_huggingface({name: p.grad for name, p in theirs.named_parameters()})
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, mapped[name], rtol=0, atol=1e-10)


def test_the_way_back_loads_strictly_and_changes_nothing(ours, theirs):
    back = llama.to_huggingface(ours.state_dict())
    expected = theirs.state_dict()
    assert back.keys() == expected.keys()
    assert all(torch.equal(back[name], expected[name]) for name in expected)
    assert theirs.load_state_dict(back, strict=True)


def test_a_tied_llama_has_no_head_of_its_own(build, theirs):
    state = dict(theirs.state_dict())
    del state["lm_head.weight"]
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
    kv_heads = theirs.config.num_key_value_heads
    overrides = ("size.num_heads=4", f"size.num_kv_heads={kv_heads}", "model.tie_weights=true")
    model = build("model=llama", *overrides)
    model.load_state_dict(llama.from_huggingface(state, model))
    assert torch.equal(model.head.weight, state["model.embed_tokens.weight"])


def test_an_empty_state_is_named_missing():
    with pytest.raises(ValueError, match=r"missing: embedding.weight"):
        llama.to_huggingface({})
    with pytest.raises(ValueError, match=r"missing: model.embed_tokens.weight"):
        llama.from_huggingface({})
