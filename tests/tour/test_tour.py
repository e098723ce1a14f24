import json
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime

import pytest

from polyloom.core import registry
from polyloom.core.result import read_result
from polyloom.metrics.language_model import DocumentScore
from polyloom.runs.execute import resume
from polyloom.runs.folder import read_manifest
from polyloom.tour import base_model, steps
from polyloom.tour.base_model import Budget, rate
from tests import demo_room

TINY = Budget(num_characters=4_000, vocab_size=300, steps=30, test_characters=600, size="llama-2x64")


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "rooms", lambda: demo_room.CARDS)
    monkeypatch.setattr(steps, "COMMAND", [sys.executable, "-m", "tests.demo_room"])
    monkeypatch.setattr(base_model, "BUDGETS", {"quick": TINY})


def test_rate_is_bits_over_bytes_of_all_documents():
    scores = [DocumentScore(nats=8 * 0.6931471805599453, num_bytes=4, num_tokens=1)] * 2
    interval = rate([*scores, DocumentScore(0.0, 8, 1)])
    assert interval.value == pytest.approx(1.0)
    assert interval.low == pytest.approx(0.0)
    assert rate(scores, minus=scores).value == 0.0


def test_the_tour_trains_measures_works_on_the_rooms_and_writes_one_page(cli, demo, tmp_path):
    done = cli("tour", "--languages", "en", "ja", "--rooms", "demo", "--run", "t", "--json")
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    rows = {row[0]: row for row in result["tables"]["bits_per_byte"]["rows"]}
    assert set(rows) == {"en", "ja"}
    assert result["tables"]["steps"]["rows"] == [["demo", "t-demo", "done", "counted to 3"]]
    assert 0 < result["scalars"]["bits_per_byte"]["value"] < 8
    page = (tmp_path / "runs" / "t" / "report.html").read_text()
    for text in ("counted to 3", "Does it count?", "CLDR world (synthetic sentences)", "../t-demo/report.html"):
        assert text in page
    step = read_result(tmp_path / "runs" / "t-demo" / "result.json")
    assert step.provenance.config["model"].endswith("t/artifacts/model")


def test_a_failing_and_a_dying_room_are_reported_and_the_tour_goes_on(cli, demo, tmp_path):
    done = cli("tour", "--languages", "en", "de", "--run", "t", "--json")
    assert done.exit_code == 1
    result = json.loads(done.stdout)
    assert result["scalars"]["failed_steps"]["value"] == 2
    status = {row[0]: row[2:] for row in result["tables"]["steps"]["rows"]}
    assert status["demo"][0] == "done"
    assert status["broken"] == ["failed", "a defect"]
    assert status["dying"][0] == "failed"
    assert "SIGKILL" in status["dying"][1]
    # What takes no model begins while the model is trained.
    trained = datetime.fromtimestamp(json.loads(_last_line(tmp_path / "runs" / "t" / "metrics.jsonl"))["time"], UTC)
    begun = {name: datetime.fromisoformat(read_manifest(tmp_path / "runs" / f"t-{name}").created) for name in status}
    assert begun["broken"] < trained < begun["demo"]
    page = (tmp_path / "runs" / "t" / "report.html").read_text()
    assert "a defect" in page
    assert "SIGKILL" in page


def _last_line(path):
    return path.read_text().splitlines()[-1]


def test_the_users_model_and_text_are_taken(cli, demo, tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("\n\n".join(f"passage number {i} " * 40 for i in range(30)))
    assert cli("tour", "--text", text, "--rooms", "demo", "--run", "first").exit_code == 0
    model = tmp_path / "runs" / "first" / "artifacts" / "model"
    done = cli("tour", "--text", text, "--model", model, "--rooms", "demo", "--run", "second", "--json")
    assert done.exit_code == 0, done.stderr
    again = json.loads(done.stdout)["scalars"]["bits_per_byte"]
    first = read_result(tmp_path / "runs" / "first" / "result.json").scalars["bits_per_byte"]
    assert again["value"] == pytest.approx(first.value, rel=1e-6)
    assert not (tmp_path / "runs" / "second" / "artifacts" / "model").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--text", "none.txt"], "none.txt: cannot be read"),
        (["--text", "EMPTY"], "empty"),
        (["--text", "LATIN"], "at offset 3 is not utf-8. Save it as UTF-8"),
        (["--model", "FOLDER"], "config.json"),
        (["--languages", "en", "xx"], "xx"),
    ],
)
def test_bad_material_is_one_line_and_leaves_nothing(cli, demo, tmp_path, words, message):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes(b"abc\xe9")
    (tmp_path / "folder").mkdir()
    places = {name.upper(): str(tmp_path / name) for name in ("folder",)}
    places |= {"EMPTY": str(tmp_path / "empty.txt"), "LATIN": str(tmp_path / "latin.txt")}
    done = cli("tour", "--rooms", "demo", *(places.get(word, word) for word in words))
    assert done.exit_code == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("polyloom: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert not list((tmp_path / "runs").glob("*/run.json"))


def _start(tmp_path, *words):
    arguments = [sys.executable, "-m", "tests.demo_room", "tour", "--runs", str(tmp_path), "--run", "t"]
    return subprocess.Popen([*arguments, *words], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _wait_for(condition, process, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_tour_that_was_ended_while_training_resumes(demo, tmp_path, number):
    process = _start(tmp_path, "--languages", "en", "de", "--rooms", "demo")
    checkpoints = tmp_path / "t" / "checkpoints"
    _wait_for(lambda: checkpoints.exists() and any(checkpoints.iterdir()), process)
    process.send_signal(number)
    process.communicate(timeout=120)
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 75)
    assert not (tmp_path / "t" / "artifacts" / "model").exists()
    base_model.BUDGETS["quick"] = Budget(**demo_room.TOUR_BUDGET)
    result = resume(tmp_path / "t")
    assert result.scalars["failed_steps"].value == 0
    lines = (tmp_path / "t" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == demo_room.TOUR_BUDGET["steps"]
    assert read_manifest(tmp_path / "t-demo").status == "done"


@pytest.mark.slow
def test_the_real_files_go_through_the_tour(cli, demo, real_data, tmp_path):
    for name, languages in (("udhr", 10), ("tinyshakespeare", 1)):
        done = cli("tour", "--text", real_data(name), "--rooms", "demo", "--run", name, "--json")
        assert done.exit_code == 0, done.stderr
        result = json.loads(done.stdout)
        assert len(result["tables"]["bits_per_byte"]["rows"]) == languages
        # Real text has no template sentences in it, and the report says nothing of a world.
        assert not any("CLDR" in line for line in result["limitations"])
