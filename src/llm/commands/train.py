"""`llm train`: from a configuration to a trained run. Pretraining and every finetune come through here."""

import sys
from dataclasses import dataclass

from llm.launch import ranks
from llm.runs import Run
from llm.training.lifecycle import train
from llm.training.preflight import require_division
from llm.training.training_config import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class Train(TrainingConfig):
    """Pretrain or finetune a model, watch it learn, and keep its run."""

    def run(self) -> Run:
        """Train in this process, or start the ranks that train together.

        Raises:
            UserError: the hardware is not there, or the run cannot begin or resume.
            SystemExit: with the status of the ranks, after they have ended.
        """
        ranks.adopt_slurm()
        if ranks.are_missing(hardware := ranks.place_hardware(self.hardware, self.tree)):
            require_division(self.tree, hardware)
            sys.exit(ranks.launch_ranks(self.composed, hardware))
        with ranks.reported():
            return train(self, ranks.resolve_hardware(self.hardware, self.tree))
