"""What Lightning, our callbacks and the loggers cost a step, over a raw loop on the same model and data.

    python experiments/trainer_overhead/measure.py [--rounds 5] [--steps 300] [--json]

Thread time of the training thread, a nano model in float32 on the CPU, default callbacks and loggers. Raw loop and
trainer are measured in turn. The model is as small as can be, for its own noise drowns what is measured, and the
figure is the difference of the best rounds of each, in milliseconds a step: other work only ever adds to a time.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import lightning as L
import torch
from hydra import compose, initialize_config_module
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig

from llm.apps import training
from llm.apps.resuming import Resumption
from llm.config.build import build
from llm.hardware import Hardware
from llm.runs import Run
from llm.trainer import make_trainer

WARM_UP = 20  # steps that are not counted: allocations, first kernels, the first log


def composed(folder: Path, steps: int) -> DictConfig:
    """A nano GPT on generated text, with everything else at its default."""
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
        return compose("train", overrides)


def raw_loop(task, data, steps: int) -> float:
    """Milliseconds of thread time a step of the loop anyone would write by hand."""
    model = task.model
    optimizer = task.make_optimizer(task.parameter_groups(model))
    peaks = [group["lr"] for group in optimizer.param_groups]
    batches = iter(data.train_dataloader())
    model.train()
    for step in range(steps):
        if step == WARM_UP:
            start = time.thread_time()
        multiplier = task.schedule(step, steps)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * multiplier
        batch = next(batches)
        optimizer.zero_grad()
        loss = task.step(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return 1e3 * (time.thread_time() - start) / (steps - WARM_UP)


class Clock(Callback):
    """Reads the thread's time after the warm-up and after the last step but its validation."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == WARM_UP:
            self.start = time.thread_time()
        if trainer.global_step == trainer.max_steps:
            steps = trainer.max_steps - WARM_UP
            self.milliseconds = 1e3 * (time.thread_time() - self.start) / steps


def with_trainer(config: DictConfig, task, data, folder: Path, steps: int) -> float:
    """Milliseconds of thread time a step under the trainer with its default callbacks and loggers."""
    run = Run(folder / "run")
    run.path.mkdir(exist_ok=True)
    clock = Clock()
    trainer = make_trainer(
        build(config.trainer),
        Hardware("cpu", precision=32),
        steps,
        task,
        [*training.make_callbacks(config, task, data), clock],
        training.make_loggers(config, run, Resumption()),
        run.path,
    )
    trainer.fit(task, datamodule=data)
    return clock.milliseconds


def measure(rounds: int, steps: int) -> dict[str, float]:
    """Both in turn, `rounds` times; the best of each in milliseconds a step."""
    torch.set_num_threads(1)
    pairs = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = composed(folder, steps)
        for _ in range(rounds):
            data = build(config.data)
            data.prepare_data()
            data.setup("fit")
            training.resolve_vocabulary(config, data.tokenizer.vocab_size)
            L.seed_everything(0, verbose=False)
            task = build(config.task)
            raw = raw_loop(task, data, steps)
            pairs.append((raw, with_trainer(config, build(config.task), data, folder, steps)))
    raw, trained = (min(times) for times in zip(*pairs, strict=True))
    return {"raw_ms": raw, "trainer_ms": trained, "overhead_ms": trained - raw}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    arguments = parser.parse_args()
    result = measure(arguments.rounds, arguments.steps)
    if arguments.json:
        print(json.dumps(result))
    else:
        print(f"torch {torch.__version__}, lightning {L.__version__}, {arguments.rounds} rounds")
        for key, value in result.items():
            print(f"{key:12} {value:.3f}")
