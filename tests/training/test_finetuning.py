"""Finetuning from a run: adapters, the content of their checkpoints, and further runs from them."""

import shutil

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf
from small_runs import run_command

from llm.comparison.result import Result, read_metric_rows
from llm.config.composed import Composed
from llm.config.errors import ConfigError
from llm.runs import Run
from llm.training import lifecycle
from llm.training.adoption import adopt_architecture
from llm.weights.run import RunWeights

TOKENS = torch.arange(10)[None]
ADAPTERS = {
    "none": (),
    "lora": ("adapter.dropout=0.1",),
    "prefix": ("adapter.length=4",),
    "last_block": (),
    "head": (),
}


@pytest.fixture
def base(composed, tmp_path) -> Run:
    return run_command(composed("model=gpt2", "trainer.max_steps=4"), tmp_path / "base")


@pytest.fixture
def finetune(composed, base, tmp_path):
    """Finetune the base run with an adapter."""

    def run(name: str, *overrides: str) -> Run:
        weights = ["weights=run", f"weights.path={base.path}", "optimizer.lr=0.01"]
        config: DictConfig = composed(*weights, *overrides)
        return run_command(config, tmp_path / name, weights)

    return run


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_finetune_resumes_to_the_bit(finetune, stop_at, adapter):
    whole = finetune("whole", f"adapter={adapter}", *ADAPTERS[adapter])
    stop_at(6)
    with pytest.raises(SystemExit):
        finetune("parts", f"adapter={adapter}", *ADAPTERS[adapter])
    stop_at(None)
    parts = finetune("parts", f"adapter={adapter}", *ADAPTERS[adapter])
    for name in ("last", "best"):
        left, right = (
            torch.load(getattr(run, name), weights_only=True)["state_dict"]
            for run in (whole, parts)
        )
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left)
    before, after = (read_metric_rows(run.metrics) for run in (whole, parts))
    assert [row["step"] for row in after if row["step"] == "0"] == ["0"]
    assert [row["val/loss"] for row in before] == [row["val/loss"] for row in after]


@pytest.fixture
def without_before(monkeypatch):
    """Leave out the validation before the first step."""
    make = lifecycle.make_trainer
    monkeypatch.setattr(
        lifecycle,
        "make_trainer",
        lambda *given, **named: make(*given, **named | {"validates_first": False}),
    )


def test_validation_before_the_first_step_does_not_change_a_finetune(
    finetune, base, request, capsys
):
    run = finetune("run", "callbacks.early_stopping.patience=1")
    assert "step 0/12: " in capsys.readouterr().out
    (before, *_) = read_metric_rows(run.metrics)
    expected = Run(base.path).record["metrics"]["val/loss"]
    assert (before["step"], before["train/loss"]) == ("0", "")
    assert float(before["val/loss"]) == pytest.approx(expected, abs=1e-6)
    assert "0" not in {row["step"] for row in read_metric_rows(base.metrics)}
    assert (
        Result(run).metrics["best_loss"]
        == torch.load(run.last)["callbacks"]["checkpoints"]["best"][-1]
    )

    request.getfixturevalue("without_before")
    other = finetune("other", "callbacks.early_stopping.patience=1")
    for name in ("last", "best"):
        left, right = (
            torch.load(getattr(each, name), weights_only=True)["state_dict"]
            for each in (run, other)
        )
        assert all(torch.equal(left[key], right[key]) for key in left)
    columns = ("step", "train/loss", "val/loss")
    rows = [
        [tuple(row[c] for c in columns) for row in read_metric_rows(r.metrics)]
        for r in (run, other)
    ]
    assert rows[0][1:] == rows[1]


@pytest.mark.parametrize("adapter", ["lora", "prefix", "last_block"])
def test_checkpoint_holds_only_trained_weights_and_loading_applies_them(finetune, base, adapter):
    run = finetune(adapter, f"adapter={adapter}", *ADAPTERS[adapter])
    state = torch.load(run.best, weights_only=True)["state_dict"]
    assert sum(tensor.numel() for tensor in state.values()) == run.record["trained_parameters"]
    assert run.record["trained_parameters"] < run.record["parameters"] / 2
    logits = RunWeights(str(run.path)).model()(TOKENS)
    before = RunWeights(str(base.path)).model()(TOKENS)
    assert not torch.allclose(logits, before, atol=1e-3), "the trained weights are applied"


@pytest.mark.parametrize("targets", ["[*blocks.*]", "[*]"])
def test_finetune_starts_from_a_merged_adapter(finetune, composed, tmp_path, targets):
    """If the head is among the targets, merging unties it."""
    run = finetune("lora", "adapter=lora", f"adapter.targets={targets}")
    weights = [f"weights.path={run.path}", "weights=run"]
    config = composed(*weights, "trainer.max_steps=1", "optimizer.lr=0.0", "schedule=constant")
    further = run_command(config, tmp_path / "further", weights)
    expected, found = (RunWeights(str(each.path)).model()(TOKENS) for each in (run, further))
    assert torch.allclose(expected, found, atol=1e-5)


@pytest.mark.parametrize("model", ["mixtral", "lstm"])
def test_updates_of_experts_and_cells_are_stored_and_merged(composed, tmp_path, model):
    one_step = ("trainer.max_steps=1", "optimizer=adamw", "optimizer.lr=0.1", "schedule=constant")
    base = run_command(composed(f"model={model}", *one_step), tmp_path / "base")
    weights = ["weights=run", f"weights.path={base.path}"]
    run = run_command(composed(*weights, *one_step, "adapter=lora"), tmp_path / "lora", weights)
    names = torch.load(run.best, weights_only=True)["state_dict"]
    assert any("experts.gate.lora" in name or "recurrent_weight" in name for name in names)
    assert not any("router" in name for name in names)
    merged = RunWeights(str(base.path)).model()
    before = merged(TOKENS)
    RunWeights(str(run.path)).load(merged)
    adapted = RunWeights(str(run.path)).model()(TOKENS)
    torch.testing.assert_close(merged(TOKENS), adapted, rtol=0, atol=1e-5)
    assert not torch.allclose(adapted, before, atol=1e-4)


def test_prefix_is_not_merged(finetune, composed, tmp_path):
    run = finetune("prefix", "adapter=prefix", "adapter.length=4")
    weights = [f"weights.path={run.path}", "weights=run"]
    with pytest.raises(
        ConfigError, match="has a prefix adapter, which cannot be merged into the weights"
    ):
        run_command(composed(*weights), tmp_path / "further", weights)


def test_adapter_needs_the_weights_it_was_trained_on(finetune, base, tmp_path):
    run = finetune("lora", "adapter=lora")
    moved = tmp_path / "moved"
    shutil.copytree(base.path, moved)
    shutil.rmtree(base.path)
    with pytest.raises(ConfigError, match=r"cannot be read .*weights\.base="):
        RunWeights(str(run.path)).model()
    found = RunWeights(str(run.path), base=str(moved)).model()(TOKENS)
    assert found.isfinite().all()
    with pytest.raises(ConfigError, match="changed since"):
        RunWeights(str(run.path), base=str(run.path)).model()


def test_task_and_data_that_do_not_fit_are_named(composed, tmp_path):
    config = composed("task=sft")
    with pytest.raises(ConfigError, match="SFT needs data such as data=instruction"):
        run_command(config, tmp_path / "run")


@pytest.mark.parametrize(("words", "kept"), [([], "phi3"), (["data/template=alpaca"], "alpaca")])
def test_a_template_is_taken_over_from_the_base_unless_another_is_chosen(words, kept, tmp_path):
    with initialize_config_module("llm.conf", version_base="1.3"):
        base = compose("train", ["experiment=instruct", "data/template=phi3"])
        config = compose("train", ["experiment=prefer", *words])
        expected = compose("train", ["experiment=instruct", f"data/template={kept}"])
    saved = OmegaConf.create(OmegaConf.to_container(base, resolve=True))
    OmegaConf.save(saved, tmp_path / "config.yaml")
    config = adopt_architecture(Composed(config, words), RunWeights(str(tmp_path)))
    assert config.data.template == expected.data.template


def test_adapter_refuses_a_base_that_was_trained_further(finetune, composed, base):
    finetune("lora", "adapter=lora")
    run_command(composed("model=gpt2", "trainer.max_steps=8"), base.path)
    with pytest.raises(ConfigError, match="began from weights that have changed since"):
        finetune("lora", "adapter=lora", "trainer.max_steps=14")


@pytest.fixture
def classify(base, tmp_path):
    """Train a classifier from the base run, with the callbacks of pretraining."""
    labelled = tmp_path / "labelled.csv"
    labelled.write_text("text,label\n" + "".join(f"number {n},{n % 2}\n" for n in range(40)))

    def run(*overrides: str) -> Run:
        words = ["data=labelled", f"data.path={labelled}", "task=classification", "hardware=cpu"]
        words += ["weights=run", f"weights.path={base.path}", "trainer.max_steps=2", *overrides]
        with initialize_config_module("llm.conf", version_base="1.3"):
            config = compose("train", words)
        return run_command(config, tmp_path / "run", words)

    return run


def test_callbacks_that_do_not_suit_a_task_are_left_out(classify, capsys):
    assert classify("callbacks=default", "callbacks.picture=null").status == "done"
    assert "callbacks.samples is left out" in capsys.readouterr().out


def test_task_error_is_reported_before_a_directory_is_made(classify, tmp_path):
    with pytest.raises(ConfigError, match="task: num_classes=3: the data have 2 classes"):
        classify("task.model.num_classes=3")
    with pytest.raises(
        ConfigError, match=r"^optimizer: Muon trains the matrices .* set optimizer=adamw$"
    ):
        classify("adapter=head")
    assert not (tmp_path / "run").exists()
    assert classify().status == "done"


def test_an_adapter_without_weights_is_refused(composed, tmp_path):
    with pytest.raises(ConfigError, match="adapter: it would freeze untrained weights"):
        run_command(composed("adapter=lora"), tmp_path / "run")
