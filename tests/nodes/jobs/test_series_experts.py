"""The course of a run of two experts: a smoothed loss for each, which the page draws as two lines."""

import json

from lora_loom.nodes.jobs.series import LIMIT, SECOND, SMOOTH, SMOOTHING, Series, joined


def test_each_expert_has_a_smoothed_loss_of_its_own(tmp_path):
    series, log = Series(), tmp_path / "log.jsonl"
    lines, smooth = [], {}
    for step in range(1, 9):
        expert = "high_noise" if (step - 1) // 2 % 2 == 0 else "low_noise"
        loss = step + (10.0 if expert == "low_noise" else 0.0)
        before = smooth.get(expert, loss)
        smooth[expert] = SMOOTHING * before + (1 - SMOOTHING) * loss
        row = series.add(step, loss, 1e-4, 0.5, expert)
        assert row[SMOOTH] == float(f"{smooth['high_noise']:.6g}")
        assert row[SECOND] == (float(f"{smooth['low_noise']:.6g}") if "low_noise" in smooth else None)
        lines.append(json.dumps({"step": step, "loss": loss, "lr": 1e-4, "grad_norm": 0.5, "expert": expert}))
    log.write_text("\n".join(lines))
    assert Series.of_log(log).rows == series.rows
    assert joined(series.rows[-2], series.rows[-1])[SECOND] == series.rows[-1][SECOND]


def test_a_run_of_one_model_has_no_second_line_and_a_long_run_keeps_both():
    series = Series()
    assert len(series.add(1, 0.5, 1e-4, None)) == SECOND
    both = Series()
    for step in range(1, 3 * LIMIT):
        both.add(step, 1.0 if step % 2 else 2.0, 1e-4, 0.1, ("high_noise", "low_noise")[step % 2])
    assert len(both.rows) <= LIMIT
    assert all(len(row) == SECOND + 1 for row in both.rows)
