"""Pipeline parallelism: each device has some of the layers and sends its output to the next device."""

from typing import Literal

from torch import nn

from llm.hardware import Hardware, MemoryDivisors, Strategy
from llm.parallel.pipeline_stage import Stage, without_values
from llm.parallel.pipeline_strategy import PipelineStrategy
from llm.tasks.pretraining import Pretraining


class Pipeline(Strategy):
    """Divide the layers into stages, and each batch into micro-batches, so that all devices compute at once.

    `gpipe` runs all forward passes of a batch, then all backward passes (Huang et al. 2019). `1f1b` starts each
    backward pass as early as possible, so that a device stores the activations of at most as many
    micro-batches as there are stages (Narayanan et al. 2019, PipeDream). With S stages and M micro-batches, the
    pipeline bubble is (S - 1) / (M + S - 1) of the time.

    All devices read the same batch. Only the residual stream is sent, once in each direction for each micro-batch
    and stage boundary, so slow connections are enough.

    Args:
        schedule: order of the forward and backward passes.
        microbatches: number of equal parts of a batch; null for as many as there are devices.
    """

    is_sharded = True
    takes_fp16 = False  # as for FSDP

    def __init__(
        self, schedule: Literal["gpipe", "1f1b"] = "1f1b", microbatches: int | None = None
    ) -> None:
        if microbatches is not None and microbatches < 1:
            raise ValueError(
                f"microbatches={microbatches}: give 1 or more, or null for as many as devices"
            )
        self.schedule: Literal["gpipe", "1f1b"] = schedule
        self.microbatches = microbatches

    def lightning(self, hardware: Hardware) -> PipelineStrategy:
        """Return Lightning's strategy for `torch.distributed.pipelining`."""
        return PipelineStrategy(
            hardware.world,
            self.schedule,
            microbatches=self.batch_divisor(hardware.world),
            compiled=hardware.compile,
        )

    def data_parallel(self, world: int) -> int:
        """Return 1, because all ranks read the same batch."""
        return 1

    def batch_divisor(self, world: int) -> int:
        """Return the number of micro-batches."""
        return self.microbatches or world

    def shares(self, world: int) -> MemoryDivisors:
        """Count the activations of the micro-batches in flight, and the logits of one (1f1b) or of all (gpipe)."""
        microbatches = self.batch_divisor(world)
        if self.schedule == "gpipe":
            return MemoryDivisors(world, world, world, activations=world)
        return MemoryDivisors(
            world, world, world, activations=max(world, microbatches), logits=microbatches
        )

    def shares_of(self, model: nn.Module, world: int) -> MemoryDivisors:
        """Count the embeddings in the first stage, and the head in the last one.

        Muon's optimizer state is larger for the embeddings, which is not counted.
        """
        [whole], stages = stage_sizes(model, 1), stage_sizes(model, world)
        divisors = {kind: whole[kind] / max(each[kind] for each in stages) for kind in whole}
        return self.shares(world)._replace(**divisors)

    def check(self, hardware: Hardware) -> None:
        """Raise a ValueError if the schedule has too few micro-batches, or precision is fp16."""
        super().check(hardware)
        if self.schedule == "1f1b" and self.batch_divisor(hardware.world) < hardware.world:
            raise ValueError(
                f"strategy.microbatches={self.microbatches}: schedule=1f1b needs at least as many as devices, "
                f"{hardware.world}; give {hardware.world} or more, or schedule=gpipe"
            )

    def fits(self, task: nn.Module, world: int) -> None:
        """Raise a ValueError if the task needs more than logits, or a stage has no layer or no trained parameter."""
        if not isinstance(task, Pretraining):
            raise ValueError(
                f"a pipeline trains task=pretraining and task=sft, not {type(task).__name__}: use hardware=fsdp"
            )
        for index, stage in enumerate(stage_sizes(task.get_submodule("model"), world)):
            if not stage["optimizer"]:
                raise ValueError(
                    f"no parameter of stage {index} is trained: use fewer devices or freeze fewer parameters"
                )


def stage_sizes(model: nn.Module, count: int) -> list[dict[str, int]]:
    """Return the number of elements that each stage stores, by field of `MemoryDivisors`, without reading weights.

    Raises:
        ValueError: the model cannot be divided into `count` stages.
    """
    sizes = []
    for index in range(count):
        stage = Stage(without_values(model), index=index, count=count)
        parameters = list(stage.model.parameters())
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        # The first stage trains a tied matrix; the last stage's copy has no optimizer state.
        copied = stage.tied.numel() if stage.tied is not None and stage.is_last else 0
        weights = sum(p.numel() for p in parameters)
        sizes.append({"weights": weights, "gradients": trained, "optimizer": trained - copied})
    return sizes
