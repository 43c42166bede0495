"""`llm plan`: for this machine, and for GPUs that it does not have."""

import re
import shlex
from pathlib import Path

import pytest
from hydra.core.object_type import ObjectType
from omegaconf import OmegaConf
from small_runs import run_command

from llm.commands.plan import optimum_table
from llm.config.composition import compose
from llm.config.errors import ConfigError
from llm.config.loader import open_loader
from llm.terminal.tables import print_tables

PAGE = (Path(__file__).parents[2] / "docs" / "planning.md").read_text("utf-8")
NODE = ["hardware=fsdp", "hardware.devices=8", "gpu=h100", "data.batch_size=16"]
PIPELINE = ["hardware=pipeline", "hardware.devices=4", "gpu=h100"]
SMALL = ["size=nano", "model=llama", "tokenizer=byte"]


@pytest.fixture(scope="module")
def planned():
    """planned("size=nano", …): return the configuration of `llm plan`."""
    loader = open_loader("pkg://llm.conf")

    def planned(*words):
        return compose(loader, "plan", list(words)).config

    return planned


def lines(text: str) -> dict[str, list[str]]:
    """Return the printed lines by their first word."""
    return {words[0]: words[1:] for line in text.splitlines() if (words := line.split())}


def test_planning_page_shows_the_printed_output(planned, capsys):
    """Planning for GPUs needs no GPU."""
    words = shlex.split(re.findall(r"^llm plan (.*)$", PAGE, re.MULTILINE)[0])
    run_command(planned(*words))
    printed = capsys.readouterr().out
    ours = [line.rstrip() for line in printed.splitlines() if not line.startswith("·")]
    shown = PAGE.partition("llm plan ")[2].partition("```\n\n```\n")[2].partition("```")[0]
    assert [line for line in ours if line] == [line for line in shown.splitlines() if line]


def test_strategies_that_shard_more_take_less_memory(planned, capsys):
    run_command(planned(*SMALL, *NODE, "size.num_heads=8", "trainer.max_tokens=1e9"))
    told = lines(capsys.readouterr().out)
    for name in ("ddp", "fsdp", "tensor_parallel"):  # the five kinds of memory add up
        *kinds, total, mark = told[name]
        assert sum(map(float, kinds)) == pytest.approx(float(total), abs=0.06)
        assert mark == "✓"
    sums = [float(told[name][-2]) for name in ("one", "ddp", "fsdp")]
    assert sums == sorted(sums, reverse=True)
    assert len(set(sums)) == 3


def test_every_strategy_is_a_row(planned):
    loader = open_loader("pkg://llm.conf")
    options = {
        option
        for option in loader.get_group_options("hardware", ObjectType.CONFIG)
        if planned(f"hardware={option}").hardware.strategy is not None
    }
    assert options == planned().strategies.keys()


def test_too_much_memory_is_marked(planned, capsys):
    run_command(planned(*SMALL, "gpu=t4", "data.batch_size=262144", "trainer.max_tokens=1e9"))
    printed = capsys.readouterr().out
    assert "✗" in printed
    assert "precision fp16" in printed
    told = lines(printed)
    assert {"float32", "float16", "best", "20"} <= told.keys()


def test_strategy_that_does_not_divide_the_model_has_no_row(planned, capsys):
    words = ["hardware=ddp", "hardware.devices=4", "gpu=h100", "trainer.max_tokens=1e9"]
    run_command(planned(*SMALL, *words, "size.num_heads=4"))
    printed = capsys.readouterr().out
    assert "pipeline" not in lines(printed)
    assert "· pipeline: 4 stages need a block each, and num_layers=2" in printed
    assert lines(printed)["tensor_parallel"][-1] == "✓"


def test_time_is_inversely_proportional_to_the_assumed_mfu(planned, capsys):
    times = []
    for mfu in ("0.5", "0.25"):
        run_command(
            planned(
                *SMALL, "gpu=a100", "data.batch_size=16", "trainer.max_tokens=1e12", f"mfu={mfu}"
            )
        )
        times.append(lines(capsys.readouterr().out)["time"])
    assert float(times[1][0]) == pytest.approx(2 * float(times[0][0]), rel=0.02)
    assert "assumption:" in times[0]


def test_finetune_is_planned_as_far_as_possible(planned, capsys, tmp_path):
    """The plan has size and memory, with the context length of the weights, but no number of tokens."""
    base = planned(*SMALL, "size.context_length=48", "model.vocab_size=300")
    OmegaConf.save(OmegaConf.to_container(base, resolve=True), tmp_path / "config.yaml")
    words = ["experiment=instruct", "adapter=lora", "trainer.max_epochs=3", "gpu=h100"]
    weights = ["weights=run", f"weights.path='{tmp_path}'"]
    run_command(planned(*words, *weights), [*words, *weights])
    printed = capsys.readouterr().out
    assert "of them trained" in printed
    assert "budget    –: the length" in printed
    assert "compute   –: only a part of the model is trained" in printed
    assert "time      –: " in printed
    assert "micro-batch of 8 × 48 tokens" in printed
    assert "one" in lines(printed)
    assert "6·N·D" not in printed


def test_the_budget_of_an_experiment_is_planned_unless_another_is_given(
    planned, capsys, tmp_path, monkeypatch
):
    monkeypatch.setenv("LLM_CACHE", str(tmp_path))
    for words in ([], ["trainer.max_steps=7"]):
        run_command(planned(*SMALL, "experiment=spam", *words), words)
    printed = capsys.readouterr().out
    assert "budget    669 steps; tokens –: the length" in printed
    assert "budget    7 steps; tokens –" in printed


def test_finetune_shows_no_optimal_size(planned, capsys, tmp_path):
    """The published fits are for training without pretrained weights."""
    base = planned(*SMALL, "model.vocab_size=300")
    OmegaConf.save(OmegaConf.to_container(base, resolve=True), tmp_path / "config.yaml")
    words = ["weights=run", f"weights.path='{tmp_path}'", "trainer.max_tokens=1e9", "gpu=h100"]
    run_command(planned(*words), words)
    told = lines(capsys.readouterr().out)
    assert told["budget"][:3] == ["1.00", "B", "tokens"]
    assert "best" not in told


@pytest.mark.parametrize(
    ("tokens", "extrapolates", "says_loss"),
    [(8e5, True, False), (8e10, True, True), (2e13, False, True)],
)
def test_extrapolation_of_the_fits_is_reported(tokens, extrapolates, says_loss, capsys):
    """The fits are to runs of 6e18 FLOPs or more; below a thousandth of that, no loss is predicted."""
    print_tables(*optimum_table(100_000, int(tokens)))
    printed = capsys.readouterr().out
    assert ("they extrapolate" in printed) == extrapolates
    assert (lines(printed)["this"][-1] != "–") == ("the loss is" in printed) == says_loss


@pytest.mark.parametrize("precision", ["bf16", "32"])
def test_rows_of_a_strategy_that_casts_weights_are_marked_as_a_bound(precision, planned, capsys):
    words = ["hardware=ddp", "hardware.devices=2", "gpu=h100", "trainer.max_tokens=1e9"]
    run_command(planned(*SMALL, *words, f"hardware.precision={precision}"))
    noted = "· zero2, zero3: counted with float32 weights" in capsys.readouterr().out
    assert noted == (precision == "bf16")


def test_unsuitable_strategies_are_noted_with_the_reason(planned, capsys):
    words = ["hardware=ddp", "hardware.devices=3", "hardware.precision=fp16", "gpu=h100"]
    run_command(planned(*SMALL, *words, "data.batch_size=6", "trainer.max_steps=1"))
    notes = capsys.readouterr().out
    assert "· fsdp: hardware.precision=fp16: sharded weights" in notes
    assert "· pipeline: hardware.precision=fp16: " in notes


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["trainer.max_tokens=1e9", "gpu=h999"], "gpu: h999 is not known"),
        (["trainer.max_tokens=1e9", "gpu=h100", "mfu=40"], "mfu: 40"),
        (
            ["trainer.max_tokens=1e9", *NODE, "data.batch_size=12"],
            "cannot be divided into 8 equal parts",
        ),
        (["trainer.max_tokens=1e9", *PIPELINE], "4 stages need a block each, and num_layers=2"),
        (
            ["trainer.max_epochs=1", "gpu=h100"],
            "trainer: the number of tokens is not known .* trainer.max_tokens",
        ),
        (
            ["trainer.max_steps=1", "gpu=h100", "tokenizer=char"],
            "tokenizer: the vocabulary size is not known",
        ),
        (["trainer.max_steps=1", "trainer.max_tokens=1e9"], "set exactly one of them"),
        (["trainer.max_tokens=1e9", "hardware.devices=2"], "hardware=ddp"),
    ],
)
def test_impossible_plan_is_refused_in_one_line(words, told, planned, tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_CACHE", str(tmp_path))  # empty: the size of the data is not known
    with pytest.raises(ConfigError, match=told) as refusal:
        run_command(planned(*SMALL, *words))
    assert "\n" not in str(refusal.value)


def test_active_parameters_of_a_mixture_are_shown(planned, capsys):
    words = ("size=nano", "model=mixtral", "tokenizer=byte", "trainer.max_steps=10", "gpu=h100")
    run_command(planned(*words))
    printed = capsys.readouterr().out
    assert re.search(r"model +362 k parameters \(141 k active for each token\): ", printed), printed
    assert "tokens an active parameter" in printed


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model=gpt"], "as Qwen3"),
        (["model=smollm3"], "as SmolLM3"),
        (["model=llama", "model/attention=sinks"], "none: model.attention.sinks: Sinks has no "),
        (
            ["model=llama", "model/position=none"],
            "none: model.position: NoPosition has no counterpart in Llama",
        ),
        (
            ["experiment=classify", "data=spam", "model=gpt2", "task/pooling=last_token"],
            "as GPT-2, a classifier",
        ),
        (
            ["experiment=classify", "data=spam", "task/pooling=last_token"],
            "none: task.model.bias: the head",
        ),
        (["experiment=classify", "data=spam", "task/pooling=mean"], "none: task.model.pooling: "),
    ],
)
def test_the_family_of_the_export_is_named(planned, capsys, overrides, expected):
    run_command(planned("size=nano", "tokenizer=byte", "trainer.max_steps=1", *overrides))
    assert f"\nexport    {expected}" in capsys.readouterr().out
