"""The part of a conversation that fits the context: whole turns, always with the last message."""

import random

import pytest
from hydra import compose, initialize_config_module

from llm.config.build import build
from llm.data.examples.template import Message, Template
from llm.generation.conversation import Conversation
from llm.tokenizers.byte import ByteTokenizer

TEMPLATES = ["alpaca", "chatml", "phi3", "plain"]


@pytest.fixture(params=TEMPLATES)
def template(request) -> Template:
    with initialize_config_module("llm.conf", version_base="1.3"):
        return build(compose("chat", [f"template={request.param}"]).template)


@pytest.fixture
def conversation(template):
    """Make a conversation in a template, with the tokenizer that it needs."""

    def make(context_length: int, room: int) -> Conversation:
        tokenizer = ByteTokenizer().with_special_tokens(template.special_tokens)
        return Conversation(template, tokenizer, context_length=context_length, room=room)

    return make


def sentence(chance: random.Random) -> str:
    return "".join(chance.choice("ab é字\n") for _ in range(chance.randint(1, 60)))


@pytest.mark.parametrize("seed", range(5))
def test_a_prompt_leaves_room_and_holds_the_newest_turns_that_fit(conversation, template, seed):
    chance = random.Random(seed)
    talk = conversation(context_length=800, room=chance.randint(1, 200))
    talk.system = chance.choice([None, "Be brief."])
    dropped = []
    for _ in range(20):
        question = sentence(chance)
        tokens = talk.prompt(question)
        assert len(tokens) <= talk.context_length - talk.room
        system = [Message("system", talk.system)] if talk.system else []
        turns = talk.demonstrations[0][len(system) :] if talk.turns else []

        def written(first, question=question, system=system, turns=turns):
            asked = [*system, *turns[2 * first :], Message("user", question)]
            return template.encode_prompt(asked, talk.tokenizer)

        assert tokens == written(talk.dropped), "whole turns, the system message, the question"
        if talk.dropped > (dropped[-1] if dropped else 0):
            assert len(written(talk.dropped - 1)) > talk.context_length - talk.room, "one more fits"
        dropped.append(talk.dropped)
        talk.add(question, sentence(chance))
    assert dropped == sorted(dropped)
    assert dropped[0] == 0
    assert dropped[-1] > 0, "the conversation is too short: no turn was dropped"
    assert len(talk.turns) == 20, "turns that a prompt leaves out stay in the conversation"


def test_prompt_equals_the_tokens_before_the_response_in_training(conversation, template):
    talk = conversation(context_length=2000, room=10)
    talk.system = "Be brief."
    talk.add("Who are you?", "A model.")
    prompt = talk.prompt("Good-bye.")
    trained = [
        *talk.demonstrations[0],
        Message("user", "Good-bye."),
        Message("assistant", "Farewell!"),
    ]
    tokens, is_response = template.encode(trained, talk.tokenizer)
    begin = len(tokens) - is_response[::-1].index(False)
    assert prompt == tokens[:begin]
    assert tokens[begin:] == (
        talk.tokenizer.encode("Farewell!")
        + talk.tokenizer.encode(template.end["assistant"], special=True)
    )


def test_a_question_that_does_not_fit_alone_is_refused_and_changes_nothing(conversation):
    talk = conversation(context_length=400, room=50)
    talk.add("Who are you?", "A model.")
    before = talk.prompt("Good-bye.")
    with pytest.raises(
        ValueError, match=r"takes [\d,]+ tokens.* 350 are left .* context of 400: shorten it"
    ):
        talk.prompt("long " * 100)
    assert talk.prompt("Good-bye.") == before


def test_reset_keeps_only_the_system_message(conversation):
    talk = conversation(context_length=500, room=10)
    talk.system = "Be brief."
    fresh = talk.prompt("Hello")
    for _ in range(9):
        talk.add("Who are you?" * 5, "A model.")
        talk.prompt("Hello")
    assert talk.dropped
    talk.reset()
    assert talk.turns == []
    assert talk.prompt("Hello") == fresh


@pytest.mark.parametrize(
    ("room", "needs"),
    [(0, "1 token or more"), (-1, "1 token or more"), (400, "fewer tokens than the context's 400")],
)
def test_room_that_is_not_positive_or_is_the_whole_context_is_refused(conversation, room, needs):
    with pytest.raises(ValueError, match=f"room={room}: a response needs {needs}"):
        conversation(context_length=400, room=room)
