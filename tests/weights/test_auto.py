"""`weights=auto` finds the family of a folder, and reads runs."""

import json
import subprocess
import sys

import pytest
from hydra import compose, initialize_config_module
from published_families import VARIANTS
from small_runs import run_command

from llm.tokenizers.byte import ByteTokenizer
from llm.weights.auto import open_weights
from llm.weights.families import FAMILIES
from llm.weights.run import RunWeights
from llm.weights.tokenizer_files import write_tokenizer


def refused(*words):
    """Return the error of `llm generate` for weights."""
    command = [sys.executable, "-m", "llm", "generate", "weights=auto", *words]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 2
    return run.stderr


@pytest.mark.parametrize("model_type", list(FAMILIES))
def test_family_is_that_of_the_folder(model_type, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    found = open_weights(str(tmp_path), context_length=8)
    assert type(found) is FAMILIES[model_type]
    assert found == FAMILIES[model_type](str(tmp_path), context_length=8)


def test_a_run_is_read(composed, tmp_path, capsys):
    run = run_command(composed("trainer.max_steps=1"), tmp_path / "run")
    assert isinstance(open_weights(str(run.path)), RunWeights)
    with initialize_config_module("llm.conf", version_base="1.3"):
        words = ["weights=auto", f"weights.path={run.path}", "prompt=a", "max_tokens=2"]
        run_command(compose("generate", words))
    assert capsys.readouterr().out.splitlines()[-1].startswith("a")


def test_what_cannot_be_read_is_refused_in_one_line(tmp_path):
    """Each of these through the command line, in one process each."""
    made = VARIANTS["llama"].make()
    made.save_pretrained(tmp_path / "llama")
    write_tokenizer(ByteTokenizer(), tmp_path / "llama", context_length=64)
    config = tmp_path / "llama" / "config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps({**settings, "model_type": "qwen4"}))
    found = refused(f"weights.path={tmp_path / 'llama'}")
    assert "is a model of type qwen4, which is not supported" in found
    assert "did you mean qwen3?" in found
    assert found.count("\n") == 1
    config.write_text(json.dumps({**settings, "quantization_config": {"quant_method": "awq"}}))
    found = refused(f"weights.path={tmp_path / 'llama'}")
    assert (
        "is quantized (quantization_config in config.json); use the weights that are not" in found
    )
    assert found.count("\n") == 1
