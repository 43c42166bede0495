"""A run stopped by any signal at any time has the right record, exit status and message."""

import signal

import lightning as L
import pytest
from lightning.pytorch.callbacks import Callback
from small_runs import run_command

from llm import __main__ as command
from llm import signals
from llm.runs import Run
from llm.terminal import shell
from llm.training import lifecycle

SHORT = ("trainer.max_steps=4", "trainer.val_every=2")


@pytest.fixture
def interrupt(composed, tmp_path, monkeypatch, capsys):
    """interrupt(where, number): train, and send a signal when a function of `lifecycle` is called."""

    def train(where: str, number: int, *words: str, after: bool = False) -> tuple[int, str]:
        original = getattr(lifecycle, where)

        def interrupted(*given, **named):
            if after:
                original(*given, **named)
            signal.raise_signal(number)

        with monkeypatch.context() as patch, signals.received(signals.stop):
            patch.setattr(lifecycle, where, interrupted)
            with pytest.raises(SystemExit) as stopped:
                run_command(composed(*SHORT, *words), tmp_path / "run", ["seed=0"])
        said, _, advice = capsys.readouterr().err.partition("\n")
        assert advice == f"To resume: {shell.program()} train seed=0\n"
        return stopped.value.code, said

    return train


def test_a_signal_before_the_first_step_is_recorded(interrupt, tmp_path):
    status, said = interrupt("make_loggers", signal.SIGTERM)
    assert (status, said) == (
        143,
        "stopped by SIGTERM before the first step; there was nothing to save.",
    )
    assert Run(tmp_path / "run").status == "interrupted"


def test_signal_swallowed_by_a_library_still_stops_the_run(composed, tmp_path, monkeypatch, capsys):
    """A library may fail in its own way after a signal, for example during an import."""

    def swallow(*_, **__):
        try:
            signal.raise_signal(signal.SIGTERM)
        except signals.Stopped:
            raise RecursionError("maximum recursion depth exceeded") from None

    monkeypatch.setattr(lifecycle, "make_loggers", swallow)
    with signals.received(signals.stop), pytest.raises(SystemExit) as stopped:
        run_command(composed(*SHORT), tmp_path / "run")
    assert stopped.value.code == 143
    assert "stopped by SIGTERM before the first step" in capsys.readouterr().err
    assert Run(tmp_path / "run").status == "interrupted"
    monkeypatch.setattr(lifecycle, "make_loggers", lambda *_, **__: fail_without_a_signal())
    with pytest.raises(RecursionError):  # not because of a signal
        run_command(composed(*SHORT), tmp_path / "other")
    assert Run(tmp_path / "other").status == "failed"


def fail_without_a_signal():
    raise RecursionError("maximum recursion depth exceeded")


def test_a_signal_while_testing_or_closing_loses_nothing(interrupt, composed, tmp_path):
    status, said = interrupt("test_best", signal.SIGUSR1)
    assert (status, said) == (130, "stopped by SIGUSR1 after step 4; it is saved.")
    run = Run(tmp_path / "run")
    assert (run.status, run.record["steps"]) == ("interrupted", 4)
    status, said = interrupt("finish", signal.SIGTERM, after=True)
    assert (status, said) == (143, "stopped by SIGTERM; the run is done, with 4 steps.")
    assert Run(run.path).status == "done"


def test_a_signal_before_a_done_run_is_trained_further_leaves_it_done(
    interrupt, composed, tmp_path
):
    run = run_command(composed(*SHORT), tmp_path / "run")
    before = (run.path / "run.json").read_bytes()
    status, said = interrupt("choose_callbacks", signal.SIGTERM, "trainer.max_steps=6")
    assert (status, said) == (143, "stopped by SIGTERM; the run is done, with 4 steps.")
    assert (run.path / "run.json").read_bytes() == before


def test_a_signal_during_the_last_step_stops_before_the_test(
    composed, tmp_path, stop_at, monkeypatch, capsys
):
    stop_at(4, signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(lifecycle, "test_best", lambda *_: pytest.fail("it was to stop"))
        with pytest.raises(SystemExit) as stopped:
            run_command(composed(*SHORT), tmp_path / "run")
    assert stopped.value.code == 143
    assert "stopped by SIGTERM after step 4; it is saved." in capsys.readouterr().err
    stop_at(None)
    assert run_command(composed(*SHORT), tmp_path / "run").status == "done"


def test_immediate_stop_before_the_first_checkpoint_is_reported(interrupt, tmp_path, monkeypatch):
    from llm.callbacks.checkpoints import Checkpoints

    monkeypatch.setattr(
        Checkpoints, "on_validation_end", lambda *_: signal.raise_signal(signal.SIGTERM)
    )
    with monkeypatch.context() as patch, signals.received(signals.stop):
        patch.setattr("llm.callbacks.interrupt.signals.listen", lambda handler: {})
        status, said = interrupt("test_best", signal.SIGTERM)
    assert (status, said) == (143, "stopped by SIGTERM after step 2; nothing is saved.")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 130)])
def test_stop_before_training_is_reported(monkeypatch, capsys, number, status):
    monkeypatch.setattr("sys.argv", ["llm", "train"])
    monkeypatch.setattr(command, "run", lambda *_: signal.raise_signal(number))
    with pytest.raises(SystemExit) as stopped:
        command.main()
    assert stopped.value.code == status
    said = f"stopped by {signal.Signals(number).name} before training; the run is unchanged\n"
    assert capsys.readouterr().err == said


def test_stop_swallowed_by_a_library_is_reported(monkeypatch, capsys):
    def swallow(*_, **__):
        try:
            signal.raise_signal(signal.SIGTERM)
        except signals.Stopped:
            raise RecursionError("maximum recursion depth exceeded") from None

    monkeypatch.setattr("sys.argv", ["llm", "train"])
    monkeypatch.setattr(command, "run", swallow)
    with pytest.raises(SystemExit) as stopped:
        command.main()
    assert stopped.value.code == 143
    assert capsys.readouterr().err == "stopped by SIGTERM before training; the run is unchanged\n"


def test_signal_that_ended_data_loader_workers_is_not_a_failure(
    composed, tmp_path, monkeypatch, capsys
):
    class ToAll(Callback):
        def on_before_backward(self, trainer: L.Trainer, *_) -> None:
            if trainer.global_step == 3:
                signal.raise_signal(signal.SIGTERM)
                raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated.")

    original = lifecycle.choose_callbacks
    monkeypatch.setattr(lifecycle, "choose_callbacks", lambda *given: [*original(*given), ToAll()])
    with pytest.raises(SystemExit) as stopped:
        run_command(composed(*SHORT), tmp_path / "run")
    assert stopped.value.code == 143
    assert Run(tmp_path / "run").status == "interrupted"
    assert "by SIGTERM after step 3; step 2 is saved" in capsys.readouterr().err
