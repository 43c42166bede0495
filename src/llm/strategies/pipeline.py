"""Pipeline parallelism: each device has some of the layers, and passes on what it computes."""

from typing import TYPE_CHECKING, Literal

from torch import nn

from llm.hardware import Hardware, Shares, Strategy

if TYPE_CHECKING:
    from llm.strategies.stages import StagesStrategy


class Pipeline(Strategy):
    """Divide the layers; a batch goes through them in micro-batches, so that all devices have work at once.

    `gpipe` computes all micro-batches forward, then all of them backward (Huang et al. 2019). `1f1b` goes
    back with each as soon as it can, so that no device holds the activations of more micro-batches than
    there are stages (Narayanan et al. 2019, PipeDream). Either way devices wait in (S - 1) of M + S - 1
    turns with S stages and M micro-batches: more of these wait less, and each is smaller.

    All devices read the same batch. What travels is the residual stream, once a micro-batch and boundary
    and way: little enough for slow connections.

    Args:
        schedule: the order of the work.
        microbatches: equal parts of a batch; null makes as many as there are devices.
    """

    is_sharded = True
    takes_fp16 = False  # as with FSDP

    def __init__(
        self, schedule: Literal["gpipe", "1f1b"] = "1f1b", microbatches: int | None = None
    ) -> None:
        if microbatches is not None and microbatches < 1:
            raise ValueError(
                f"microbatches={microbatches}: give 1 or more, or null for as many as devices"
            )
        self.schedule: Literal["gpipe", "1f1b"] = schedule
        self.microbatches = microbatches

    def lightning(self, hardware: Hardware) -> "StagesStrategy":
        """Lightning's strategy around `torch.distributed.pipelining`."""
        from llm.strategies.stages import StagesStrategy

        return StagesStrategy(
            hardware.world, self.schedule, self.pieces(hardware.world), hardware.compile
        )

    def data_parallel(self, world: int) -> int:
        """One batch for all."""
        return 1

    def pieces(self, world: int) -> int:
        """The number of micro-batches."""
        return self.microbatches or world

    def shares(self, world: int) -> Shares:
        """Of activations, those of the micro-batches that are under way at once; logits of one, or of all."""
        pieces = self.pieces(world)
        if self.schedule == "gpipe":
            return Shares(world, world, world, activations=world)
        return Shares(world, world, world, activations=max(world, pieces), logits=pieces)

    def check(self, hardware: Hardware) -> None:
        """Refuse float16, and too few micro-batches for the schedule.

        Raises:
            ValueError: it is asked for, or they are.
        """
        super().check(hardware)
        if self.schedule == "1f1b" and self.pieces(hardware.world) < hardware.world:
            raise ValueError(
                f"strategy.microbatches={self.microbatches}: schedule=1f1b keeps {hardware.world} devices at work "
                f"with {hardware.world} or more; give so many, or schedule=gpipe"
            )

    def fits(self, task: nn.Module, world: int) -> None:
        """Refuse a model with fewer layers than there are devices, and a task that needs more than its logits.

        Raises:
            ValueError: that is what there is.
        """
        from llm.models.stages import stages_of
        from llm.strategies.stages import require_logits

        require_logits(task)
        stages_of(task.get_submodule("model"), world)
