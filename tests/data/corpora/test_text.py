import multiprocessing
import pickle
import tracemalloc
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
from torch import nn

from llm.data.corpora.preprocessing import Lowercase, NormalizeUnicode
from llm.data.corpora.text import TextDataModule
from llm.data.errors import DataError
from llm.nn.ignore_index import IGNORE_INDEX
from llm.tokenizers import bpe, char
from llm.tokenizers.byte import ByteTokenizer

STORY = "".join(f"This is sentence number {i}, and no other is like it.\n" for i in range(100))
DOCUMENTS = [f"Document {i} says: {i * i} is the square of {i}.\n" * 3 for i in range(60)]


@pytest.fixture
def make(texts):
    def made(*documents: str, **settings) -> TextDataModule:
        defaults = {"tokenizer": ByteTokenizer(), "context_length": 16, "batch_size": 4}
        data = TextDataModule(texts(*(documents or DOCUMENTS)), **{**defaults, **settings})
        data.prepare_data()
        data.setup("fit")
        return data

    return made


def take(loader, number: int) -> list[torch.Tensor]:
    return [batch["tokens"] for batch in islice(loader, number)]


def same(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return len(some) == len(others) and all(map(torch.equal, some, others))


def in_a_parallel_run(data: TextDataModule, rank: int, world_size: int) -> TextDataModule:
    progress = SimpleNamespace(total=SimpleNamespace(processed=0))
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        distributed_sampler_kwargs={"rank": rank, "num_replicas": world_size},
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress)),
    )
    return data


# What is in the batches


def test_an_epoch_holds_every_training_window_once(make):
    data = make(STORY, stride=5, batch_size=8)
    text = STORY[: int(len(STORY) * 0.9)].encode()
    expected = sorted(text[s : s + 17] for s in range(0, len(text) - 16, 5))
    assert data.train_rows == len(expected)
    assert data.batches_per_epoch == -(-len(expected) // 8)
    seen = []
    for batch in islice(data.train_dataloader(), data.batches_per_epoch):
        assert torch.equal(batch["tokens"][:, 1:], batch["targets"][:, :-1])
        seen += [
            bytes([*row, last])
            for row, last in zip(
                batch["tokens"].tolist(), batch["targets"][:, -1].tolist(), strict=True
            )
        ]
    assert sorted(seen[: len(expected)]) == expected


def test_validation_asks_for_every_held_out_token_once_and_in_order(make):
    data = make(STORY)
    batches = list(data.val_dataloader())
    assert {batch["tokens"].shape for batch in batches[:-1]} == {(4, 16)}
    targets = torch.cat([batch["targets"].flatten() for batch in batches])
    asked = bytes(targets[targets != IGNORE_INDEX].tolist())
    assert asked == STORY[int(len(STORY) * 0.9) :].encode()[1:]
    assert data.val_tokens == len(asked) + 1
    assert len(data.val_dataloader()) == len(batches)
    assert data.metadata["train"]["tokens"] + data.val_tokens == len(STORY)


def test_documents_are_whole_separated_and_in_one_part(make):
    data = make()
    tokenizer = data.tokenizer
    parts = [data._training.file.tokens, data._validation.file.tokens]
    found = [tokenizer.decode(part.tolist()).split("<|endoftext|>") for part in parts]
    assert [part[-1] for part in found] == ["", ""]
    assert sorted(found[0][:-1] + found[1][:-1]) == sorted(DOCUMENTS)
    assert 0 < len(found[1]) - 1 < len(DOCUMENTS) / 5


def test_bytes_per_token_are_of_the_held_out_text(make):
    data = make("é" * 900 + "ab" * 50, validation_fraction=0.1)
    assert data.val_bytes_per_token == 1.0  # a byte is a byte
    data = make("é" * 1000, tokenizer=char.train_char)
    assert data.val_bytes_per_token == 2.0


# The order


def test_a_loader_resumed_at_any_batch_equals_an_uninterrupted_one(make):
    uninterrupted = take(make().train_dataloader(), 200)
    for position in [0, 1, 2, 63, 64, 100, 150]:
        data = make()
        state = pickle.loads(pickle.dumps(data.state_dict() | {"position": position}))
        data.load_state_dict(state)
        assert data.position == position
        assert same(take(data.train_dataloader(), 20), uninterrupted[position : position + 20])


def test_the_seed_decides_the_order(make):
    first, again = take(make().train_dataloader(), 9), take(make().train_dataloader(), 9)
    assert same(first, again)
    assert not same(first, take(make(STORY, seed=1).train_dataloader(), 9))


def test_loaders_draw_nothing_from_the_global_random_state(make):
    data = make()
    before = torch.get_rng_state()
    take(data.train_dataloader(), 3)
    list(data.val_dataloader())
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_change_nothing(make):
    alone, helped = make(), make(workers=2)
    assert same(take(alone.train_dataloader(), 30), take(helped.train_dataloader(), 30))
    assert same(take(alone.val_dataloader(), 99), take(helped.val_dataloader(), 99))


def test_devices_share_a_batch(make):
    whole = take(make().train_dataloader(), 5)
    shares = [
        take(in_a_parallel_run(make(), rank, world_size=2).train_dataloader(), 5) for rank in (0, 1)
    ]
    for batch, *parts in zip(whole, *shares, strict=True):
        rows = sorted(torch.cat(parts).tolist())
        assert rows == sorted(batch.tolist())
    targets = [
        batch["targets"].flatten()
        for rank in (0, 1)
        for batch in in_a_parallel_run(make(), rank, 2).val_dataloader()
    ]
    counted = sum(int((each != IGNORE_INDEX).sum()) for each in targets)
    assert counted == make().val_tokens - 1
    with pytest.raises(ValueError, match=r"batch_size=4 cannot be shared by 3 devices; .* 3"):
        in_a_parallel_run(make(), 0, world_size=3).train_dataloader()


class Recorder(lightning.LightningModule):
    """A model that records its inputs."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(257, 257)
        self.seen: list[torch.Tensor] = []

    def training_step(self, batch, index):
        self.seen.append(batch["tokens"].clone())
        return nn.functional.cross_entropy(
            self.table(batch["tokens"]).flatten(0, 1), batch["targets"].flatten()
        )

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workers", [0, 2])
def test_lightning_resumes_where_its_checkpoint_stood(make, tmp_path: Path, workers: int):
    def fit(steps: int, **arguments) -> tuple[Recorder, TextDataModule, lightning.Trainer]:
        model, data = Recorder(), make(workers=workers)
        trainer = lightning.Trainer(
            max_steps=steps,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(model, data, **arguments)
        return model, data, trainer

    whole, _, _ = fit(12)
    part, data, trainer = fit(5)
    assert data.position == 5
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    rest, data, _ = fit(12, ckpt_path=tmp_path / "last.ckpt")
    assert data.position == 12
    assert same(part.seen + rest.seen, whole.seen)


def test_resuming_on_changed_data_warns(make):
    state = make().state_dict()
    with pytest.warns(UserWarning, match="changed since the checkpoint"):
        make(STORY).load_state_dict(state)


# Token files


def folders(cache_folder: Path) -> set[str]:
    return {path.name for path in (cache_folder / "tokens").iterdir()}


def test_a_second_start_reads_no_text(make, monkeypatch: pytest.MonkeyPatch):
    tokenizer = partial(bpe.train_bpe, vocab_size=270)
    first = make(tokenizer=tokenizer)
    monkeypatch.setattr("llm.data.corpora.corpus.tokenize", None)
    monkeypatch.setattr("llm.data.corpora.corpus.fit", None)
    again = make(tokenizer=tokenizer)
    assert again.describe() == first.describe()
    assert again.tokenizer.vocab_size == first.tokenizer.vocab_size
    assert same(take(first.train_dataloader(), 5), take(again.train_dataloader(), 5))


@pytest.mark.parametrize(
    "change",
    [
        {"tokenizer": partial(bpe.train_bpe, vocab_size=271)},
        {"tokenizer": ByteTokenizer()},
        {"seed": 1},
        {"validation_fraction": 0.2},
        {"preprocessing": [Lowercase()]},
        {"preprocessing": {"form": NormalizeUnicode("NFKC")}},
        {"documents": [*DOCUMENTS[:-1], "Another document."]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_any_change_is_tokenized_anew(make, cache_folder: Path, change: dict):
    make(*DOCUMENTS, tokenizer=partial(bpe.train_bpe, vocab_size=270))
    before = folders(cache_folder)
    documents = change.pop("documents", DOCUMENTS)
    make(*documents, **{"tokenizer": partial(bpe.train_bpe, vocab_size=270), **change})
    assert len(folders(cache_folder) - before) == 1


def test_a_new_version_of_the_format_leaves_old_files_alone(make, cache_folder, monkeypatch):
    make()
    monkeypatch.setattr("llm.data.corpora.corpus.VERSION", 10**6)
    make()
    assert len(folders(cache_folder)) == 2


def test_what_does_not_change_tokens_shares_them(make, cache_folder: Path):
    make()
    make(batch_size=2, context_length=8, stride=1, workers=1)
    assert len(folders(cache_folder)) == 1


def test_the_order_of_preprocessing_counts(make, cache_folder: Path):
    steps = [Lowercase(), NormalizeUnicode("NFKC")]
    make(preprocessing=steps)
    make(preprocessing=steps[::-1])
    assert len(folders(cache_folder)) == 2


def test_metadata_describes_the_files(make):
    data = make()
    assert data.metadata["dtype"] == "uint16"
    assert len(data.metadata["tokenizer_sha256"]) == 64
    assert data.metadata["train"]["documents"] + data.metadata["validation"]["documents"] == 60
    assert sum(data.metadata[part]["bytes"] for part in ("train", "validation")) == sum(
        len(document) for document in DOCUMENTS
    )


def test_tokens_of_another_width_are_not_read(make, cache_folder: Path):
    """A wrong type in the metadata would give other tokens without an error."""
    first = make()
    file = next((cache_folder / "tokens").glob("*/metadata.json"))
    file.write_text(file.read_text("utf-8").replace('"uint16"', '"uint32"'), "utf-8")
    with pytest.warns(UserWarning, match=r"metadata.json is not what was written; the token files"):
        again = make()
    assert same(take(first.train_dataloader(), 5), take(again.train_dataloader(), 5))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_two_processes_at_once(make, cache_folder: Path):
    context = multiprocessing.get_context("fork")
    start, results = context.Barrier(2), context.Queue()

    def prepare() -> None:
        start.wait(timeout=30)
        data = make(STORY * 20)
        results.put((data.metadata["train"]["tokens"], data.val_tokens))

    processes = [context.Process(target=prepare) for _ in range(2)]
    for process in processes:
        process.start()
    counts = [results.get(timeout=30) for _ in processes]
    for process in processes:
        process.join()
    assert counts[0] == counts[1]
    assert sum(counts[0]) == len(STORY) * 20
    assert len(folders(cache_folder)) == 1


# Fitting


def test_a_tokenizer_is_fitted_to_the_training_part_only(make):
    given: list[str] = []

    def factory(documents):
        given.extend(documents)
        return ByteTokenizer()

    data = make(tokenizer=factory)
    trained_on = data.tokenizer.decode(data._training.file.tokens.tolist())
    assert "".join(f"{text}<|endoftext|>" for text in given) == trained_on


@pytest.mark.parametrize("factory", [char.train_char, partial(char.train_char)])
def test_an_alphabet_is_that_of_all_the_text(make, factory):
    data = make("abc" * 300 + "xyz" * 30, tokenizer=factory)
    assert data.tokenizer.characters == "abcxyz"


def test_preprocessing_comes_before_fitting(make):
    data = make("ABC" * 300, tokenizer=char.train_char, preprocessing=[Lowercase()])
    assert data.tokenizer.characters == "abc"


def test_a_published_validation_part_is_taken_whole(make, texts):
    data = make(STORY, validation=texts("Held out by its publisher. " * 9))
    assert data.metadata["train"]["tokens"] == len(STORY)
    assert data.val_tokens == 27 * 9


# Errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 is too small; use 1 or more"),
        ({"context_length": 0}, "context_length=0 is too small; use 1 or more"),
        ({"stride": 0}, "stride=0 is too small; use 1 or more"),
        ({"workers": -1}, "workers=-1 is too small; use 0 or more"),
        ({"validation_fraction": 0.0}, "validation_fraction=0.0 is not between 0 and 1"),
        ({"validation_fraction": 1.0}, "validation_fraction=1.0 is not between 0 and 1"),
    ],
)
def test_parameters_out_of_range_are_named(make, settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_text_shorter_than_a_window_is_refused_with_numbers_and_a_remedy(make):
    with pytest.raises(
        DataError,
        match=r"texts: the train part has 45 tokens, and .*"
        r"context_length=64 needs 65; give more text, or use a smaller",
    ):
        make("x" * 50, context_length=64)
    with pytest.raises(DataError, match=r"the validation part has 1 tokens"):
        make("x" * 50, validation_fraction=0.02)


def test_a_text_just_long_enough_makes_one_window(make):
    data = make("x" * 20, context_length=17)
    assert data.train_rows == 1
    assert data.batches_per_epoch == 1
    assert take(data.train_dataloader(), 2)[1].shape == (4, 17)


def test_a_tokenizers_refusal_names_the_source(make):
    with pytest.raises(DataError, match=r"texts: .*does not know 'x'"):
        make("abcx" * 50, tokenizer=char.CharTokenizer("abc"))
    with pytest.raises(DataError, match=r"texts: vocab_size=3 is too small"):
        make(tokenizer=partial(bpe.train_bpe, vocab_size=3))


def test_a_summary_in_one_line(make):
    line = make().describe()
    assert line.startswith("texts: 5")
    assert "\n" not in line
    assert "0.99 bytes a token" in line  # for separators count as tokens


def test_a_large_stream_is_written_in_bounded_memory(monkeypatch, texts):
    source = texts()
    source.documents = lambda: (f"{i} " * 2000 for i in range(2000))  # 20 MB and more
    monkeypatch.setattr("llm.data.corpora.tokenization.BATCH", 1 << 16)
    data = TextDataModule(source, ByteTokenizer(), context_length=16, batch_size=4)
    tracemalloc.start()
    data.prepare_data()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    data.setup("fit")
    assert data.metadata["train"]["tokens"] > 10_000_000
    assert peak < 8_000_000
    assert np.isin(data._training.file.tokens[:100], np.arange(257)).all()


# What it is compared by


def test_the_same_text_held_out_has_the_same_name_under_any_tokenizer(make):
    first, second = make(), make(tokenizer=partial(bpe.train_bpe, vocab_size=300), context_length=8)
    assert first.corpus == second.corpus
    assert first.vocabulary != second.vocabulary
    assert first.vocabulary == make().vocabulary


@pytest.mark.parametrize(
    "change",
    [{"validation_fraction": 0.3}, {"preprocessing": [Lowercase()]}, {"seed": 1}],
    ids=lambda change: next(iter(change)),
)
def test_other_text_held_out_has_another_name(make, change):
    assert make(**change).corpus != make().corpus


def test_a_single_document_is_cut_at_the_same_place_under_every_seed(make):
    assert make(STORY, seed=1).corpus == make(STORY, seed=2).corpus
