"""`llm generate`: continue prompts with what a run has learned, or choose the best of several answers."""

import sys
from collections.abc import Sequence
from functools import partial

from omegaconf import DictConfig

from llm.config.build import build, config_errors_at
from llm.config.point import Point
from llm.data.examples.template import ChatTemplate, Message, stored_template
from llm.generation.best_of import Scored, best_of, require_choice
from llm.generation.model_loading import autocast
from llm.generation.prompts import Openings, prepare_prompts
from llm.generation.text_generation import first_tokens, stream_tokens
from llm.rewards.base import checked_scores, require_template
from llm.terminal.console import new_console, printable
from llm.tokenizers.base import Tokenizer
from llm.weights.base import Weights


def main(point: Point) -> None:
    """Continue prompts, or choose the best answers where there is a reward."""
    generate_text(point.config) if point.config.reward is None else generate_best(point.config)


def generate_text(config: DictConfig) -> list[str]:
    """Continue what a composed configuration of `llm generate` asks for, and print it as it is written.

    One prompt streams; several, from a list or a file, are continued as one batch and printed one by one.

    Returns:
        The continuations, without their prompts.

    Raises:
        ConfigError: the configuration is wrong, the run is none, or a prompt cannot be encoded.
    """
    model, tokenizer, hardware, prompts, openings = prepare_prompts(config, as_they_stand)
    pieces = stream_tokens(
        model,
        tokenizer,
        openings.starts,
        config.max_tokens,
        build(config.sampler),
        config.seed,
        openings.stops,
    )
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


def as_they_stand(weights: Weights, tokenizer: Tokenizer, prompts: Sequence[str]) -> Openings:
    """The prompts' own tokens, which the model continues."""
    return Openings([first_tokens(tokenizer, prompt) for prompt in prompts])


def _print(text: str) -> None:
    sys.stdout.write(printable(text))
    sys.stdout.flush()


def generate_best(config: DictConfig) -> list[str]:
    """Answer each prompt several times, and print the answers with their scores, the best first.

    Returns:
        The best answer to each prompt.

    Raises:
        ConfigError: the configuration is wrong, a run is none, or a prompt cannot be encoded.
    """
    reward, sampler = build(config.reward), build(config.sampler)

    def encode_prompts(weights: Weights, tokenizer: Tokenizer, prompts: Sequence[str]) -> Openings:
        with config_errors_at("best_of"):
            require_choice(config.best_of, sampler)
        template = stored_template(weights.config)
        with config_errors_at("reward"):
            require_template(reward, template)
        return openings_of(template, tokenizer, prompts)

    model, tokenizer, hardware, prompts, openings = prepare_prompts(config, encode_prompts)
    with autocast(hardware):
        answers = best_of(
            model,
            tokenizer,
            openings.starts,
            config.best_of,
            partial(checked_scores, reward),
            config.max_tokens,
            sampler,
            config.seed,
            openings.end_token,
            openings.stops,
        )
    for prompt, scored in zip(prompts, answers, strict=True):
        print_answers(prompt if len(prompts) > 1 else "", scored)
    return [scored[0].text for scored in answers]


def openings_of(
    template: ChatTemplate | None, tokenizer: Tokenizer, prompts: Sequence[str]
) -> Openings:
    """The tokens that ask each prompt, the token that ends an answer, and texts that do.

    A model that was trained on a template is asked in its words; any other goes on with the prompt.
    """
    if template is None:
        return Openings([first_tokens(tokenizer, prompt) for prompt in prompts])
    conversations = ([Message("user", prompt)] for prompt in prompts)
    starts = [template.encode_prompt(messages, tokenizer) for messages in conversations]
    return Openings(starts, template.end_token(tokenizer), template.stops)


def print_answers(prompt: str, scored: Sequence[Scored]) -> None:
    """Print the answers to a prompt, each after its score."""
    console = new_console(soft_wrap=True)
    if prompt:
        console.print(f"=== {prompt}")
    for text, value in scored:
        console.print(f"{value:+.3f}  {text.strip()}")
