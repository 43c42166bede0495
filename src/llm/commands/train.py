"""`llm train`: from a configuration to a trained run. Pretraining and every finetune come through here."""

import sys
from pathlib import Path

from llm.config.point import Point
from llm.launch import ranks


def main(point: Point) -> None:
    """Train in this process, or start the ranks that train together."""
    directory = Path(point.directory).absolute()
    ranks.adopt_slurm()
    hardware = ranks.resolve_hardware(point.config)
    if ranks.are_missing(hardware):
        from llm.training.preflight import require_division
        from llm.training.setup import adopted

        require_division(adopted(point.config, point.own), hardware)
        sys.exit(ranks.launch_ranks(["train", *sys.argv[1:]], hardware, directory))
    with ranks.reported():
        from llm.training.lifecycle import train

        train(point.config, directory, point.own, point.choices, point.options)
