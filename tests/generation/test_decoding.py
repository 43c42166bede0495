import math
from functools import partial

import pytest
import torch
from torch import nn
from transformers import RepetitionPenaltyLogitsProcessor

from llm.generation.decoding import Decoding, evaluation_mode, generate, window_start
from llm.generation.generation_settings import GenerationSettings
from llm.generation.sampling import Sampler
from llm.models.gpt import GPT
from llm.nn.attention import Attention
from llm.nn.feed_forward import FeedForward
from llm.nn.masks import SlidingWindow, causal, sliding_window
from llm.nn.norms import LayerNorm
from llm.nn.positions import ALiBi, Learned, NoPosition, Rotary, Sinusoidal

V, L, C, H = 31, 8, 16, 4
GREEDY = Sampler(temperature=0.0)
WARM = Sampler(temperature=2.0)
POSITIONS = {
    "learned": partial(Learned, L, C),
    "sinusoidal": partial(Sinusoidal, C),
    "rotary": partial(Rotary, C, H),
    "alibi": partial(ALiBi, H),
    "none": NoPosition,
}
PROMPTS = [[5], [1, 2, 3, 4, 5, 6, 7], [9, 8, 7], [4] * 20]
# Even the text of the shortest prompt grows to more than three context lengths.
LONG = 3 * L


def wide(model):
    """A model with large weights, so that the logits of different contexts differ much."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.7)


def gpt(position="rotary", mask=causal, num_kv_heads=2, dropout=0.0, context_length=L):
    torch.manual_seed(0)
    model = GPT(
        vocab_size=V,
        context_length=context_length,
        dim=C,
        num_layers=2,
        position=POSITIONS[position](),
        attention=partial(
            Attention, num_heads=H, num_kv_heads=num_kv_heads, bias=True, dropout=dropout
        ),
        feed_forward=FeedForward,
        norm=LayerNorm,
        final_norm=LayerNorm,
        mask=mask,
        init=wide,
        dropout=dropout,
        tie_weights=False,
    )
    return model.double().eval()


class Recorder(Sampler):
    """A sampler that records its logits."""

    def __call__(self, logits, uniform, *, seen=None):
        self.__dict__.setdefault("logits", []).append(logits)
        return super().__call__(logits, uniform, seen=seen)


@torch.no_grad()
def reference(model, prompt, max_tokens, seed=0, process=lambda text, logits: logits):
    """Generate by definition: one row, the whole window computed again for each token, sampled with a temperature."""
    text, rows, generator = list(prompt), [], torch.Generator().manual_seed(seed)
    for _ in range(max_tokens):
        start = 0
        # Layers with windows and relative positions have a state of fixed size, so nothing has to be cut off.
        is_bounded = isinstance(model.mask, SlidingWindow) and not isinstance(
            model.position, Learned
        )
        while not is_bounded and len(text) - start > model.context_length:
            start += max(1, model.context_length // 2)
        rows.append(model(torch.tensor([text[start:]]))[:, -1])
        text += WARM(process(text, rows[-1]), torch.rand(1, generator=generator)).tolist()
    return text[len(prompt) :], torch.cat(rows)


@pytest.mark.parametrize("position", POSITIONS)
def test_decoding_equals_the_reference_loop_far_past_the_context(position):
    """With and without a cache, alone and in a ragged batch: the same text and the same distribution at each step."""
    model = gpt(position)
    expected, logits = zip(
        *(reference(model, prompt, LONG, seed) for seed, prompt in enumerate(PROMPTS)), strict=True
    )
    assert len({token for tokens in expected for token in tokens}) > V / 2
    for use_cache in (True, False):
        recorder = Recorder(temperature=2.0)
        assert generate(
            model,
            PROMPTS,
            settings=GenerationSettings(max_tokens=LONG, sampler=recorder),
            use_cache=use_cache,
        ) == list(expected)
        given = torch.stack(recorder.logits, dim=1)
        torch.testing.assert_close(given, torch.stack(logits), rtol=0, atol=1e-9)
    recorder = Recorder(temperature=2.0)
    assert generate(
        model, PROMPTS[:1], settings=GenerationSettings(max_tokens=LONG, sampler=recorder)
    ) == [expected[0]]
    torch.testing.assert_close(torch.cat(recorder.logits), logits[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "parts",
    [
        {"mask": sliding_window(5)},
        {"mask": sliding_window(5), "position": "alibi"},
        {"mask": sliding_window(5), "position": "learned"},
        {"num_kv_heads": 1},
        {"context_length": 1},
        {"context_length": 7},
    ],
    ids=[
        "window",
        "window_and_slopes",
        "window_and_learned",
        "multi_query",
        "context_of_one",
        "odd_context",
    ],
)
def test_decoding_equals_the_reference_loop_for_other_masks_heads_and_contexts(parts):
    model = gpt(**parts)
    expected = [reference(model, prompt, 2 * L, seed)[0] for seed, prompt in enumerate(PROMPTS)]
    assert (
        generate(model, PROMPTS, settings=GenerationSettings(max_tokens=2 * L, sampler=WARM))
        == expected
    )


@pytest.mark.parametrize("use_cache", [True, False])
def test_same_seed_gives_the_same_text_alone_and_in_a_batch(use_cache):
    model = gpt()
    sampler = Sampler(temperature=1.5, top_k=20, top_p=0.95, repetition_penalty=1.1)
    together = generate(
        model,
        PROMPTS,
        settings=GenerationSettings(max_tokens=2 * L, sampler=sampler, seed=7),
        use_cache=use_cache,
    )
    assert together == generate(
        model, PROMPTS, settings=GenerationSettings(max_tokens=2 * L, sampler=sampler, seed=7)
    )
    for row, prompt in enumerate(PROMPTS):
        assert generate(
            model,
            [prompt],
            settings=GenerationSettings(max_tokens=2 * L, sampler=sampler, seed=7 + row),
        ) == [together[row]]
    assert together != generate(
        model, PROMPTS, settings=GenerationSettings(max_tokens=2 * L, sampler=sampler, seed=8)
    )


def test_equal_prompts_in_a_batch_get_different_responses():
    drawn = generate(
        gpt(),
        [[1, 2]] * 4,
        settings=GenerationSettings(max_tokens=L, sampler=Sampler(temperature=2.0)),
    )
    assert len({tuple(tokens) for tokens in drawn}) == 4


def test_sampling_does_not_change_the_global_random_state():
    state = torch.random.get_rng_state()
    generate(gpt(), [[1]], settings=GenerationSettings(max_tokens=5, sampler=Sampler()))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_first_tokens_are_drawn_with_the_models_probabilities():
    model, n = gpt(), 4000
    counts = torch.zeros(V)
    for tokens in generate(
        model, [[3, 1]] * n, settings=GenerationSettings(max_tokens=1, sampler=Sampler())
    ):
        counts[tokens[0]] += 1
    expected = model(torch.tensor([[3, 1]]))[0, -1].softmax(-1).float()
    # Five standard deviations of a binomial proportion.
    assert ((counts / n - expected).abs() <= 5 * (expected / n).sqrt() + 1e-3).all()


def test_repetition_penalty_includes_the_prompt():
    model = gpt()
    penalize = RepetitionPenaltyLogitsProcessor(3.0)
    expected = [
        reference(
            model, prompt, 2 * L, seed, lambda text, logits: penalize(torch.tensor([text]), logits)
        )[0]
        for seed, prompt in enumerate(PROMPTS)
    ]
    sampler = Sampler(temperature=2.0, repetition_penalty=3.0)
    assert (
        generate(model, PROMPTS, settings=GenerationSettings(max_tokens=2 * L, sampler=sampler))
        == expected
    )
    assert (
        generate(model, PROMPTS, settings=GenerationSettings(max_tokens=2 * L, sampler=WARM))
        != expected
    )


def test_end_token_ends_only_its_row_and_is_not_returned():
    model = gpt()
    free = generate(model, PROMPTS, settings=GenerationSettings(max_tokens=2 * L, sampler=WARM))
    end = free[0][3]
    expected = [tokens[: tokens.index(end)] if end in tokens else tokens for tokens in free]
    assert (
        generate(
            model,
            PROMPTS,
            settings=GenerationSettings(max_tokens=2 * L, sampler=WARM, end_tokens=(end,)),
        )
        == expected
    )
    assert expected != free


def test_ending_rows_does_not_change_the_other_rows():
    model = gpt()
    free = generate(model, PROMPTS, settings=GenerationSettings(max_tokens=LONG, sampler=WARM))
    lengths = [3, 15, 1, LONG]
    texts = [[] for _ in PROMPTS]
    decoding = Decoding(model, PROMPTS, settings=GenerationSettings(max_tokens=LONG, sampler=WARM))
    for tokens in decoding:
        for row, token in tokens.items():
            texts[row].append(token)
            if len(texts[row]) == lengths[row]:
                decoding.end(row)
    assert texts == [tokens[:length] for tokens, length in zip(free, lengths, strict=True)]


@pytest.mark.parametrize("mask", [causal, sliding_window(3)])
def test_ended_rows_are_removed_once_they_are_half_of_the_batch(mask):
    model, recorder = gpt(mask=mask), Recorder(temperature=0.0)
    widths = widths_of(model)
    decoding = Decoding(
        model, [[1], [2], [3], [4]], settings=GenerationSettings(max_tokens=6, sampler=recorder)
    )
    for row in (1, 2, 3):
        next(decoding)
        decoding.end(row)
    list(decoding)
    assert [len(logits) for logits in recorder.logits] == [4, 4, 2, 1, 1, 1]
    assert widths == [1] * 6, "the others are not computed again"


def widths_of(model) -> list[int]:
    """Return a list that gets the number of tokens of each forward pass."""
    widths = []
    model.embedding.register_forward_hook(
        lambda module, args, output: widths.append(args[0].shape[1])
    )
    return widths


def test_state_of_fixed_size_is_never_computed_again():
    model = gpt(mask=sliding_window(3))
    assert model.has_bounded_state
    assert not gpt(mask=sliding_window(3), position="learned").has_bounded_state
    assert not gpt().has_bounded_state
    widths = widths_of(model)
    decoding = Decoding(model, [[1, 2, 3]], settings=GenerationSettings(max_tokens=5 * L))
    sizes = {decoding._cache.nbytes for _ in decoding}
    assert widths == [3, *[1] * (5 * L - 1)]
    assert len(sizes) == 1
    assert decoding._cache.length == 5 * L + 2


def test_each_step_computes_one_token_except_when_the_window_moves():
    model = gpt()
    widths = widths_of(model)
    generate(model, [[1, 2, 3]], settings=GenerationSettings(max_tokens=2 * L, sampler=GREEDY))
    assert [width for width in widths if width > 1] == [3, L // 2 + 1, L // 2 + 1, L // 2 + 1]
    assert len(widths) == 2 * L


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8])
def test_window_holds_between_half_and_one_context(limit):
    starts = [window_start(length, limit) for length in range(1, 100)]
    assert starts[:limit] == [0] * limit
    assert starts == sorted(starts)
    for length, start in enumerate(starts, start=1):
        assert length - start <= limit
        assert start == 0 or length - start > limit - max(1, limit // 2)
    # The window moves as rarely as these bounds allow.
    assert len(set(starts)) == 1 + math.ceil((99 - limit) / max(1, limit // 2))


def test_zero_tokens_and_zero_prompts_are_allowed():
    assert generate(
        gpt(), [[1], [2, 3]], settings=GenerationSettings(max_tokens=0, sampler=GREEDY)
    ) == [[], []]
    assert generate(gpt(), [], settings=GenerationSettings(max_tokens=5, sampler=GREEDY)) == []


@pytest.mark.parametrize(
    ("prompts", "max_tokens", "message"),
    [
        ([[1], []], 3, "prompt 1 is empty: give at least one token"),
        ([[1]], -1, "max_tokens=-1 is negative"),
        ([[V]], 3, f"vocab_size={V}"),
    ],
)
def test_a_wrong_argument_is_named(prompts, max_tokens, message):
    with pytest.raises(ValueError, match=message):
        generate(gpt(), prompts, settings=GenerationSettings(max_tokens=max_tokens, sampler=GREEDY))


def test_nan_weights_raise_an_error():
    model = gpt()
    nn.init.constant_(model.embedding.weight, math.nan)
    with pytest.raises(ValueError, match="NaN"):
        generate(model, [[1]], settings=GenerationSettings(max_tokens=3, sampler=Sampler()))


def test_decoding_turns_dropout_off_and_restores_the_modes():
    model = gpt(dropout=0.5)
    expected = generate(model, PROMPTS, settings=GenerationSettings(max_tokens=L, sampler=WARM))
    model.train()
    model.blocks[0].eval()
    before = [module.training for module in model.modules()]
    assert (
        generate(model, PROMPTS, settings=GenerationSettings(max_tokens=L, sampler=WARM))
        == expected
    )
    assert [module.training for module in model.modules()] == before


def test_modes_are_restored_after_an_error():
    model = gpt().train()
    with pytest.raises(IndexError), evaluation_mode(model):
        model.blocks[1000]
    assert all(module.training for module in model.modules())


def test_model_can_be_trained_after_generation():
    model = gpt("rotary").train()
    generate(model, [[1, 2], [3]], settings=GenerationSettings(max_tokens=2 * L, sampler=Sampler()))
    model(torch.randint(V, (2, L))).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decoding_works_in_float32_and_bfloat16(dtype):
    model = gpt().to(dtype)
    (tokens,) = generate(
        model, [[1, 2, 3]], settings=GenerationSettings(max_tokens=2 * L, sampler=GREEDY)
    )
    assert len(tokens) == 2 * L
