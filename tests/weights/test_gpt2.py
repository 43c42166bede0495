"""Our GPT with GPT-2's parts is Hugging Face's GPT-2: logits, gradients, both ways of the map.

Weights are drawn wide (std 0.3) so that every part shows in the logits. At float32 the two differ by
about 1e-6, from the order of sums; a wrong epsilon of the norms moves them by more than 1e-5.
"""

import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from llm.weights import gpt2

TOKENS = torch.randint(97, (2, 40), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def theirs():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=97,
        n_positions=64,
        n_embd=64,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def ours(build, theirs):
    model = build("model=gpt2").eval()
    model.load_state_dict(gpt2.from_huggingface(theirs.state_dict(), model))
    return model


def difference(ours, theirs):
    with torch.no_grad():
        return (ours(TOKENS) - theirs(TOKENS).logits).abs().max().item()


def test_logits_in_float64(ours, theirs):
    assert difference(ours.double(), theirs.double()) < 1e-10


def test_logits_in_float32(ours, theirs):
    assert difference(ours, theirs) < 1e-5


def test_a_wrong_epsilon_would_be_noticed(ours, theirs):
    for module in ours.modules():
        if hasattr(module, "eps"):
            module.eps = 1e-6
    assert difference(ours, theirs) > 1e-5


def test_gradients(ours, theirs):
    for model in (ours.double(), theirs.double()):
        logits = model(TOKENS)
        logits = logits if isinstance(logits, torch.Tensor) else logits.logits
        F.cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten()).backward()
    mapped = gpt2.from_huggingface(
        {name: p.grad for name, p in theirs.named_parameters(remove_duplicate=False)}
    )
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, mapped[name], rtol=0, atol=1e-10)


def test_the_way_back_loads_strictly_and_changes_nothing(ours, theirs):
    back = gpt2.to_huggingface(ours.state_dict())
    expected = theirs.state_dict()
    assert back.keys() == expected.keys()
    assert all(torch.equal(back[name], expected[name]) for name in expected)
    assert theirs.load_state_dict(back, strict=True)


def test_published_files_have_no_prefix_no_head_and_buffers(build, theirs):
    state = theirs.transformer.state_dict()
    state |= {"h.0.attn.bias": torch.zeros(1), "h.1.attn.masked_bias": torch.zeros(1)}
    model = build("model=gpt2").eval()
    model.load_state_dict(gpt2.from_huggingface(state, model))
    assert difference(model, theirs) < 1e-5


def test_a_head_that_is_not_the_embedding_is_refused_by_a_tied_model(build, theirs):
    state = dict(theirs.state_dict())
    state["lm_head.weight"] = state["lm_head.weight"] + 1
    with pytest.raises(ValueError, match=r"untied: lm_head.weight"):
        gpt2.from_huggingface(state, build("model=gpt2"))
    untied = build("model=gpt2", "model.tie_weights=false")
    assert torch.equal(gpt2.from_huggingface(state, untied)["head.weight"], state["lm_head.weight"])


def test_another_size_or_another_model_is_named(build, theirs):
    with pytest.raises(ValueError, match=r"attn.c_attn.weight makes \(192, 64\)"):
        gpt2.from_huggingface(theirs.state_dict(), build("model=gpt2", "size.dim=32"))
    with pytest.raises(ValueError, match=r"missing: what would make blocks.2.attention"):
        gpt2.from_huggingface(theirs.state_dict(), build("model=gpt2", "size.num_layers=3"))
    with pytest.raises(ValueError, match=r"left over: transformer.wpe.weight"):
        gpt2.from_huggingface(theirs.state_dict(), build("model=gpt2", "model/position=rotary"))
