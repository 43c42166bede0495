"""Tests that need a CUDA device: precisions, compilation, equality with the CPU. Skipped elsewhere."""

import pytest
import torch
from hydra import compose, initialize_config_module
from small_runs import run_command

from llm.config.build import build
from llm.generation.decoding import generate
from llm.generation.generation_settings import GenerationSettings
from llm.generation.sampling import Sampler

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def model(preset: str) -> torch.nn.Module:
    with initialize_config_module("llm.conf", version_base="1.3"):
        config = compose("train", [f"model={preset}", "size=nano", "model.vocab_size=97"])
    torch.manual_seed(0)
    return build(config.model).eval()


@pytest.mark.parametrize("precision", ["32", "bf16", "fp16"])
def test_every_precision_learns(composed, tmp_path, precision):
    words = ("hardware=gpu", "hardware.compile=false", f"hardware.precision={precision}")
    run = run_command(composed(*words, "trainer.max_steps=30"), tmp_path / "run")
    assert run.record["metrics"]["val/loss"] < 5.0
    assert run.record["metrics"]["speed/mfu"] > 0


@pytest.mark.parametrize("preset", ["gpt", "gpt2", "llama"])
def test_logits_equal_the_cpus(preset):
    network = model(preset)
    tokens = torch.randint(97, (3, 40))
    expected = network(tokens)
    found = network.cuda()(tokens.cuda()).cpu()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_cached_generation_equals_uncached():
    network = model("gpt").cuda()
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8]]
    texts = [
        generate(
            network,
            prompts,
            settings=GenerationSettings(max_tokens=100, sampler=Sampler(temperature=0.0)),
            use_cache=use_cache,
        )
        for use_cache in (True, False)
    ]
    assert texts[0] == texts[1]
