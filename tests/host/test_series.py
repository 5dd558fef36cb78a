"""The bounded record of a run: exact while it is short, then in bins that keep every extreme."""

from __future__ import annotations

import json
import math
import random

from lora_loom.nodes.jobs.series import FIRST, HIGH, LAST, LIMIT, LOW, NORM, RATE, SMOOTH, Series


def filled(steps: int, loss) -> Series:
    series = Series()
    for step in range(1, steps + 1):
        series.add(step, loss(step), 1e-4, 1.0)
    return series


def test_every_step_has_its_own_row_while_there_is_room():
    series = filled(LIMIT, lambda step: step / 1000)
    assert [(row[FIRST], row[LAST]) for row in series.rows] == [(n, n) for n in range(1, LIMIT + 1)]
    assert [row[LOW] for row in series.rows] == [n / 1000 for n in range(1, LIMIT + 1)]


def test_a_long_run_stays_bounded_without_a_gap_and_keeps_its_extremes_exactly():
    draw = random.Random(1)
    losses = [draw.random() for _ in range(50_000)]
    losses[31_234], losses[40_001] = 9.25, -3.5
    series = filled(len(losses), lambda step: losses[step - 1])
    assert LIMIT / 2 <= len(series.rows) <= LIMIT
    expected = 1
    for row in series.rows:
        assert row[FIRST] == expected
        part = losses[row[FIRST] - 1 : row[LAST]]
        assert math.isclose(row[LOW], min(part), rel_tol=1e-5)  # six digits travel
        assert math.isclose(row[HIGH], max(part), rel_tol=1e-5)
        expected = row[LAST] + 1
    assert expected == len(losses) + 1
    assert max(row[HIGH] for row in series.rows) == 9.25
    assert min(row[LOW] for row in series.rows) == -3.5


def test_a_series_read_from_the_log_is_the_one_that_was_watched(tmp_path):
    watched, log = Series(), tmp_path / "log.jsonl"
    with open(log, "w") as file:
        for step in range(1, 5001):
            loss, rate, norm = 1 / step + (step % 7) / 100, 1e-4 * (1 - step / 6000), None if step == 77 else step % 11
            watched.add(step, loss, rate, norm)
            file.write(json.dumps({"step": step, "loss": loss, "lr": rate, "grad_norm": norm}) + "\n")
    assert Series.of_log(log).rows == watched.rows
    assert Series.of_log(log, 100).last_step() == 100


def test_a_damaged_line_of_the_log_is_passed_over(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text(
        '{"step": 1, "loss": 0.5, "lr": 0.1}\n{"step": 2, "lo\n[]\n{"step": 3, "loss": 0.25, "lr": 0.1, "grad_norm": 2}\n'
    )
    assert [row[LAST] for row in Series.of_log(log).rows] == [1, 3]


def test_what_is_not_finite_travels_as_nothing():
    series = Series()
    series.add(1, math.nan, math.inf, None)
    series.add(2, 0.5, 0.1, 3.0)
    assert series.rows[0][LOW:] == [None] * 5
    assert (series.rows[1][SMOOTH], series.rows[1][RATE], series.rows[1][NORM]) == (0.5, 0.1, 3.0)
    json.dumps(series.rows, allow_nan=False)
