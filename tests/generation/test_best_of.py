"""Best of n: number of responses, the same draws as single responses, order of the scores."""

import pytest
import torch

from llm.generation.batch_responses import respond
from llm.generation.best_of import best_of
from llm.generation.generation_settings import GenerationSettings
from llm.generation.sampling import Sampler
from llm.tokenizers.byte import ByteTokenizer

PROMPTS = [list(b"Say something"), list(b"And now?")]


@pytest.fixture
def model(build):
    torch.manual_seed(0)
    return build(vocab_size=257)


def test_responses_are_sorted_by_score_and_complete(model):
    asked = []

    def reward(prompts, responses, references):
        asked.append((prompts, references))
        return [float(len(response)) for response in responses]

    tokenizer, sampler = ByteTokenizer(), Sampler()
    answers = best_of(
        model,
        tokenizer,
        prompts=PROMPTS,
        settings=GenerationSettings(max_tokens=12, sampler=sampler, seed=3),
        number=5,
        reward=reward,
    )
    drawn = respond(
        model,
        tokenizer,
        prompts=[p for p in PROMPTS for _ in range(5)],
        settings=GenerationSettings(max_tokens=12, sampler=sampler, seed=3),
    )
    for row, scored in enumerate(answers):
        assert sorted(each.text for each in scored) == sorted(drawn[5 * row : 5 * row + 5])
        assert [each.score for each in scored] == sorted(
            (len(each.text) for each in scored), reverse=True
        )
    assert asked == [(["Say something"] * 5 + ["And now?"] * 5, [""] * 10)]


def test_best_score_does_not_fall_with_more_responses(model):
    def reward(prompts, responses, references):
        return [float(response.count("e")) for response in responses]

    best = [
        best_of(
            model,
            ByteTokenizer(),
            prompts=PROMPTS[:1],
            settings=GenerationSettings(max_tokens=30, sampler=Sampler()),
            number=number,
            reward=reward,
        )[0][0].score
        for number in (1, 4, 32)
    ]
    assert best == sorted(best)
    assert best[-1] > best[0]


def test_temperature_0_and_number_0_are_refused(model):
    nothing = lambda prompts, responses, references: [0.0] * len(responses)  # noqa: E731
    with pytest.raises(ValueError, match="temperature=0 gives the same response"):
        best_of(
            model,
            ByteTokenizer(),
            prompts=PROMPTS,
            settings=GenerationSettings(max_tokens=5, sampler=Sampler(temperature=0.0)),
            number=2,
            reward=nothing,
        )
    with pytest.raises(ValueError, match="0 is not a number of responses; give 1 or more"):
        best_of(
            model,
            ByteTokenizer(),
            prompts=PROMPTS,
            settings=GenerationSettings(max_tokens=5, sampler=Sampler()),
            number=0,
            reward=nothing,
        )
