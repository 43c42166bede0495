"""A chat session: its history, its commands, and the state after an interruption."""

import json
from functools import partial

import pytest

from llm.data.examples.template import Message, Template
from llm.generation.chat_session import COMMANDS, ChatSession
from llm.generation.conversation import Conversation
from llm.terminal.streams import StandardStreams
from llm.tokenizers.byte import ByteTokenizer

TEMPLATE = Template(
    begin={"system": "", "user": "U:", "assistant": "A:"},
    end={"system": "\n", "user": "\n", "assistant": "\n"},
)


class Script(StandardStreams):
    """A simulated user who enters given lines or raises given exceptions, and records the output."""

    def __init__(self, *lines, agrees=False):
        self.lines = iter(lines)
        self.written = ""
        self.notes = []
        self.asked = []
        self._agrees = agrees

    def read(self):
        line = next(self.lines, EOFError)
        if isinstance(line, str):
            return line + "\n"
        raise line

    def write(self, text):
        self.written += text

    def note(self, text):
        self.notes.append(text)

    def confirm(self, question):
        self.asked.append(question)
        return self._agrees


def echo(seen, tokens, seed):
    """Respond with the last message in capitals, letter by letter."""
    text = ByteTokenizer().decode(tokens)
    seen.append((text, seed))
    yield from text.rpartition("U:")[2].partition("\n")[0].upper()


def talk(*lines, respond=None, agrees=False, context_length=100):
    """Return a finished session, its output, and the prompts with their seeds."""
    seen = []
    script = Script(*lines, agrees=agrees)
    conversation = Conversation(TEMPLATE, ByteTokenizer(), context_length=context_length, room=20)
    dialogue = ChatSession(conversation, respond or partial(echo, seen), terminal=script, seed=7)
    dialogue.run()
    return dialogue, script, seen


def test_each_response_gets_the_earlier_turns_and_its_own_seed():
    _, script, seen = talk("one", "", "  two ", "/quit", "never read")
    assert script.written == "ONE\nTWO\n"
    assert seen == [("U:one\nA:", 7), ("U:one\nA:ONE\nU:two\nA:", 8)]


def test_stopped_response_is_kept_and_the_chat_continues():
    def respond(tokens, seed):
        yield "par"
        yield "tial"
        if seed == 7:
            raise KeyboardInterrupt
        yield " no more"

    dialogue, script, _ = talk("one", "two", respond=respond)
    assert [turn.response for turn in dialogue.conversation.turns] == ["partial", "partial no more"]
    assert script.written == "partial\npartial no more\n"


def test_message_without_a_response_is_dropped():
    def respond(tokens, seed):
        if seed == 7:
            raise KeyboardInterrupt
        yield ""

    dialogue, script, _ = talk("one", "two", respond=respond)
    assert dialogue.conversation.turns == []
    assert script.notes == ["no response: the message is left out of the conversation"] * 2


def test_interrupt_at_the_prompt_prints_how_to_leave():
    _, script, _ = talk(KeyboardInterrupt, "one")
    assert script.notes == ["\nCtrl-D or /quit leaves"]
    assert script.written == "ONE\n"


def test_dropped_turns_are_reported_once():
    _, script, seen = talk(*["x" * 20] * 6)
    assert len(seen) == 6
    (note,) = script.notes
    assert "context of 100 tokens" in note


def test_too_long_question_prints_a_note_and_the_chat_continues():
    _, script, _ = talk("x" * 200, "one")
    assert len(script.notes) == 1
    assert "shorten it" in script.notes[0]
    assert script.written == "ONE\n"


def test_reset_deletes_the_turns_and_system_sets_the_message():
    _, _, seen = talk("/system Be brief.", "one", "/reset", "two", "/system", "three")
    prompts = [prompt for prompt, _ in seen]
    assert prompts[:2] == ["Be brief.\nU:one\nA:", "Be brief.\nU:two\nA:"]
    assert prompts[2] == "U:two\nA:TWO\nU:three\nA:"


def test_help_lists_every_command():
    _, script, _ = talk("/help")
    assert [note.split()[0] for note in script.notes] == list(COMMANDS)


def test_unknown_command_is_reported_with_the_nearest_name_or_all_names():
    _, script, seen = talk("/rest", "/qqqqqqqq 1")
    assert script.notes[0] == "/rest: no such command; did you mean /reset?"
    assert all(name in script.notes[1] for name in COMMANDS)
    assert seen == []


@pytest.mark.parametrize("name", ["talk.json", "talk.jsonl"])
def test_a_saved_conversation_is_read_as_rows_of_messages(tmp_path, name):
    from llm.data.record_reader import read_records

    path = tmp_path / name
    dialogue, script, _ = talk("/system Sei kurz.", "grüß\udcff 字", f"/save {path}")
    assert script.notes == [f"3 messages are in {path}"]
    (row,) = read_records(path)
    messages = [Message(**message) for message in row.values["messages"]]
    expected = [
        message._replace(content=message.content.replace("\udcff", "?"))
        for message in dialogue.conversation.demonstrations[0]
    ]
    assert messages == expected
    assert "字" in path.read_text("utf-8")


@pytest.mark.parametrize("name", ["talk.json", "talk.jsonl"])
def test_save_writes_one_conversation_for_each_system_message(tmp_path, name):
    from llm.data.record_reader import read_records

    path = tmp_path / name
    _, script, seen = talk("one", "/system Be brief.", "two", "three", f"/save {path}")
    assert seen[1][0] == "Be brief.\nU:one\nA:ONE\nU:two\nA:", "the prompt of the model"
    assert script.notes == [
        f"9 messages are in {path}, in 2 conversations: one for each system message"
    ]
    first, second = (row.values["messages"] for row in read_records(path))
    assert [message["content"] for message in first] == ["one", "ONE"]
    assert [message["content"] for message in second] == (
        ["Be brief.", "one", "ONE", "two", "TWO", "three", "THREE"]
    )
    assert [message.get("weight") for message in second] == [None, 0, 0, *[None] * 4]


def test_save_asks_before_it_overwrites_a_file(tmp_path):
    path = tmp_path / "talk.json"
    path.write_text("mine")
    _, script, _ = talk("one", f"/save {path}")
    assert script.asked == [f"{path} exists: overwrite it?"]
    assert script.notes == [f"{path} exists and is not changed"]
    assert path.read_text() == "mine"
    talk("one", f"/save {path}", agrees=True)
    assert json.loads(path.read_text())[0]["messages"][0] == {"role": "user", "content": "one"}


@pytest.mark.parametrize(
    ("lines", "note"),
    [
        (["one", "/save"], "/save FILE: name a file that ends in .json or .jsonl"),
        (["one", "/save talk.txt"], "/save FILE: name a file that ends in .json or .jsonl"),
        (["/save talk.json"], "the conversation is empty; write a message first"),
        (["one", "/save no/such/folder/talk.json"], "cannot be written: No such file or directory"),
    ],
)
def test_failed_save_prints_a_note_and_the_chat_continues(tmp_path, monkeypatch, lines, note):
    monkeypatch.chdir(tmp_path)
    _, script, _ = talk(*lines, "two")
    assert script.notes[0].endswith(note)
    assert script.written.endswith("TWO\n")
    assert list(tmp_path.iterdir()) == []
