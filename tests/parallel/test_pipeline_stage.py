"""Stages of a GPT: the parameters of each, and that together they equal the whole model."""

import numpy as np
import pytest
import torch
from ranks import on_ranks
from torch import distributed, nn

from llm.generation.decoding import generate
from llm.generation.generation_settings import GenerationSettings
from llm.generation.sampling import Sampler
from llm.parallel.pipeline_stage import Stage, spans


def test_blocks_are_divided_evenly_and_the_last_stage_has_no_extra_block():
    assert spans(5, 2) == [range(3), range(3, 5)]
    assert [len(span) for span in spans(12, 5)] == [3, 2, 3, 2, 2]
    with pytest.raises(
        ValueError, match="3 stages need a block each, and num_layers=2: use 2 devices"
    ):
        spans(2, 3)


@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_every_parameter_has_one_stage_and_keeps_its_name(build, model):
    whole = build(f"model={model}", "size.num_layers=5")
    names = [name for name, _ in whole.named_parameters()]
    stages = [build(f"model={model}", "size.num_layers=5") for _ in range(3)]
    parts = [Stage(stage, index=index, count=3) for index, stage in enumerate(stages)]
    kept = [name for stage in stages for name, _ in stage.named_parameters()]
    copies = ["head.weight"] if model == "gpt2" else []
    assert sorted(kept) == sorted([*names, *copies])
    assert [part.tied is not None for part in parts] == [bool(copies), False, bool(copies)]
    assert stages[1].flops_per_token(64) == whole.flops_per_token(64)


def test_model_other_than_gpt_is_refused():
    with pytest.raises(ValueError, match="divides a GPT, and this is a Linear: use hardware=fsdp"):
        Stage(nn.Linear(2, 2), index=0, count=2)


def test_mixture_of_experts_is_refused(build):
    with pytest.raises(ValueError, match="losses that balance experts: use hardware=fsdp"):
        Stage(build("model=mixtral"), index=0, count=2)


def results(model):
    """Return the logits of a padded batch, and the generated text."""
    tokens = torch.arange(12).view(2, 6)
    attention = torch.tensor([[False, False, True, True, True, True], [True] * 6])
    with torch.no_grad():
        logits = model(tokens, attention_mask=attention)
    texts = generate(
        model,
        [[1, 2], [3, 4, 5]],
        settings=GenerationSettings(max_tokens=20, sampler=Sampler(temperature=1.0)),
    )
    return logits.numpy(), texts


def stage_results(models):
    distributed.init_process_group("gloo")
    rank, world = distributed.get_rank(), distributed.get_world_size()
    found = []
    for model in models:
        Stage(model, index=rank, count=world)
        found.append(results(model))
    return found


def test_every_device_computes_the_whole_model_without_gradients(build):
    """The window of the longer text moves, so the caches are filled again."""
    size = ("size.num_layers=3", "size.context_length=16")
    models = [build(f"model={name}", *size).eval() for name in ("gpt2", "llama")]
    whole = [results(model) for model in models]
    for rank in on_ranks(2, stage_results, models):
        for (logits, texts), (expected, others) in zip(rank, whole, strict=True):
            np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
            assert texts == others
