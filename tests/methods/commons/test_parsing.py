"""Replies: the rules of reading them, one example each, and properties."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyloom.methods.commons.memory import Memory, month_start, reflection_day
from polyloom.methods.commons.numbers import number_words, read_han
from polyloom.methods.commons.parsing import agreed_limit, quantity, utterance


@pytest.mark.parametrize(
    ("text", "value", "status"),
    [
        ("I think so.\nAnswer: 10 tons", 10, "ok"),
        ("Answer : ten", 10, "ok"),
        ("Final answer： twenty-five", 25, "ok"),
        ("答案：十二", 12, "ok"),
        ("答え：二十トン", 20, "ok"),
        ("Antwort: fünfundzwanzig", 25, "ok"),
        ("Réponse : soixante-dix tonnes", 70, "ok"),
        ("Respuesta: veintidós", 22, "ok"),
        ("Answer: ٣٠", 30, "ok"),
        ("Answer: １２", 12, "ok"),
        ("**Answer:** `10`", 10, "ok"),
        ("Answer: \\boxed{14}", 14, "ok"),
        ("<think>Answer: 3</think>Answer: 4", 4, "ok"),
        ('{"quantity": 7}', 7, "ok"),
        ('so\n```json\n{"answer": 9}\n```', 9, "ok"),
        ("Answer: 3. No, Answer: 5", 5, "ok"),
        ("Answer: 150", 100, "clamped"),
        ("Answer: 1,000", 100, "clamped"),
        ("Answer: 10.5", 10, "coerced"),
        ("I take 12.", 12, "coerced"),
        ("Answer: 8-10", None, "ambiguous"),
        ("Answer: 8 to 10 tons", None, "ambiguous"),
        ("Answer: between 8 and 10", None, "ambiguous"),
        ("Answer: -5", None, "invalid"),
        ("<think>Answer: 3", None, "truncated"),
        ("I take 12 of 30.", None, "missing"),
        ("Answer: N tons", None, "missing"),
        ("Answer: 5. Answer: whatever", None, "missing"),
        ("I cannot help with that.", None, "missing"),
        ("", None, "missing"),
    ],
)
def test_quantity(text, value, status):
    found = quantity(text, 0, 100)
    assert (found.value, found.status) == (value, status)


def test_the_raw_value_of_a_clamped_ask_is_kept():
    assert quantity("Answer: 150", 0, 100).raw == 150


@given(st.integers(0, 100), st.sampled_from(["Answer", "答案", "答え", "Antwort", "Réponse", "Respuesta", "Ответ"]))
def test_every_marker_reads_every_number(amount, marker):
    assert quantity(f"1 or 2?\n{marker}: {amount}", 0, 100).value == amount


@given(st.text(max_size=60))
def test_any_text_is_read_to_a_value_in_range_or_none(text):
    for reply in (text, f"Answer: {text}"):
        found = quantity(reply, 0, 100)
        assert found.value is None or 0 <= found.value <= 100
        agreed_limit(reply)
        utterance(reply, ["John"])


def test_number_words_cover_every_number():
    values = set(number_words().values())
    assert set(range(101)) <= values
    assert [read_han(text) for text in ("十", "十二", "二十", "一百零五", "九十九", "一〇")] == [
        10,
        12,
        20,
        105,
        99,
        10,
    ]


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("Answer: 10", 10),
        ("Answer: N/A", None),
        ("none, although 10 was named", None),
        ("No agreement was reached on 10.", None),
        ("50 tons in total, 10 each", 10),
        ("Total of 50, so 10 per person", 10),
        ("Answer: 50 in total", 50),
        ("Antwort: keine", None),
        ("答え：なし", None),
        ("每人10吨，总共50吨", 10),
    ],
)
def test_agreed_limit(text, limit):
    assert agreed_limit(text) == limit


def test_utterances_are_read_with_and_without_their_labels():
    names = ["John", "Kate"]
    whole = utterance("Response: Hello.\nConversation finished: no\nNext speaker: Kate", names)
    assert whole == ("Hello.", False, "Kate")
    assert utterance('"Just this."', names) == ("Just this.", None, None)
    assert utterance("Hi.\nConversation conclusion by John: [yes]\nNext speaker: [Mary]", names) == ("Hi.", True, None)
    assert utterance("发言：大家好\n对话结束：否\n下一位发言者：Kate", names) == ("大家好", False, "Kate")


def test_the_newest_memory_ranks_first_and_an_event_lives_until_its_month_ends():
    for rules, seen in (("paper", 1), ("reference", 0)):
        memory = Memory(rules)
        memory.add_event("there are 100 tons", 0, month_start(0))
        assert len(memory.retrieve(["tons"], 10, reflection_day(0))) == seen
        memory.add_thought("same", 5, month_start(0))
        memory.add_thought("same", 5, reflection_day(0))
        old, new = [node for node in memory.nodes if node.kind == "THOUGHT"]
        first, second = memory.scores([old, new], "nothing alike")
        assert (second > first) == (rules == "paper")
    memory.add_chat("a talk", 10, month_start(1))
    assert all(node.kind != "CHAT" for node in memory.retrieve(["a talk"], 10, month_start(1)))
