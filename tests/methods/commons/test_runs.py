"""Runs end to end: phases, counts of requests, equal logs, kills, faults, bad replies and bad input."""

import asyncio
import json
from collections import Counter
from pathlib import Path

import pytest

from polyloom.core.errors import PolyloomError, UserError
from polyloom.methods.commons.arms import ARMS
from polyloom.methods.commons.config import MindsConfig, RunConfig, ScoreConfig
from polyloom.methods.commons.events import encode_events, read_events
from polyloom.methods.commons.logs import from_events, read_logs
from polyloom.methods.commons.machinery import calls_per_month
from polyloom.methods.commons.minds import scripted_minds
from polyloom.methods.commons.mock import RuleMind, rule_reply, server_reply
from polyloom.methods.commons.play import run_run
from polyloom.methods.commons.runner import Cast, Job, Ledger, play_jobs
from polyloom.methods.commons.scenario import FOLDER, language_codes, language_texts, load_scenario, scenario_names
from polyloom.methods.commons.scoring import run_score
from polyloom.methods.commons.simulation import Setting, Simulation, play_numbers, with_arm_horizon

LOGS = ("brisk-pine-11", "copper-pyramid-25", "dry-salad-130", "fast-fire-167", "hearty-dust-170")


def simulate(setting, minds, seed=0):
    return asyncio.run(Simulation(setting, minds, minds[0], seed).play())


def scripted(arm="baseline", language="en", scenario="fishery", spec="sustainable", **more):
    chosen = ARMS[arm]
    loaded = with_arm_horizon(load_scenario(scenario, language), chosen, more.pop("num_months", None))
    return simulate(Setting(loaded, chosen, **more), scripted_minds([spec], chosen, 5, loaded.words))


def asks_of(events):
    return [(e["month"], e["agent"], e["ask"], e["obtained"]) for e in events if e["type"] == "harvest"]


@pytest.mark.parametrize("language", ["en", "zh", "ja", "de", "fr", "es"])
def test_every_scenario_and_arm_reads_its_own_replies(language):
    cells = [("fishery", arm) for arm in ARMS] + [(scenario, "baseline") for scenario in scenario_names()]
    for scenario, arm in cells:
        for events in [scripted(arm, language, scenario, num_months=1)]:
            assert {e["status"] for e in events if e["type"] == "harvest"} == {"ok"}
            assert all(e["limit"] is not None for e in events if e["type"] == "agreement")
            assert all(e["ended"] is not None and e["next"] is not None for e in events if e["type"] == "utterance")
            assert all(e["rated"] for e in events if e["type"] == "thought")


def test_languages_play_identical_numbers():
    runs = [asks_of(scripted("universalization", code, spec="noisy:0.3:sustainable")) for code in language_codes()]
    assert len(runs) == 6
    assert all(run == runs[0] for run in runs)


def test_no_text_of_a_scenario_hides_one_of_the_language():
    for name in scenario_names():
        for code in language_codes():
            loaded = load_scenario(name, code)
            assert loaded.words.templates["act"] == language_texts(code)["act"]
            assert loaded.words.templates["talk"] == language_texts(code)["talk"]


def test_talking_changes_no_number_of_policies_that_do_not_listen():
    setting = Setting(load_scenario("fishery"), ARMS["baseline"])
    assert asks_of(scripted(spec="proportional:0.12")) == asks_of(play_numbers(setting, ["proportional:0.12"] * 5, 0))


def test_requests_of_a_month():
    assert calls_per_month("faithful") == 51
    assert calls_per_month("lean") == 25


def test_agent_0_opens_and_at_most_nine_speak():
    mind = RuleMind()
    events = simulate(Setting(load_scenario("fishery", num_months=2), ARMS["baseline"]), [mind] * 5)
    turns = [e for e in events if e["type"] == "utterance"]
    assert Counter(e["month"] for e in turns) == {0: 9, 1: 9}
    assert next(e["agent"] for e in turns) == 0


def test_every_agent_speaks_with_its_own_mind_unless_the_published_code_is_followed():
    for rules, speakers in (("paper", 5), ("reference", 1)):
        minds = [RuleMind(spec=str(i)) for i in range(5)]
        counts = [0] * 5

        def reply(prompt, i, counts=counts):
            counts[i] += "Conversation finished" in prompt
            return rule_reply(prompt)

        for i, mind in enumerate(minds):
            mind.reply = lambda prompt, i=i: reply(prompt, i)
        events = simulate(Setting(load_scenario("fishery", num_months=1), ARMS["baseline"], rules=rules), minds)
        heard = {e["agent"] for e in events if e["type"] == "utterance"}
        assert len(heard) > 1
        assert sum(count > 0 for count in counts) == (len(heard) if rules == "paper" else speakers)


@pytest.mark.parametrize("reply", ["", "I cannot help with that.", "Answer: 5 to 8", "Answer: -3", "<think>hm"])
def test_replies_without_a_number_are_marked_and_never_survive(reply):
    def answer(prompt):
        return reply if "Any whole number" in prompt else rule_reply(prompt)

    minds = [RuleMind(answer)] * 5
    setting = Setting(load_scenario("fishery", num_months=2), ARMS["report-only"])
    text = encode_events(simulate(setting, minds))
    events = [json.loads(line) for line in text.splitlines()]
    assert all(e["defaulted"] and e["ask"] == 0 for e in events if e["type"] == "harvest")
    assert Counter(e["purpose"] for e in events if e["type"] == "call")["act"] == 2 * 5 * 3
    with pytest.raises(PolyloomError, match="no usable number"):
        simulate(Setting(load_scenario("fishery"), ARMS["no-talk"], on_unparsed="error"), minds)


def test_an_invalid_run_is_called_so(tmp_path):
    minds = [RuleMind(lambda prompt: "no")] * 5
    setting = Setting(load_scenario("fishery"), ARMS["no-talk"], rules="reference")
    (tmp_path / "events.jsonl").write_text(encode_events(simulate(setting, minds)))
    logged = read_logs([str(tmp_path)])[0]
    assert logged.status == "INVALID"
    assert logged.examples == ["no"] * 3


def test_an_ask_over_the_stock_is_clamped_and_an_unknown_speaker_replaced():
    def answer(prompt):
        if "Any whole number" in prompt:
            return "Answer: 900"
        if "Conversation finished" in prompt:
            return "Response: hello\nConversation finished: no\nNext speaker: Nobody"
        return rule_reply(prompt)

    events = simulate(Setting(load_scenario("fishery"), ARMS["baseline"]), [RuleMind(answer)] * 5)
    assert [(e["ask"], e["raw"], e["status"]) for e in events if e["type"] == "harvest"] == [
        (100, 900.0, "clamped")
    ] * 5
    assert [e["agent"] for e in events if e["type"] == "utterance"] == [0, 1, 2, 3, 4, 0, 1, 2, 3]


def test_a_prompt_too_long_loses_its_oldest_memories():
    class Short(RuleMind):
        async def answer(self, prompt, situation):
            found = await super().answer(prompt, situation)
            too_long = prompt.count("\n- 2024") > 2 and situation.purpose == "act"
            return type(found)("", "rejected") if too_long else found

    setting = Setting(load_scenario("fishery", num_months=3), ARMS["baseline"])
    events = simulate(setting, [Short()] * 5)
    assert any(e["shortened"] > 0 for e in events if e["type"] == "call")
    assert {e["status"] for e in events if e["type"] == "harvest"} == {"ok"}


def _play(jobs, folder, cache, in_flight=8, spoil=None):
    config = MindsConfig(cache=str(cache), max_in_flight=in_flight, max_tokens=64)

    async def work():
        async with Cast(config, folder) as cast:
            return await play_jobs(
                jobs, cast, folder, ledger=Ledger(), check_stop=spoil or (lambda: None), progress=lambda n: None
            )

    folder.mkdir(exist_ok=True)
    return asyncio.run(work())


def test_a_server_is_asked_nothing_twice_and_concurrency_changes_no_event(tmp_path):
    from polyloom.generation.fake_server import FakeServer

    setting = Setting(load_scenario("fishery", num_months=2), ARMS["baseline"], calls="lean")
    with FakeServer(server_reply, rates={"500": 0.1, "empty_text": 0.1}) as server:
        jobs = [Job(f"r{i}", setting, [f"{server.base_url}#m"], i, i) for i in range(2)]
        alone = _play(jobs, tmp_path / "a", tmp_path / "a.sqlite", in_flight=1)
        many = _play(jobs, tmp_path / "b", tmp_path / "b.sqlite", in_flight=64)
        before = server.num_requests
        again = _play(jobs, tmp_path / "c", tmp_path / "b.sqlite")
        assert server.num_requests == before
        assert max(server.answered.values()) <= 2
    assert alone == many == again
    assert server.faults


def test_a_killed_run_asks_only_what_it_has_not_asked(tmp_path):
    from polyloom.generation.fake_server import FakeServer

    setting = Setting(load_scenario("fishery", num_months=3), ARMS["no-talk"], rules="reference")
    months = []

    def stop_in_month_2():
        months.append(1)
        if len(months) == 3:
            raise KeyboardInterrupt

    with FakeServer(server_reply) as server:
        jobs = [Job("r0", setting, [f"{server.base_url}#m"], 0, 0)]
        with pytest.raises(KeyboardInterrupt):
            _play(jobs, tmp_path / "a", tmp_path / "a.sqlite", spoil=stop_in_month_2)
        assert server.num_requests == 10
        done = _play(jobs, tmp_path / "a", tmp_path / "a.sqlite")
        assert server.num_requests == 15
        assert max(server.answered.values()) == 1
        assert done == _play(jobs, tmp_path / "b", tmp_path / "b.sqlite")


def test_a_server_that_dies_is_named_and_what_it_said_is_kept(tmp_path):
    from polyloom.generation.fake_server import FakeServer

    setting = Setting(load_scenario("fishery", num_months=2), ARMS["no-talk"], rules="reference")
    with FakeServer(server_reply, schedule=[None] * 5 + ["garbage"] * 100) as server:
        jobs = [Job("r0", setting, [f"{server.base_url}#m"], 0, 0)]
        config = MindsConfig(cache=str(tmp_path / "a.sqlite"), max_tokens=64)

        async def work():
            async with Cast(config, tmp_path) as cast:
                await cast.open(jobs[0].specs)
                cast.models[jobs[0].specs[0]].backoff_seconds = 0.001
                await play_jobs(jobs, cast, tmp_path, ledger=Ledger(), check_stop=lambda: None, progress=lambda n: None)

        with pytest.raises(PolyloomError, match=r"no answer in month 2 .*[Rr]esume"):
            asyncio.run(work())


def test_the_published_logs_are_scored_as_a_recount_scores_them(run, real_data):
    folder = real_data("govsim_logs")
    result = run_score(ScoreConfig(logs=[str(folder)]), run)
    assert result.scalars["num_recounted"].value == 5
    assert result.scalars["largest_difference_from_recount"].value < 1e-6
    assert result.scalars["brisk-pine-11.gain"].value == 120
    # Published with a spread of 0: five harvests and nine utterances.
    assert result.scalars["dry-salad-130.over_usage_diluted"].value == pytest.approx(100 * 5 / 14)
    # Eight of its twenty replies hold no number; the log has zeros for them.
    states = {Path(str(row[0])).parent.name: row[3] for row in result.tables["runs"].rows}
    assert [states[name] for name in LOGS] == ["survived", "collapsed", "collapsed", "INVALID", "survived"]


def test_a_log_cut_in_the_middle_gives_its_whole_months(tmp_path, real_data):
    text = (real_data("govsim_logs") / "brisk-pine-11" / "log_env.json").read_text()
    cut = tmp_path / "log_env.json"
    cut.write_text(text[: len(text) // 2])
    logged = read_logs([str(cut)])[0]
    assert logged.status == "INCOMPLETE"
    assert 0 < logged.trajectory.num_months < 12
    assert "cut in the middle" in logged.notes[0]
    ours = tmp_path / "events.jsonl"
    ours.write_text(encode_events(scripted())[:-300])
    assert read_logs([str(ours)])[0].status == "INCOMPLETE"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[]", "no JSON array"),
        ('[{"a": 1}]', "lacks the columns agent_id"),
        ('{"type": "start"}', "no JSON array"),
    ],
)
def test_logs_of_another_schema_are_refused(tmp_path, text, word):
    path = tmp_path / "log_env.json"
    path.write_text(text)
    with pytest.raises(UserError, match=word):
        read_logs([str(path)])


def test_logs_are_written_for_the_published_analysis_and_read_back(tmp_path, run):
    result = run_run(RunConfig(minds=["proportional:0.12"], num_seeds=1, num_months=4), run)
    back = read_logs([str(run.path / "artifacts" / "log_env.json")])[0]
    ours = from_events(read_events(run.path / "artifacts" / "events.jsonl"), "ours")
    assert back.trajectory.obtained == ours.trajectory.obtained
    assert back.limits == ours.limits
    assert result.scalars["num_calls"].value == sum(
        '"type":"call"' in line for line in (run.path / "artifacts" / "events.jsonl").read_text().splitlines()
    )


def test_replay_gives_the_same_events_and_a_branch_another_story(cli, tmp_path):
    assert cli("commons", "run", "--num-seeds", 1, "--num-months", 4, "--run", "base").exit_code == 0
    log = tmp_path / "runs" / "base" / "artifacts" / "events.jsonl"
    replayed = json.loads(cli("commons", "replay", "--log", log, "--json").stdout)
    assert replayed["scalars"]["events_identical"]["value"] is True
    changed = cli("commons", "branch", "--log", log, "--month", 3, "--ask", "Emma=80", "--json")
    scalars = json.loads(changed.stdout)["scalars"]
    assert (scalars["log.months"]["value"], scalars["branch.months"]["value"]) == (4, 3)
    greedy = cli("commons", "branch", "--log", log, "--month", 2, "--minds", "greedy", "--json")
    assert json.loads(greedy.stdout)["scalars"]["branch.months"]["value"] == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "--arm", "basline"], "Did you mean 'baseline'"),
        (["run", "--language", "xx"], "no language 'xx'"),
        (["run", "--scenario", "fishry"], "Did you mean 'fishery'"),
        (["run", "--minds", "sustainable", "--minds", "greedy"], "2 minds for 5 agents"),
        (["run", "--minds", "constant:x"], "constant:AMOUNT"),
        (["run", "--minds", "http://127.0.0.1:9/v1"], "names no model"),
        (["run", "--detail", "numbers", "--minds", "http://x/v1#m"], "no policy"),
        (["score", "--logs", "nowhere"], "does not exist"),
        (["branch", "--log", "nowhere", "--month", "1"], "does not exist"),
        (["compare", "--baseline", "x/y"], "no 'x/y'"),
        (["subskills", "--scenario", "trash"], "about taking"),
    ],
)
def test_bad_input_is_one_line(cli, words, said):
    result = cli("commons", *words)
    assert result.exit_code == 2
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("resource", "said"),
    [
        ("{capacity: 3}", "capacity 3 is below"),
        ("{growth: 0.5}", "growth must exceed 1"),
        ("{fish: 3}", "resource.fish"),
        ("{capacity: ten}", "resource.capacity"),
    ],
)
def test_a_scenario_file_with_impossible_numbers_is_refused(cli, tmp_path, resource, said):
    path = tmp_path / "mine.yaml"
    path.write_text(f"like: fishery\nresource: {resource}\n")
    result = cli("commons", "run", "--scenario", path)
    assert (result.exit_code, said in result.stderr) == (2, True), result.stderr
    path.write_text("resource: {}\n")
    assert "has no text" in cli("commons", "run", "--scenario", path).stderr


def test_talk_subskills_and_compare_say_what_they_found(cli, tmp_path):
    assert cli("commons", "run", "--num-seeds", 1, "--num-months", 3, "--run", "base").exit_code == 0
    talk = json.loads(cli("commons", "talk", "--logs", tmp_path / "runs" / "base", "--json").stdout)["scalars"]
    assert talk["promises_kept"]["value"] == 100
    skills = json.loads(cli("commons", "subskills", "--num-items", 20, "--scenario", "pollution", "--json").stdout)
    assert all(skills["scalars"][skill]["value"] == 100 for skill in ("dynamics", "sustainable_action", "belief"))
    assert skills["scalars"]["dynamics_corrected_key"]["value"] < 100
    compared = cli("commons", "compare", "--minds", "sustainable", "--minds", "constant:12", "--num-seeds", 6, "--json")
    assert "worse" in " ".join(json.loads(compared.stdout)["verdicts"])


def test_numbers_alone_run_in_processes_with_equal_logs(cli, tmp_path):
    common = ["commons", "run", "--detail", "numbers", "--num-seeds", 250, "--minds", "noisy:0.1:sustainable"]
    assert cli(*common, "--run", "one").exit_code == 0
    assert cli(*common, "--workers", 2, "--run", "two").exit_code == 0
    one, two = ((tmp_path / "runs" / name / "artifacts" / "events.jsonl").read_bytes() for name in ("one", "two"))
    assert one == two


def test_learners_are_minds_and_universalizing_ones_last_longer(cli):
    months = {}
    for rule in ("independent", "universalizing"):
        done = cli("commons", "run", "--detail", "numbers", "--minds", f"learned:{rule}", "--num-seeds", 2, "--json")
        months[rule] = json.loads(done.stdout)["scalars"]["months"]["value"]
    assert months["independent"] < months["universalizing"]
    refused = cli("commons", "run", "--minds", "learned:wishful")
    assert refused.exit_code == 2
    assert "learned:independent" in refused.stderr


@pytest.mark.filterwarnings("ignore")
def test_a_ray_cluster_gives_the_same_logs(cli, tmp_path, ray_cluster):
    common = ["commons", "run", "--detail", "numbers", "--num-seeds", 250, "--minds", "noisy:0.1:sustainable"]
    assert cli(*common, "--run", "one").exit_code == 0
    assert cli(*common, "--cluster", "ray", "--run", "two").exit_code == 0
    one, two = ((tmp_path / "runs" / name / "artifacts" / "events.jsonl").read_bytes() for name in ("one", "two"))
    assert one == two


def test_the_parallel_environment_passes_its_own_library(recwarn):
    pettingzoo = pytest.importorskip("pettingzoo.test")
    from polyloom.methods.commons.parallel_env import make_parallel_env

    environment = make_parallel_env()
    pettingzoo.parallel_api_test(environment, num_cycles=50)
    assert len(environment.possible_agents) == 5


def test_texts_are_whole():
    english = set(language_texts("en"))
    assert all(set(language_texts(code)) == english for code in language_codes())
    assert {path.suffix for path in (FOLDER / "scenarios").iterdir()} == {".yaml"}
