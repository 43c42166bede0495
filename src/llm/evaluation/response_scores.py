"""Responses and their references: read from a file, scored, and matched with another run's."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llm.config.errors import ConfigError
from llm.evaluation.confidence import bootstrap, wilson
from llm.evaluation.exact_match import exact_match
from llm.evaluation.rouge import rouge_l
from llm.files import read_json, write_json


class Response(NamedTuple):
    """A model's response, with its instruction and a reference.

    Attributes:
        instruction: the instruction, or each turn of a longer conversation with its speaker.
        reference: a good response.
        response: the model's response.
    """

    instruction: str
    reference: str
    response: str


def read_responses(file: Path) -> list[Response]:
    """Return the responses in a run's `responses.json`.

    Raises:
        ConfigError: the file is missing or contains something else.
    """
    try:
        return responses_of(read_json(file))
    except FileNotFoundError:
        raise ConfigError(
            f"{file}: does not exist; run llm evaluate on that run, which writes it"
        ) from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{file}: contains no responses ({type(error).__name__}: {error}); delete it and run llm evaluate, which "
            "writes it again"
        ) from None


def write_responses(file: Path, rows: Sequence[Mapping[str, Any]]) -> list[Response]:
    """Write a run's `responses.json` and return its responses."""
    write_json(file, rows)
    return responses_of(rows)


def responses_of(rows: Iterable[Mapping[str, Any]]) -> list[Response]:
    """Return the responses in rows with `instruction`, `input`, `messages`, `reference` and `response`."""
    return [Response(_asked(row), str(row["reference"]), str(row["response"])) for row in rows]


def _asked(row: Mapping[str, Any]) -> str:
    turns = [turn for turn in row.get("messages", ()) if turn["role"] != "system"]
    if len(turns) > 1:
        return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
    return "\n\n".join(text for text in (row["instruction"], row.get("input")) if text)


def response_metrics(responses: Iterable[Response]) -> dict[str, list[float]]:
    """Return the ROUGE-L and the exact match of each response."""
    pairs = [(each.response, each.reference) for each in responses]
    return {
        "rouge_l": [rouge_l(*pair) for pair in pairs],
        "exact_match": [float(exact_match(*pair)) for pair in pairs],
    }


def quality(responses: Sequence[Response]) -> dict[str, Any]:
    """Return ROUGE-L and exact match, each a mean over the responses with its interval."""
    measured = response_metrics(responses)
    return {
        "answers": len(responses),
        "rouge_l": bootstrap(measured["rouge_l"])._asdict(),
        "exact_match": wilson(sum(measured["exact_match"]), len(responses))._asdict(),
    }


def match_responses(
    ours: Sequence[Response], theirs: Sequence[Response]
) -> list[tuple[Response, Response]]:
    """Return pairs of responses of two runs with the same instruction and reference, in the order of `ours`.

    Raises:
        ConfigError: there are none.
    """
    others: defaultdict[tuple[str, str], list[Response]] = defaultdict(list)
    for each in reversed(theirs):
        others[each[:2]].append(each)
    pairs = [(each, others[each[:2]].pop()) for each in ours if others[each[:2]]]
    if not pairs:
        raise ConfigError(
            "against: the two runs have no instruction in common; compare runs on the same data, "
            "with the same seed and fractions"
        )
    return pairs


def paired_difference(pairs: Sequence[tuple[Response, Response]]) -> dict[str, Any]:
    """Return the number of pairs and the gain in ROUGE-L over the other run, with a paired interval."""
    gains = [
        rouge_l(our.response, our.reference) - rouge_l(other.response, other.reference)
        for our, other in pairs
    ]
    return {"compared": len(pairs), "rouge_l_gain": bootstrap(gains)._asdict()}
