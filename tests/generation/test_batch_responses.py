"""Responses to many prompts: in order, the same for every batch size, ended correctly."""

import pytest
import torch

from llm.generation.batch_responses import respond
from llm.generation.decoding import generate
from llm.generation.generation_settings import GREEDY, GenerationSettings
from llm.generation.sampling import Sampler
from llm.tokenizers.byte import ByteTokenizer

PROMPTS = [list(text.encode()) for text in ("a", "bcd", "ef", "ghijk", "lm")]


@pytest.fixture
def model(build):
    torch.manual_seed(0)
    return build(vocab_size=257)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 16])
@pytest.mark.parametrize("sampler", [GREEDY, Sampler(temperature=1.0)])
def test_batch_gives_each_prompt_the_response_it_gets_alone(model, batch_size, sampler):
    tokenizer, done = ByteTokenizer(), []
    answers = respond(
        model,
        tokenizer,
        prompts=PROMPTS,
        settings=GenerationSettings(max_tokens=6, sampler=sampler, seed=3),
        batch_size=batch_size,
        advance=done.append,
    )
    for row, prompt in enumerate(PROMPTS):
        (alone,) = generate(
            model,
            [prompt],
            settings=GenerationSettings(
                max_tokens=6, sampler=sampler, seed=3 + row, end_tokens=(tokenizer.end_of_text,)
            ),
        )
        assert answers[row] == tokenizer.decode(alone)
    assert sum(done) == len(PROMPTS)
    assert max(done) == min(batch_size, len(PROMPTS))


def test_response_is_cut_before_its_end_token_or_stop_string(model):
    (whole,) = generate(
        model,
        PROMPTS[:1],
        settings=GenerationSettings(max_tokens=8, sampler=Sampler(temperature=1.0)),
    )
    (text,) = respond(
        model,
        ByteTokenizer(),
        prompts=PROMPTS[:1],
        settings=GenerationSettings(max_tokens=8, sampler=Sampler(temperature=1.0)),
    )
    (ended,) = respond(
        model,
        ByteTokenizer(),
        prompts=PROMPTS[:1],
        settings=GenerationSettings(
            max_tokens=8, sampler=Sampler(temperature=1.0), end_tokens=(whole[4],)
        ),
    )
    assert ended == ByteTokenizer().decode(whole[: whole.index(whole[4])])
    (stopped,) = respond(
        model,
        ByteTokenizer(),
        prompts=PROMPTS[:1],
        settings=GenerationSettings(
            max_tokens=8, sampler=Sampler(temperature=1.0), stops=[text[-2:]]
        ),
    )
    assert stopped == text[: text.index(text[-2:])]


def test_no_prompts_give_no_responses_and_batch_size_0_is_refused(model):
    assert (
        respond(model, ByteTokenizer(), prompts=[], settings=GenerationSettings(max_tokens=5)) == []
    )
    with pytest.raises(ValueError, match="batch_size=0"):
        respond(
            model,
            ByteTokenizer(),
            prompts=PROMPTS,
            settings=GenerationSettings(max_tokens=5),
            batch_size=0,
        )
