"""Properties of every decoder, for any parts."""

import itertools
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_module
from ranks import on_ranks
from torch.utils.flop_counter import FlopCounterMode

from llm.config.build import build as build_node
from llm.models.gpt import GPT
from llm.nn.mixture_of_experts import MixtureOfExperts

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
    "gpt-flex-window": [
        *("model=gpt", "model/kernel=flex", "model/mask=sliding_window", "model.mask.size=5"),
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
    "mixtral": ["model=mixtral"],
    "mixtral-naive": ["model=mixtral", "model/feed_forward=moe_naive"],
    "qwen3-moe": ["model=qwen3_moe", "model.feed_forward.num_experts=10"],
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


@pytest.mark.parametrize("preset", PRESETS)
def test_gradients_reach_every_parameter(build, preset):
    torch.manual_seed(0)
    model = build(f"model={preset}")
    tokens = draw(4, 64)
    F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.any(), name


@pytest.mark.parametrize("preset", PRESETS)
def test_naive_and_fused_models_are_equal(build, preset):
    naive = wide(build(f"model={preset}", "model/kernel=naive"))
    fused = wide(build(f"model={preset}"))
    tokens = draw(2, 12)
    assert_same(naive(tokens), fused(tokens))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_model_learns_one_batch(build, preset):
    torch.manual_seed(0)
    model = build(f"model={preset}")
    tokens = draw(2, 13)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(30):
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


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


@pytest.mark.parametrize("preset", [*PRESETS, "mixtral"])
def test_flops_equal_those_counted_by_torch(build, preset):
    # Torch does not count the products of our own operator.
    experts = ["model/feed_forward=moe_naive"] if preset == "mixtral" else []
    model = build(f"model={preset}", "size=micro", "model/kernel=naive", *experts)
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


@pytest.mark.parametrize("preset", PRESETS)
def test_autocast_is_close_to_float32(build, preset):
    torch.manual_seed(0)
    model, tokens = build(f"model={preset}"), draw(2, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model(tokens)
        F.cross_entropy(low.flatten(0, 1).float(), tokens.flatten()).backward()
    high = model(tokens)
    assert (low - high).abs().max() < 0.02 * high.abs().max()
    assert all(p.grad.isfinite().all() and p.grad.dtype == p.dtype for p in model.parameters())


def compile_models() -> None:
    with initialize_config_module(config_module="llm.conf", version_base="1.3"):
        configs = [
            compose(overrides=[f"+model={preset}", "+size=nano", "model.vocab_size=97"]).model
            for preset in ("gpt2", "llama", "gpt", "mixtral", "gemma2")
        ]
        linked = ["model/attention=value_residual", "model/layers=shared_kv", "size.num_layers=4"]
        configs.append(compose(overrides=["+model=gpt", "+size=nano", *linked]).model)
        configs[-1].vocab_size = 97
    for config in configs:
        model, tokens = build_node(config), torch.arange(32).view(2, 16)
        expected = torch.autograd.grad(model(tokens).square().sum(), [*model.parameters()])
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        actual = torch.autograd.grad(compiled(tokens).square().sum(), [*model.parameters()])
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_training_compiles_into_one_graph():
    # In another process: the shape checks of this one would be traced as well.
    on_ranks(1, compile_models, timeout=280)


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
