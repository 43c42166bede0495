"""The reference of a policy does not change when the policy does."""

import pytest
import torch

from llm.adapters.lora import LoRA
from llm.tasks.reference import AdapterOff, FrozenCopy

TOKENS = torch.arange(9)[None]


@pytest.fixture
def policy(build):
    return build().eval()


@torch.no_grad()
def learn(model):
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn_like(parameter), alpha=0.3)


@pytest.mark.parametrize("reference", [FrozenCopy(), AdapterOff()], ids=lambda r: type(r).__name__)
def test_reference_equals_the_policy_before_training(policy, reference):
    before = policy(TOKENS).detach()
    LoRA(rank=2).apply(policy)
    reference.start(policy)
    learn(policy)
    after = policy(TOKENS).detach()
    assert not torch.allclose(before, after, atol=1e-2)
    with reference.of(policy) as model:
        torch.testing.assert_close(model(TOKENS), before)
    assert torch.equal(policy(TOKENS), after), "the policy is restored"


def test_copy_is_frozen_and_takes_the_precision_of_the_policy(policy):
    reference = FrozenCopy()
    reference.start(policy.train())
    with reference.of(policy) as model:
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert model.head.weight is model.embedding.weight, "tied weights stay tied"
    with reference.of(policy.bfloat16()) as model:
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        assert model(TOKENS).dtype == torch.bfloat16


def test_switched_off_adapter_as_reference_needs_an_adapter(policy):
    with pytest.raises(ValueError, match="no adapter to switch off"):
        AdapterOff().check(policy)
