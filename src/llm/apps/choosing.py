"""How several answers are drawn and the best is chosen, on a terminal."""

from collections.abc import Sequence
from functools import partial

from omegaconf import DictConfig

from llm.apps.loading import autocast
from llm.apps.prompting import Openings, prepare
from llm.config.build import build, mistakes_at
from llm.console import new_console
from llm.data.template import ChatTemplate, Message, stored_template
from llm.generation.best_of import Scored, best_of, require_choice
from llm.generation.text import first_tokens
from llm.rewards.reward import require_template, score
from llm.tokenizers.tokenizer import Tokenizer
from llm.weights.weights import Weights


def choose(config: DictConfig) -> list[str]:
    """Answer each prompt several times, and print the answers with their scores, the best first.

    Returns:
        The best answer to each prompt.

    Raises:
        ConfigError: the configuration is wrong, a run is none, or a prompt cannot be encoded.
    """
    reward, sampler = build(config.reward), build(config.sampler)

    def asked(weights: Weights, tokenizer: Tokenizer, prompts: Sequence[str]) -> Openings:
        with mistakes_at("best_of"):
            require_choice(config.best_of, sampler)
        template = stored_template(weights.config)
        with mistakes_at("reward"):
            require_template(reward, template)
        return openings_of(template, tokenizer, prompts)

    model, tokenizer, hardware, prompts, openings = prepare(config, asked)
    with autocast(hardware):
        answers = best_of(
            model,
            tokenizer,
            openings.starts,
            config.best_of,
            partial(score, reward),
            config.max_tokens,
            sampler,
            config.seed,
            openings.end_token,
            openings.stops,
        )
    for prompt, scored in zip(prompts, answers, strict=True):
        show(prompt if len(prompts) > 1 else "", scored)
    return [scored[0].text for scored in answers]


def openings_of(
    template: ChatTemplate | None, tokenizer: Tokenizer, prompts: Sequence[str]
) -> Openings:
    """The tokens that ask each prompt, the token that ends an answer, and texts that do.

    A model that was trained on a template is asked in its words; any other goes on with the prompt.
    """
    if template is None:
        return Openings([first_tokens(tokenizer, prompt) for prompt in prompts])
    asked = ([Message("user", prompt)] for prompt in prompts)
    starts = [template.encode_prompt(messages, tokenizer) for messages in asked]
    return Openings(starts, template.end_token(tokenizer), template.stops)


def show(prompt: str, scored: Sequence[Scored]) -> None:
    """Print the answers to a prompt, each after its score."""
    console = new_console(soft_wrap=True)
    if prompt:
        console.print(f"=== {prompt}")
    for text, value in scored:
        console.print(f"{value:+.3f}  {text.strip()}")
