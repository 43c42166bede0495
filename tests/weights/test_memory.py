"""Loading needs little more memory than the weights, measured on the smallest GPT-2."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from llm.checkpoints.checkpoint_file import save_checkpoint
from llm.config.build import build
from llm.runs import Run
from llm.weights.gpt2 import GPT2Weights

SIZES = {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024, "vocab_size": 50257}
CHILD = """
import json, sys
from pathlib import Path
from llm.weights.gpt2 import GPT2Weights
from llm.weights.run import RunWeights

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))

kind, path, small = sys.argv[1:]
source = {"gpt2": GPT2Weights, "run": RunWeights}[kind]
source(small).model()  # what is imported and allocated but once
before = status("VmRSS")
model = source(path).model()
size = sum(p.numel() * p.element_size() for p in model.parameters())
print(json.dumps({"weights": size, "peak": status("VmHWM") - before}))
"""


def write_folder(path: Path, **sizes: int) -> Path:
    """Write a folder like a published one, with values that are cheap to make."""
    sizes = SIZES | sizes
    width, path_of = sizes["n_embd"], "h.{}.{}.{}".format
    state = {
        "wte.weight": torch.full((sizes["vocab_size"], width), 0.1),
        "wpe.weight": torch.full((sizes["n_positions"], width), 0.1),
        "ln_f.weight": torch.ones(width),
        "ln_f.bias": torch.zeros(width),
    }
    for layer in range(sizes["n_layer"]):
        for norm in ("ln_1", "ln_2"):
            state[path_of(layer, norm, "weight")] = torch.ones(width)
            state[path_of(layer, norm, "bias")] = torch.zeros(width)
        for name, rows, columns in (
            ("attn.c_attn", width, 3 * width),
            ("attn.c_proj", width, width),
            ("mlp.c_fc", width, 4 * width),
            ("mlp.c_proj", 4 * width, width),
        ):
            state[path_of(layer, name, "weight")] = torch.full((rows, columns), 0.1)
            state[path_of(layer, name, "bias")] = torch.zeros(columns)
    path.mkdir()
    save_file(state, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"model_type": "gpt2", **sizes}))
    return path


def write_run(path: Path, folder: Path) -> Path:
    """Write a run directory whose best checkpoint contains the model of a folder."""
    run = Run(path)
    run.update(status="done")
    config = OmegaConf.to_container(GPT2Weights(str(folder)).config, resolve=True)
    config["task"] = {
        "_target_": "llm.tasks.pretraining.Pretraining",
        "model": config["model"],
    }
    OmegaConf.save(OmegaConf.create(config), run.config)
    with torch.device("meta"):
        model = build(config["model"])
    tensors = {p: torch.full(p.shape, 0.1) for p in model.parameters()}  # a tied head counts once
    names = model.named_parameters(remove_duplicate=False)
    save_checkpoint({"state_dict": {f"model.{name}": tensors[p] for name, p in names}}, run.best)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    small = write_folder(folder / "small", n_layer=1, n_embd=12, vocab_size=50, n_positions=8)
    yield {"gpt2": write_folder(folder / "124m"), "small": small}
    for file in folder.rglob("*"):  # pytest keeps its folders; half a gigabyte is too much
        if file.is_file():
            file.unlink()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["gpt2", "run"])
def test_peak_memory_is_at_most_1_4_times_the_weights(kind, folders):
    paths = [folders["gpt2"], folders["small"]]
    if kind == "run":
        paths = [write_run(path.with_name(f"{path.name}-run"), path) for path in paths]
    command = [sys.executable, "-c", CHILD, kind, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout.splitlines()[-1])
    assert measured["weights"] == 4 * 124_439_808
    assert measured["peak"] <= 1.4 * measured["weights"], measured
