"""`llm generate`: continue prompts, or choose the best of several responses."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from llm.config.base import Command
from llm.config.build import config_errors_at
from llm.config.rules import Rule
from llm.config.texts import one_or_several
from llm.data.examples.template import ChatTemplate, stored_template
from llm.generation.best_of import Scored, best_of, require_choice
from llm.generation.generation_settings import GenerationSettings
from llm.generation.model_loading import (
    autocast,
    load_language_model,
    report_truncation,
    use_hardware,
    weights_are_trained,
)
from llm.generation.prompts import (
    encode_prompts,
    prompts_have_one_source,
    read_prompts,
    stops_have_text,
)
from llm.generation.sampling import Sampler
from llm.generation.text_generation import stream_tokens
from llm.hardware import Hardware
from llm.rewards.base import RewardFunction, checked_scores, require_template
from llm.terminal.console import new_console
from llm.terminal.streams import write
from llm.weights.base import Weights


def best_of_has_reward(config: Mapping[str, Any]) -> Iterator[str]:
    """Require a reward if and only if there are several responses to choose from."""
    number = config.get("best_of")
    if not isinstance(number, int):
        return
    if number < 1:
        yield f"best_of: {number} is not a number of responses; use 1, or more with a reward"
    elif (number > 1) != (config.get("reward") is not None):
        yield (
            "best_of: choosing among several responses needs a reward, and a reward needs several responses; "
            "set both, such as best_of=8 reward=run reward.path=outputs/reward/…"
        )


@dataclass(frozen=True, kw_only=True)
class Generate(Command):
    """Continue prompts, or generate several responses to each and choose the best."""

    prompt: str | Sequence[str]
    prompts_file: str | None
    max_tokens: int
    best_of: int
    stop: str | Sequence[str]
    seed: int
    hardware: Hardware
    sampler: Sampler
    weights: Weights
    reward: RewardFunction | None

    rules: ClassVar[Sequence[Rule]] = (
        weights_are_trained,
        best_of_has_reward,
        prompts_have_one_source,
        stops_have_text,
    )

    def run(self) -> list[str]:
        """Print and return the continuation of each prompt or, with a reward, its best response.

        Raises:
            ConfigError: a prompt cannot be encoded.
        """
        weights, hardware = self.weights, use_hardware(self.hardware)
        prompts = read_prompts(self.prompt, self.prompts_file)
        tokenizer, stops = weights.tokenizer(), one_or_several(self.stop)
        key = "prompt" if self.prompts_file is None else "prompts_file"
        # A prompt that cannot be encoded fails before the model is loaded, which takes long.
        template = None if self.reward is None else self._chat_template(weights, self.reward)
        with config_errors_at(key):
            encoded = encode_prompts(prompts, tokenizer, template=template)
        settings = GenerationSettings(
            max_tokens=self.max_tokens,
            sampler=self.sampler,
            seed=self.seed,
            end_tokens=encoded.end_tokens,
            stops=[*encoded.stops, *stops],
        )
        model = load_language_model(weights, hardware)
        report_truncation(model, encoded.starts, key=key)
        with autocast(hardware):
            if self.reward is None:
                pieces = stream_tokens(model, tokenizer, prompts=encoded.starts, settings=settings)
                return print_continuations(prompts, pieces)
            responses = best_of(
                model,
                tokenizer,
                prompts=encoded.starts,
                number=self.best_of,
                reward=partial(checked_scores, self.reward),
                settings=settings,
            )
        for prompt, scored in zip(prompts, responses, strict=True):
            print_responses(prompt if len(prompts) > 1 else "", scored)
        return [scored[0].text for scored in responses]

    def _chat_template(self, weights: Weights, reward: RewardFunction) -> ChatTemplate | None:
        """Return the template of the weights; require several responses and a reward with this template."""
        with config_errors_at("best_of"):
            require_choice(self.best_of, self.sampler)
        template = stored_template(weights.config)
        with config_errors_at("reward"):
            require_template(reward, template)
        return template


def print_continuations(prompts: Sequence[str], pieces: Iterable[tuple[int, str]]) -> list[str]:
    """Print and return the continuation of each prompt: a single one token by token, several at the end."""
    texts = [""] * len(prompts)
    for row, piece in pieces:
        if len(prompts) == 1:
            write(piece if texts[row] else prompts[row] + piece)
        texts[row] += piece
    if len(prompts) == 1:
        write("\n" if texts[0] else prompts[0] + "\n")
    else:
        for number, (prompt, text) in enumerate(zip(prompts, texts, strict=True), start=1):
            write(f"=== {number}\n{prompt}{text}\n")
    return texts


def print_responses(prompt: str, scored: Sequence[Scored]) -> None:
    """Print the responses to a prompt, each after its score."""
    console = new_console(soft_wrap=True)
    if prompt:
        console.print(f"=== {prompt}")
    for text, value in scored:
        console.print(f"{value:+.3f}  {text.strip()}")
