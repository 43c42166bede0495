"""Properties of every decoder, for any parts."""

import csv
import inspect
import itertools
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ranks import on_ranks
from small_runs import run_command
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import keystr, tree_flatten_with_path
from torch.utils.flop_counter import FlopCounterMode

from llm.callbacks.checkpoints import Checkpoints
from llm.checkpoints.checkpoint_file import load_checkpoint
from llm.config.build import build as build_node
from llm.distributed import join_ranks, world
from llm.dtensor import to_full
from llm.hardware import Hardware
from llm.models.gpt import GPT
from llm.nn.mixture_of_experts import MixtureOfExperts
from llm.nn.recurrent_cell import RecurrentCell
from llm.parallel.ddp import DDP
from llm.parallel.lora_tensor_parallel import complete_plan_of
from llm.parallel.mesh_strategy import in_model_order
from llm.parallel.tensor_parallel_plan import parallelize, row_orders
from llm.runs import Run

PRESETS = ["gpt2", "llama", "gpt"]
POSITIONS = ["learned", "sinusoidal", "rotary", "alibi", "none"]
# A kind with a window of four tokens.
LOCAL = "{_target_:llm.nn.layer_schedule.Layer,mask:{_target_:llm.nn.masks.sliding_window,size:4}}"
# Every kind of position; together the models also cover grouped heads, windows and both residuals.
VARIANTS = {
    **{f"gpt2-{kind}": ["model=gpt2", f"model/position={kind}"] for kind in POSITIONS},
    "llama-grouped": ["model=llama", "size.num_heads=4", "size.num_kv_heads=2"],
    "llama-alibi-multi-query": ["model=llama", "model/position=alibi", "size.num_kv_heads=1"],
    "gpt": ["model=gpt"],
    "gpt-zero-centered-norm": ["model=gpt", "model/norm=rms_zero_centered"],
    "gpt-weightless-norm": ["model=gpt", "model/norm=rms_weightless"],
    "gpt-window": ["model=gpt", "model/mask=sliding_window", "model.mask.size=5"],
    "llama-latent": ["model=llama", "model/attention=latent"],
    "gpt2-latent-window": [
        *(
            "model=gpt2",
            "model/attention=latent",
            "model/position=alibi",
            "model/mask=sliding_window",
        ),
        *(
            "model.mask.size=5",
            "model.attention.query_latent_dim=24",
            "model.attention.value_dim=20",
        ),
    ],
    "gpt-sparse": ["model=gpt", "model/mask=sparse_fixed", "model.mask.stride=4"],
    "gpt2-post-norm": ["model=gpt2", "model/residual=post_norm"],
    "gpt-sandwich-norm": ["model=gpt", "model/residual=sandwich_norm"],
    "gpt2-layer-scale": ["model=gpt2", "model/residual=layer_scale"],
    "llama-rezero": ["model=llama", "model/residual=rezero"],
    "gpt2-parallel": ["model=gpt2", "model/residual=parallel"],
    "gpt2-soft-capped-scores": ["model=gpt2", "model/kernel=soft_capped"],
    "gpt-scaled-embedding": ["model=gpt", "model/embedding=scaled"],
    "gpt-naive": ["model=gpt", "model/kernel=naive"],
    "gpt-flex-window-on-a-cpu": [
        *("model=gpt", "model/kernel=flex", "model/mask=sliding_window", "model.mask.size=5"),
        "model.attention.dropout=0.0",
    ],
    "gpt-local-full": [
        *("model=gpt", "model/layers=local_global", "model.pattern=[local,full]"),
        *("size.num_layers=3", "model.layers.local.mask.size=4"),
    ],
    "olmo2-grouped": ["model=olmo2", "size.num_kv_heads=1"],
    "olmo3": ["model=olmo3", "model.pattern=[local,full]", "model.layers.local.mask.size=4"],
    "llama-gated": ["model=llama", "model/attention=gated", "size.num_kv_heads=1"],
    "llama-sinks": ["model=llama", "model/attention=sinks", "size.num_kv_heads=1"],
    "mistral-sinks": ["model=mistral", "model/attention=sinks", "model.mask.size=4"],
    "gpt2-sinks-alibi": ["model=gpt2", "model/attention=sinks", "model/position=alibi"],
    "gpt2-soft-capped-logits": ["model=gpt2", "model/head=soft_capped", "model.head.softcap=5.0"],
    "gemma2": ["model=gemma2", "model.layers.local.mask.size=4"],
    "gemma3": ["model=gemma3", "model.pattern=[local,full]", "model.layers.local.mask.size=4"],
    "gpt-neox": ["model=gpt_neox"],
    "smollm3": ["model=smollm3", "model.pattern=[rotary,nope]", "size.num_kv_heads=1"],
    "qwen2-grouped": ["model=qwen2", "size.num_heads=4", "size.num_kv_heads=2"],
    "qwen3-grouped": ["model=qwen3", "size.num_kv_heads=1", "model.attention.head_dim=48"],
    "mistral": ["model=mistral", "model.mask.size=5"],
    "llama-partial-rotary": ["model=llama", "model/position=rotary_partial"],
    "llama-yarn": ["model=llama", "model/position=rotary_yarn"],
    "mixtral-loss-free": ["model=mixtral", "model/feed_forward=moe_loss_free"],
    "mixtral": ["model=mixtral"],
    "mixtral-naive": ["model=mixtral", "model/feed_forward=moe_naive"],
    "qwen3-moe": ["model=qwen3_moe", "model.feed_forward.num_experts=10"],
    "qwen3-next": [
        *("model=qwen3_next", "model.feed_forward.num_experts=10", "size.num_layers=2"),
        *("size.num_heads=4", "size.num_kv_heads=2"),
        "model.layers.gated_deltanet.attention.num_key_heads=2",
        "model.layers.gated_deltanet.attention.recurrence.chunk_size=5",
    ],
    "gpt2-moe-shared": ["model=gpt2", "model/feed_forward=moe_shared"],
    "llama-moe-in-every-second-layer": ["model=llama", "model/layers=dense_moe"],
    "gated-delta-net": ["model=gated_deltanet", "model.attention.recurrence.chunk_size=5"],
    "gated-delta-net-grouped": [
        *("model=gated_deltanet", "size.num_heads=4", "model.attention.num_key_heads=2"),
        *("model.attention.head_dim=8", "model.attention.value_head_dim=20"),
    ],
    "gpt-gated-delta-net-and-attention": [
        *("model=gpt", "model/layers=gated_deltanet", "model.pattern=[gated_deltanet,attention]"),
        "model.layers.gated_deltanet.attention.recurrence.chunk_size=5",
    ],
    "mamba2": [
        *("model=mamba2", "model.attention.recurrence.chunk_size=5"),
        *("model.attention.num_groups=2", "model.attention.state_dim=16"),
    ],
    "llama-mamba2-and-attention": [
        *("model=llama", "model/layers=mamba2", "model.pattern=[mamba2,attention]"),
        "model.layers.mamba2.attention.state_dim=16",
        "model.layers.mamba2.attention.recurrence.chunk_size=5",
    ],
    "mamba2-feed-forward": [
        "model=mamba2",
        "model/feed_forward=swiglu",
        "model.attention.expand=1",
    ],
    "lstm": ["model=lstm"],
    "lstm-without-residual": ["model=lstm", "model/residual=none"],
    "gru": ["model=gru"],
    "gpt-shared-kv": ["model=gpt", "model/layers=shared_kv"],
    "llama-shared-kv-local-full-grouped": [
        *("model=llama", "model/layers=shared_kv", "size.num_layers=5", "size.num_kv_heads=1"),
        "model.pattern=[local,own,local_shared,shared]",
        f"+model.layers.local={LOCAL}",
        f"+model.layers.local_shared={LOCAL[:-1]},attention:${{model.layers.shared.attention}}}}",
    ],
    "gpt2-value-residual": ["model=gpt2", "model/attention=value_residual", "size.num_layers=3"],
    "gpt-value-residual-and-shared-kv-in-windows": [
        *("model=gpt", "model/attention=value_residual", "model/layers=shared_kv"),
        *("size.num_layers=4", "size.num_kv_heads=1", "model/mask=sliding_window"),
        "model.mask.size=5",
    ],
    "llama-value-residual-among-layers-that-differ": [
        *("model=llama", "model/layers=gated_deltanet", "model/attention=value_residual"),
        *("size.num_layers=4", "model.pattern=[gated_deltanet,attention]"),
        "model.layers.gated_deltanet.attention.recurrence.chunk_size=5",
    ],
    "llama-nope": ["model=llama", "model/layers=nope", "model.pattern=[rotary,nope]"],
}


# The layer that docs/layers.md adds; the page shows this row.
VARIANTS["average"] = ["model=gpt", "model/layers=average"]
PAGE = Path(__file__).parents[2] / "docs" / "layers.md"


@pytest.fixture(scope="module", autouse=True)
def files_of_the_page(tmp_path_factory):
    """The class and the config that the page shows, where Python and Hydra find them."""
    folder = tmp_path_factory.mktemp("page")
    file = r"```\w+\n((?:# @package \S+\n)?# (my_\S+)\n.*?)```"
    for text, name in re.findall(file, PAGE.read_text(), re.DOTALL):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        VARIANTS["average"] += [
            "+trust=[my_layers]",
            f"hydra.searchpath=[file://{folder}/my_parts]",
        ]
        yield


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys(), scope="module")
def model(request, build) -> GPT:
    return wide(build(*request.param))


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def fresh(request, build) -> GPT:
    """The model as it is initialized."""
    torch.manual_seed(0)
    return build(*request.param)


def wide(model: GPT) -> GPT:
    """The model in float64 with large random parameters, so that every part affects the logits."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.data, std=0.3)
    return model.double().eval()


def draw(*shape: int) -> torch.Tensor:
    return torch.randint(97, shape, generator=torch.Generator().manual_seed(1))


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


def test_logits_do_not_depend_on_later_tokens(model):
    tokens = draw(2, 12)
    before = model(tokens)
    tokens[:, 7] = (tokens[:, 7] + 1) % 97
    after = model(tokens)
    # The number of rows in an expert's product depends on later tokens, and the order of its sums on that number.
    has_experts = any(isinstance(module, MixtureOfExperts) for module in model.modules())
    error = 1e-10 if has_experts else 0
    torch.testing.assert_close(before[:, :7], after[:, :7], rtol=0, atol=error)
    assert not torch.isclose(before[:, 7], after[:, 7]).any(dim=-1).all()


def test_rows_of_a_batch_are_independent(model):
    tokens = draw(3, 12)
    assert_same(model(tokens)[1:2], model(tokens[1:2]))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(model, side):
    tokens = draw(2, 12)
    real = torch.ones(2, 12, dtype=torch.bool)
    real[0, : 5 if side == "left" else -5] = False
    if side == "right":
        real[0, :] = torch.arange(12) < 7
    padded = model(tokens, attention_mask=real)
    assert padded.isfinite().all()
    assert_same(padded[0, real[0]], model(tokens[:1, real[0]])[0])
    assert_same(padded[1], model(tokens[1:])[0])


def test_gradients_of_a_padded_batch_are_finite_and_padding_has_none(model):
    tokens, real = draw(2, 8), torch.ones(2, 8, dtype=torch.bool)
    real[0, :5] = False
    model(tokens, attention_mask=real)[real].square().sum().backward()
    gradients = [p.grad for p in model.parameters()]
    model.zero_grad()
    assert all(g.isfinite().all() for g in gradients)
    other = tokens.clone()
    other[0, :5] = 3
    model(other, attention_mask=real)[real].square().sum().backward()
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    model.zero_grad()


@pytest.mark.parametrize("chunks", [[1] * 12, [5, 1, 1, 4, 1], [12], [11, 1]])
def test_cached_equals_uncached(model, chunks):
    tokens = draw(2, 12)
    cache = model.new_cache(2)
    parts = [model(part, cache=cache) for part in tokens.split(chunks, dim=1)]
    assert cache.length == 12
    assert_same(torch.cat(parts, dim=1), model(tokens))


@pytest.mark.parametrize("chunks", [[6, 1, 1, 4], [12], [2, 2, 2, 6]])
def test_cached_equals_uncached_in_a_padded_batch(model, chunks):
    tokens, real = draw(3, 12), torch.ones(3, 12, dtype=torch.bool)
    real[0, :5] = False
    real[1, :1] = False
    cache = model.new_cache(3)
    starts = itertools.accumulate(chunks, initial=0)
    parts = []
    for part, start in zip(tokens.split(chunks, dim=1), starts, strict=False):
        seen = real[:, start : start + part.shape[1]]
        parts.append(model(part, cache=cache, attention_mask=None if seen.all() else seen))
    cached = torch.cat(parts, dim=1)
    for row in range(3):
        assert_same(cached[row, real[row]], model(tokens[row : row + 1, real[row]])[0])


def test_packed_documents_equal_separate_texts(model):
    tokens = draw(1, 12)
    documents = torch.tensor([[4] * 5 + [2] * 7])
    positions = torch.tensor([[*range(5), *range(7)]])
    packed = model(tokens, document_ids=documents, positions=positions)
    apart = torch.cat((model(tokens[:, :5]), model(tokens[:, 5:])), dim=1)
    assert_same(packed, apart)


@pytest.mark.parametrize("kind", POSITIONS)
def test_token_order_matters_with_positions(build, kind):
    # In one layer, without positions, the last token sees a bag of words.
    model = wide(build(f"model/position={kind}", "size.num_layers=1"))
    tokens = torch.arange(9)[None]
    swapped = tokens[:, [3, 1, 2, 0, 4, 5, 6, 7, 8]]
    same = torch.allclose(model(tokens)[0, -1], model(swapped)[0, -1], rtol=0, atol=1e-8)
    assert same == (kind == "none")


def test_logits_depend_on_the_given_positions(build):
    for kind in ("learned", "sinusoidal", "rotary", "alibi"):
        model, tokens = wide(build(f"model/position={kind}")), draw(2, 6)
        straight = model(tokens)
        assert_same(model(tokens, positions=torch.arange(6)), straight)
        stretched = model(tokens, positions=torch.arange(0, 12, 2))
        assert not torch.allclose(stretched, straight)
        cache, positions = model.new_cache(2), torch.arange(0, 12, 2)
        parts = [
            model(tokens[:, i : i + 2], cache=cache, positions=positions[i : i + 2])
            for i in (0, 2, 4)
        ]
        assert_same(torch.cat(parts, dim=1), stretched)


def test_gradients_reach_every_parameter(model):
    """Except those of experts that no token chose. The gains of rezero, 0 at first, are not 0 in this model."""
    mixtures = [module for module in model.modules() if isinstance(module, MixtureOfExperts)]
    for mixture in mixtures:
        mixture.records = []
    tokens = draw(4, 64)
    F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.any(), name
    for mixture in mixtures:
        [(routing, _)] = mixture.records
        chosen = routing.experts.unique().tolist()
        assert len(chosen) > 1
        for stack in (mixture.experts.gate, mixture.experts.input, mixture.experts.output):
            reached = stack.weight.grad.flatten(1).any(dim=1)
            assert reached.nonzero().flatten().tolist() == chosen
        mixture.records = None
    model.zero_grad()


def slow_version(function: Callable) -> Callable | None:
    """Return the written-out definition beside a fast function: `naive_…` or `recurrent_…`; None if there is none."""
    inner = function.func if isinstance(function, partial) else function
    name = getattr(inner, "__name__", "").partition("_")[2]
    module = sys.modules.get(inner.__module__)
    found = (getattr(module, f"{kind}_{name}", None) for kind in ("naive", "recurrent"))
    slow = next((each for each in found if each is not None), None)
    if slow is None or slow is inner:
        return None
    given = function.keywords if isinstance(function, partial) else {}
    known = inspect.signature(slow).parameters
    return partial(slow, **{name: value for name, value in given.items() if name in known})


def written_out(model: GPT) -> GPT:
    """Return a copy that computes everything by the definitions."""
    slow = deepcopy(model)
    for module in slow.modules():
        for name, value in [*vars(module).items()]:
            if callable(value) and (definition := slow_version(value)) is not None:
                setattr(module, name, definition)
    return slow


def test_a_model_equals_its_written_out_version(model):
    slow, tokens = written_out(model), draw(2, 12)
    real = torch.arange(12) > torch.tensor([[4], [-1]])
    documents = torch.tensor([[4] * 5 + [2] * 7] * 2)
    everything = torch.ones(2, 12, dtype=torch.bool)
    for seen, context in (
        (everything, {}),
        (everything, {"document_ids": documents}),
        (real, {"attention_mask": real}),
    ):
        outputs = [each(tokens, **context)[seen] for each in (model, slow)]
        assert_same(*outputs)
        gradients = [
            torch.autograd.grad(output.logsumexp(dim=-1).sum(), [*each.parameters()])
            for output, each in zip(outputs, (model, slow), strict=True)
        ]
        torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-8)


def test_the_written_out_version_uses_other_functions(build):
    def kernel_of(layer) -> str:
        kernel = getattr(layer, "kernel", None) or layer.recurrence
        return getattr(kernel, "func", kernel).__name__

    found = {
        name: kernel_of(written_out(build(*VARIANTS[name])).blocks[0].attention)
        for name in ("gemma2", "llama-latent", "gated-delta-net", "mamba2", "lstm", "gru")
    }
    assert found == {
        "gemma2": "naive_attention",
        "llama-latent": "naive_attention",
        "gated-delta-net": "recurrent_gated_delta_rule",
        "mamba2": "recurrent_state_space",
        "lstm": "naive_lstm",
        "gru": "naive_gru",
    }
    mixture = written_out(build("model=mixtral"))
    assert kernel_of(mixture.blocks[0].feed_forward) == "naive_experts"
    assert kernel_of(mixture.final_norm) == "naive_rms_norm"


@pytest.mark.parametrize("preset", PRESETS)
def test_a_model_memorizes_one_batch(build, preset):
    torch.manual_seed(0)
    assert losses_on_one_batch(build(f"model={preset}"), steps=30, goal=0)[-1] < 0.1


def test_every_model_learns_to_read_its_input(fresh):
    # The best loss without reading, the entropy of the targets, is 3.1.
    losses = losses_on_one_batch(fresh, steps=30, goal=1.5)
    assert losses[-1] < 1.5


def losses_on_one_batch(model: GPT, *, steps: int, goal: float) -> list[float]:
    """Train on one batch until the loss is below the goal, and return all losses."""
    tokens, losses = draw(2, 13), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    while len(losses) < steps and (not losses or losses[-1] >= goal):
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def test_initial_loss_is_that_of_uniform_guessing(build):
    torch.manual_seed(0)
    model, tokens = build("model=gpt2"), draw(8, 64)
    loss = F.cross_entropy(model(tokens).flatten(0, 1), draw(8, 65)[:, 1:].flatten())
    assert abs(loss.item() - torch.tensor(97.0).log().item()) < 0.1


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("124m", 124_439_808), ("355m", 354_823_168), ("774m", 774_030_080), ("1558m", 1_557_611_200)],
)
def test_sizes_have_the_parameters_of_gpt2(build, size, parameters):
    with torch.device("meta"):
        model = build("model=gpt2", f"size={size}", vocab_size=50257)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_tied_head_shares_the_embedding(build):
    tied, untied = build("model=gpt2"), build("model=gpt2", "model.tie_weights=false")
    assert tied.head.weight is tied.embedding.weight
    counts = [sum(p.numel() for p in model.parameters()) for model in (untied, tied)]
    assert counts[0] - counts[1] == 97 * 64
    with torch.no_grad():
        untied.load_state_dict(tied.state_dict())
    torch.testing.assert_close(tied(draw(1, 5)), untied(draw(1, 5)))


def test_post_norm_ends_with_the_blocks_own_norm(build):
    model = build("model=gpt2", "model/residual=post_norm")
    hidden = model.hidden_states(draw(2, 12))
    assert not any(name.startswith("final_norm") for name, _ in model.named_parameters())
    torch.testing.assert_close(hidden.mean(dim=-1), torch.zeros(2, 12), rtol=0, atol=1e-5)


def test_residual_projections_begin_smaller(build):
    model = build("model=gpt2", "size.dim=256")
    for block in model.blocks:
        for written in (block.attention.output, block.feed_forward.output):
            torch.testing.assert_close(written.weight.std().item(), 0.01, rtol=0.05, atol=0)
        torch.testing.assert_close(
            block.feed_forward.input.weight.std().item(), 0.02, rtol=0.05, atol=0
        )


@pytest.mark.parametrize(
    "words",
    [
        *([f"model={preset}"] for preset in PRESETS),
        # Torch does not count the products of our own operator.
        ["model=mixtral", "model/feed_forward=moe_naive"],
        # Values as wide as queries, because the kernel multiplies narrower ones with columns of zeros.
        ["model=llama", "model/attention=latent", "model.attention.value_dim=48"],
    ],
)
def test_flops_equal_those_counted_by_torch(build, words):
    model = build(*words, "size=micro", "model/kernel=naive")
    tokens = draw(2, 64)
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
    counted = counter.get_total_flops() / tokens.numel()
    assert model.flops_per_token(model.context_length) == pytest.approx(counted, rel=0.01)


def test_window_counts_only_its_keys(build):
    words = ["model=gpt", "model/layers=local_global", "model.pattern=[local,full]"]
    full, mixed = build("model=gpt"), build(*words, "model.layers.local.mask.size=16")
    # 12 operations for each of 64 columns of the heads and each key; one of the two layers sees 16 of 64 keys.
    assert full.flops_per_token(64) - mixed.flops_per_token(64) == 12 * 64 * (64 - 16)


def test_head_of_hidden_states_equals_forward(build):
    model, tokens = build(), draw(2, 5)
    torch.testing.assert_close(model.head(model.hidden_states(tokens)), model(tokens))


def test_errors_name_the_value_and_a_remedy(build):
    model = build("model=gpt2")
    for token in (97, -1):
        with pytest.raises(ValueError, match="vocab_size=97"):
            model(torch.tensor([[0, token]]))
    with pytest.raises(ValueError, match=r"65 positions.*context_length=64"):
        model(draw(1, 65))
    cache = model.new_cache(1, capacity=5)
    model(draw(1, 4), cache=cache)
    with pytest.raises(ValueError, match="no room for 2 more"):
        model(draw(1, 2), cache=cache)
    with pytest.raises(ValueError, match="document_ids and a cache"):
        model(
            draw(1, 4), cache=model.new_cache(1), document_ids=torch.zeros(1, 4, dtype=torch.int64)
        )
    with pytest.raises(Exception, match="num_layers=0"):
        build("size.num_layers=0")


def test_rotary_model_accepts_texts_longer_than_its_context(build):
    assert build("model=llama")(draw(1, 80)).isfinite().all()


def test_autocast_is_close_to_float32(fresh):
    tokens = draw(2, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = fresh(tokens)
        F.cross_entropy(low.flatten(0, 1).float(), tokens.flatten()).backward()
    high = fresh(tokens)
    # A token whose best experts are nearly equal may choose another one.
    has_experts = any(isinstance(module, MixtureOfExperts) for module in fresh.modules())
    error = (low - high).abs().max() / high.abs().max()
    assert error < (0.05 if has_experts else 0.02)
    assert all(p.grad.isfinite().all() and p.grad.dtype == p.dtype for p in fresh.parameters())


@pytest.fixture
def nodes(compose_model) -> dict[str, Any]:
    """The node of each model, for other processes."""
    return {name: compose_model(*words) for name, words in VARIANTS.items()}


def next_token_loss(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def compare_data_parallel(nodes: Mapping[str, Any]) -> None:
    """Require that ranks with a part of the rows each compute the gradients of the whole batch."""
    join_ranks("cpu")
    for name, node in nodes.items():
        model, tokens = wide(build_node(node, vocab_size=97)), draw(4, 9)
        next_token_loss(model, tokens).backward()
        expected = [parameter.grad.clone() for parameter in model.parameters()]
        parallel = DistributedDataParallel(model, **DDP().lightning(Hardware())._ddp_kwargs)
        for _ in range(2):  # the second pass raises if the first one left out a parameter
            model.zero_grad()
            next_token_loss(parallel, tokens.chunk(world().size)[world().rank]).backward()
        found = [parameter.grad for parameter in model.parameters()]
        explain = partial("{}: {}".format, name)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9, msg=explain)


def test_two_ranks_compute_the_gradients_of_one(nodes):
    on_ranks(2, compare_data_parallel, nodes, timeout=280)


def refusal_of_tensor_parallelism(model: nn.Module) -> str:
    """Return why two devices cannot divide a model; an empty string if they can."""
    try:
        complete_plan_of(model, 2)
    except ValueError as error:
        return str(error)
    return ""


def compare_tensor_parallel(nodes: Mapping[str, Any]) -> None:
    """Require that two ranks that divide each layer compute the gradients of one."""
    join_ranks("cpu")
    mesh = init_device_mesh("cpu", (2,))
    for name, node in nodes.items():
        whole, model = (wide(build_node(node, vocab_size=97)) for _ in range(2))
        parallelize(model, mesh, plan=complete_plan_of(model, 2))
        for each in (whole, model):
            next_token_loss(each, draw(4, 9)).backward()
        orders = row_orders(model)
        found = [in_model_order(to_full(p.grad), orders.get(id(p))) for p in model.parameters()]
        expected = [parameter.grad for parameter in whole.parameters()]
        explain = partial("{}: {}".format, name)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9, msg=explain)


def test_tensor_parallelism_divides_a_model_or_refuses_it_by_name(nodes):
    refused = {}
    for name, node in nodes.items():
        with torch.device("meta"):
            refused[name] = refusal_of_tensor_parallelism(build_node(node, vocab_size=97))
        assert re.search(r"^$|.: .*use hardware=fsdp|cannot be divided among 2", refused[name])
    assert not any(refused[name] for name in ("gpt2-learned", "gpt", "llama-partial-rotary"))
    for name, kind in {"mamba2": "Mamba2", "lstm": "LSTM", "mixtral": "MixtureOfExperts"}.items():
        assert f"cannot divide {kind}: use hardware=fsdp" in refused[name]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_two_ranks_that_divide_a_model_compute_the_gradients_of_one(nodes):
    with torch.device("meta"):
        models = {name: build_node(node, vocab_size=97) for name, node in nodes.items()}
    divided = {
        name: nodes[name] for name in nodes if not refusal_of_tensor_parallelism(models[name])
    }
    on_ranks(2, compare_tensor_parallel, divided, timeout=880)


def first_of_each_kind(nodes: Mapping[str, Any]) -> list[str]:
    """Return the names of the models that have a class of layers that no earlier one has."""
    names, seen = [], set[type]()
    for name, node in nodes.items():
        with torch.device("meta"):
            blocks = build_node(node, vocab_size=97).blocks
        if (
            new := {
                type(part) for block in blocks for part in (block.attention, block.feed_forward)
            }
            - seen
        ):
            names.append(name)
            seen |= new
    return names


def compare_compiled(nodes: Mapping[str, Any]) -> None:
    """Require that each model compiles into one graph, with the same gradients."""
    for name, node in nodes.items():
        model, tokens = build_node(node, vocab_size=97), torch.arange(32).view(2, 16)
        has_experts = any(isinstance(module, MixtureOfExperts) for module in model.modules())
        errors = {"rtol": 1e-4, "atol": 1e-5}
        if not has_experts:  # torch's product for all experts does not take float64
            model, errors = model.double(), {"rtol": 1e-8, "atol": 1e-8}
        expected = torch.autograd.grad(model(tokens).square().sum(), [*model.parameters()])
        torch.compiler.reset()  # otherwise all are versions of one function, whose number is limited
        # The kernels of LSTM and GRU are not compiled.
        is_whole = not any(isinstance(module, RecurrentCell) for module in model.modules())
        # As torch's own compiler traces and divides it, but run by eager operators.
        backend = "aot_eager_decomp_partition"
        compiled = torch.compile(model, fullgraph=is_whole, backend=backend)
        actual = torch.autograd.grad(compiled(tokens).square().sum(), [*model.parameters()])
        explain = partial("{}: {}".format, name)
        torch.testing.assert_close(actual, expected, msg=explain, **errors)


# In another process: the shape checks of this one would be traced as well.


def test_each_kind_of_layer_compiles_into_one_graph(nodes):
    chosen = {name: nodes[name] for name in first_of_each_kind(nodes)}
    for node in chosen.values():
        if "pattern" not in node:
            node.num_layers = 1
    on_ranks(1, compare_compiled, chosen, timeout=280)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_every_model_compiles_into_one_graph(nodes):
    on_ranks(1, compare_compiled, nodes, timeout=880)


def assert_resumes_to_the_bit(composed, folder: Path, words: Sequence[str]) -> None:
    """Require that a run that is killed after two of four steps and resumed equals the uninterrupted one.

    Parameters, optimizer states, random states, biases of experts and losses that are not logged yet are compared.
    """

    save_last = Checkpoints.save_last

    def save_and_copy(self: Checkpoints, trainer: Any, task: Any) -> None:
        save_last(self, trainer, task)
        if trainer.global_step == 2:
            shutil.copytree(folder / "whole", folder / "parts")  # as a kill would leave it

    config = composed(*words, "optimizer=muon", "trainer.max_steps=4", "trainer.val_every=2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save_last", save_and_copy)
        whole, parts = (Run(folder / name) for name in ("whole", "parts"))
        run_command(config, whole.path)
    assert load_checkpoint(parts.last)["global_step"] == 2
    run_command(config, parts.path)
    found, expected = (resumed_state(run) for run in (parts, whole))
    assert found.keys() == expected.keys()
    assert [key for key in expected if not is_equal(found[key], expected[key])] == []


def resumed_state(run: Run) -> dict[str, Any]:
    """Return all values of the last checkpoint by their path, and the logged metrics, without those of the clock."""
    checkpoint = load_checkpoint(run.last)
    [random_states] = checkpoint["callbacks"]["rng_state"]["ranks"]
    del random_states["python"]  # the shape checks of the tests draw from it
    kept = ("state_dict", "optimizer_states", "losses", "data", "global_step")
    chosen = {"random": random_states, **{key: checkpoint[key] for key in kept}}
    values = {keystr(path): value for path, value in tree_flatten_with_path(chosen)[0]}
    with run.metrics.open(newline="") as file:
        for row in csv.DictReader(file):
            values |= {
                f"{name} at {row['step']}": value
                for name, value in row.items()
                if not name.startswith(("speed/", "memory/"))
            }
    return values


def is_equal(value: Any, other: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.dtype == other.dtype and torch.equal(value, other)
    return value == other


def test_each_kind_of_layer_resumes_to_the_bit(nodes, composed, tmp_path):
    for name in first_of_each_kind(nodes):
        assert_resumes_to_the_bit(composed, tmp_path / name, VARIANTS[name])


@pytest.mark.long
@pytest.mark.parametrize("words", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_model_resumes_to_the_bit(composed, tmp_path, words):
    assert_resumes_to_the_bit(composed, tmp_path, words)


def test_a_model_is_causal_if_the_masks_of_all_layers_are(build):
    assert build().causal
    assert build("model/mask=sliding_window").causal
    model = build()

    def both_ways(queries, keys):
        return (queries[:, None] - keys[None, :]).abs() < 2

    model.mask = both_ways
    assert not model.causal
    model = build("model/layers=nope", "model.pattern=[rotary,nope]", "model=gpt")
    assert model.causal
    model.blocks[1].mask = both_ways
    assert not model.causal
