"""The data module of instructions with responses, and of conversations."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal, NamedTuple

from llm.data.corpora.windows import Batch
from llm.data.examples.base import ExamplesDataModule
from llm.data.examples.collation import Encoded
from llm.data.examples.messages import get_optional_text, get_text, parse_messages, unused_fields
from llm.data.examples.shapes import INSTRUCTION, record_shape, unknown_shape
from llm.data.examples.template import ChatTemplate, Message
from llm.data.record_reader import Record
from llm.nn.ignore_index import IGNORE_INDEX


class Demonstration(NamedTuple):
    """A conversation that ends with a response to learn.

    Attributes:
        where: the file and line.
        messages: all messages, including the response.
        instruction: the last instruction.
        context: the input of the instruction; often empty.
    """

    where: str
    messages: list[Message]
    instruction: str
    context: str

    @property
    def prompt(self) -> list[Message]:
        """The messages before the last response."""
        return self.messages[:-1]

    @property
    def reference(self) -> str:
        """The last response."""
        return self.messages[-1].content


class InstructionDataModule(ExamplesDataModule):
    """A data module of conversations, from which a model learns to respond.

    A row of the file has one of these shapes:

    - an instruction, `{"instruction", "output"}`, optionally with `input`, `system` and `history` (pairs of earlier
      turns, which are learned too);
    - a prompt, `{"prompt", "completion"}`;
    - a conversation, `{"messages": [{"role", "content"}, …]}` or `{"conversations": [{"from", "value"}, …]}`, which
      ends with the assistant's message.

    Responses with `weight` 0 are not learned. A warning lists the fields that have a value but are not read.

    Args:
        template: the chat template; its special tokens are added to the tokenizer.
        loss_on: the tokens to learn: those of the assistant's responses (`response`) or all (`all`).
        shared: the arguments of `ExamplesDataModule`. A conversation may have `context_length` + 1 tokens, because
            the last one is only a target.
    """

    kind = "conversations"
    may_pack = True

    def __init__(
        self,
        *,
        template: ChatTemplate,
        loss_on: Literal["response", "all"] = "response",
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        if loss_on not in ("response", "all"):
            raise ValueError(f"loss_on={loss_on} is unknown; use response or all")
        self.template, self.loss_on = template, loss_on
        self.special_tokens = template.special_tokens

    def parse(self, row: Record) -> Demonstration:
        """Return a row of any shape as a conversation, up to the last response to learn.

        Raises:
            ValueError: the row has none of the shapes, or no response to learn.
        """
        values, shape = row.values, record_shape(row.values)
        if shape is None:
            raise unknown_shape(values, ("instruction", "output"))
        messages = shape.read(values, self.template)
        if isinstance(values.get(shape.response), list):
            messages += parse_messages(values[shape.response])
        elif shape.response:
            messages.append(Message("assistant", get_text(values, shape.response)))
        self.template.require(messages)
        if messages[-1].role != "assistant":
            raise ValueError(
                "the last message is not the assistant's: there is no response to learn"
            )
        learned = [at for at, m in enumerate(messages) if m.role == "assistant" and m.learned]
        if not learned:
            raise ValueError(
                "the assistant's messages have weight 0: there is no response to learn"
            )
        messages = messages[: learned[-1] + 1]
        if shape is INSTRUCTION:
            context = get_optional_text(values, "input")
            return Demonstration(row.where, messages, get_text(values, "instruction"), context)
        questions = [message.content for message in messages if message.role == "user"]
        return Demonstration(row.where, messages, questions[-1], "")

    def unread(self, values: Mapping[str, Any]) -> Iterable[str]:
        """Return the names of fields with a value that `parse` does not read."""
        shape = record_shape(values)
        assert shape is not None
        return unused_fields(values, (shape.name, *shape.optional, shape.response))

    def texts(self, example: Demonstration) -> Iterable[str]:
        """Return the whole conversation as text, without special tokens."""
        return [self.template.ordinary_text(example.messages)]

    def content(self, example: Demonstration) -> object:
        """Return the messages, marked if they are not learned, and the instruction with its input."""
        messages = [m if not m.learned else m[:2] for m in example.messages]
        return [messages, *example[2:]]

    def settings(self) -> object:
        """Return the template and `loss_on`."""
        return {"template": asdict(self.template), "loss_on": self.loss_on}  # pyright: ignore[reportArgumentType]

    # Encoding

    def encode(self, example: Demonstration) -> Encoded:
        """Return the tokens and their targets: the next token if it is learned, otherwise ignored.

        Raises:
            ValueError: there are more tokens than fit the context.
        """
        tokens, is_response = self.template.encode(example.messages, self.tokenizer)
        if self.loss_on == "all" and not all(message.learned for message in example.messages):
            raise ValueError("a message has weight 0; use data.loss_on=response")
        prompt = is_response.index(True)
        self.require_fit("prompt and response", prompt=prompt, tokens=len(tokens))
        mask = is_response if self.loss_on == "response" else [True] * len(tokens)
        targets = [
            token if learned else IGNORE_INDEX for token, learned in zip(tokens, mask, strict=True)
        ]
        return {"tokens": tokens[:-1], "targets": targets[1:]}

    def collate(self, examples: Sequence[Encoded]) -> Batch:
        """Return `tokens` and `targets`, and for packed rows `document_ids` and `positions`: (B, T) each."""
        return self.collation.batch(examples, self.context_length)

    def remarks(self) -> list[str]:
        """Return the numbers of training tokens and rows."""
        tokens = round(self.train_rows * self.tokens_per_row)
        return [f"{tokens:,} training tokens in {self.train_rows:,} rows"]
