"""llm plan: on a machine without GPUs, for a machine with eight."""

import pytest

from llm.apps import plan as _  # registers what its configuration resolves  # noqa: F401
from llm.apps.planning import plan
from llm.config.composition import compose, open_loader
from llm.config.errors import ConfigError

NODE = ["hardware=fsdp", "hardware.devices=8", "gpu=h100", "data.batch_size=16"]
SMALL = ["size=nano", "model=llama", "tokenizer=byte"]


@pytest.fixture(scope="module")
def planned():
    """planned("size=nano", …): what `llm plan` composes."""
    loader = open_loader("llm.apps.plan", "pkg://llm.conf")
    return lambda *words: compose(loader, "plan", list(words))


def lines(text: str) -> dict[str, list[str]]:
    """What was printed, by the first word of each line."""
    return {words[0]: words[1:] for line in text.splitlines() if (words := line.split())}


def test_eight_gpus_are_planned_for_without_any(planned, capsys):
    plan(planned(*SMALL, *NODE, "trainer.max_tokens=1e9"))
    printed = capsys.readouterr().out
    told = lines(printed)
    assert "8 × H100" in printed
    assert "precision bf16" in printed
    sums = {name: float(told[name][-2]) for name in ("ddp", "fsdp", "tensor_parallel")}
    alone = float(told["one"][-2])
    assert alone > sums["tensor_parallel"] > 0
    assert alone > sums["ddp"] > sums["fsdp"] > 0
    assert all(told[name][-1] == "✓" for name in sums)
    for name, row in told.items():  # five kinds make a sum
        if name in sums:
            assert sum(map(float, row[:5])) == pytest.approx(float(row[5]), abs=0.06)


def test_what_is_too_much_is_marked(planned, capsys):
    plan(
        planned(
            "size=1558m", "tokenizer=gpt2", "gpu=t4", "trainer.max_tokens=1e9", "size.num_layers=2"
        )
    )
    printed = capsys.readouterr().out
    assert "✗" in printed
    assert "precision fp16" in printed
    told = lines(printed)
    assert {"float32", "float16", "best", "20"} <= told.keys()


def test_time_follows_the_mfu_that_is_assumed(planned, capsys):
    times = []
    for mfu in ("0.5", "0.25"):
        plan(planned(*SMALL, "gpu=a100", "trainer.max_tokens=1e12", f"mfu={mfu}"))
        times.append(lines(capsys.readouterr().out)["time"])
    assert float(times[1][0]) == pytest.approx(2 * float(times[0][0]), rel=0.02)
    assert "assumption:" in times[0]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["trainer.max_tokens=1e9", "gpu=h999"], "gpu=h999: not known here"),
        (["trainer.max_tokens=1e9", "gpu=h100", "mfu=40"], "mfu=40"),
        (["trainer.max_tokens=1e9", *NODE, "data.batch_size=12"], "cannot be shared by 8"),
        (["trainer.max_epochs=1", "gpu=h100", "experiment=spam"], "trainer.max_tokens"),
        (["gpu=h100"], "set exactly one of them"),
        (["trainer.max_tokens=1e9", "hardware.devices=2"], "hardware=ddp"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_a_line(words, told, planned):
    with pytest.raises(ConfigError, match=told) as refusal:
        plan(planned(*SMALL, *words))
    assert "\n" not in str(refusal.value)
