"""Weights & Biases: one W&B run per run, read with W&B's own reader, also after lost connections and crashes."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import psutil
import pytest
import wandb
import yaml
from click.testing import CliRunner
from hydra import compose, initialize_config_module
from lightning.pytorch.callbacks import Callback
from small_runs import run_command
from wandb import wandb_agent
from wandb.cli import cli
from wandb.util import get_core_path

from llm.callbacks.samples import append_samples, read_samples
from llm.loggers import wandb_retry
from llm.loggers.wandb import wandb_logger
from llm.runs import Run
from llm.terminal import shell
from llm.training import lifecycle

PLAIN = ["callbacks.samples=null", "callbacks.picture=null"]
PAGE = Path(__file__).parents[2] / "docs" / "wandb.md"


@pytest.fixture(autouse=True)
def undecided(monkeypatch) -> Iterator[None]:
    """Remove the variables of W&B from the environment, and use a separate W&B process for each test."""
    for name in ("API_KEY", "MODE", "SWEEP_ID", "RUN_ID", "BASE_URL", "DIR"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.delenv("LLM_SWEEP", raising=False)
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture
def train(tmp_path, monkeypatch) -> Callable[..., Path]:
    """train(name, words, callback=…): train a nano model for a few steps, and return the run directory."""
    monkeypatch.setenv("LLM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 200)

    def train(name: str, *words: str, callback: Callback | None = None) -> Path:
        common = [
            *("size=nano", "size.dim=16", "tokenizer=byte", "data=text", "hardware=cpu"),
            *(f"data.path={tmp_path / 'text.txt'}", "logger=wandb", "hardware.precision=32"),
            *("trainer.max_steps=4", "trainer.log_every=1", "trainer.val_every=2"),
            *("callbacks.samples.max_tokens=3", "callbacks.progress=null"),
        ]
        make = lifecycle.choose_callbacks
        with (
            monkeypatch.context() as patch,
            initialize_config_module("llm.conf", version_base="1.3"),
        ):
            patch.setattr(
                lifecycle, "choose_callbacks", lambda *a: [*make(*a), *filter(None, [callback])]
            )
            choices = {"model": "gpt2", "task": "pretraining", "logger": "wandb", "weights": None}
            run_command(compose("train", [*common, *words]), tmp_path / name, words, choices)
        return tmp_path / name

    return train


def records(piece: Path) -> list[dict[str, Any]]:
    """Return the records that W&B's own reader finds in an offline folder."""
    (file,) = piece.glob("*.wandb")
    command = [get_core_path(), "leet", "inspect", "--json", "--no-observability"]
    command += ["--run-file", str(file), str(piece.parent)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [json.loads(line) for line in lines]


def pieces(directory: Path) -> list[dict[str, Any]]:
    """Return the identity, configuration, history and end of each offline part of a run."""
    found = []
    for piece in sorted(directory.glob("wandb/offline-run-*"), key=lambda p: p.stat().st_ctime_ns):
        entries = records(piece)
        (run,) = (entry["run"] for entry in entries if entry["type"] == "run")
        found.append(
            {
                **run,
                "config": run["config"]["update"],
                "rows": [e["history"]["item"] for e in entries if e["type"] == "history"],
                "exit": [e["exit"].get("exit_code", 0) for e in entries if e["type"] == "exit"],
                "summary": {
                    key: value
                    for entry in entries
                    if entry["type"] == "summary"
                    for key, value in entry["summary"].get("update", {}).items()
                },
                "artifacts": [e["artifact"]["name"] for e in entries if e["type"] == "artifact"],
            }
        )
    return found


class At(Callback):
    """Call a function during a step."""

    def __init__(self, step: int, act: Callable[[], None]) -> None:
        self.step, self.act = step, act

    def on_before_backward(self, trainer, pl_module, loss) -> None:
        if trainer.global_step + 1 == self.step:
            self.act()


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def steps(piece: dict[str, Any]) -> list[int]:
    return [row["_step"] for row in piece["rows"]]


def fake_key(monkeypatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed_port()}")


@pytest.fixture
def requests(monkeypatch) -> Iterator[list[bytes]]:
    """A proxy that records the network requests of a process and its children, and answers none."""
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as proxy:

        def serve() -> None:
            with suppress(OSError):  # closed
                while True:
                    connection, _ = proxy.accept()
                    asked.append(connection.recv(200))
                    connection.close()

        threading.Thread(target=serve, daemon=True).start()
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        yield asked


OFFLINE = """
import sys
from pathlib import Path
from llm.loggers.wandb_retry import ResilientRun
run = ResilientRun(Path(sys.argv[1]), "offline", patience=60, identity={"id": "one", "project": "llm"})
run.open()
run.do(lambda run: run.log({"x": 1}), print)
run.finish(0, print)
"""


def test_an_offline_run_sends_no_request(tmp_path, requests, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    subprocess.run([sys.executable, "-c", OFFLINE, str(tmp_path)], check=True)
    assert requests == []
    assert steps(pieces(tmp_path)[0]) == [0]


def test_two_jobs_of_a_sweep_are_two_runs_of_one_group(train, monkeypatch, capsys):
    monkeypatch.setenv("LLM_SWEEP", "seeds")
    upload = "logger.wandb.upload=[picture,checkpoint]"
    folders = [train(f"seed={seed}", f"seed={seed}", upload) for seed in (1, 2)]
    (first,), (second,) = map(pieces, folders)
    assert first["run_id"] != second["run_id"]
    assert (first["config"]["seed"], second["config"]["seed"]) == (1, 2)
    assert first["config"]["model"]["vocab_size"] == 257, "resolved"
    assert first["run_group"] == second["run_group"] == "seeds"
    assert (first["display_name"], first["job_type"]) == ("seed=1", "pretraining")
    assert first["tags"] == ["model=gpt2", "task=pretraining"]
    assert "host" not in first, "the name of the machine is not sent"
    assert steps(first) == [1, 2, 3, 4]
    assert all("train/loss" in row for row in first["rows"])
    losses = [row["val/loss"] for row in first["rows"] if "val/loss" in row]
    assert first["summary"]["best/val/loss"] == pytest.approx(min(losses), abs=1e-6)
    assert first["summary"]["samples.nrows"] == len(read_samples(Run(folders[0]).samples)) == 2
    assert {f"picture-{first['run_id']}", f"checkpoint-{first['run_id']}"} <= set(
        first["artifacts"]
    )
    assert first["exit"] == [0]
    copies = list((folders[0] / "wandb" / "artifacts" / "staging").iterdir())
    assert copies
    assert all(copy.stat().st_mode & 0o200 for copy in copies), "rm -r must not ask"
    shown = capsys.readouterr().out
    for folder in folders:
        assert f"to send it: {shell.program('wandb')} sync {folder}/wandb\n" in shown
        dry = CliRunner().invoke(cli.cli, ["sync", "--dry-run", f"{folder}/wandb"])
        assert "Would sync 1 run(s)" in dry.output


def test_sharded_weights_are_one_artifact(tmp_path):
    parts = Run(tmp_path).best
    parts.mkdir(parents=True)
    for name in ("model.safetensors.index.json", "model-00001-of-00001.safetensors"):
        (parts / name).write_text(name)
    logger = wandb_logger(str(tmp_path), "run", upload=["picture", "checkpoint"])
    logger.log_hyperparams({})
    logger.finish(0)
    (piece,) = tmp_path.glob("wandb/offline-run-*")
    (artifact,) = (e["artifact"] for e in records(piece) if e["type"] == "artifact")
    assert artifact["type"] == "model"
    kept = {entry["path"] for entry in artifact["manifest"]["contents"]}
    assert kept == {f"best.ckpt/{part.name}" for part in parts.iterdir()}


def test_resumed_run_keeps_its_id_and_logs_each_step_once(train, tmp_path):
    with pytest.raises(SystemExit):
        train("run", callback=At(3, lambda: signal.raise_signal(signal.SIGINT)))
    append_samples(tmp_path / "run" / "samples.txt", [(4, "of a session that crashed")])
    folder = train("run")
    (before, after) = pieces(folder)
    assert before["run_id"] == after["run_id"]
    assert (before["exit"], after["exit"]) == ([130], [0])
    assert steps(before) + steps(after) == [1, 2, 3, 4]
    assert after["summary"]["samples.nrows"] == 2, "one table for both sessions"


# The file with the last sent step contains 3, or is empty after a crash.
@pytest.mark.parametrize(("known", "logged"), [("3", [3, 4]), ("", [2, 3, 4])])
def test_row_lost_by_a_killed_process_is_logged_after_resume(tmp_path, known, logged):
    """W&B holds a row back until a row of a later step begins; metrics.csv contains it at the checkpoint."""
    first = wandb_logger(str(tmp_path), "run")
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / f"{first.version}.step").write_text(known)
    (tmp_path / "metrics.csv").write_text("step,train/loss,val/loss\n2,1.5,\n3,1.25,2.5\n")
    logger = wandb_logger(str(tmp_path), "run")
    logger.log_hyperparams({})
    logger.log_metrics({"train/loss": 1.0}, 4)
    logger.finish(0)
    (piece,) = pieces(tmp_path)
    assert steps(piece) == logged


def test_steps_that_are_trained_again_after_a_crash_are_logged_once(tmp_path):
    def session(steps: range) -> None:
        logger = wandb_logger(str(tmp_path), "run")
        logger.log_hyperparams({})
        for step in steps:
            logger.log_metrics({"train/loss": 1.0}, step)
        logger.finish(1)

    session(range(1, 6))
    session(range(4, 8))  # resumed from the checkpoint of step 3
    before, after = pieces(tmp_path)
    assert steps(before) == [1, 2, 3, 4, 5]
    assert steps(after) == [6, 7]


def test_online_run_without_a_network_is_saved_locally(train, monkeypatch):
    fake_key(monkeypatch)
    init, begun = wandb.init, []

    def begin(**arguments: Any) -> Any:
        begun.append((arguments["mode"], arguments["settings"]))
        return init(**arguments)

    monkeypatch.setattr(wandb, "init", begin)
    with pytest.warns(UserWarning, match="Weights & Biases failed") as caught:
        folder = train("run", "logger.wandb.mode=online", "logger.wandb.patience=7", *PLAIN)
    ((mode, settings),) = begun
    assert mode == "offline", "W&B's own attempts to connect, which take long, are not started"
    assert (settings.init_timeout, settings.login_timeout, settings.finish_timeout) == (20, 20, 7)
    assert len([w for w in caught if "Weights & Biases" in str(w.message)]) == 1
    (piece,) = pieces(folder)
    assert steps(piece) == [1, 2, 3, 4]
    assert Run(folder).status == "done"


def test_server_that_never_answers_delays_a_run_for_a_limited_time(tmp_path, monkeypatch):
    monkeypatch.setattr("llm.loggers.wandb_retry.SERVER_TIMEOUT", 0.2)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        logger = wandb_logger(str(tmp_path), "run", mode="online")
        with pytest.warns(UserWarning, match="the run continues offline"):
            logger.log_hyperparams({})
        logger.finish(0)
    assert len(pieces(tmp_path)) == 1


def test_killed_wandb_process_gives_a_warning_and_the_run_continues(train, monkeypatch):
    monkeypatch.setattr("llm.loggers.wandb_retry.WRITE_INTERVAL", 0.1)

    def kill() -> None:
        time.sleep(0.5)  # until W&B has written the rows it received
        for child in psutil.Process().children(recursive=True):
            if "wandb-core" in child.name():
                child.kill()
                child.wait()

    with pytest.warns(UserWarning, match="the run continues offline"):
        folder = train("run", *PLAIN, callback=At(3, kill))
    assert Run(folder).status == "done"
    before, after = pieces(folder)
    assert before["run_id"] == after["run_id"]
    assert sorted({*steps(before), *steps(after)}) == [1, 2, 3, 4]
    assert after["config"]["seed"] == 0
    assert (before["exit"], after["exit"]) == ([], [0])


def test_failed_run_is_marked_as_failed_in_wandb(train, tmp_path):
    def fail() -> None:
        raise RuntimeError("lost")

    with pytest.raises(RuntimeError):
        train("run", *PLAIN, callback=At(2, fail))
    (piece,) = pieces(tmp_path / "run")
    assert piece["exit"] == [1]


def test_run_of_a_wandb_agent_has_the_id_from_the_server(train, tmp_path, monkeypatch):
    """The sweep of docs/wandb.md, run by W&B's own agent up to the start of the process."""
    (block,) = (b for b in PAGE.read_text("utf-8").split("```yaml\n") if "args_no_hyphens" in b)
    sweep = yaml.safe_load(block.partition("```")[0])
    assert sweep["metric"] == {"name": "val/loss", "goal": "minimize"}
    for name in ("RUN_ID", "SWEEP_PARAM_PATH"):
        monkeypatch.setenv(f"WANDB_{name}", "")  # the agent sets these; monkeypatch restores them
    for name, value in {"SWEEP_ID": "s1", "DIR": str(tmp_path), "MODE": "offline"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    process = MagicMock()
    monkeypatch.setattr(wandb_agent, "AgentProcess", process)
    # The state of the agent's loop after an answer of the server.
    agent = wandb_agent.Agent.__new__(wandb_agent.Agent)
    agent._sweep_command, agent._function, agent._run_processes = sweep["command"], None, {}
    agent._in_jupyter, agent._forward_signals = False, False
    point = {"model": "llama", "optimizer.lr": 0.0123, "trainer.max_steps": 2}
    arguments = {key: {"value": value} for key, value in point.items()}
    assert set(arguments) == set(sweep["parameters"])
    agent._command_run({"run_id": "fromserver", "args": arguments, "program": "llm"})

    command = process.call_args.kwargs["command"]
    assert command[:2] == ["llm", "train"]
    (piece,) = pieces(train("run", *command[2:], *PLAIN))
    assert piece["run_id"] == "fromserver"
    assert piece["config"]["optimizer"]["lr"] == 0.0123
    assert steps(piece) == [1, 2]
    assert any("val/loss" in row for row in piece["rows"])


@pytest.mark.parametrize(
    ("environment", "asked", "mode"),
    [
        ({}, None, "offline"),
        ({"WANDB_API_KEY": "0" * 40}, None, "offline"),
        ({"WANDB_MODE": "online"}, None, "online"),
        ({"WANDB_MODE": "online"}, "offline", "offline"),
        ({"WANDB_SWEEP_ID": "s1"}, None, "online"),
        ({"WANDB_SWEEP_ID": "s1", "WANDB_MODE": "offline"}, None, "offline"),
    ],
)
def test_mode_is_offline_unless_the_user_or_an_agent_chooses_online(
    tmp_path, monkeypatch, environment, asked, mode
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert wandb_logger(str(tmp_path), "run", mode=asked).service.mode == mode


def test_jobs_of_a_sweep_started_by_an_agent_have_different_ids(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    monkeypatch.setenv("WANDB_RUN_ID", "fromserver")
    assert wandb_logger(str(tmp_path / "a"), "a").version == "fromserver"
    monkeypatch.setenv("LLM_SWEEP", "seeds")
    ids = {wandb_logger(str(tmp_path / name), name).version for name in ("a", "b")}
    assert len(ids - {"fromserver"}) == 2


def test_refused_setting_is_not_reported_as_a_network_failure(tmp_path, monkeypatch, recwarn):
    monkeypatch.setitem(wandb_retry.PRIVATE, "no_such_setting", True)
    with pytest.raises(ValueError, match=r"refuses a setting \(no_such_setting: ") as refusal:
        wandb_logger(str(tmp_path), "run").log_hyperparams({})
    assert "\n" not in str(refusal.value)
    assert not [w for w in recwarn if "Weights & Biases failed" in str(w.message)]


def test_id_depends_on_the_directory_and_the_start_of_its_run(tmp_path):
    def id_of(name: str) -> str:
        return wandb_logger(str(tmp_path / name), "run").version

    first = id_of("a")
    assert id_of("a") == first != id_of("b")
    Run(tmp_path / "a").update(started="later")  # as rerun=true does
    assert id_of("a") != first


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "loud"}, "mode=loud: is unknown; choose one of online, offline, disabled"),
        ({"upload": ["weights"]}, "upload=weights: is unknown; choose among picture, checkpoint"),
        ({"patience": 0.0}, "patience=0.0: is not positive; use seconds"),
        ({"tags": ["t" * 65]}, "longer than 64"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        wandb_logger(str(tmp_path), "run", **settings)


def test_samples_are_read_back_as_they_were_written(tmp_path):
    texts = [(0, "one\n\ntwo\n"), (0, ""), (12, "=== step none")]
    append_samples(tmp_path / "samples.txt", texts)
    assert read_samples(tmp_path / "samples.txt") == texts
