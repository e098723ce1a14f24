"""What a run at work shows: bars, curves, lines; torn, long and hostile logs."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from polyloom.web.live import HEIGHT, MAX_POINTS, METRICS_BYTES, WIDTH, Bar, draw, read_curves, read_log


def test_the_last_word_of_each_bar_and_other_lines_are_read(tmp_path):
    (tmp_path / "job.log").write_text("train: 1/10\nhello\ntrain: 4/10\ntest: 2/2\nhalf a li")
    bars, lines = read_log(tmp_path)
    assert bars == [Bar("train", 4, 10), Bar("test", 2, 2)]
    assert [bar.percent for bar in bars] == [40, 100]
    assert lines == ["hello"]


def test_no_log_is_no_progress(tmp_path):
    assert read_log(tmp_path) == ([], [])
    assert read_curves(tmp_path) == []


def test_more_done_than_total_and_no_total_are_no_more_than_all():
    assert Bar("x", 12, 10).percent == 100
    assert Bar("x", 0, 0).percent == 0


def test_curves_are_read_past_torn_lines_and_what_is_no_number(tmp_path):
    rows = [{"loss": 2.0, "step": 1, "note": "<b>"}, {"loss": None}, {"loss": True}, {"loss": 1.0}, [1], {"one": 3}]
    text = "\n".join(map(json.dumps, rows)) + "\nnot json\n" + json.dumps({"loss": 9.0})
    (tmp_path / "metrics.jsonl").write_text(text)
    [curve] = read_curves(tmp_path)
    assert (curve.name, curve.last, curve.low, curve.high, curve.num_points) == ("loss", "1", "1", "2", 2)
    assert curve.points == f"0.0,0.0 {WIDTH:.1f},{HEIGHT:.1f}"


def test_of_a_very_long_log_only_the_end_is_read(tmp_path):
    line = json.dumps({"loss": 1.0, "pad": "x" * 1000}) + "\n"
    with (tmp_path / "metrics.jsonl").open("w") as stream:
        stream.write(json.dumps({"loss": 99.0}) + "\n")
        for _ in range(METRICS_BYTES // len(line) + 5):
            stream.write(line)
    assert read_curves(tmp_path)[0].high == "1"


@given(st.lists(st.floats(-1e12, 1e12), min_size=2, max_size=2000))
def test_a_drawing_stays_in_its_frame_and_ends_with_the_last_point(values):
    curve = draw("x", values)
    points = [tuple(map(float, point.split(","))) for point in curve.points.split()]
    assert len(points) <= MAX_POINTS + 1
    assert points[0][0] == 0
    assert abs(points[-1][0] - WIDTH) < 0.1
    assert all(-0.1 <= y <= HEIGHT + 0.1 for _, y in points)
