"""Decoding: one token after another, each drawn from what the model says of all before it.

A model sees at most `context_length` tokens, so a longer text is seen through a window. Where it
begins depends on the text's own length and nothing else (`window_start`), and positions count from
its beginning. So a text continues alike with and without a cache, alone and in a batch.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from llm.dtensor import is_dtensor
from llm.generation.prefix_cache import PrefixCache
from llm.generation.sampling import Sampler
from llm.models.errors import ModelError
from llm.nn.kv_cache import Cache


def generates(model: nn.Module) -> bool:
    """Whether a model can write a text: it says so itself, or it has a cache for its past."""
    return getattr(model, "generates", hasattr(model, "new_cache"))


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    sampler: Sampler,
    seed: int = 0,
    end_token: int | None = None,
    use_cache: bool = True,
) -> list[list[int]]:
    """The tokens that follow each prompt, all at once; `Decoding` gives them one by one.

    The arguments and errors are those of `Decoding`. The prompts are not repeated.
    """
    texts: list[list[int]] = [[] for _ in prompts]
    for tokens in Decoding(model, prompts, max_tokens, sampler, seed, end_token, use_cache):
        for row, token in tokens.items():
            texts[row].append(token)
    return texts


def window_start(length: int, context_length: int) -> int:
    """Where the part begins that a model sees of a text of `length` tokens.

    At 0 while the text fits. Then it jumps by half a context whenever the window would grow too
    long, so that a cache is filled anew at a jump only, not at every token.

    Args:
        length: tokens in the text.
        context_length: most tokens in a window, L; a jump leaves more than L - L // 2.
    """
    jump = max(1, context_length // 2)
    jumps = -(-max(0, length - context_length) // jump)
    return jumps * jump


class Decoding(Iterator[dict[int, int]]):
    """Continues a batch of prompts: each step gives the next token of each row that goes on.

        decoding = Decoding(model, prompts, max_tokens=100, sampler=Sampler())
        for tokens in decoding:
            for row, token in tokens.items():
                if token == full_stop:
                    decoding.end(row)

    Row i is drawn with the seed `seed + i` and does not depend on the others: alone, under that
    seed, it would be the same. The model is put in evaluation mode for each step, and back.

    Args:
        model: a language model: `hidden_states`, `head`, `new_cache` and `context_length`.
        prompts: the tokens to continue, a row each, of any lengths.
        max_tokens: most tokens to add to a row; 0 is none.
        sampler: chooses a token from the logits.
        seed: of the first row.
        end_token: ends the row that draws it, and is not given out.
        use_cache: whether to keep the keys and values of earlier tokens. Without, every window is
            computed anew: slow, and the specification of the other.
        memory: where the cache of a single row comes from, if its text begins as the last one did, and goes to.

    Raises:
        ValueError: an empty prompt or a negative `max_tokens`.
        ModelError: the model gives NaN.
    """

    def __init__(
        self,
        model: nn.Module,
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        sampler: Sampler,
        seed: int = 0,
        end_token: int | None = None,
        use_cache: bool = True,
        memory: PrefixCache | None = None,
    ) -> None:
        if max_tokens < 0:
            raise ValueError(f"max_tokens={max_tokens} is negative: choose 0 or more")
        for row, prompt in enumerate(prompts):
            if len(prompt) == 0:
                raise ValueError(
                    f"prompt {row} is empty: give at least one token to start from, such as the "
                    "end-of-text token, after which documents begin"
                )
        self.sampler = sampler
        self.end_token = end_token
        self.use_cache = use_cache
        self.memory = memory if len(prompts) == 1 else None
        self._model: Any = model
        # The quicker way is closed to tensors that devices share.
        is_shared = any(is_dtensor(parameter) for parameter in model.parameters())
        self._without_gradients = torch.no_grad if is_shared else torch.inference_mode
        self._remaining = max_tokens
        self._texts = [list(prompt) for prompt in prompts]
        self._running = set(range(len(prompts)))
        self._generators = [torch.Generator().manual_seed(seed + row) for row in self._running]
        # The rows that are computed together, which may have ended since they were put so.
        self._rows: list[int] = []
        self._cache: Cache | None = None
        self._newest: Int[Tensor, "B"] | None = None
        self._seen: Bool[Tensor, "B V"] | None = None

    def end(self, row: int) -> None:
        """Give this row no more tokens."""
        self._running.discard(row)

    def __next__(self) -> dict[int, int]:
        """One more token for each row that has not ended.

        Raises:
            StopIteration: every row has ended, or has `max_tokens`.
        """
        if self._remaining == 0 or not self._running:
            raise StopIteration
        with self._without_gradients():
            drawn = self._draw()
        self._remaining -= 1
        tokens = {}
        for row, token in zip(self._rows, drawn, strict=True):
            if token == self.end_token:
                self.end(row)
            if row in self._running:
                self._texts[row].append(token)
                tokens[row] = token
        if not tokens:
            raise StopIteration
        return tokens

    def _draw(self) -> list[int]:
        """The next token of each row of the batch."""
        with evaluating(self._model):
            logits = self._go_on() if self._can_go_on() else self._start_over()
        uniform = torch.cat([torch.rand(1, generator=self._generators[row]) for row in self._rows])
        newest = self.sampler(logits, uniform.to(logits.device), self._seen)
        if self._seen is not None:
            self._seen.scatter_(1, newest[:, None], True)
        self._newest = newest
        return newest.tolist()

    def _can_go_on(self) -> bool:
        """Whether the cache serves for one more token.

        A full cache is where a window jumps: none is longer than the columns that all rows share,
        of which there are a context at most.
        """
        cache = self._cache
        # Rows that have ended cost as much as the others: at half, the batch is made anew.
        worthwhile = 2 * len(self._running) > len(self._rows)
        return cache is not None and cache.length < cache.capacity and worthwhile

    def _go_on(self) -> Float[Tensor, "B V"]:
        assert self._newest is not None
        output = self._model.hidden_states(self._newest[:, None], cache=self._cache)
        return self._model.head(output[:, -1])

    def _start_over(self) -> Float[Tensor, "B V"]:
        """Compute the whole windows of the rows that go on, padded on the left to one length."""
        model = self._model
        limit = model.context_length
        self._rows = sorted(self._running)
        texts = [self._texts[row] for row in self._rows]
        windows = [text[window_start(len(text), limit) :] for text in texts]
        tokens, attention_mask = pad_left(windows, model.head.weight.device)

        self._cache = None  # lets go of the old one before the new one is made
        if self.use_cache:
            capacity = min(limit, tokens.shape[1] + self._remaining)
            recalled = self.memory and self.memory.recall(windows[0], capacity)
            cache: Cache = recalled or model.new_cache(len(windows), capacity)
            tokens, self._cache = tokens[:, cache.length :], cache
        output = model.hidden_states(tokens, cache=self._cache, attention_mask=attention_mask)
        logits = model.head(output[:, -1])
        if self.memory is not None and len(windows[0]) == len(texts[0]):
            self.memory.keep(texts[0], self._cache)
        if logits.isnan().any():
            raise ModelError(
                "weights: the model's logits are NaN, so its weights are damaged or its training diverged; use "
                "another checkpoint or another run"
            )
        self._seen = self._seen_in(texts, logits)
        return logits

    def _seen_in(
        self, texts: list[list[int]], logits: Float[Tensor, "B V"]
    ) -> Bool[Tensor, "B V"] | None:
        """Which tokens stand in each text; None where the sampler does not ask."""
        if self.sampler.repetition_penalty == 1:
            return None
        seen = torch.zeros_like(logits, dtype=torch.bool)
        for row, text in zip(seen, texts, strict=True):
            row[torch.tensor(text, device=seen.device)] = True
        return seen


def pad_left(
    rows: Sequence[Sequence[int]], device: torch.device
) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"] | None]:
    """Rows of one length, which end together, and where their tokens are real; None if all are."""
    longest = max(len(row) for row in rows)
    tokens = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows], device=device)
    if all(len(row) == longest for row in rows):
        return tokens, None
    lengths = torch.tensor([[len(row)] for row in rows], device=device)
    return tokens, torch.arange(longest, device=device) >= longest - lengths


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, without dropout, and afterwards each module's own mode again."""
    training = [module for module in model.modules() if module.training] if model.training else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
