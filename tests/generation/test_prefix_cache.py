"""Reuse of the cache between the prompts of a conversation changes no result."""

import pytest
import torch

from llm.generation.decoding import Decoding
from llm.generation.generation_settings import GenerationSettings
from llm.generation.prefix_cache import PrefixCache
from llm.generation.sampling import Sampler

# None stands for the previous prompt and its response. The last prompt starts anew, as after a dropped turn.
PROMPTS = [[5, 6, 7], [None, 8, 9], [None, 3, 3, 3, 3], [9, 1, 2]]


def converse(model, memory: PrefixCache | None, use_cache: bool = True) -> list[list[int]]:
    """Return the responses to prompts that each begin with the previous one."""
    said, answers = [], []
    for number, prompt in enumerate(PROMPTS):
        said = [*said, *prompt[1:]] if prompt[0] is None else prompt
        decoding = Decoding(
            model,
            [said],
            settings=GenerationSettings(
                max_tokens=4, sampler=Sampler(temperature=0.7), seed=number
            ),
            use_cache=use_cache,
            memory=memory,
        )
        answer = [tokens[0] for tokens in decoding]
        answers.append(answer)
        said = [*said, *answer]
    return answers


@pytest.fixture(params=["gpt2", "llama", "alibi"])
def model(request, build):
    torch.manual_seed(0)
    words = ("model/position=alibi",) if request.param == "alibi" else (f"model={request.param}",)
    return build(*words, "size.context_length=40", "model/init=torch_default")


def test_responses_equal_those_without_a_cache(model):
    assert converse(model, PrefixCache()) == converse(model, None, use_cache=False)


def test_only_new_tokens_are_computed(model):
    lengths = []
    model.embedding.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    converse(model, PrefixCache())
    # The last token of a response was sampled but never fed to the model, so the next prompt computes it too.
    assert [length for length in lengths if length > 1] == [3, 3, 5, 3]
    assert len(lengths) == 4 * len(PROMPTS)


def test_text_longer_than_the_context_equals_that_without_a_cache(model):
    prompt = list(range(1, 39))
    memory = PrefixCache()
    for text in (prompt, [*prompt, 1, 2, 3], prompt[:20]):
        with_memory, without = (
            [
                tokens[0]
                for tokens in Decoding(
                    model,
                    [text],
                    settings=GenerationSettings(max_tokens=6, sampler=Sampler()),
                    memory=each,
                )
            ]
            for each in (memory, None)
        )
        assert with_memory == without


def test_cache_is_usable_after_an_interrupted_forward_pass(model):
    """After Ctrl-C between two layers, the cache of the first layer is one token longer than the others."""
    memory = PrefixCache()
    first = Decoding(
        model,
        [[5, 6, 7]],
        settings=GenerationSettings(max_tokens=4, sampler=Sampler()),
        memory=memory,
    )
    said = [5, 6, 7, next(first)[0], next(first)[0]]

    def interrupt(*_):
        raise KeyboardInterrupt

    hook = model.blocks[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        next(first)
    hook.remove()
    again, settings = [[*said, 8]], GenerationSettings(max_tokens=4, sampler=Sampler())
    answer = [tokens[0] for tokens in Decoding(model, again, settings=settings, memory=memory)]
    assert answer == [tokens[0] for tokens in Decoding(model, again, settings=settings)]


def test_batch_of_several_rows_is_not_cached(model):
    memory = PrefixCache()
    list(
        Decoding(
            model,
            [[1, 2], [3]],
            settings=GenerationSettings(max_tokens=2, sampler=Sampler()),
            memory=memory,
        )
    )
    assert memory.recall([1, 2, 3], 10) is None
