"""A chat session on a terminal: messages, responses and slash commands."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from llm.config.errors import suggestion
from llm.generation.conversation import Conversation
from llm.terminal.streams import StandardStreams

# Maps the tokens of a prompt and a seed to the pieces of a response, as they are generated.
Respond = Callable[[Sequence[int], int], Iterator[str]]

# The slash commands: name and argument, and what the command does.
COMMANDS = {
    "/reset": ("", "remove all turns; the system message stays"),
    "/system": ("TEXT", "set the system message; without TEXT, use the default"),
    "/save": ("FILE", "write the conversation as JSON, which data=instruction reads"),
    "/help": ("", "print this list"),
    "/quit": ("", "leave; Ctrl-D does too, and Ctrl-C stops a response"),
}


class ChatSession:
    """A loop that reads messages and commands line by line and writes responses.

    Args:
        conversation: the turns so far.
        respond: generates the response to a prompt.
        terminal: standard streams to read from and write to.
        seed: seed of the first response; each further response adds 1.
    """

    def __init__(
        self,
        conversation: Conversation,
        respond: Respond,
        *,
        terminal: StandardStreams,
        seed: int = 0,
    ) -> None:
        self.conversation = conversation
        self.respond = respond
        self.terminal = terminal
        self.seed = seed
        self._is_drop_reported = False

    def run(self) -> None:
        """Respond until the user leaves."""
        self.terminal.show_hint("/help lists the commands; Ctrl-D leaves")
        while True:
            try:
                line = self.terminal.read().strip()
                if line.startswith("/"):
                    self.run_command(line)
                elif line:
                    self.send(line)
            except EOFError:
                return self.terminal.show_hint("")
            except KeyboardInterrupt:
                self.terminal.note("\nCtrl-D or /quit leaves")

    def send(self, message: str) -> None:
        """Respond to a message and add both to the conversation; Ctrl-C ends the response early."""
        try:
            tokens = self.conversation.prompt(message)
        except ValueError as error:
            self.terminal.note(str(error))
            return
        self._report_dropped_turns()
        response = ""
        try:
            for piece in self.respond(tokens, self.seed):
                response += piece
                self.terminal.write(piece)
        except KeyboardInterrupt:
            pass  # what was written so far is kept
        # With the same seed the same message would get the same response.
        self.seed += 1
        if response:
            self.conversation.add(message, response)
        self.terminal.write("\n")
        if not response:
            self.terminal.note("no response: the message is left out of the conversation")

    def run_command(self, line: str) -> None:
        """Run the slash command of a line."""
        name, _, text = line.partition(" ")
        text = text.strip()
        match name:
            case "/reset":
                self.conversation.reset()
            case "/system":
                self.conversation.system = text or None
            case "/save":
                self.terminal.note(self._save(Path(text).expanduser()))
            case "/help":
                for command, (argument, does) in COMMANDS.items():
                    self.terminal.note(f"{command + ' ' + argument:14s}{does}")
            case "/quit":
                raise EOFError
            case _:
                self.terminal.note(f"{name}: no such command; {suggestion(name, COMMANDS)}")

    def _report_dropped_turns(self) -> None:
        """Report once that the oldest turns are left out."""
        if self.conversation.dropped and not self._is_drop_reported:
            self._is_drop_reported = True
            length = self.conversation.context_length
            self.terminal.note(
                f"the conversation is longer than the context of {length:,} tokens: "
                "from now on its oldest turns are left out"
            )

    def _save(self, path: Path) -> str:
        """Write the conversation to a file, which is overwritten only if the user agrees; return a message."""
        if path.suffix not in (".json", ".jsonl"):
            return "/save FILE: name a file that ends in .json or .jsonl"
        if not self.conversation.turns:
            return "the conversation is empty; write a message first"
        if path.exists() and not self.terminal.confirm(f"{path} exists: overwrite it?"):
            return f"{path} exists and is not changed"
        conversations = self.conversation.demonstrations
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
