"""Random states in checkpoints, so that a resumed run draws the same numbers."""

import random
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from llm import distributed


class RandomStates(Callback):
    """The random generators' states, saved in checkpoints and restored before the first batch after a resume.

    They are restored that late because the setup of a trainer draws random numbers.

    All ranks start with the same state, and so with the same weights. From the first batch on, ranks with different
    batches draw different numbers, for example for dropout.
    """

    state_key = "rng_state"  # pyright: ignore

    def __init__(self) -> None:
        self._saved: list[dict[str, Any]] | None = None
        self._is_set = False

    def state_dict(self) -> dict[str, Any]:
        """Return the generators' states of every rank, as tensors and plain data."""
        return {"ranks": distributed.gather(states())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the saved states for the first batch."""
        self._saved = state_dict["ranks"]

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Before the first batch, restore the saved states or switch to this rank's random stream."""
        if self._is_set:
            return
        self._is_set = True
        here = distributed.world()
        if self._saved is not None and len(self._saved) == here.size:
            restore_generators(self._saved[here.rank])
        else:
            if self._saved is not None:  # saved by another number of ranks
                restore_generators(self._saved[0])
            switch_stream(stream_of(trainer))
        self._saved = None


def stream_of(trainer: L.Trainer) -> int:
    """Return the number of this rank's random stream: given by the strategy, or else its data-parallel rank."""
    batches = (trainer.distributed_sampler_kwargs or {}).get("rank", 0)
    return getattr(trainer.strategy, "stream", batches)


def states() -> dict[str, Any]:
    """Return the states of this process's generators."""
    numpy_state = np.random.get_state(legacy=False)
    assert isinstance(numpy_state, dict)
    internal = numpy_state.pop("state")
    return {
        "python": random.getstate(),
        "numpy": numpy_state | {"state": {"key": internal["key"].tolist(), "pos": internal["pos"]}},
        "torch": torch.get_rng_state(),
        # Of the device in use only: querying another allocates memory on it.
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def restore_generators(states: dict[str, Any]) -> None:
    """Restore the states of this process's generators."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    key = np.array(states["numpy"]["state"]["key"], dtype=np.uint32)
    np.random.set_state(states["numpy"] | {"state": states["numpy"]["state"] | {"key": key}})
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def switch_stream(number: int) -> None:
    """Switch the generators to a stream; 0 keeps the current one."""
    if number == 0:
        return
    entropy = [torch.initial_seed() % 2**32, int(torch.randint(2**31, ())), number]
    seeds = [int(word) for word in np.random.SeedSequence(entropy).generate_state(3)]
    random.seed(seeds[0])
    np.random.seed(seeds[1])
    torch.manual_seed(seeds[2])
