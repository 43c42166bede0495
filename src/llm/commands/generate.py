"""`llm generate`: continue prompts with a trained model, or choose the best of several answers."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from llm.config.base import Command
from llm.config.build import config_errors_at
from llm.config.rules import Rule
from llm.data.examples.template import ChatTemplate, Message, stored_template
from llm.generation.best_of import Scored, best_of, require_choice
from llm.generation.generation_settings import GenerationSettings
from llm.generation.model_loading import autocast
from llm.generation.prompts import (
    Openings,
    Prepared,
    prepare_prompts,
    prompts_have_one_source,
)
from llm.generation.sampling import Sampler
from llm.generation.text_generation import first_tokens, stream_tokens
from llm.hardware import Hardware
from llm.rewards.base import RewardFunction, checked_scores, require_template
from llm.terminal.console import new_console, printable
from llm.tokenizers.base import Tokenizer
from llm.weights.base import Weights


def chosen_by_a_reward(config: Mapping[str, Any]) -> Iterator[str]:
    """Require a reward if and only if there are several answers to choose from."""
    number = config.get("best_of")
    if not isinstance(number, int):
        return
    if number < 1:
        yield f"best_of: {number} is not a number of answers; use 1, or more with a reward"
    elif (number > 1) != (config.get("reward") is not None):
        yield (
            "best_of: choosing among several answers needs a reward, and a reward needs several answers; set both, "
            "such as best_of=8 reward=run reward.path=outputs/reward/…"
        )


@dataclass(frozen=True, kw_only=True)
class Generate(Command):
    """Continue prompts, or answer them several times and choose the best answers."""

    prompt: str | Sequence[str]
    prompts_file: str | None
    max_tokens: int
    best_of: int
    stop: str | Sequence[str]
    seed: int
    hardware: Hardware
    sampler: Sampler
    weights: Weights | None
    reward: RewardFunction | None

    rules: ClassVar[Sequence[Rule]] = (chosen_by_a_reward, prompts_have_one_source)

    def run(self) -> list[str]:
        """Continue the prompts, or choose the best answers if there is a reward.

        Returns:
            The continuation of each prompt, or its best answer.

        Raises:
            ConfigError: the weights are not those of a run, or a prompt cannot be encoded.
        """
        return self.continue_prompts() if self.reward is None else self.choose_answers(self.reward)

    def continue_prompts(self) -> list[str]:
        """Print the continuation of each prompt.

        A single prompt is streamed. Several, from a list or a file, are continued as one batch and printed at the end.
        """
        model, tokenizer, hardware, prompts, openings = self._prepare(plain_openings)
        settings = self._settings(openings)
        pieces = stream_tokens(model, tokenizer, prompts=openings.starts, settings=settings)
        texts = [""] * len(prompts)
        with autocast(hardware):
            for row, piece in pieces:
                if len(prompts) == 1:
                    _print(piece if texts[row] else prompts[row] + piece)
                texts[row] += piece
        if len(prompts) == 1:
            _print("\n" if texts[0] else prompts[0] + "\n")
        else:
            for number, (prompt, text) in enumerate(zip(prompts, texts, strict=True), start=1):
                _print(f"=== {number}\n{prompt}{text}\n")
        return texts

    def choose_answers(self, reward: RewardFunction) -> list[str]:
        """Answer each prompt several times, and print the answers with their scores, best first."""

        def encode_prompts(
            weights: Weights, tokenizer: Tokenizer, prompts: Sequence[str]
        ) -> Openings:
            with config_errors_at("best_of"):
                require_choice(self.best_of, self.sampler)
            template = stored_template(weights.config)
            with config_errors_at("reward"):
                require_template(reward, template)
            return chat_openings(template, tokenizer, prompts)

        model, tokenizer, hardware, prompts, openings = self._prepare(encode_prompts)
        with autocast(hardware):
            answers = best_of(
                model,
                tokenizer,
                prompts=openings.starts,
                number=self.best_of,
                reward=partial(checked_scores, reward),
                settings=self._settings(openings),
            )
        for prompt, scored in zip(prompts, answers, strict=True):
            print_answers(prompt if len(prompts) > 1 else "", scored)
        return [scored[0].text for scored in answers]

    def _settings(self, openings: Openings) -> GenerationSettings:
        return GenerationSettings(
            max_tokens=self.max_tokens,
            sampler=self.sampler,
            seed=self.seed,
            end_tokens=openings.end_tokens,
            stops=openings.stops,
        )

    def _prepare(self, begin: Callable[[Weights, Tokenizer, Sequence[str]], Openings]) -> Prepared:
        return prepare_prompts(
            begin,
            weights=self.weights,
            hardware=self.hardware,
            prompt=self.prompt,
            prompts_file=self.prompts_file,
            stop=self.stop,
        )


def plain_openings(weights: Weights, tokenizer: Tokenizer, prompts: Sequence[str]) -> Openings:
    """Return the tokens of the prompts, without a template."""
    return Openings([first_tokens(tokenizer, prompt) for prompt in prompts])


def _print(text: str) -> None:
    sys.stdout.write(printable(text))
    sys.stdout.flush()


def chat_openings(
    template: ChatTemplate | None, tokenizer: Tokenizer, prompts: Sequence[str]
) -> Openings:
    """Return the tokens of each prompt in the template, and the token and the texts that end an answer.

    Without a template, the model continues the prompt.
    """
    if template is None:
        return Openings([first_tokens(tokenizer, prompt) for prompt in prompts])
    conversations = ([Message("user", prompt)] for prompt in prompts)
    starts = [template.encode_prompt(messages, tokenizer) for messages in conversations]
    end = template.end_token(tokenizer)
    return Openings(starts, () if end is None else (end,), template.stops)


def print_answers(prompt: str, scored: Sequence[Scored]) -> None:
    """Print the answers to a prompt, each after its score."""
    console = new_console(soft_wrap=True)
    if prompt:
        console.print(f"=== {prompt}")
    for text, value in scored:
        console.print(f"{value:+.3f}  {text.strip()}")
