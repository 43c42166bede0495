"""Checkpoints are the same under every strategy, so a run can change its strategy."""

import torch
from divided import MUON, assert_alike, train
from ranks import on_ranks

from llm.checkpoints.checkpoint_file import load_checkpoint


def shapes(value):
    """Return the structure of a checkpoint: every key, and the shape and dtype of every tensor."""
    if isinstance(value, dict):
        return {key: shapes(each) for key, each in value.items()}
    return (value.shape, value.dtype) if isinstance(value, torch.Tensor) else type(value)


def test_run_resumes_under_fsdp_one_device_and_tensor_parallelism(text, tmp_path):
    words = (text, *MUON, "model=llama", "size.num_kv_heads=2", "model.tie_weights=true")
    alone = train(tmp_path / "alone", (*words, "trainer.max_steps=8"))
    moved = tmp_path / "moved"
    in_parts = ("hardware=fsdp", "hardware.strategy.sharded_checkpoint=true")
    groups = ("hardware=tensor_parallel", "hardware.strategy.size=2")
    on_ranks(2, train, moved, (*words, "trainer.max_steps=2", *in_parts))
    train(moved, (*words, "trainer.max_steps=4"))
    on_ranks(4, train, moved, (*words, "trainer.max_steps=6", *groups))
    written = load_checkpoint(moved / "checkpoints" / "last.ckpt")
    curve = on_ranks(2, train, moved, (*words, "trainer.max_steps=8", "hardware=fsdp"))[0]
    assert_alike(curve, alone)

    expected = load_checkpoint(tmp_path / "alone" / "checkpoints" / "last.ckpt")
    for name in ("state_dict", "optimizer_states", "loops"):
        assert shapes(written[name]) == shapes(expected[name])
    tensors = load_checkpoint(moved / "checkpoints" / "last.ckpt")["state_dict"]
    for name, tensor in expected["state_dict"].items():
        torch.testing.assert_close(tensors[name], tensor, rtol=1e-4, atol=1e-6)
