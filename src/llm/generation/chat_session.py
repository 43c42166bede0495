"""A chat session on a terminal: questions, answers and slash commands."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from llm.config.errors import suggestion
from llm.generation.conversation import Conversation
from llm.terminal.streams import StandardStreams

# Maps the tokens of a prompt and a seed to the pieces of an answer, as they are generated.
Respond = Callable[[Sequence[int], int], Iterator[str]]


class ChatSession:
    """A loop that reads questions and commands line by line and writes answers.

    Args:
        conversation: the turns so far.
        answer: generates the answer to a prompt.
        terminal: standard streams to read from and write to.
        seed: seed of the first answer; each further answer adds 1.
    """

    def __init__(
        self,
        conversation: Conversation,
        answer: Respond,
        *,
        terminal: StandardStreams,
        seed: int = 0,
    ) -> None:
        self.conversation = conversation
        self.answer = answer
        self.terminal = terminal
        self.seed = seed
        self._dropping_is_known = False

    def run(self) -> None:
        """Answer until the user leaves."""
        self.terminal.show_hint("/help lists the commands; Ctrl-D leaves")
        while True:
            try:
                line = self.terminal.read().strip()
                if line.startswith("/"):
                    self.obey(line)
                elif line:
                    self.ask(line)
            except EOFError:
                return self.terminal.show_hint("")
            except KeyboardInterrupt:
                self.terminal.note("\nCtrl-D or /quit leaves")

    def ask(self, question: str) -> None:
        """Answer a question and remember both; Ctrl-C ends the answer early."""
        try:
            tokens = self.conversation.prompt(question)
        except ValueError as error:
            self.terminal.note(str(error))
            return
        self._tell_of_dropping()
        answer = ""
        try:
            for piece in self.answer(tokens, self.seed):
                answer += piece
                self.terminal.write(piece)
        except KeyboardInterrupt:
            pass  # Ctrl-C ends the answer, and what was written so far is kept
        # Otherwise the same question would get the same answer each time.
        self.seed += 1
        if answer:
            self.conversation.add(question, answer)
        self.terminal.write("\n")
        if not answer:
            self.terminal.note("no answer, so the question is forgotten")

    def obey(self, line: str) -> None:
        """Run the slash command of a line."""
        name, _, text = line.partition(" ")
        if name in COMMANDS:
            COMMANDS[name].run(self, text.strip())
        else:
            self.terminal.note(f"{name}: no such command; {suggestion(name, COMMANDS)}")

    def _tell_of_dropping(self) -> None:
        if self.conversation.dropped and not self._dropping_is_known:
            self._dropping_is_known = True
            length = self.conversation.context_length
            self.terminal.note(
                f"the conversation outgrew the context of {length:,} tokens: "
                "from here on its oldest turns are left out"
            )


class SlashCommand(NamedTuple):
    """A command that begins with a slash."""

    argument: str
    help: str
    run: Callable[[ChatSession, str], None]


def reset(dialogue: ChatSession, text: str) -> None:
    """Forget the turns."""
    dialogue.conversation.reset()


def system(dialogue: ChatSession, text: str) -> None:
    """Set the system message, or remove it."""
    dialogue.conversation.system = text or None


def save_conversation(dialogue: ChatSession, text: str) -> None:
    """Write the conversation to a file; overwrite an existing one only if the user confirms."""
    dialogue.terminal.note(_save(dialogue, Path(text).expanduser()))


def _save(dialogue: ChatSession, path: Path) -> str:
    """Write the conversation and return a message about it."""
    if path.suffix not in (".json", ".jsonl"):
        return "/save FILE: name a file that ends in .json or .jsonl"
    if not dialogue.conversation.turns:
        return "nothing was said yet"
    if path.exists() and not dialogue.terminal.confirm(f"{path} exists: overwrite it?"):
        return f"{path} exists, and stays as it is"
    conversations = dialogue.conversation.demonstrations
    rows = [{"messages": [message.as_row() for message in each]} for each in conversations]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    text = f"[{', '.join(lines)}]" if path.suffix == ".json" else "\n".join(lines)
    try:
        path.write_text(f"{text}\n", "utf-8", "replace")
    except OSError as error:
        return f"{path} cannot be written: {error.strerror}"
    said = f"{sum(map(len, conversations))} messages are in {path}"
    if len(rows) > 1:
        said += f", in {len(rows)} conversations: one for each system message"
    return said


def show_help(dialogue: ChatSession, text: str) -> None:
    """List the commands."""
    for name, command in COMMANDS.items():
        dialogue.terminal.note(f"{name + ' ' + command.argument:14s}{command.help}")


def leave(dialogue: ChatSession, text: str) -> None:
    """End as Ctrl-D does."""
    raise EOFError


COMMANDS = {
    "/reset": SlashCommand("", "begin anew; the system message stays", reset),
    "/system": SlashCommand(
        "TEXT", "set the system message; without TEXT, back to the default", system
    ),
    "/save": SlashCommand(
        "FILE", "write the conversation as JSON, which data=instruction reads", save_conversation
    ),
    "/help": SlashCommand("", "this list", show_help),
    "/quit": SlashCommand("", "leave; Ctrl-D does too, and Ctrl-C stops an answer", leave),
}
