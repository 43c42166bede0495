"""The time that Lightning, our callbacks and the loggers add to a step, compared with a raw loop.

    python experiments/trainer_overhead/measure.py [--steps 3000] [--calls] [--json]

Measures the time of the training thread with the default callbacks and loggers, on the CPU in float32. The model is
very small, because the noise of a larger one would hide the overhead. The speed of a machine drifts by more than the
overhead within seconds, so the two alternate: ten steps of the trainer, one of them logged, then ten steps of the raw
loop. The results are medians, in milliseconds per step: of either loop, and of the differences between neighbours,
which the drift does not reach. Validations and checkpoints are not included.

With --calls it counts calls of functions instead, in Python and in C. The overhead consists of them, and their number
is the same in each run and on each machine.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import lightning as L
import torch
from hydra import compose, initialize_config_module
from lightning.pytorch.callbacks import Callback

from llm.config.build import build
from llm.config.check import check
from llm.config.composed import Composed
from llm.runs import Run
from llm.training import setup
from llm.training.lightning_trainer import make_trainer
from llm.training.prepared_run import PreparedRun
from llm.training.resumption import Resumption
from llm.training.training_config import TrainingConfig

STRETCH = 10  # steps in a row: `trainer.log_every`


def composed(folder: Path, steps: int) -> TrainingConfig:
    """Compose a nano GPT on generated text, with everything else at its default."""
    os.environ["LLM_CACHE"] = str(folder / "cache")
    text = folder / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 4000)
    overrides = [
        "size=nano",
        "size.dim=16",
        "size.context_length=16",
        "optimizer=adamw",
        "tokenizer=byte",
        "data=text",
        f"data.path={text}",
        "data.batch_size=4",
        "hardware=cpu",
        "hardware.precision=32",
        "hardware.threads=1",
        f"trainer.max_steps={steps}",
        f"trainer.val_every={steps}",
    ]
    with initialize_config_module("llm.conf", version_base="1.3"):
        return check(Composed(compose("train", overrides)))


class ThreadTime:
    """Milliseconds of this thread."""

    def start(self) -> None:
        """Begin to measure."""
        self._start = time.thread_time()

    def stop(self) -> float:
        """Return what was measured since the start."""
        return 1e3 * (time.thread_time() - self._start)


class Calls:
    """Calls of functions, in Python and in C."""

    def start(self) -> None:
        """Begin to count."""
        self._number = 0
        sys.setprofile(self._count)

    def stop(self) -> int:
        """Return how many there were since the start."""
        sys.setprofile(None)
        return self._number

    def _count(self, frame, event, argument) -> None:
        self._number += event in ("call", "c_call")


class RawLoop:
    """A training loop written by hand."""

    def __init__(self, task, data, max_steps: int) -> None:
        self.task, self.batches, self.max_steps = task, iter(data.train_dataloader()), max_steps
        self.optimizer = task.make_optimizer(task.parameter_groups(task.model))
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.step = 0
        task.model.train()

    def stretch(self) -> None:
        """Train one stretch."""
        for _ in range(STRETCH):
            multiplier = self.task.schedule(self.step, self.max_steps)
            for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
                group["lr"] = peak * multiplier
            batch = next(self.batches)
            self.optimizer.zero_grad()
            loss = self.task.step(batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.task.model.parameters(), 1.0)
            self.optimizer.step()
            self.step += 1


class Alternation(Callback):
    """Measures each stretch of the trainer, and runs and measures a stretch of the raw loop after it.

    Attributes:
        pairs: of the raw loop and of the trainer, per step.
    """

    def __init__(self, raw: RawLoop, meter: ThreadTime | Calls) -> None:
        self.raw, self.meter = raw, meter
        self.pairs: list[tuple[float, float]] = []

    def on_train_start(self, trainer, pl_module) -> None:
        self.meter.start()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step % STRETCH == 0:
            trained = self.meter.stop()
            self.meter.start()
            self.raw.stretch()
            self.pairs.append((self.meter.stop() / STRETCH, trained / STRETCH))
            self.meter.start()

    def on_train_end(self, trainer, pl_module) -> None:
        self.meter.stop()


def train(prepared: PreparedRun, folder: Path, last: Callback) -> None:
    """Train with the trainer, its default callbacks and loggers, and one more callback."""
    run, config = Run(folder / "run"), prepared.config
    run.path.mkdir()
    callbacks = setup.choose_callbacks(config.callbacks, prepared.task, prepared.data)
    trainer = make_trainer(
        prepared,
        callbacks=[*callbacks, last],
        loggers=setup.make_loggers(config.logger, config=config.tree, run=run, resume=Resumption()),
        directory=run.path,
    )
    trainer.fit(prepared.task, datamodule=prepared.data)


def measure(steps: int, *, meter: ThreadTime | Calls) -> dict[str, float]:
    """Return the medians of each, of their differences, per step, and of the shares of the raw loop."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = composed(folder, steps)
        data = config.data.build()
        data.prepare_data()
        data.setup("fit")
        setup.resolve_vocabulary(config.tree, data.tokenizer.vocab_size)
        L.seed_everything(0, verbose=False)
        alternation = Alternation(RawLoop(build(config.tree.task), data, steps), meter)
        prepared = PreparedRun(
            config=config,
            hardware=config.hardware.resolve(),
            data=data,
            task=config.task.build(),
            steps=steps,
            meaning="",
            base=None,
        )
        train(prepared, folder, alternation)
    pairs = alternation.pairs[1:]  # the first includes the start
    return {
        "raw": median(raw for raw, _ in pairs),
        "trainer": median(trained for _, trained in pairs),
        "difference": median(trained - raw for raw, trained in pairs),
        "share": median((trained - raw) / raw for raw, trained in pairs),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--calls", action="store_true", help="count calls of functions instead")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    arguments = parser.parse_args()
    result = measure(arguments.steps, meter=Calls() if arguments.calls else ThreadTime())
    if arguments.json:
        print(json.dumps(result))
    else:
        unit = "calls" if arguments.calls else "milliseconds"
        print(
            f"torch {torch.__version__}, lightning {L.__version__}, {arguments.steps} steps; {unit} per step"
        )
        for key, value in result.items():
            print(f"{key:12} {value:.3f}")
