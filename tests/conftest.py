"""Fixtures for all tests."""

import csv
import functools
import gc
import hashlib
import json
import logging
import os
import pickle
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import read_once
import shape_checks
import torch
from chat_server import stand_in  # noqa: F401
from forked import forks  # noqa: F401
from small_runs import composed, run_command, stop_at, text  # noqa: F401

shape_checks.install()
read_once.install()

# One thread per process: the tests run in several processes, and more threads than cores slow them down.
# Processes that tests start inherit it.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

# Otherwise each process that a test starts would compile the whole package again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Collecting garbage among a million imported objects, every 700 new ones, took a tenth of the tests' time.
gc.set_threshold(50_000, 20, 20)

# A background job of a script ignores SIGINT, a command under nohup SIGHUP; child processes would inherit this.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A folder beside the checkout with published data files; LLM_TEST_DATA replaces it.
SHARED_DATA = Path(os.environ.get("LLM_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(autouse=True)
def _restore_root_log_handlers() -> Iterator[None]:
    """Remove the log handlers that a command adds, which would write to the captured output of another test."""
    handlers = [*logging.root.handlers]
    yield
    logging.root.handlers[:] = handlers


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of published data files; the test is skipped if it is missing."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no published data files at {SHARED_DATA}; set LLM_TEST_DATA to their folder")
    return SHARED_DATA


@pytest.fixture(scope="session")
def compose_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """compose_model("model=llama", …): the node of a model, as a command line would compose it; size nano by default.

    The processes of the tests share what they compose, because a composition takes a fifth of a second.
    """
    folder = tmp_path_factory.getbasetemp()
    process = os.environ.get("PYTEST_XDIST_WORKER", "")
    folder = (folder.parent if process else folder) / "models"
    folder.mkdir(exist_ok=True)

    @functools.cache
    def pickled(*overrides: str) -> bytes:
        file = folder / hashlib.sha256("\n".join(overrides).encode()).hexdigest()
        if not file.exists():
            unfinished = file.with_suffix(f".{os.getpid()}")
            unfinished.write_bytes(pickle.dumps(composed_model(overrides)))
            unfinished.replace(file)
        return file.read_bytes()

    def compose_model(*overrides: str) -> Any:
        return pickle.loads(pickled(*overrides))  # a copy, which a test may change

    return compose_model


def composed_model(overrides: Sequence[str]) -> Any:
    """Compose a model as Hydra does, but without Hydra's own section, which took two thirds of the time."""
    from hydra import initialize_config_module
    from hydra._internal.defaults_list import create_defaults_list
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    given = {override.split("=")[0] for override in overrides}
    defaults = [o for o in ("model=gpt2", "size=nano") if o.split("=")[0] not in given]
    groups = [f"+{o}" if o.split("=")[0] in ("model", "size") else o for o in overrides]
    words = [*(f"+{o}" for o in defaults), *groups]
    with initialize_config_module(config_module="llm.conf", version_base="1.3"):
        loader: Any = GlobalHydra.instance().config_loader()
        parsed, repo = loader._parse_overrides_and_create_caching_repo(None, words)
        parsed = [override for override in parsed if not override.is_hydra_override()]
        found = create_defaults_list(repo, None, parsed, prepend_hydra=False, skip_missing=False)
        config = loader._compose_config_from_defaults_list(found.defaults, repo)
    OmegaConf.set_struct(config, True)
    loader._apply_overrides_to_config(found.config_overrides, config)
    return config.model


@pytest.fixture(scope="session")
def build(compose_model: Callable[..., Any]) -> Callable[..., Any]:
    """build("model=llama", "model/norm=layer", …): a GPT as a command line would compose it.

    Size nano and 97 tokens by default. The imports are in the function, because modules imported before the run-time
    check of shapes is installed are not checked.
    """

    def build(*overrides: str, vocab_size: int = 97) -> Any:
        from llm.config.build import build as build_node

        return build_node(compose_model(*overrides), vocab_size=vocab_size)

    return build


# Small finetuning runs: nano GPT, bytes, ChatML, made-up pairs of responses.

WORDS = "cat dog hen cow pig fox owl ant bee elk ape rat".split()
SMALL = [
    *("size=nano", "size.dim=32", "size.context_length=80", "model=gpt2", "tokenizer=byte"),
    *("data/template=chatml", "data.batch_size=4", "data.validation_fraction=0.2"),
    *(
        "hardware=cpu",
        "hardware.precision=32",
        "hardware.threads=1",
        "callbacks.samples=null",
        "callbacks.picture=null",
    ),
    *("optimizer=adamw", "schedule=constant", "schedule.warmup_steps=0", "model.dropout=0.1"),
    *("trainer.max_steps=6", "trainer.val_every=3", "trainer.log_every=1"),
]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Thirty-six instructions, the polite response chosen, the rude one rejected."""
    rows = [
        {"instruction": f"{word} {n}?", "chosen": f"a {word}, sir", "rejected": f"{word}, you fool"}
        for word in WORDS
        for n in range(3)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return path


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Any]:
    """train("name", "task=dpo", …): a small run of `llm train` in a directory of that name."""

    def train(name: str, *words: str) -> Any:
        from hydra import compose, initialize_config_module

        given = {word.split("=")[0] for word in words}
        words = (*(word for word in SMALL if word.split("=")[0] not in given), *words)
        if "weights=run" in words:  # the model is that of the run
            words = tuple(w for w in words if not w.startswith(("model=", "size", "tokenizer")))
        with initialize_config_module("llm.conf", version_base="1.3"):
            config = compose("train", [*words])
        return run_command(config, tmp_path / name, words)

    return train


@pytest.fixture
def interrupted(train, monkeypatch) -> Callable[..., Any]:
    """interrupted("name", …, step=3): like `train`, but stopped by Ctrl-C during a step, and then resumed."""

    def train_in_parts(name: str, *words: str, step: int) -> Any:
        from lightning.pytorch.callbacks import Callback

        from llm.training import lifecycle

        class CtrlC(Callback):
            def on_before_backward(self, trainer: Any, *_: Any) -> None:
                if trainer.global_step + 1 == step:
                    signal.raise_signal(signal.SIGINT)

        original = lifecycle.choose_callbacks
        with monkeypatch.context() as patch:
            patch.setattr(
                lifecycle, "choose_callbacks", lambda *given: [*original(*given), CtrlC()]
            )
            with pytest.raises(SystemExit):
                train(name, *words)
        return train(name, *words)

    return train_in_parts


@pytest.fixture
def logged() -> Callable[[Any], list[dict[str, str]]]:
    """Return the rows of a run's metrics.csv, without values that depend on the clock and the machine."""

    def rows(run: Any) -> list[dict[str, str]]:
        with run.metrics.open(newline="") as file:
            return [
                {k: v for k, v in row.items() if not k.startswith(("speed/", "memory/"))}
                for row in csv.DictReader(file)
            ]

    return rows
