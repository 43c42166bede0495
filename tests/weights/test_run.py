"""A run directory as a source of weights, also an untrusted one: nothing in it is executed."""

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from llm.checkpoints.checkpoint_file import load_checkpoint, save_checkpoint
from llm.checkpoints.checksums import remove_checkpoint
from llm.config.build import build
from llm.config.errors import ConfigError
from llm.runs import Run
from llm.tokenizers.byte import ByteTokenizer
from llm.weights.run import RunWeights


@pytest.fixture
def run(tmp_path) -> Run:
    """A run directory with a nano model."""
    with initialize_config_module("llm.conf", version_base="1.3"):
        config = compose("train", ["size=nano", "model.vocab_size=257", "tokenizer=byte"])
    run = Run(tmp_path / "run")
    run.update(status="done")
    OmegaConf.save(OmegaConf.create(OmegaConf.to_container(config, resolve=True)), run.config)
    ByteTokenizer().save(run.tokenizer)
    model = build(config.model)
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    save_checkpoint({"state_dict": state}, run.best)
    return run


def changed_run(run: Run, key: str, node: dict) -> RunWeights:
    config = OmegaConf.load(run.config)
    OmegaConf.update(config, key, node, force_add=True)
    OmegaConf.save(config, run.config)
    return RunWeights(str(run.path))


def test_model_and_tokenizer_equal_the_saved_ones(run):
    weights = RunWeights(str(run.path))
    model = weights.model()
    assert not model.training
    for name, stored in weights.parameters().items():
        assert torch.equal(model.state_dict()[name], stored.read())
    assert weights.tokenizer().vocab_size == 257


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "llm.loggers.csv.CSVLogger", "path": "VICTIM"},
        {"_target_": "llm.data.download.fetch", "url": "u", "sha256": "s", "file_name": "VICTIM"},
        {"_target_": "llm.data.cache_folder.writable_folder", "name": "VICTIM"},
        {"_target_": "llm.runs.Run", "path": "VICTIM"},
        {"_target_": "os.system", "command": "rm VICTIM"},
    ],
)
@pytest.mark.parametrize("key", ["task.model.extra", "task.model.norm", "task.model.position"])
def test_node_of_an_untrusted_run_is_refused_before_it_is_called(run, tmp_path, node, key):
    victim = tmp_path / "thesis.txt"
    victim.write_text("years of work")
    node = {name: value.replace("VICTIM", str(victim)) for name, value in node.items()}
    with pytest.raises(ConfigError):
        changed_run(run, key, node).model()
    assert victim.read_text() == "years of work"


def test_trust_in_the_config_of_a_run_is_ignored(run):
    weights = changed_run(run, "trust", ["antigravity_package"])
    assert weights.config.trust == []


def test_trust_of_the_base_in_the_config_of_a_run_is_ignored(run):
    node = {"_target_": "llm.weights.run.RunWeights", "path": str(run.path)}
    weights = changed_run(run, "weights", {**node, "trust": ["antigravity_package"]})
    base = weights.base_weights(weights.config)
    assert isinstance(base, RunWeights)
    assert list(base.trust) == []


def test_unknown_key_is_refused(run):
    with pytest.raises(ConfigError, match=r"model\.colour"):
        changed_run(run, "task.model.colour", "red").model()


def test_the_last_checkpoint_is_used_if_there_is_no_best(run):
    run.best.rename(run.last)
    digests = run.last.with_name("sha256.json")
    digests.write_text(digests.read_text().replace("best.ckpt", "last.ckpt"))
    assert RunWeights(str(run.path)).file() == run.last


@pytest.mark.parametrize("checkpoint", ["best", "last"])
@pytest.mark.parametrize("is_gone", [True, False])
def test_the_previous_checkpoint_is_used_if_the_last_is_damaged_or_missing(
    run, checkpoint, is_gone
):
    state = load_checkpoint(run.best)["state_dict"]
    remove_checkpoint(run.best)
    for step in (2, 4):
        state = {name: torch.full_like(each, step) for name, each in state.items()}
        save_checkpoint({"state_dict": state, "global_step": step}, run.last, keeps_previous=True)
    newest = RunWeights(str(run.path)).fingerprint
    if is_gone:
        run.last.unlink()
    else:
        run.last.write_bytes(run.last.read_bytes()[:-1])
    before = {f.name: f.read_bytes() for f in (run.path / "checkpoints").iterdir()}
    weights = RunWeights(str(run.path), checkpoint)
    with pytest.warns(UserWarning, match="last.ckpt.*; using the previous checkpoint, of step 2"):
        model = weights.model()
    assert all((parameter == 2).all() for parameter in model.parameters())
    with pytest.warns(UserWarning, match="of step 2"):
        assert weights.fingerprint != newest
    assert {file.name: file.read_bytes() for file in (run.path / "checkpoints").iterdir()} == before
    (run.path / "checkpoints" / "previous.ckpt").unlink()
    with pytest.raises(ConfigError, match=r"\.ckpt(: there is no such| is damaged)"):
        weights.model()


@pytest.mark.parametrize("key", ["task.reward.trust", "data.path.trust", "callbacks.x.y.trust"])
def test_trust_of_any_node_in_the_config_of_a_run_is_replaced(run, key):
    weights = changed_run(run, key, ["antigravity_package"])
    assert OmegaConf.select(weights.config, key) == []
    trusting = RunWeights(str(run.path), trust=["mine"])
    assert OmegaConf.select(trusting.config, key) == ["mine"]


@pytest.mark.parametrize("value", ["${oc.env:SECRET}", "http://evil/?${oc.env:SECRET}"])
@pytest.mark.parametrize("wrap", [str, lambda value: [value]])
def test_interpolations_in_an_untrusted_run_are_refused(run, monkeypatch, value, wrap):
    monkeypatch.setenv("SECRET", "sk-123")
    weights = changed_run(run, "data.path", {"_target_": "a.b", "url": wrap(value)})
    with pytest.raises(
        ConfigError, match="is an interpolation, which would be resolved on this machine"
    ):
        weights.model()
