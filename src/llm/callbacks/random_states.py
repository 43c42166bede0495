"""Random states in the checkpoint: half of what makes a resumed run equal an uninterrupted one."""

import random
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback


class RandomStates(Callback):
    """Save the random generators' states and restore them before the first batch after a resume.

    The other half, the order of the data, is a function of (seed, position) and needs no state. Restoring
    waits for the first batch because setting up a trainer draws random numbers of its own.
    """

    def __init__(self) -> None:
        self._states: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """All generators' states as tensors and plain data."""
        numpy_state = np.random.get_state(legacy=False)
        assert isinstance(numpy_state, dict)
        internal = numpy_state.pop("state")
        return {
            "python": random.getstate(),
            "numpy": numpy_state
            | {"state": {"key": internal["key"].tolist(), "pos": internal["pos"]}},
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the saved states for the first batch."""
        self._states = state_dict

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Restore what was saved, once."""
        if self._states is None:
            return
        states, self._states = self._states, None
        version, internal, gauss = states["python"]
        random.setstate((version, tuple(internal), gauss))
        key = np.array(states["numpy"]["state"]["key"], dtype=np.uint32)
        np.random.set_state(states["numpy"] | {"state": states["numpy"]["state"] | {"key": key}})
        torch.set_rng_state(states["torch"])
        if len(states["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(states["cuda"])
