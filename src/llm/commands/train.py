"""`llm train`: pretrain or finetune a model."""

import sys
from dataclasses import dataclass

from llm import distributed
from llm.config.build import config_errors_at
from llm.hardware import Hardware
from llm.launch import ranks
from llm.runs import Run
from llm.training.lifecycle import train
from llm.training.preflight import require_division
from llm.training.training_config import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class Train(TrainingConfig):
    """Pretrain or finetune a model, and record the run."""

    def run(self) -> Run:
        """Train in this process, or start one rank per device.

        Raises:
            UserError: the hardware is not available, or the run cannot begin or resume.
            SystemExit: the ranks have ended; with their status.
        """
        ranks.adopt_slurm()
        hardware = ranks.place_hardware(self.hardware, self.tree)
        if hardware.world > 1 and not distributed.is_rank():
            require_division(self.tree, hardware)
            sys.exit(ranks.launch_ranks(self.composed, hardware))
        with ranks.report_failure():
            with config_errors_at("hardware", Hardware):
                hardware = self.hardware.resolve()
            return train(self, hardware)
