"""Instructions and their answers, and longer conversations: one question, one answer or several."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal, NamedTuple

from llm.data.base import Batch
from llm.data.examples.base import ExamplesDataModule
from llm.data.examples.collation import Encoded
from llm.data.examples.messages import messages_of, optional_text_of, text_of
from llm.data.examples.shapes import INSTRUCTION, PROMPT, record_shape, unknown_shape
from llm.data.examples.template import ChatTemplate, Message
from llm.data.malformed import Malformed
from llm.data.record_reader import Paths, Record, read_records
from llm.nn.ignore_index import IGNORE_INDEX

# The field of the answer, by shape; in the others it is the last message.
ANSWERS = {INSTRUCTION.name: "output", PROMPT.name: "completion"}


class Demonstration(NamedTuple):
    """A conversation that ends with the answer to learn.

    Attributes:
        where: the file and the line it stands on.
        messages: all of them; the last is the answer to learn.
        instruction: what was asked last.
        context: the input that the instruction is about; often empty.
    """

    where: str
    messages: list[Message]
    instruction: str
    context: str

    @property
    def prompt(self) -> list[Message]:
        """The messages that the last answer answers."""
        return self.messages[:-1]

    @property
    def reference(self) -> str:
        """The last answer."""
        return self.messages[-1].content


class InstructionDataModule(ExamplesDataModule):
    """Batches of conversations, in which a model learns to answer.

    A row of the file is an instruction, `{"instruction", "output"}` with `input`, `system` and `history` (pairs
    of earlier turns, which are learned as well) beside them if need be; a prompt, `{"prompt", "completion"}`; or
    a conversation, `{"messages": [{"role", "content"}, …]}` or `{"conversations": [{"from", "value"}, …]}`, which
    ends with the assistant. Answers of `weight` 0 are not learned. Fields that hold something and are not read
    are named in a warning.

    Args:
        template: How messages become tokens; its special tokens are added to the tokenizer.
        loss_on: What is learned: the assistant's answers (`response`), or every token (`all`).
        shared: The arguments of `ExamplesDataModule`; the last token of a conversation is a target only, so a
            conversation may have one more than `context_length`.

    Raises:
        ValueError: A parameter is out of range.
        DataError: A file or, unless they are skipped, a row cannot be used.
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
            raise ValueError(f"loss_on={loss_on}: give response or all")
        self.template, self.loss_on = template, loss_on

    def read_file(self, path: Paths, malformed: Malformed) -> Iterator[Demonstration]:
        """The rows of some files as conversations."""
        for row in read_records(path, self.layout, malformed=malformed):
            try:
                yield conversation_of(row, self.template)
            except ValueError as error:
                malformed.add(row.where, str(error))
            else:
                self.note_unused(row.values, conversation_fields(row.values))

    def texts(self, example: Demonstration) -> Iterable[str]:
        """The whole conversation as it is written down, without what is a token already."""
        return [self.template.ordinary_text(example.messages)]

    @property
    def special_tokens(self) -> Sequence[str]:
        """The template's."""
        return self.template.special_tokens

    def content(self, example: Demonstration) -> object:
        """The conversation; of its messages those that are not learned are marked."""
        messages = [m if not m.learned else m[:2] for m in example.messages]
        return [messages, *example[2:]]

    def settings(self) -> object:
        """The template, and what is learned."""
        return {"template": asdict(self.template), "loss_on": self.loss_on}  # pyright: ignore[reportArgumentType]

    # Encoding

    def encode(self, example: Demonstration) -> Encoded:
        """The tokens, and after each the target: the next one, where it is to be learnt.

        Raises:
            ValueError: there are more tokens than fit the context.
        """
        tokens, is_response = self.template.encode(example.messages, self.tokenizer)
        if self.loss_on == "all" and not all(message.learned for message in example.messages):
            raise ValueError("a message has weight 0, which needs data.loss_on=response")
        if len(tokens) - 1 > self.context_length:
            prompt = is_response.index(True)
            raise ValueError(
                f"prompt and response have {prompt} + {len(tokens) - prompt} tokens, which do not fit "
                f"context_length={self.context_length}"
            )
        mask = is_response if self.loss_on == "response" else [True] * len(tokens)
        targets = [
            token if learnt else IGNORE_INDEX for token, learnt in zip(tokens, mask, strict=True)
        ]
        return {"tokens": tokens[:-1], "targets": targets[1:]}

    def collate(self, examples: Sequence[Encoded]) -> Batch:
        """`tokens` and `targets`, and of packed rows `document_ids` and `positions`: (B, T) each."""
        return self.collation.batch(examples, self.context_length)

    def remarks(self) -> list[str]:
        """How much there is to train on."""
        tokens = round(self.train_rows * self.tokens_per_row)
        return [f"{tokens:,} training tokens in {self.train_rows:,} rows"]


def conversation_of(row: Record, template: ChatTemplate) -> Demonstration:
    """A row of any shape as a conversation, up to the last answer to learn.

    Raises:
        ValueError: it has none of the shapes, or a conversation of it would not end with an answer.
    """
    values, shape = row.values, record_shape(row.values)
    if shape is None:
        raise unknown_shape(values, ("instruction", "output"))
    messages = shape.read(values, template)
    if shape.name in ANSWERS:
        messages += answer_of(values, ANSWERS[shape.name])
    template.require(messages)
    if messages[-1].role != "assistant":
        raise ValueError("the last message is not the assistant's, so there is no answer to learn")
    learned = [at for at, m in enumerate(messages) if m.role == "assistant" and m.learned]
    if not learned:
        raise ValueError("the assistant's messages have weight 0, so there is no answer to learn")
    messages = messages[: learned[-1] + 1]
    if shape is INSTRUCTION:
        context = optional_text_of(values, "input")
        return Demonstration(row.where, messages, text_of(values, "instruction"), context)
    questions = [message.content for message in messages if message.role == "user"]
    return Demonstration(row.where, messages, questions[-1], "")


def conversation_fields(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The fields of a row that `conversation_of` reads."""
    shape = record_shape(values)
    assert shape is not None
    answer = (ANSWERS[shape.name],) if shape.name in ANSWERS else ()
    return (shape.name, *shape.optional, *answer)


def answer_of(values: Mapping[str, Any], key: str) -> list[Message]:
    """The answer under a key: text, or a list of messages.

    Raises:
        ValueError: there is none.
    """
    if isinstance(values.get(key), list):
        return messages_of(values[key])
    return [Message("assistant", text_of(values, key))]
