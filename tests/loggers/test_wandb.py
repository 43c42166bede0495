"""Weights & Biases offline: each run its own, with its configuration and its history."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb
from hydra import compose, initialize_config_module
from wandb.proto import wandb_internal_pb2

from llm.apps import training
from llm.loggers.wandb import wandb_logger


def records(file: Path) -> Iterator[wandb_internal_pb2.Record]:
    """The records of an offline run: LevelDB's log format (blocks of 32 KiB) behind seven bytes of W&B's."""
    data, at, parts = file.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # no header begins so late in a block
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield wandb_internal_pb2.Record.FromString(parts)
            parts = b""


def read_back(directory: Path) -> dict:
    """Id, configuration and history of the offline run in a run directory, from the file that would be sent."""
    (file,) = directory.glob("wandb/offline-run-*/*.wandb")
    found: dict = {"config": {}, "history": [], "exit": None}
    for record in records(file):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found["id"] = record.run.run_id
            updates = record.run.config.update
        elif kind == "config":
            updates = record.config.update
        else:
            updates = []
        found["config"] |= {item.key: json.loads(item.value_json) for item in updates if item.key}
        if kind == "history":
            items = record.history.item
            found["history"].append(
                {i.key or i.nested_key[0]: json.loads(i.value_json) for i in items}
            )
        if kind == "exit":
            found["exit"] = record.exit.exit_code
    return found


@pytest.mark.slow
def test_two_runs_of_one_process_are_two_runs_with_their_own_configuration(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 200)
    for seed in (1, 2):
        words = [
            *("size=nano", "size.dim=16", "tokenizer=byte", "data=text", "hardware=cpu"),
            *(f"data.path={tmp_path / 'text.txt'}", f"seed={seed}", "logger=wandb"),
            *("trainer.max_steps=4", "trainer.log_every=2", "hardware.precision=32"),
            "callbacks.samples.max_tokens=3",
        ]
        with initialize_config_module("llm.conf", version_base="1.3"):
            training.train(compose("train", words), tmp_path / f"run{seed}")
        assert wandb.run is None, "the run is finished"
    first, second = read_back(tmp_path / "run1"), read_back(tmp_path / "run2")
    assert first["id"] != second["id"]
    assert (first["config"]["seed"], second["config"]["seed"]) == (1, 2)
    assert first["config"]["model"]["vocab_size"] == 257, "resolved"
    assert first["exit"] == 0
    losses = [row["train/loss"] for row in first["history"] if "train/loss" in row]
    assert len(losses) == 2
    assert any("val/bits_per_byte" in row for row in first["history"])


def test_without_a_key_nothing_is_sent(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert wandb_logger(str(tmp_path), "run")._wandb_init["mode"] == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert wandb_logger(str(tmp_path), "run")._wandb_init["mode"] == "online"


def test_a_resumed_directory_keeps_its_run(tmp_path):
    ids = [wandb_logger(str(tmp_path), "run", mode="offline").version for _ in range(2)]
    assert ids[0] == ids[1]
    assert wandb_logger(str(tmp_path / "other"), "run", mode="offline").version != ids[0]


def test_an_unknown_mode_is_named(tmp_path):
    with pytest.raises(
        ValueError, match="mode=loud: choose one of auto, online, offline, disabled"
    ):
        wandb_logger(str(tmp_path), "run", mode="loud")
