"""FlexAttention skips exactly the blocks that a mask hides, and equals the definition of attention.

Its kernel is for GPUs. On a CPU torch computes the same function without skipping, and without gradients.
"""

import pytest
import torch
from small_runs import run_command
from torch._dynamo.testing import CompileCounter
from torch.nn.attention.flex_attention import flex_attention as reference

from llm.config.errors import ConfigError
from llm.nn import flex_attention
from llm.nn.attention import naive_attention
from llm.nn.flex_attention import BLOCK, FlexAttention, block_mask
from llm.nn.masks import (
    Predicate,
    as_bias,
    both,
    causal,
    everything,
    not_padding,
    prefix,
    same_document,
    sliding_window,
    sparse_fixed,
    sparse_strided,
    window_and_first,
)

LENGTH = 300  # the last of three blocks is not full


def needs_gpu(test):
    """Mark a test that runs the compiled kernel."""
    is_missing = not torch.cuda.is_available()
    return pytest.mark.gpu(pytest.mark.skipif(is_missing, reason="needs a CUDA device")(test))


def real() -> torch.Tensor:
    """Two rows, of which the first begins with more than a block of padding and the second ends with some."""
    columns = torch.arange(LENGTH)
    return torch.stack((columns >= BLOCK + 10, columns < 200))


def documents() -> torch.Tensor:
    """Documents of one block, of half a block and of the rest; and a row of one document."""
    ids = torch.zeros(2, LENGTH, dtype=torch.long)
    ids[0, BLOCK:192], ids[0, 192:] = 7, 3
    return ids


PREDICATES: dict[str, Predicate] = {
    "causal": causal,
    "everything": everything,
    "window": sliding_window(100),
    "wide window": sliding_window(200),
    "strided": sparse_strided(140),
    "fixed": sparse_fixed(140, 20),
    "window and first": window_and_first(100, 4),
    "prefix": prefix(200),
    "prefix of each row": prefix(torch.tensor([0, 150])),
    "padding": both(causal, not_padding(real())),
    "documents": both(causal, same_document(documents())),
    "window in documents": both(sliding_window(100), same_document(documents())),
    "all": both(sliding_window(200), not_padding(real()), same_document(documents())),
}
predicates = pytest.mark.parametrize("name", PREDICATES)


def dense(name: str, device: str = "cpu") -> torch.Tensor:
    index = torch.arange(LENGTH)
    return PREDICATES[name](index, index).to(device)


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.fixture
def on_cpu(monkeypatch):
    """Use FlexAttention on the CPU, with torch's own code in the place of the compiled kernel."""
    monkeypatch.setattr(flex_attention, "DEVICES", ("cpu",))
    monkeypatch.setattr(flex_attention, "compiled_flex_attention", lambda: reference)
    monkeypatch.setattr(
        "torch.nn.attention.flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True
    )


@predicates
def test_skipped_blocks_are_those_without_an_allowed_pair(name):
    allowed = dense(name)
    blocks = block_mask(allowed)
    number = -(-LENGTH // BLOCK)
    whole = torch.zeros(*allowed.shape[:-2], number * BLOCK, number * BLOCK, dtype=torch.bool)
    whole[..., :LENGTH, :LENGTH] = allowed
    # (…, T, S) -> (…, N, 128, N, 128) -> (…, N, N): pairs in each block.
    pairs = whole.unflatten(-1, (number, BLOCK)).unflatten(-3, (number, BLOCK)).sum((-3, -1))
    is_full, is_mixed = pairs == BLOCK * BLOCK, (pairs > 0) & (pairs < BLOCK * BLOCK)
    for counts, indices, expected in (
        (blocks.kv_num_blocks, blocks.kv_indices, is_mixed),
        (blocks.full_kv_num_blocks, blocks.full_kv_indices, is_full),
    ):
        assert torch.equal(counts[:, 0], expected.sum(-1).view_as(counts[:, 0]))
        for row, mixed in enumerate(expected.view(-1, number, number)):
            for query in range(number):
                read = indices[row, 0, query, : counts[row, 0, query]]
                assert {*read.tolist()} == {*mixed[query].nonzero().flatten().tolist()}


def test_window_reads_two_blocks_of_keys_for_a_block_of_queries():
    blocks = block_mask(dense("window"))
    assert blocks.kv_num_blocks.flatten().tolist() == [1, 2, 2]
    assert blocks.full_kv_num_blocks.sum() == 0


def kernel_and_definition(kernel, allowed, *, bias=None, softcap=None):
    """Return attention of the kernel with a mask of its own, and by the definition."""
    query, key, value = draw(2, 2, LENGTH, 4), draw(2, 1, LENGTH, 4), draw(2, 1, LENGTH, 4)
    found = kernel(query, key, value, mask=kernel.make_mask(allowed, bias=bias))
    mask = allowed if bias is None else as_bias(allowed, bias)
    return found, naive_attention(query, key, value, mask=mask, softcap=softcap)


@pytest.mark.usefixtures("on_cpu")
@torch.no_grad()
@predicates
def test_flex_attention_equals_the_definition(name):
    pair = kernel_and_definition(FlexAttention(), dense(name).unsqueeze(-3))
    torch.testing.assert_close(*pair, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("on_cpu")
@torch.no_grad()
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("bias", ["none", "of heads", "of rows"])
def test_bounds_and_biases_of_scores_equal_the_definition(softcap, bias):
    shapes = {"of heads": (2, LENGTH, LENGTH), "of rows": (2, 2, LENGTH, LENGTH)}
    bias = draw(*shapes[bias]) if bias in shapes else None
    allowed = dense("all").unsqueeze(-3)
    pair = kernel_and_definition(
        FlexAttention(softcap=softcap), allowed, bias=bias, softcap=softcap
    )
    torch.testing.assert_close(*pair, rtol=0, atol=1e-12)


MODELS = {
    "window": ["model=llama", "model/mask=sliding_window", "size.num_kv_heads=1"],
    "local and full": ["model=gpt", "model/layers=local_global_2"],
    "slopes": ["model=gpt2", "model/position=alibi"],
    "latent": ["model=llama", "model/attention=latent", "model/mask=window_and_first"],
    "bounded scores": ["model=gemma2", "model.attention.kernel.softcap=3.0"],
}


def flex_and_fused(build, words):
    """Return two models in float64 with the same weights."""
    torch.manual_seed(0)
    fused = build(*words).double().eval()
    flex = build(*words, "model/kernel=flex").double().eval()
    flex.load_state_dict(fused.state_dict())
    return flex, fused


@pytest.mark.usefixtures("on_cpu")
@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_model_equals_that_of_the_fused_kernel(build, name):
    flex, fused = flex_and_fused(build, MODELS[name])
    length = BLOCK + 20
    tokens = torch.randint(97, (2, length))
    is_real = torch.arange(length) >= torch.tensor([[40], [0]])
    ids = torch.arange(length).expand(2, -1) // 60
    for given in ({}, {"attention_mask": is_real}, {"document_ids": ids}):
        found, expected = flex(tokens, **given), fused(tokens, **given)
        where = given.get("attention_mask", slice(None))
        torch.testing.assert_close(found[where], expected[where], rtol=0, atol=1e-12)


@pytest.mark.usefixtures("on_cpu")
@torch.no_grad()
def test_cached_generation_makes_a_mask_of_the_prompt_only(build, monkeypatch):
    flex, fused = flex_and_fused(build, MODELS["local and full"])
    made = count_masks(monkeypatch)
    tokens, cache = torch.randint(97, (2, BLOCK + 20)), flex.new_cache(2, BLOCK + 20)
    parts = [flex(part, cache=cache) for part in tokens.split([BLOCK + 1, 1, 18], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), fused(tokens), rtol=0, atol=1e-12)
    assert len(made) == 1


def count_masks(monkeypatch) -> list[torch.Tensor]:
    """Return a list that gets what each mask allows."""
    made, make = [], FlexAttention.make_mask

    def recorded(self, allowed, *, bias):
        made.append(allowed)
        return make(self, allowed, bias=bias)

    monkeypatch.setattr(FlexAttention, "make_mask", recorded)
    return made


@pytest.mark.usefixtures("on_cpu")
@torch.no_grad()
@pytest.mark.parametrize(
    ("words", "kinds"),
    [
        (["model=gpt"], 0),  # torch's fused kernel skips what the causal mask hides
        (["model=gpt", "model.attention.kernel.softcap=3.0"], 1),
        (["model=gpt", "model/layers=local_global_2", "size.num_layers=4"], 1),
        (["model=gemma2", "model.attention.kernel.softcap=3.0", "size.num_layers=4"], 2),
    ],
)
def test_layers_of_a_kind_share_a_mask(build, monkeypatch, words, kinds):
    made = count_masks(monkeypatch)
    model = build(*words, "model/kernel=flex").eval()
    model(torch.randint(97, (1, BLOCK)))
    assert not made  # a single block has nothing to skip
    model(torch.randint(97, (1, BLOCK + 1)))
    assert len(made) == kinds


def test_trains_on_a_cpu_without_masks_of_its_own(build, monkeypatch):
    made = count_masks(monkeypatch)
    model = build("model=gpt", "model/kernel=flex", "model/mask=sliding_window")
    logits = model(torch.randint(97, (1, 3 * BLOCK)))
    logits.square().sum().backward()
    assert all(parameter.grad.any() for parameter in model.parameters())
    assert not made


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.dropout=0.1"], "dropout=0.1: FlexAttention cannot drop attention weights; set it"),
        (["model/attention=sinks"], "sinks: FlexAttention has no score for them; leave them out"),
        (
            ["model.attention.head_dim=8"],
            "kernel: FlexAttention needs heads of 16 columns or more, and these have 8; use fewer",
        ),
        (
            ["model/attention=latent", "model.dropout=0.1"],
            "dropout=0.1: FlexAttention cannot drop attention weights",
        ),
    ],
)
def test_what_the_kernel_cannot_compute_is_refused_on_any_device(build, words, message):
    with pytest.raises(ConfigError, match="model.attention." + message):
        build("model=gpt", *words, "model/kernel=flex")


def test_compiled_kernel_serves_all_masks(monkeypatch):
    """torch compiles again for masks of rows, but not for another window, sparsity or other documents."""
    counter = CompileCounter()
    compiled = torch.compile(reference, backend=counter)
    monkeypatch.setattr(flex_attention, "compiled_flex_attention", lambda: compiled)
    with torch.no_grad():
        for name in ("window", "wide window", "strided"):
            kernel_and_definition(FlexAttention(), dense(name).unsqueeze(-3))
        assert counter.frame_count == 1
        for name in ("padding", "documents"):
            kernel_and_definition(FlexAttention(), dense(name).unsqueeze(-3))
        assert counter.frame_count == 2


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@predicates
def test_value_and_gradients_on_a_gpu_equal_the_definition(name, dtype):
    mask, kernel = dense(name, "cuda").unsqueeze(-3), FlexAttention(softcap=5.0)
    shapes = [(2, 4, LENGTH, 32), (2, 2, LENGTH, 32), (2, 2, LENGTH, 32)]
    exact = [draw(*shape).cuda().requires_grad_() for shape in shapes]
    inputs = [each.detach().to(dtype).requires_grad_() for each in exact]
    expected = naive_attention(*exact, mask=mask, softcap=5.0)
    found = kernel(*inputs, mask=kernel.make_mask(mask, bias=None))
    direction = draw(*expected.shape).cuda()
    pairs = zip(
        (found, *torch.autograd.grad(found, inputs, direction.to(dtype))),
        (expected, *torch.autograd.grad(expected, exact, direction)),
        strict=True,
    )
    error = (
        2e-3 if dtype == torch.float32 else 5e-2
    )  # of the largest: products may be rounded to TF32
    for ours, reference_value in pairs:
        largest = reference_value.abs().max().item()
        torch.testing.assert_close(ours.double(), reference_value, rtol=0, atol=error * largest)


@needs_gpu
@pytest.mark.parametrize("words", [[], ["hardware.compile=true"]])
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_run_on_a_gpu_learns(composed, tmp_path, precision, words):
    shape = [
        "size=nano",
        "size.context_length=512",
        "model/layers=local_global_2",
        "model.dropout=0",
    ]
    words = [*shape, "model/kernel=flex", "hardware=gpu", f"hardware.precision={precision}", *words]
    run = run_command(composed(*words, "trainer.max_steps=30"), tmp_path / "run")
    assert run.record["metrics"]["val/loss"] < 5.0
