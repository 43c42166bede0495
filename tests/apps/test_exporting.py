"""`llm export`: from a run, or from published files, to a folder."""

import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM

from llm import __main__ as command_line
from llm.apps import exporting, training
from llm.config.errors import ConfigError
from llm.weights.run import RunWeights

TOKENS = torch.randint(257, (2, 16), generator=torch.Generator().manual_seed(0))
ORIGINAL = Path(__file__).parents[1] / "weights" / "openai" / "original"


def exported(*overrides):
    with initialize_config_module("llm.conf", version_base="1.3"):
        config = compose("export", list(overrides))
    return exporting.export(config)


@pytest.fixture
def base(composed, tmp_path):
    return training.train(composed("model=gpt2", "trainer.max_steps=2"), tmp_path / "base")


@torch.no_grad()
def test_a_run_is_exported_and_trained_further(base, composed, tmp_path, capsys):
    folder = tmp_path / "out"
    exported(f"weights.path={base.path}", f"output={folder}")
    printed = capsys.readouterr().out
    assert "model.safetensors" in printed
    assert f"AutoTokenizer.from_pretrained('{folder}')" in printed
    assert f"llm train weights=gpt2 weights.path={folder}" in printed
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    state = torch.load(base.best, weights_only=True)["state_dict"]
    expected = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    assert torch.equal(theirs.transformer.wte.weight, expected["embedding.weight"])

    overrides = ["weights=gpt2", f"weights.path={folder}", "trainer.max_steps=1"]
    config = composed(*overrides)
    config.optimizer.lr = 0.0
    with torch.enable_grad():
        further = training.train(config, tmp_path / "further", ["weights=gpt2"])
    after = torch.load(further.last, weights_only=True)["state_dict"]
    assert all(torch.equal(after[name], tensor) for name, tensor in state.items())


def test_openais_files_become_hugging_faces(tmp_path):
    exported("weights=gpt2", f"weights.path={ORIGINAL}", f"output={tmp_path / 'out'}")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    expected = AutoModelForCausalLM.from_pretrained(ORIGINAL.with_name("converted"))
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor)


def test_what_is_no_language_model_is_refused(base, tmp_path):
    config = OmegaConf.load(base.config)
    config.task.model = {"_target_": "llm.models.classifier.Classifier", "body": config.model}
    OmegaConf.save(config, base.config)
    with pytest.raises(ConfigError, match=r"holds a Classifier; only language models"):
        exported(f"weights.path={base.path}", f"output={tmp_path / 'out'}")


def test_the_command_fails_in_a_line_before_anything_is_read(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    words = ["weights=gpt2", f"weights.path={ORIGINAL}", f"output={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["llm", "export", *words])
    with pytest.raises(SystemExit) as left:
        command_line.main()
    assert left.value.code == 2
    printed = capsys.readouterr().err
    assert "holds files that no export wrote" in printed
    assert "Traceback" not in printed
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


@torch.no_grad()
def test_an_adapter_is_folded_in(base, composed, tmp_path):
    overrides = ["weights=run", f"weights.path={base.path}", "adapter=lora"]
    config = composed(*overrides, "trainer.max_steps=3", "optimizer.lr=0.1")
    with torch.enable_grad():
        run = training.train(config, tmp_path / "lora", overrides)
    exported(f"weights.path={run.path}", f"output={tmp_path / 'out'}")
    adapted = RunWeights(str(run.path)).model()
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(theirs(TOKENS).logits, adapted(TOKENS), rtol=0, atol=1e-5)
    before = RunWeights(str(base.path)).model()
    assert not torch.allclose(before(TOKENS), adapted(TOKENS), atol=1e-3)
