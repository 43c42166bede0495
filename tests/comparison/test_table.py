import csv
import io
import math
import random
from itertools import product

import pytest
from made_runs import make
from rich.console import Console

from llm.comparison.table import compare
from llm.config.errors import UserError
from llm.runs import Run
from llm.terminal.console import printable

CLOCKED = ["tokens_per_second", "mfu", "peak_gib", "seconds"]


def column(table, name):
    return [row[name] for row in table.rows]


def grid(folder, **more):
    """Two models, two sizes, three seeds."""
    runs = []
    for model, size, seed in product(("gpt", "llama"), ("nano", "micro"), (1, 2, 3)):
        loss = 3.0 + (model == "gpt") * 0.5 + (size == "nano") * 0.2 + 0.01 * seed
        settings = {"model": model, "size": size}
        name = f"{model}-{size}-{seed}"
        runs.append(make(folder / name, [6.0, loss], settings=settings, seed=seed, **more))
    return runs


# Rows


def test_columns_are_differing_settings_and_then_metrics(tmp_path):
    table = compare(grid(tmp_path))
    assert table.columns[:4] == ["rank", "model", "size", "seeds"]
    assert table.columns[-4:] == CLOCKED
    assert not {"data", "task", "status", "error", "seed", "trained_parameters"} & set(
        table.columns
    )


def test_a_row_is_a_recipe_and_its_seeds_are_repetitions(tmp_path):
    table = compare(grid(tmp_path))
    assert column(table, "rank") == [1, 2, 3, 4]
    assert column(table, "model") == ["llama", "llama", "gpt", "gpt"]
    assert column(table, "size") == ["micro", "nano", "micro", "nano"]
    assert column(table, "seeds") == [3] * 4
    best = table.rows[0]
    assert best["best_loss"] == pytest.approx(3.02)
    assert best["best_loss_margin"] == pytest.approx(4.3027 * 0.01 / 3**0.5, rel=1e-4)
    assert "| 3.020 ± 0.025 |" in table.markdown()
    assert any("95%" in note for note in table.notes)


def test_the_interval_has_the_requested_confidence(tmp_path):
    runs = grid(tmp_path)
    margins = [compare(runs, confidence=c).rows[0]["best_loss_margin"] for c in (0.5, 0.9, 0.99)]
    assert margins == sorted(margins)
    assert margins[0] < margins[-1]


def test_each_seed_may_be_a_row(tmp_path):
    table = compare(grid(tmp_path), seeds="rows")
    assert len(table.rows) == 12
    assert column(table, "seed")[:3] == ["1", "2", "3"]
    assert "seeds" not in table.columns
    assert "±" not in table.markdown()


def test_the_order_of_the_runs_does_not_matter(tmp_path):
    runs = grid(tmp_path / "a")
    runs += [
        make(tmp_path / "b" / str(n), corpus="other", seed=n, status=s)
        for n, s in enumerate(STATES)
    ]
    runs += [Run(tmp_path / "nobody")]
    tables = []
    for seed in range(8):
        random.Random(seed).shuffle(runs)
        table = compare([Run(run.path) for run in runs])
        tables.append((table.csv(), table.markdown()))
    assert len(set(tables)) == 1


STATES = ("done", "failed", "interrupted", "done")


def test_runs_with_the_same_seed_are_separate_rows(tmp_path):
    runs = [make(tmp_path / name, [4.0], seed=1) for name in ("a", "b")]
    table = compare(runs)
    assert column(table, "run") == ["a", "b"]


def test_recipes_that_differ_in_unset_values_are_separate_rows(tmp_path):
    runs = [make(tmp_path / name, [4.0], recipe=name) for name in ("old", "new")]
    assert sorted(column(compare(runs), "recipe")) == ["new", "old"]


def test_options_implied_by_a_choice_have_no_column(tmp_path):
    runs = [
        make(tmp_path / name, settings={"model": name}, choices={"model/norm": norm})
        for name, norm in (("gpt2", "layer"), ("llama", "rms"))
    ]
    assert "model/norm" not in compare(runs).columns


def test_a_default_option_is_shown_if_it_explains_a_difference(tmp_path):
    runs = [
        make(tmp_path / norm, choices={"model/norm": norm}, recipe=norm)
        for norm in ("layer", "rms")
    ]
    assert compare(runs).columns[:2] == ["rank", "model/norm"]


def test_option_overridden_in_one_run_is_shown_for_all(tmp_path):
    runs = [
        make(tmp_path / "a", settings={"optimizer": "adamw"}),
        make(tmp_path / "b", settings={"seed": "0"}, choices={"optimizer": "muon"}),
    ]
    assert sorted(column(compare(runs), "optimizer")) == ["adamw", "muon"]


def test_seeds_that_differ_outside_the_recipe_are_separate_rows(tmp_path):
    runs = [
        make(tmp_path / name, settings={"hardware": name}, recipe="same", seed=seed)
        for seed, name in enumerate(("cpu", "gpu"))
    ]
    assert len(compare(runs).rows) == 2


# States


def test_every_state_is_a_row(tmp_path):
    make(tmp_path / "done", [5.0, 4.0], settings={"lr": "1"})
    make(tmp_path / "failed", [3.0], settings={"lr": "2"}, status="failed", error="NaN\nat step 3")
    make(tmp_path / "stopped", [2.0], settings={"lr": "3"}, status="interrupted")
    Run(tmp_path / "next").update(status="pending", overrides={"lr": "4"})
    table = compare([Run(tmp_path / name) for name in ("failed", "next", "stopped", "done")])
    assert column(table, "status") == ["done", "failed", "interrupted", "pending"]
    assert column(table, "rank") == [1, None, None, None], "only finished runs have a rank"
    assert column(table, "error") == [None, "NaN at step 3", None, None]
    assert column(table, "lr") == ["1", "2", "3", "4"]
    assert column(table, "best_loss") == [4.0, 3.0, 2.0, None]


def test_row_is_the_mean_of_the_finished_runs(tmp_path):
    for seed, (state, loss) in enumerate((("done", 4.0), ("done", 5.0), ("failed", 1.0))):
        make(tmp_path / str(seed), [loss], seed=seed, status=state, error="out of memory")
    Run(tmp_path / "3").update(status="pending", overrides={"model": "gpt", "seed": "3"}, seed=3)
    (row,) = compare([Run(tmp_path / str(seed)) for seed in range(4)]).rows
    assert (row["best_loss"], row["seeds"]) == (4.5, 2)
    assert row["status"] == "2 done, 1 failed, 1 pending"
    assert row["error"] == "out of memory"


# Which runs are compared


def test_different_data_are_ranked_separately(tmp_path):
    for corpus, model in product(("a1", "b2"), ("gpt", "llama")):
        loss = 3.0 + (corpus == "b2") + (model == "gpt") * 0.5
        make(
            tmp_path / corpus / model,
            [loss],
            settings={"model": model},
            corpus=corpus,
            recipe=corpus + model,
        )
    table = compare([Run(path.parent) for path in tmp_path.glob("*/*/run.json")])
    assert column(table, "rank") == [1, 2, 1, 2]
    assert column(table, "data") == ["text a1", "text a1", "text b2", "text b2"]
    assert "different data (text a1, text b2): each is ranked separately" in table.notes
    assert not any("seed draws" in note for note in table.notes), "the seeds are the same"
    assert len(table.best) == 2


def test_data_are_named_by_the_setting_that_differs(tmp_path):
    for file, model in product(("a.txt", "b.txt"), ("gpt", "llama")):
        settings = {"model": model, "data.path": file}
        make(tmp_path / file / model, settings=settings, corpus=f"of {file}")
    make(tmp_path / "c" / "default", corpus="of c")
    table = compare([Run(path.parent) for path in tmp_path.glob("*/*/run.json")])
    assert [part.label for part in table.parts] == [
        "text",
        "text data.path=a.txt",
        "text data.path=b.txt",
    ]
    assert column(table, "data") == ["text"] * 5, "the setting has a separate column"
    assert column(table, "data.path") == [None, *["a.txt"] * 2, *["b.txt"] * 2]


def test_different_tasks_on_the_same_texts_are_ranked_separately(tmp_path):
    runs = [make(tmp_path / task, settings={"task": task}) for task in ("dpo", "reward")]
    assert column(compare(runs), "rank") == [1, 1]
    assert column(compare(runs), "task") == ["dpo", "reward"]


def test_models_with_the_same_seeds_are_compared_even_if_each_seed_has_its_own_texts(tmp_path):
    runs = [
        make(
            tmp_path / f"{model}{seed}",
            [loss + seed],
            settings={"model": model},
            seed=seed,
            corpus=f"c{seed}",
        )
        for (model, loss), seed in product((("gpt", 4.0), ("llama", 3.0)), (1, 2))
    ]
    table = compare(runs)
    assert column(table, "model") == ["llama", "gpt"]
    assert column(table, "rank") == [1, 1], "3.5 and 4.5, each ± 6.4"
    assert any("each seed draws its own held-out texts" in note for note in table.notes)
    assert not any("different data" in note for note in table.notes)


def test_rows_whose_intervals_overlap_share_a_rank(tmp_path):
    losses = {"a": (1.0, 1.01, 0.99), "b": (1.0, 1.04, 1.02), "c": (1.2, 1.21, 1.19), "d": (1.6,)}
    runs = [
        make(tmp_path / f"{model}{seed}", [loss], settings={"model": model}, seed=seed)
        for model, own in losses.items()
        for seed, loss in enumerate(own)
    ]
    table = compare(runs)
    assert column(table, "model") == ["a", "b", "c", "d"]
    assert column(table, "rank") == [1, 1, 3, 4]
    assert any("number is one more than the number of rows whose" in note for note in table.notes)


def test_runs_with_different_seeds_and_texts_are_not_compared(tmp_path):
    runs = [
        make(tmp_path / model, settings={"model": model}, seed=seed, corpus=f"c{seed}")
        for seed, model in enumerate(("gpt", "llama"))
    ]
    table = compare(runs)
    assert column(table, "rank") == [1, 1]
    assert any("runs with the same seeds" in note for note in table.notes)


def test_different_tokenizers_are_compared_only_by_bits_per_byte(tmp_path):
    for tokenizer, loss, width in (("byte", 1.0, 1.0), ("bpe", 3.0, 4.0)):
        settings = {"tokenizer": tokenizer}
        make(
            tmp_path / tokenizer,
            [loss],
            settings=settings,
            vocabulary=tokenizer,
            bytes_per_token=width,
        )
    runs = [Run(tmp_path / name) for name in ("byte", "bpe")]
    table = compare(runs)
    assert column(table, "tokenizer") == ["bpe", "byte"], "its loss is higher, its bits are fewer"
    assert column(table, "best_loss") == column(table, "final_loss") == [None, None]
    assert None not in column(table, "bits_per_byte")
    assert any("different tokenizers" in note for note in table.notes)
    assert column(compare(runs, by="best_loss"), "rank") == [None, None]


def test_tokenizers_trained_on_each_split_can_be_compared_by_loss(tmp_path):
    runs = [
        make(
            tmp_path / f"{model}{seed}",
            settings={"model": model},
            seed=seed,
            corpus=f"c{seed}",
            vocabulary=f"v{seed}",
        )
        for model, seed in product(("gpt", "llama"), (1, 2))
    ]
    assert None not in column(compare(runs), "best_loss")


def test_unequal_budgets_and_seeds_are_ranked_with_a_note(tmp_path):
    make(tmp_path / "short", [4.0], settings={"model": "gpt"})
    make(tmp_path / "long", [4.0, 3.0], settings={"model": "llama"})
    make(tmp_path / "again", [4.0, 3.1], settings={"model": "llama"}, seed=1)
    table = compare([Run(tmp_path / name) for name in ("short", "long", "again")])
    assert column(table, "rank") == [1, 2]
    assert (
        "not the same budget: from 1.00 k tokens (model=gpt) to 2.00 k tokens (model=llama)"
        in table.notes
    )
    assert "not the same seeds: model=gpt has only 0" in table.notes


def test_equal_runs_need_no_notes(tmp_path):
    runs = [make(tmp_path / model, settings={"model": model}) for model in ("gpt", "llama")]
    assert list(compare(runs).notes) == []


# Metrics


def classifier(folder, accuracy, **more):
    rows = [{"step": 10, "tokens": 100.0, "val/loss": 0.5, "val/accuracy": accuracy, "val/f1": 0.5}]
    metrics = {"test/accuracy": accuracy - 0.1, "test/loss": 1 - accuracy}
    return make(folder, rows=rows, metrics=metrics, task="classification", **more)


def test_a_tasks_own_metrics_are_shown_where_they_differ(tmp_path):
    runs = [
        classifier(
            tmp_path / adapter, accuracy, settings={"adapter": adapter}, trained_parameters=trained
        )
        for adapter, accuracy, trained in (("lora", 0.9, 100), ("none", 0.8, 1_000_000))
    ]
    table = compare(runs)
    assert {"val/accuracy", "test/accuracy", "test/loss", "trained_parameters"} <= set(
        table.columns
    )
    assert not {"val/f1", "bits_per_byte"} & set(table.columns)
    assert column(compare(runs, by="val/accuracy"), "adapter") == ["lora", "none"], "more is better"
    assert column(compare(runs, by="test/loss"), "adapter") == ["lora", "none"], "less is better"


def test_ranking_metric_is_shown_and_selects_the_best_run(tmp_path):
    """The seed with the lowest loss is not the one with the highest accuracy."""
    rows = [[{"step": 10, "val/loss": loss, "val/perplexity": 1 + loss}] for loss in (0.4, 0.5)]
    runs = [
        make(tmp_path / str(seed), rows=own, seed=seed, metrics={"test/accuracy": 0.5 + 0.1 * seed})
        for seed, own in enumerate(rows)
    ]
    by_accuracy = compare(runs, by="test/accuracy")
    assert [run.path.name for run in by_accuracy.best] == ["1"]
    assert [run.path.name for run in compare(runs).best] == ["0"]
    assert column(compare(runs, by="val/perplexity"), "val/perplexity") == [pytest.approx(1.45)]
    assert "val/perplexity" not in by_accuracy.columns


def test_infinite_metric_of_one_seed_gives_a_row_without_a_rank(tmp_path):
    rows = [{"step": 10, "val/loss": 5.0, "val/perplexity": value} for value in (math.inf, 2.0)]
    runs = [make(tmp_path / str(seed), rows=[row], seed=seed) for seed, row in enumerate(rows)]
    table = compare(runs, by="val/perplexity")
    assert column(table, "rank") == [None]
    table.markdown()


def test_a_metric_that_no_run_has_is_named(tmp_path):
    with pytest.raises(UserError, match=r"by: .* val/acuracy; did you mean val/accuracy\?"):
        compare([classifier(tmp_path / "a", 0.9)], by="val/acuracy")


def test_values_that_do_not_depend_on_time_are_reproducible(tmp_path):
    first = compare([make(tmp_path / "a" / str(n), seed=n) for n in range(2)])
    slower = {"seconds": 99.0, "peak_memory": 5}
    again = compare([make(tmp_path / "b" / str(n), seed=n, **slower) for n in range(2)])

    def kept(table):
        return [row[: -len(CLOCKED)] for row in csv.reader(io.StringIO(table.csv()))]

    assert kept(first) == kept(again)
    assert first.csv() != again.csv()


# Text


def test_csv_has_plain_numbers(tmp_path):
    table = compare([make(tmp_path / "a")])
    (row,) = csv.DictReader(io.StringIO(table.csv()))
    assert (row["parameters"], row["tokens"], row["best_loss"]) == ("1000000", "2000", "4")
    assert (row["peak_gib"], row["seconds"]) == ("1", "61")


def test_markdown_has_units_and_no_broken_cells(tmp_path):
    table = compare(
        [
            make(tmp_path / "a"),
            make(tmp_path / "b", status="failed", error="a | b", settings={"model": "x"}),
        ]
    )
    lines = table.markdown().splitlines()
    assert len({line.replace("\\|", "").count("|") for line in lines if line.startswith("|")}) == 1
    for cell in ("1.00 M", "2.00 k", "4.0000", "1,002", "25.0%", "1.00 GiB", "1.02 min", "a \\| b"):
        assert f" {cell} |" in lines[2] + lines[3]


def test_files_show_control_characters_escaped(tmp_path):
    runs = [
        make(tmp_path / "a", settings={"model": "\x1b[2J"}),
        make(tmp_path / "b", settings={"model": "x\ny"}, status="failed", error="\x07\x9b"),
    ]
    table = compare(runs)
    for text in (table.csv(), table.markdown()):
        assert text == printable(text)
        assert "␛[2J" in text
    rows = [line for line in table.markdown().splitlines() if line.startswith("|")]
    assert len(rows) == 4
    assert len({line.count("|") for line in rows}) == 1


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_no_metric_is_cut_on_any_terminal(tmp_path, width, capsys):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(compare(grid(tmp_path)).render(width))
    text = console.export_text()
    assert text.count("± 0.0") >= 4
    assert "…" not in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width


def test_writing_again_replaces_the_files_and_leaves_no_others(tmp_path):
    table = compare(grid(tmp_path / "runs"))
    for _ in range(2):
        written = table.write(tmp_path / "sweep")
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir()) == sorted(
        path.name for path in written
    )
    assert (tmp_path / "sweep" / "table.csv").read_text() == table.csv()


def test_many_settings_share_a_column_in_a_narrow_terminal(tmp_path):
    """Otherwise they push the metrics out of the terminal."""
    keys = [f"model.part_{letter}.setting" for letter in "abcdefgh"]
    for number in range(2):
        settings = dict.fromkeys(keys, f"value_{number}")
        make(tmp_path / f"run{number}", [4.0 + number], settings=settings)
    table = compare([Run(path) for path in tmp_path.iterdir()])

    def printed(width):
        console = Console(file=io.StringIO(), width=width)
        console.print(table.render(width))
        return console.file.getvalue()

    narrow, wide = printed(110), printed(400)
    assert "4.0000" in narrow
    assert "model.part_h.setting=value_1" in narrow
    assert max(map(len, narrow.splitlines())) <= 110
    assert " settings " not in wide
    assert all(key in wide for key in keys)
