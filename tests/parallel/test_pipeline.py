"""Pipeline parallelism: the same training as on one device."""

import importlib.util
import json
import warnings
from copy import deepcopy

import pytest
import torch
from divided import MUON, assert_alike, assert_learn_as_one, train
from ranks import on_ranks

from llm.adapters.freeze import LastBlock
from llm.hardware import Hardware, MemoryDivisors
from llm.parallel import pipeline_strategy
from llm.parallel.pipeline import Pipeline, stage_sizes
from llm.parallel.pipeline_stage import Stage, without_values
from llm.tasks.pretraining import Pretraining
from llm.tasks.reward import Reward

PIPELINE = ("hardware=pipeline", "hardware.accelerator=cpu", "hardware.precision=32")
TIED = ("model=gpt2", "size.num_layers=4")


def test_two_and_four_stages_learn_as_one_device(text, tmp_path):
    tied = (text, *TIED, "trainer.accumulate=2", "hardware.activation_checkpointing=true")
    kinds = ("model/layers=nope", "model.pattern=[rotary,nope]")  # not every stage has both
    untied = (text, "model=llama", "size.num_layers=5", *kinds, *MUON)
    gpipe = ("hardware.strategy.schedule=gpipe", "hardware.strategy.microbatches=2")
    runs = {"tied": tied, "untied": untied}
    assert_learn_as_one(tmp_path, runs, {2: {"tied": PIPELINE}, 4: {"untied": (*PIPELINE, *gpipe)}})


def test_importing_the_strategy_leaves_the_warning_filters():
    """A fresh import: warnings that a pipeline ignores are still reported elsewhere."""
    spec = importlib.util.spec_from_file_location("imported_again", pipeline_strategy.__file__)
    with warnings.catch_warnings():
        before = list(warnings.filters)
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
        assert warnings.filters == before


def test_checkpoint_resumes_on_any_number_of_stages(text, tmp_path):
    whole, half = (text, *TIED), (text, *TIED, "trainer.max_steps=2")
    alone = train(tmp_path / "alone", whole)
    train(tmp_path / "one to three", half)
    on_ranks(2, train, tmp_path / "two to one", (*half, *PIPELINE))

    assert_alike(train(tmp_path / "two to one", whole), alone)
    three = (*whole, *PIPELINE, "hardware.strategy.microbatches=4")
    assert_alike(on_ranks(3, train, tmp_path / "one to three", three)[0], alone)
    one, other = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)
        for name in ("alone", "one to three")
    )
    assert one["state_dict"].keys() == other["state_dict"].keys()
    assert (
        one["optimizer_states"][0]["state"].keys() == other["optimizer_states"][0]["state"].keys()
    )
    head, table = (other["state_dict"][f"model.{name}.weight"] for name in ("head", "embedding"))
    assert head.data_ptr() == table.data_ptr()


def test_finetuning_with_an_adapter_and_samples_equals_one_device(tmp_path, monkeypatch, text):
    """Responses of different lengths and numbers, a frozen base, and sampling on all ranks together."""
    monkeypatch.setenv("LLM_CACHE", str(tmp_path / "cache"))
    rows = [{"instruction": f"{n}?", "output": "ja " * (1 + n % 7)} for n in range(40)]
    (tmp_path / "questions.json").write_text(json.dumps(rows))
    train(tmp_path / "base", (text, *TIED, "size.context_length=64"))
    words = (
        *("task=sft", "data=instruction", f"data.path={tmp_path / 'questions.json'}"),
        *("data/template=chatml", "data.test_fraction=0", "weights=run", "adapter=lora"),
        *(f"weights.path={tmp_path / 'base'}", "trainer.accumulate=2", "data.batch_size=4"),
        "callbacks.samples={_target_:llm.callbacks.samples.Samples,prompts:[a,ba],max_tokens:5}",
    )
    alone = train(tmp_path / "alone", words)
    assert_alike(on_ranks(2, train, tmp_path / "two", (*words, *PIPELINE))[0], alone)
    texts = [(tmp_path / name / "samples.txt").read_text() for name in ("alone", "two")]
    assert texts[0] == texts[1] != ""


def test_task_that_needs_more_than_logits_is_refused(build):
    model = build()
    task = Reward(
        model,
        optimizer=torch.optim.SGD,
        schedule=lambda step, steps: 1.0,
        parameter_groups=lambda model: [],
    )
    with pytest.raises(ValueError, match=r"not Reward: use hardware=fsdp"):
        Pipeline().fits(task, 2)


def test_memory_shares_follow_the_micro_batches_in_flight():
    assert Pipeline(microbatches=16).shares(4) == MemoryDivisors(4, 4, 4, activations=16, logits=16)
    assert Pipeline("gpipe", 16).shares(4) == MemoryDivisors(4, 4, 4, activations=4, logits=1)
    assert Pipeline().batch_divisor(4) == 4
    assert Pipeline().data_parallel(4) == 1


@pytest.mark.parametrize("kind", ["gpt2", "llama"])  # a tied and an untied head
def test_memory_shares_follow_the_fullest_stage(build, kind):
    """A large vocabulary adds cost to the first and the last stage."""
    model = build(f"model={kind}", "size.num_layers=5", vocab_size=5000)
    parameters = numel(model)
    stages = [Stage(deepcopy(model), index=index, count=4) for index in range(4)]
    shares = Pipeline().shares_of(model, 4)
    fullest = max(numel(stage.model) for stage in stages)
    assert shares.weights == shares.gradients == parameters / fullest < 2.5
    assert shares[3:] == Pipeline().shares(4)[3:]
    assert len(model.blocks) == 5, "the model itself is not divided"


def test_copy_of_the_embedding_has_no_optimizer_state(build):
    """In a tied model the last stage has a copy of the embedding, which the first stage updates."""
    model = build("size.num_layers=2", vocab_size=5000)
    first, last = (numel(Stage(deepcopy(model), index=index, count=2).model) for index in (0, 1))
    table = model.embedding.weight.numel()
    sizes = [list(each.values()) for each in stage_sizes(model, 2)]
    assert sizes == [[first, first, first], [last, last, last - table]]


def test_without_values_copies_no_weights_and_keeps_tying(build):
    model = build("model=gpt2")
    shapes = without_values(model)
    assert {value.device.type for value in shapes.state_dict().values()} == {"meta"}
    assert shapes.head.weight is shapes.embedding.weight, "the head is still tied"
    assert {p.device.type for p in model.parameters()} == {"cpu"}


def test_a_stage_with_nothing_to_train_is_refused_before_it_is_made(build):
    model = build("size.num_layers=4")
    task = Pretraining(
        model,
        optimizer=torch.optim.SGD,
        schedule=lambda step, steps: 1.0,
        parameter_groups=lambda model: [],
    )
    Pipeline().fits(task, 2)
    LastBlock().apply(model)
    with pytest.raises(ValueError, match="no parameter of stage 0 is trained: use fewer devices"):
        Pipeline().fits(task, 2)


def numel(model) -> int:
    """Return the number of parameters of a model, each counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def test_invalid_settings_are_refused():
    with pytest.raises(ValueError, match="microbatches=0: give 1 or more"):
        Pipeline(microbatches=0)
    with pytest.raises(
        ValueError, match=r"microbatches=2: .* as many as devices, 4; give 4 or more"
    ):
        Pipeline(microbatches=2).check(Hardware("cpu", devices=4, strategy=Pipeline()))
    with pytest.raises(ValueError, match=r"precision=fp16: .* use hardware\.precision=bf16"):
        Pipeline().check(Hardware("cuda", devices=2, strategy=Pipeline(), precision="fp16"))
