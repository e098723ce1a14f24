import json

import pytest


def test_sample_prints_json_lines(cli):
    done = cli("world", "sample", "parallel", "--languages", "en", "ja", "--size", 3)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 3
    assert done.stdout == cli("world", "sample", "parallel", "--languages", "en", "ja", "--size", 3).stdout


def test_export_writes_the_file_whole(cli, tmp_path):
    path = tmp_path / "out" / "a.jsonl"
    done = cli("world", "export", "parallel", "--languages", "en", "de", "--size", 20, "--output", path)
    assert done.exit_code == 0
    assert len(path.read_text().splitlines()) == 20


def test_describe_names_versions_and_tasks(cli):
    described = json.loads(cli("world", "describe", "--languages", "en", "de").stdout)
    assert described


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sample", "paralel"], "Did you mean 'parallel'?"),
        (["sample", "parallel", "--languages", "en", "xx"], "xx"),
        (["sample", "parallel", "--size", "0"], "--size: must be at least 1."),
        (["export", "parallel", "--output", "/proc/none/a", "--size", "1"], "cannot be written"),
    ],
)
def test_bad_input_is_refused(cli, words, message):
    done = cli("world", *words)
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
    assert message in done.stderr
