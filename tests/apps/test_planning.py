"""llm plan: on a machine without GPUs, for machines with some."""

import re
import shlex
from pathlib import Path

import pytest
from hydra.core.object_type import ObjectType

from llm.apps import plan as _  # registers what its configuration resolves  # noqa: F401
from llm.apps.planning import plan
from llm.config.composition import compose, open_loader
from llm.config.errors import ConfigError

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
NODE = ["hardware=fsdp", "hardware.devices=8", "gpu=h100", "data.batch_size=16"]
PIPELINE = ["hardware=pipeline", "hardware.devices=4", "gpu=h100"]
SMALL = ["size=nano", "model=llama", "tokenizer=byte"]


@pytest.fixture(scope="module")
def planned():
    """planned("size=nano", …): what `llm plan` composes."""
    loader = open_loader("llm.apps.plan", "pkg://llm.conf")
    return lambda *words: compose(loader, "plan", list(words))


def lines(text: str) -> dict[str, list[str]]:
    """What was printed, by the first word of each line."""
    return {words[0]: words[1:] for line in text.splitlines() if (words := line.split())}


def test_the_readme_shows_what_is_printed(planned, capsys):
    """GPUs are planned for without any."""
    words = shlex.split(re.findall(r"^llm plan (.*)$", README, re.MULTILINE)[0])
    plan(planned(*words))
    printed = capsys.readouterr().out
    ours = [line.rstrip() for line in printed.splitlines() if not line.startswith("·")]
    shown = README.partition("llm plan ")[2].partition("```\n\n```\n")[2].partition("```")[0]
    assert [line for line in ours if line] == [line for line in shown.splitlines() if line]


def test_strategies_take_less_the_more_they_divide(planned, capsys):
    plan(planned(*SMALL, *NODE, "size.num_heads=8", "trainer.max_tokens=1e9"))
    told = lines(capsys.readouterr().out)
    for name in ("ddp", "fsdp", "tensor_parallel"):  # five kinds make a sum
        *kinds, total, mark = told[name]
        assert sum(map(float, kinds)) == pytest.approx(float(total), abs=0.06)
        assert mark == "✓"
    sums = [float(told[name][-2]) for name in ("one", "ddp", "fsdp")]
    assert sums == sorted(sums, reverse=True)
    assert len(set(sums)) == 3


def test_every_strategy_is_a_row(planned):
    loader = open_loader("llm.apps.train", "pkg://llm.conf")
    options = {
        option
        for option in loader.get_group_options("hardware", ObjectType.CONFIG)
        if planned(f"hardware={option}").hardware.strategy is not None
    }
    assert options == planned().strategies.keys()


def test_what_is_too_much_is_marked(planned, capsys):
    plan(planned(*SMALL, "gpu=t4", "data.batch_size=262144", "trainer.max_tokens=1e9"))
    printed = capsys.readouterr().out
    assert "✗" in printed
    assert "precision fp16" in printed
    told = lines(printed)
    assert {"float32", "float16", "best", "20"} <= told.keys()


def test_a_strategy_that_does_not_divide_the_model_is_no_row(planned, capsys):
    words = ["hardware=ddp", "hardware.devices=4", "gpu=h100", "trainer.max_tokens=1e9"]
    plan(planned(*SMALL, *words, "size.num_heads=4"))
    printed = capsys.readouterr().out
    assert "pipeline" not in lines(printed)
    assert "· pipeline: 4 stages need a block each, and num_layers=2" in printed
    assert lines(printed)["tensor_parallel"][-1] == "✓"


def test_time_follows_the_mfu_that_is_assumed(planned, capsys):
    times = []
    for mfu in ("0.5", "0.25"):
        plan(
            planned(
                *SMALL, "gpu=a100", "data.batch_size=16", "trainer.max_tokens=1e12", f"mfu={mfu}"
            )
        )
        times.append(lines(capsys.readouterr().out)["time"])
    assert float(times[1][0]) == pytest.approx(2 * float(times[0][0]), rel=0.02)
    assert "assumption:" in times[0]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["trainer.max_tokens=1e9", "gpu=h999"], "gpu=h999: not known here"),
        (["trainer.max_tokens=1e9", "gpu=h100", "mfu=40"], "mfu=40"),
        (
            ["trainer.max_tokens=1e9", *NODE, "data.batch_size=12"],
            "cannot be divided into 8 equal parts",
        ),
        (["trainer.max_tokens=1e9", *PIPELINE], "4 stages need a block each, and num_layers=2"),
        (["trainer.max_epochs=1", "gpu=h100", "experiment=spam"], "trainer.max_tokens"),
        (["gpu=h100"], "set exactly one of them"),
        (["trainer.max_tokens=1e9", "hardware.devices=2"], "hardware=ddp"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_a_line(words, told, planned):
    with pytest.raises(ConfigError, match=told) as refusal:
        plan(planned(*SMALL, *words))
    assert "\n" not in str(refusal.value)
