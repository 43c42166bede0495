"""Logging of tokens per second and MFU."""

import csv


def test_a_partly_frozen_model_has_a_speed_and_no_mfu(train, pairs):
    few = ("data=preference", f"data.path={pairs}", "trainer.max_steps=2", "trainer.val_every=2")
    whole = train("whole", "task=dpo", *few)
    begin = ("weights=run", f"weights.path={whole.path}", "adapter=lora")
    adapted = train("adapted", "task=dpo", *few, *begin)
    for run, is_measured in ((whole, True), (adapted, False)):
        rows = list(csv.DictReader(run.metrics.read_text().splitlines()))
        rows = [row for row in rows if row["speed/tokens_per_second"]]
        assert rows
        assert all(bool(row.get("speed/mfu")) is is_measured for row in rows)
