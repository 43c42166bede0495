"""Imports and caches that the fork server prepares once for all test processes."""

import importlib

import read_once
import torch
from hydra import compose, initialize_config_module

from llm.precision import matmul_rate

MODULES = (
    *("llm.__main__", "llm.commands.train", "llm.training.lifecycle", "llm.data.corpora.text"),
    *("llm.callbacks.early_stopping", "llm.callbacks.progress", "llm.callbacks.rng_state"),
    *("llm.launch.ranks", "llm.launch.start", "llm.models.gpt", "llm.parallel.ddp", "pytest"),
    *("llm.optim.groups", "llm.optim.schedules", "llm.tasks.pretraining", "llm.tokenizers.byte"),
)

for module in MODULES:
    importlib.import_module(module)
read_once.install()
with initialize_config_module(
    "llm.conf", version_base="1.3"
):  # fills the caches of Hydra's parsers
    compose("train", ["size=nano", "data=text", "tokenizer=byte", "data.path=text.txt"])
matmul_rate(torch.float32)  # takes an eighth of a second, and the result is cached
