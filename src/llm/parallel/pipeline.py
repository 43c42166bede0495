"""Pipeline parallelism: each device has some of the layers, and passes on what it computes."""

from copy import deepcopy
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from torch import nn

from llm.hardware import Hardware, MemoryDivisors, Strategy

if TYPE_CHECKING:
    from llm.parallel.pipeline_stage import Stage
    from llm.parallel.pipeline_strategy import PipelineStrategy


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

    def lightning(self, hardware: Hardware) -> "PipelineStrategy":
        """Lightning's strategy around `torch.distributed.pipelining`."""
        from llm.parallel.pipeline_strategy import PipelineStrategy

        return PipelineStrategy(
            hardware.world,
            self.schedule,
            microbatches=self.pieces(hardware.world),
            compiled=hardware.compile,
        )

    def data_parallel(self, world: int) -> int:
        """One batch for all."""
        return 1

    def pieces(self, world: int) -> int:
        """The number of micro-batches."""
        return self.microbatches or world

    def shares(self, world: int) -> MemoryDivisors:
        """Of activations, those of the micro-batches that are under way at once; logits of one, or of all."""
        pieces = self.pieces(world)
        if self.schedule == "gpipe":
            return MemoryDivisors(world, world, world, activations=world)
        return MemoryDivisors(world, world, world, activations=max(world, pieces), logits=pieces)

    def shares_of(self, model: nn.Module, world: int) -> MemoryDivisors:
        """The first stage has the tables beside its layers, the last the head.

        States are taken to be as large for each parameter; Muon's are larger for the tables.
        """
        whole, stages = kept_parameters(model), kept_by_stages(model, world)
        divided = (
            all_ / max(each) for all_, each in zip(whole, zip(*stages, strict=True), strict=True)
        )
        return self.shares(world)._replace(**dict(zip(Kept._fields, divided, strict=True)))

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
        """Refuse a task that needs more than logits, and a model with too few layers or too many frozen ones.

        Raises:
            ValueError: that is what there is.
        """
        from llm.parallel.pipeline_strategy import require_logits

        require_logits(task)
        for index, stage in enumerate(kept_by_stages(task.get_submodule("model"), world)):
            if not stage.optimizer:
                raise ValueError(
                    f"no parameter of stage {index} is trained: use fewer devices, or freeze less"
                )


class Kept(NamedTuple):
    """How many numbers a device keeps of each kind that follows the parameters, under the names of `MemoryDivisors`."""

    weights: int
    gradients: int
    optimizer: int


def kept_parameters(model: nn.Module) -> Kept:
    """What one device keeps of a whole model, or of a stage as if it were one."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Kept(sum(p.numel() for p in model.parameters()), trained, trained)


def kept_by_stages(model: nn.Module, count: int) -> list[Kept]:
    """What each of so many stages keeps of a model, which stays as it is.

    Raises:
        ValueError: the model cannot be divided into so many.
    """
    from llm.parallel.pipeline_stage import Stage

    stages = (Stage(without_weights(model), index=index, count=count) for index in range(count))
    return [_kept_by(stage) for stage in stages]


def without_weights(model: nn.Module) -> nn.Module:
    """A copy that has shapes alone, however much the model weighs."""
    known: dict[int, Any] = {id(buffer): buffer.to("meta") for buffer in model.buffers()}
    for parameter in model.parameters():
        known[id(parameter)] = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
    return deepcopy(model, known)


def _kept_by(stage: "Stage") -> Kept:
    all_ = kept_parameters(stage.model)
    if stage.tied is None or stage.is_first:
        return all_
    # No optimizer looks after the last stage's copy of the table.
    return all_._replace(optimizer=all_.optimizer - stage.tied.numel())
