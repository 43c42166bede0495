"""Decoding: draw one token after another, each from the model's distribution given all before it.

If a text is longer than `context_length`, the model reads a window at its end. The start of the window depends
only on the length of the text (`window_start`), and positions count from it. So the continuation is the same
with and without a cache, alone and in a batch.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from llm.dtensor import is_dtensor
from llm.generation.generation_settings import GenerationSettings
from llm.generation.prefix_cache import PrefixCache
from llm.models.errors import ModelError
from llm.nn.kv_cache import Cache


def generates(model: nn.Module) -> bool:
    """Return whether a model can generate text: its attribute `generates`, otherwise whether it has a cache."""
    return getattr(model, "generates", hasattr(model, "new_cache"))


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    settings: GenerationSettings,
    use_cache: bool = True,
) -> list[list[int]]:
    """Return the tokens that follow each prompt; the arguments and errors are those of `Decoding`."""
    texts: list[list[int]] = [[] for _ in prompts]
    for tokens in Decoding(model, prompts, settings=settings, use_cache=use_cache):
        for row, token in tokens.items():
            texts[row].append(token)
    return texts


def longest_text(model: Any) -> int:
    """Return the number of tokens that a model reads of one text: any number, if its state does not grow with it."""
    return sys.maxsize if getattr(model, "has_bounded_state", False) else model.context_length


def window_start(length: int, context_length: int) -> int:
    """Return the start of the window that a model reads of a text of `length` tokens.

    It is 0 while the text fits. After that it moves by half a context whenever the window would be too long, so the
    cache is recomputed once per half context and not at every token.

    Args:
        length: number of tokens in the text.
        context_length: maximum number of tokens in a window, L; after a move more than L - L // 2 are left.
    """
    jump = max(1, context_length // 2)
    jumps = -(-max(0, length - context_length) // jump)
    return jumps * jump


class Decoding(Iterator[dict[int, int]]):
    """Iterator over decoding steps: each gives the next token of every row that has not ended.

        decoding = Decoding(model, prompts, settings=GenerationSettings(max_tokens=100))
        for tokens in decoding:
            for row, token in tokens.items():
                if token == full_stop:
                    decoding.end(row)

    Row i is drawn with the seed `settings.seed + i` and does not depend on the others. The model is in
    evaluation mode during each step only.

    Args:
        model: a language model with `hidden_states`, `head`, `new_cache` and `context_length`.
        prompts: the tokens to continue, one row each, of any lengths.
        settings: length, sampling and end tokens; `stream_tokens` handles the stop strings.
        use_cache: whether to keep the keys and values of earlier tokens. False computes every window anew,
            which is slow and defines the correct result.
        memory: the cache of an earlier text that begins the same; used only for a single row.

    Raises:
        ValueError: a prompt is empty.
        ModelError: the model gives NaN.
    """

    def __init__(
        self,
        model: nn.Module,
        prompts: Sequence[Sequence[int]],
        *,
        settings: GenerationSettings,
        use_cache: bool = True,
        memory: PrefixCache | None = None,
    ) -> None:
        for row, prompt in enumerate(prompts):
            if len(prompt) == 0:
                raise ValueError(
                    f"prompt {row} is empty: give at least one token to start from, such as the "
                    "end-of-text token, after which documents begin"
                )
        self.settings = settings
        self.use_cache = use_cache
        self.memory = memory if len(prompts) == 1 else None
        self._model: Any = model
        self._longest = longest_text(model)
        # inference_mode is faster than no_grad but does not support DTensors.
        is_shared = any(is_dtensor(parameter) for parameter in model.parameters())
        self._without_gradients = torch.no_grad if is_shared else torch.inference_mode
        self._remaining = settings.max_tokens
        self._texts = [list(prompt) for prompt in prompts]
        self._running = set(range(len(prompts)))
        # One generator per row, on the CPU: a row draws the same numbers in any batch and on any device.
        self._generators = [
            torch.Generator().manual_seed(settings.seed + row) for row in self._running
        ]
        # The rows of the current batch; some may have ended since it was formed.
        self._rows: list[int] = []
        self._cache: Cache | None = None
        self._newest: Int[Tensor, "B"] | None = None
        self._seen: Bool[Tensor, "B V"] | None = None

    def end(self, row: int) -> None:
        """End a row."""
        self._running.discard(row)

    def __next__(self) -> dict[int, int]:
        """Return one more token for each row that has not ended.

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
            if token in self.settings.end_tokens:
                self.end(row)
            if row in self._running:
                self._texts[row].append(token)
                tokens[row] = token
        if not tokens:
            raise StopIteration
        return tokens

    def _draw(self) -> list[int]:
        """Return the next token of each row of the batch."""
        with evaluation_mode(self._model):
            logits = self._extend() if self._can_extend() else self._prefill()
        # One number from [0, 1) per row decides its token: (B)
        uniform = torch.cat([torch.rand(1, generator=self._generators[row]) for row in self._rows])
        newest = self.settings.sampler(logits, uniform.to(logits.device), seen=self._seen)
        if self._seen is not None:
            self._seen.scatter_(1, newest[:, None], value=True)
        self._newest = newest
        return newest.tolist()

    def _can_extend(self) -> bool:
        """Return whether there is a cache with room for one more token.

        It has at most as many columns as a window, so it is full before the window of any row has to move.
        """
        return self._cache is not None and self._cache.length < self._cache.capacity

    def _extend(self) -> Float[Tensor, "B V"]:
        """Return the logits after the newest token of each row, with the cache of those before it."""
        assert self._newest is not None
        # Ended rows take as long as the others: once half have ended, drop them.
        if 2 * len(self._running) <= len(self._rows):
            self._drop_ended_rows()
        # (B) -> (B, 1) -> (B, 1, C)
        output = self._model.hidden_states(self._newest[:, None], cache=self._cache)
        return self._model.head(output[:, -1])

    def _drop_ended_rows(self) -> None:
        """Keep only the rows of the batch that have not ended."""
        assert self._newest is not None
        assert self._cache is not None
        kept = [index for index, row in enumerate(self._rows) if row in self._running]
        index = torch.tensor(kept, device=self._newest.device)
        self._rows = [self._rows[each] for each in kept]
        self._newest = self._newest[index]
        self._seen = None if self._seen is None else self._seen[index]
        self._cache.select(index)

    def _prefill(self) -> Float[Tensor, "B V"]:
        """Return the logits after the windows of the rows that have not ended, padded on the left to one length."""
        model = self._model
        limit = self._longest
        self._rows = sorted(self._running)
        texts = [self._texts[row] for row in self._rows]
        windows = [text[window_start(len(text), limit) :] for text in texts]
        tokens, attention_mask = pad_left(windows, model.head.weight.device)

        self._cache = None  # frees the old cache before the new one is allocated
        if self.use_cache:
            # Room for all tokens to come, up to the context: the cache never grows.
            capacity = min(limit, tokens.shape[1] + self._remaining)
            recalled = self.memory and self.memory.recall(windows[0], capacity)
            cache: Cache = recalled or model.new_cache(len(windows), capacity)
            # A recalled cache already has the first columns.
            tokens, self._cache = tokens[:, cache.length :], cache
        # Padding is on the left, so the last column has the newest token of every row. The head runs on
        # that column alone: (B, T, C) -> (B, C) -> (B, V).
        output = model.hidden_states(tokens, cache=self._cache, attention_mask=attention_mask)
        logits = model.head(output[:, -1])
        if self.memory is not None and len(windows[0]) == len(texts[0]):
            self.memory.keep(texts[0], self._cache)
        # Damaged weights give NaN at the first step, so one check per window is enough.
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
        """Return which tokens occur in each text; None if the sampler has no repetition penalty."""
        if self.settings.sampler.repetition_penalty == 1:
            return None
        seen = torch.zeros_like(logits, dtype=torch.bool)
        for row, text in zip(seen, texts, strict=True):
            row[torch.tensor(text, device=seen.device)] = True
        return seen


def pad_left(
    rows: Sequence[Sequence[int]], device: torch.device
) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"] | None]:
    """Return rows padded on the left to one length, and the mask of real tokens; None if all are real."""
    longest = max(len(row) for row in rows)
    tokens = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows], device=device)
    if all(len(row) == longest for row in rows):
        return tokens, None
    lengths = torch.tensor([[len(row)] for row in rows], device=device)
    # (T) >= (B, 1) -> (B, T): False for the padding of each row.
    return tokens, torch.arange(longest, device=device) >= longest - lengths


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode, and each module back in its own mode afterwards."""
    training = [module for module in model.modules() if module.training] if model.training else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
