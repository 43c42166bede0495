"""A callback that ends the process after the first optimizer step, for `measure.py`."""

import os

from lightning.pytorch.callbacks import Callback


class FirstStep(Callback):
    """Ends the process without output."""

    def on_train_batch_end(self, *given) -> None:
        os._exit(0)
