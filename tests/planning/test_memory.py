"""The planned memory of training, compared with formulas, torch and the operating system."""

import ctypes
import multiprocessing
import resource
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from small_runs import run_command

from llm.config.build import build
from llm.planning.cost import fill_in_sizes
from llm.planning.memory import KINDS, Memory, measure_step
from llm.training.activation_checkpointing import checkpoint_activations


def weigh(config, dtype=torch.float32, accelerator="cpu"):
    """Return the memory timeline of a composed pretraining."""

    def make():
        task = build(config.task)
        if config.hardware.activation_checkpointing:
            checkpoint_activations(task.model)
        return task

    shape = config.data.batch_size, config.size.context_length
    keys = ("tokens", "targets")
    return measure_step(
        make,
        lambda: {key: torch.zeros(shape, dtype=torch.long) for key in keys},
        dtype=dtype,
        accumulate=config.trainer.accumulate,
        accelerator=accelerator,
    )


# Memory of a model


def test_activations_of_a_layer_equal_the_count_of_korthikanti_et_al(composed):
    """Equation 1 without the scores, which the fused kernel recomputes, and without dropout: 32 sbh bytes.

    In float32 it is twice that. The kernel also keeps a logarithm for each row of scores, a norm two numbers per token.
    """
    rows, length, width, heads = 3, 64, 64, 2
    words = f"model=gpt2 size=nano data.batch_size={rows} optimizer=sgd optimizer.momentum=0 optimizer.nesterov=false"
    small, large = (
        weigh(composed(f"{words} size.num_layers={layers}")).live.max(axis=0)[
            KINDS.index("activations")
        ]
        for layers in (2, 3)
    )
    tokens = rows * length
    by_hand = 2 * (34 - 2) * tokens * width + 4 * heads * tokens + 2 * 2 * 4 * tokens
    assert large - small == by_hand


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "rmsprop", "adagrad", "muon"])
def test_optimizer_state_and_gradients_have_their_real_sizes(optimizer, composed):
    config = composed(f"model=gpt2 size=nano optimizer={optimizer}")
    live = weigh(config).live
    task = build(config.task)
    real = task.configure_optimizers()
    task.step(
        {key: torch.zeros(2, 8, dtype=torch.long) for key in ("tokens", "targets")}
    ).backward()
    real.step()
    states = [leaf for state in real.state.values() for leaf in state.values()]
    parameters = sum(parameter.nbytes for parameter in task.parameters())
    last = Memory(*live[-1])  # after the step
    assert last.optimizer == sum(leaf.nbytes for leaf in states if isinstance(leaf, torch.Tensor))
    assert last.gradients == parameters
    assert last.weights == pytest.approx(parameters, rel=1e-3)  # the rest are the sums of a metric
    assert last.activations + last.logits == 0


def test_logits_logarithms_and_their_gradients_are_counted(composed):
    words = "model=gpt2 size=nano model.vocab_size=5000 data.batch_size=4"
    peak = weigh(composed(words)).peak()
    assert peak.logits == pytest.approx(3 * 4 * 64 * 5000 * 4, rel=0.01)


def test_checkpointing_stores_only_the_residual_stream(composed):
    words = "model=gpt2 size=nano size.num_layers=4 data.batch_size=4"
    column = KINDS.index("activations")
    kept, recomputed = (
        weigh(composed(f"{words} hardware.activation_checkpointing={value}")).live[:, column].max()
        for value in ("false", "true")
    )
    one_block = kept / 4
    stream = 4 * 4 * 64 * 64 * 4
    assert recomputed < stream + 2.5 * one_block < kept


def test_bfloat16_halves_activations_but_not_the_residual_stream(composed):
    config = composed("model=gpt2 size=nano data.batch_size=8 model/kernel=fused")
    full, half = (
        weigh(config, dtype, "cuda").peak().activations for dtype in (torch.float32, torch.bfloat16)
    )
    assert 0.5 < half / full < 0.9


def test_real_tensors_stay_on_the_cpu_beside_fake_ones_on_an_accelerator(composed):
    """A model is measured while other threads compute with real tensors."""
    real, seen = torch.zeros(1), []

    def batch():
        seen.append(real.is_cpu)
        return {key: torch.zeros(2, 8, dtype=torch.long) for key in ("tokens", "targets")}

    node = composed("model=gpt2 size=nano").task
    measure_step(partial(build, node), batch, dtype=torch.bfloat16, accelerator="cuda")
    assert seen == [True]


def test_recomputation_on_an_accelerator_equals_the_forward_pass(composed):
    """In bfloat16 a CPU uses another kernel, and checkpointing must use the same in the backward pass."""
    tree = composed("size=nano hardware.activation_checkpointing=true")
    assert weigh(tree, torch.bfloat16, "cuda").live.max() > 0
    assert torch.zeros(1).is_cpu, "the accelerator is faked only during the measurement"


def test_accelerator_does_not_use_the_implementations_for_a_cpu(composed):
    """In bfloat16 a CPU computes short attention without the fused kernel, and stores the scores."""
    config = composed("model=gpt2 size=nano size.context_length=256 data.batch_size=4")
    cpu, gpu = (
        weigh(config, torch.bfloat16, place).peak().activations for place in ("cpu", "cuda")
    )
    scores = 4 * 2 * 256 * 256 * 2  # rows, heads, queries, keys, bytes
    assert cpu > gpu + 2 * scores


def test_an_accumulated_step_holds_gradients_beside_activations(composed):
    config = composed("model=gpt2 size=nano data.batch_size=32")
    assert weigh(config).peak().gradients == 0  # freed before they are computed again
    config.trainer.accumulate = 4
    assert weigh(config).peak().gradients > 0


def test_shares_divide_memory_and_can_move_the_peak(composed):
    timeline = weigh(composed("model=gpt2 size=nano data.batch_size=32 optimizer=adamw"))
    whole = timeline.peak()
    assert timeline.peak((2,) * 5).total == pytest.approx(whole.total / 2)
    sharded = timeline.peak((1, 1, 1, 1000, 1000))
    assert sharded.activations < whole.activations / 100
    assert sharded.gradients > 0 == whole.gradients
    assert timeline.peak(keeps_gradients=True).gradients == sharded.gradients


def test_other_objectives_are_measured(composed):
    """DPO has two copies of the weights, and two rows for each pair."""
    plain = composed("experiment=instruct model=gpt2 size=nano")
    pairs = composed("experiment=prefer model=gpt2 size=nano adapter=none")

    def make():
        task = build(pairs.task)
        task.reference.start(task.model)
        return task

    def batch():
        return {key: torch.zeros(8, 64, dtype=torch.long) for key in ("tokens", "targets")}

    single = measure_step(partial(build, plain.task), batch, dtype=torch.float32)
    double = measure_step(make, batch, dtype=torch.float32).peak().weights
    assert double == pytest.approx(2 * single.peak().weights, rel=1e-3)


@pytest.mark.parametrize(
    "words", ["model=bert experiment=spam", "model=gpt2 model/init=truncated_normal"]
)
def test_weights_drawn_by_rejection_are_measured(words, composed):
    """torch draws a truncated normal again until all values are inside."""
    node = fill_in_sizes(composed(f"{words} size=nano")).task
    task = build(node)

    def batch():
        tokens, real = torch.zeros(2, 8, dtype=torch.long), torch.ones(2, 8, dtype=torch.bool)
        labels = torch.zeros(2, dtype=torch.long)
        return {"tokens": tokens, "targets": tokens, "labels": labels, "attention_mask": real}

    weights = measure_step(partial(build, node), batch, dtype=torch.float32).peak().weights
    assert weights == pytest.approx(sum(p.nbytes for p in task.parameters()), rel=0.01)


# Memory of a process

SETTINGS = [
    "model=llama size=micro model.vocab_size=30000 optimizer=adamw",
    "model=gpt2 size=micro size.context_length=1024 model.vocab_size=257 model/kernel=naive optimizer=sgd",
    "model=gpt size=micro size.dim=384 model.vocab_size=9000 optimizer=muon",
    "model=gpt2 size=micro size.num_layers=4 model.vocab_size=40000 optimizer=adamw"
    " hardware.activation_checkpointing=true",
]
REAL = (
    "data=text data.path={text} tokenizer=byte data.batch_size=2 hardware=cpu hardware.precision=32"
    " hardware.threads=1 callbacks.samples=null callbacks.picture=null callbacks.checkpoints=null"
    " callbacks.progress=null trainer.max_steps=2 trainer.val_every=2 trainer.val_batches=1"
)
M_MMAP_THRESHOLD = -3


@pytest.fixture(scope="module")
def real(tmp_path_factory, composed) -> str:
    """Overrides of a short real run. One run is trained before, because libraries allocate memory on first use."""
    from llm.terminal import announce

    folder = tmp_path_factory.mktemp("real")
    text = folder / "text.txt"
    text.write_text("It was a dark and stormy night. " * 500)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_CACHE", str(folder))
        patch.setattr(announce.CONSOLE, "quiet", True)
        words = REAL.format(text=text)
        run_command(composed(f"model=gpt2 size=nano optimizer=muon {words}"), folder / "warm")
        yield words


@pytest.mark.skipif(not Path("/proc").exists(), reason="reads resident memory as Linux counts it")
@pytest.mark.parametrize("words", SETTINGS)
def test_estimate_is_within_a_tenth_of_a_real_run(words, composed, real, tmp_path):
    """`llm train` in its own process: the peak of its memory minus that before its model."""
    config = composed(f"{words} {real}")
    estimated = weigh(config).peak().total
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(
        target=_train_and_measure, args=(theirs, config, tmp_path / "run")
    )
    child.start()
    theirs.close()
    resident = ours.recv()
    child.join()
    assert resident > 100 * 2**20  # a smaller model would not test the estimate
    assert estimated == pytest.approx(resident, rel=0.1)


def _train_and_measure(pipe, config, folder):
    """Train, and send the peak growth of the process, in bytes, since before its model was built.

    Only anonymous memory counts: a forked process maps the pages of libraries when it first uses them. glibc keeps
    freed memory for later, here 3 to 39 MiB that the parent has freed, and a run may or may not fit into it. So
    malloc_trim returns it first, and M_MMAP_THRESHOLD makes larger blocks return as soon as they are freed.
    """
    from llm.training import lifecycle

    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 1 << 16)
    make_task, before = lifecycle.make_task, []

    def measuring(*given, **named):
        libc.malloc_trim(0)
        memory = psutil.Process().memory_info()
        before.append(memory.rss - memory.shared)
        return make_task(*given, **named)

    lifecycle.make_task = measuring
    run_command(config, folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    pipe.send(peak - psutil.Process().memory_info().shared - before[0])


@pytest.mark.gpu
@pytest.mark.parametrize(
    "words", ["model=gpt2 size=small", "model=llama size=small optimizer=adamw"]
)
def test_estimate_is_within_a_fifth_of_a_gpus_allocation(words, composed):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    config = composed(f"{words} data.batch_size=16 model.vocab_size=50257")
    estimated = weigh(config, torch.bfloat16, "cuda").peak().total
    task = build(config.task).cuda()
    optimizer = task.configure_optimizers()
    shape = config.data.batch_size, config.size.context_length
    batch = {
        key: torch.zeros(shape, dtype=torch.long, device="cuda") for key in ("tokens", "targets")
    }
    torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            loss = task.step(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert estimated == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.2)
