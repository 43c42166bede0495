"""TensorBoard, as an optional extra."""

from importlib.util import find_spec

from lightning.pytorch.loggers import TensorBoardLogger


def tensorboard_logger(directory: str, name: str) -> TensorBoardLogger:
    """Return a TensorBoard logger that writes into the run directory.

    Args:
        directory: the run directory; events go to its folder `tensorboard`.
        name: unused, because TensorBoard takes the name of the directory.

    Raises:
        ValueError: the package is not installed.
    """
    if find_spec("tensorboard") is None:
        raise ValueError(
            "logger=tensorboard needs tensorboard: pip install 'llm-hydra[tensorboard]'"
        )
    return TensorBoardLogger(save_dir=directory, name="", version="tensorboard")
