"""How several answers are drawn and the best is chosen, on a terminal."""

from collections.abc import Sequence
from functools import partial

from omegaconf import DictConfig

from llm.apps.loading import (
    autocast,
    load_writer,
    open_weights,
    stop_strings,
    tell_of_cut,
    use_hardware,
)
from llm.apps.writing import read_prompts
from llm.config.build import build, mistakes_at
from llm.config.check import check
from llm.console import new_console
from llm.data.template import ChatTemplate, Message, stored_template
from llm.generation.best_of import Scored, best_of
from llm.generation.text import first_tokens
from llm.rewards.reward import require_template, score
from llm.tokenizers.tokenizer import Tokenizer


def choose(config: DictConfig) -> list[str]:
    """Answer each prompt several times, and print the answers with their scores, the best first.

    Returns:
        The best answer to each prompt.

    Raises:
        ConfigError: the configuration is wrong, a run is none, or a prompt cannot be encoded.
    """
    check(config)
    weights, hardware = open_weights(config), use_hardware(config)
    reward, sampler, tokenizer = build(config.reward), build(config.sampler), weights.tokenizer()
    prompts = read_prompts(config.prompt, config.prompts_file)
    template = stored_template(weights.config)
    with mistakes_at("reward"):
        require_template(reward, template)
    with mistakes_at("prompt"):
        starts, end_token, stops = openings(template, tokenizer, prompts)
    stops = [*stops, *stop_strings(config)]
    model = load_writer(weights, hardware)
    tell_of_cut(model, starts, key="prompt" if config.prompts_file is None else "prompts_file")
    with mistakes_at("best_of"), autocast(hardware):
        answers = best_of(
            model,
            tokenizer,
            starts,
            config.best_of,
            partial(score, reward),
            config.max_tokens,
            sampler,
            config.seed,
            end_token,
            stops,
        )
    for prompt, scored in zip(prompts, answers, strict=True):
        show(prompt if len(prompts) > 1 else "", scored)
    return [scored[0].text for scored in answers]


def openings(
    template: ChatTemplate | None, tokenizer: Tokenizer, prompts: Sequence[str]
) -> tuple[list[list[int]], int | None, Sequence[str]]:
    """The tokens that ask each prompt, the token that ends an answer, and texts that do.

    A model that was trained on a template is asked in its words; any other goes on with the prompt.
    """
    if template is None:
        return [first_tokens(tokenizer, prompt) for prompt in prompts], None, ()
    asked = ([Message("user", prompt)] for prompt in prompts)
    starts = [template.encode_prompt(messages, tokenizer) for messages in asked]
    return starts, template.end_token(tokenizer), template.stops


def show(prompt: str, scored: Sequence[Scored]) -> None:
    """Print the answers to a prompt, each after its score."""
    console = new_console(soft_wrap=True)
    if prompt:
        console.print(f"=== {prompt}")
    for text, value in scored:
        console.print(f"{value:+.3f}  {text.strip()}")
