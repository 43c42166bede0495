from functools import partial

import pytest
import torch

from llm.generation.decoding import generate
from llm.generation.generation_settings import GenerationSettings
from llm.generation.sampling import Sampler
from llm.generation.text_generation import complete_prompts, first_tokens, stream_tokens
from llm.models.gpt import GPT
from llm.nn.attention import Attention
from llm.nn.feed_forward import FeedForward
from llm.nn.norms import LayerNorm
from llm.nn.positions import Rotary
from llm.tokenizers.byte import ByteTokenizer

SAMPLER = Sampler(temperature=1.0)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return GPT(
        vocab_size=257,
        context_length=16,
        dim=16,
        num_layers=1,
        position=Rotary(16, 2),
        attention=partial(Attention, num_heads=2),
        feed_forward=FeedForward,
        norm=LayerNorm,
    ).eval()


def test_completion_is_the_text_of_the_generated_tokens(model):
    prompts = ["Every effort", "é", ""]
    tokenizer = ByteTokenizer()
    tokens = [first_tokens(tokenizer, prompt) for prompt in prompts]
    drawn = generate(
        model,
        tokens,
        settings=GenerationSettings(max_tokens=40, sampler=SAMPLER, seed=3, end_tokens=(256,)),
    )
    expected = [tokenizer.decode(row) for row in drawn]
    assert (
        complete_prompts(
            model,
            tokenizer,
            prompts=prompts,
            settings=GenerationSettings(max_tokens=40, sampler=SAMPLER, seed=3),
        )
        == expected
    )


def test_a_stop_string_cuts_the_text_and_ends_the_row(model):
    free = complete_prompts(
        model,
        ByteTokenizer(),
        prompts=["a", "b"],
        settings=GenerationSettings(max_tokens=60, sampler=SAMPLER),
    )
    stop = next(
        text for i in range(40) if (text := free[0][i : i + 2]).isascii() and text not in free[1]
    )
    cut = complete_prompts(
        model,
        ByteTokenizer(),
        prompts=["a", "b"],
        settings=GenerationSettings(max_tokens=60, sampler=SAMPLER, stops=[stop]),
    )
    assert cut == [free[0][: free[0].index(stop)], free[1]]


def test_streamed_text_is_always_a_prefix_of_the_final_text(model):
    final = complete_prompts(
        model,
        ByteTokenizer(),
        prompts=["x"],
        settings=GenerationSettings(max_tokens=80, sampler=SAMPLER, stops=["ab", "\x00\x01"]),
    )[0]
    shown = ""
    for row, piece in stream_tokens(
        model,
        ByteTokenizer(),
        prompts=[[ord("x")]],
        settings=GenerationSettings(max_tokens=80, sampler=SAMPLER, stops=["ab", "\x00\x01"]),
    ):
        assert row == 0
        assert piece
        shown += piece
        assert final.startswith(shown)
    assert shown == final


def test_empty_prompt_starts_with_the_end_of_text_token_or_is_refused():
    assert first_tokens(ByteTokenizer(), "") == [256]
    silent = ByteTokenizer()
    silent.special_tokens = {}
    with pytest.raises(ValueError, match="give a prompt"):
        first_tokens(silent, "")


def test_streaming_from_tokens_stops_at_the_given_end_token(model):
    tokenizer = ByteTokenizer()
    prompt = tokenizer.encode("Every effort")
    (drawn,) = generate(
        model, [prompt], settings=GenerationSettings(max_tokens=40, sampler=SAMPLER)
    )
    end = next(token for token in drawn[10:] if token < 128)
    pieces = stream_tokens(
        model,
        tokenizer,
        prompts=[prompt],
        settings=GenerationSettings(max_tokens=40, sampler=SAMPLER, end_tokens=[end]),
    )
    assert "".join(text for _, text in pieces) == tokenizer.decode(drawn[: drawn.index(end)])
