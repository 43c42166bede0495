"""ZeRO with DeepSpeed: several ranks learn the same as one. Skipped if DeepSpeed is not installed."""

import pytest
from divided import assert_learn_as_one, train, train_all, write_text
from ranks import on_ranks

pytest.importorskip("deepspeed", reason="needs DeepSpeed: pip install 'llm-hydra[deepspeed]'")

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]

STAGES = ("zero2", "zero3")


@pytest.fixture
def text(tmp_path, monkeypatch):
    """The override that names a small text."""
    monkeypatch.setenv("LLM_CACHE", str(tmp_path / "cache"))
    return write_text(tmp_path)


def test_two_ranks_learn_as_one(text, tmp_path):
    extras = {
        "plain": (),
        "accumulated": ("trainer.accumulate=2",),
        "checkpointed": ("hardware.activation_checkpointing=true",),
        "compiled": ("size.num_layers=1",),
    }
    runs = {f"{stage}-{name}": (text, *more) for stage in STAGES for name, more in extras.items()}
    divided = {name: [f"hardware={name.split('-')[0]}"] for name in runs}
    for (
        stage
    ) in STAGES:  # not in the run on one rank: the compiler cannot trace the check of shapes
        divided[f"{stage}-compiled"].append("hardware.compile=true")
    assert_learn_as_one(tmp_path, runs, {2: divided})


@pytest.mark.parametrize("stage", STAGES)
def test_run_resumes_on_one_rank_and_again_on_two(text, tmp_path, stage):
    def words(steps: int, hardware: str = "cpu") -> list[str]:
        return [text, f"hardware={hardware}", f"trainer.max_steps={steps}", "trainer.val_every=2"]

    whole = train(tmp_path / "whole", words(6))
    for steps, hardware in ((2, stage), (4, "cpu"), (6, stage)):
        if hardware == "cpu":
            train_all(tmp_path, {"moved": words(steps)})
        else:
            runs = {"moved": words(steps, hardware)}
            found = on_ranks(2, train_all, tmp_path, runs, timeout=300)[0]["moved"]
    assert found == [pytest.approx(row, rel=1e-5, nan_ok=True) for row in whole]
