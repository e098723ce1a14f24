"""The verbs through the command line: answers, every prior source, searches, reports, refusals in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel, PreTrainedModel, PreTrainedTokenizerFast

from polyloom.core.errors import UserError
from polyloom.core.registry import load
from polyloom.generation.decode import Decoding, decode
from polyloom.generation.fake_server import FakeServer
from polyloom.methods import prefix
from polyloom.methods.prefix import checks, sources, verbs
from polyloom.methods.prefix.evaluate import tag_score
from polyloom.methods.prefix.inputs import Item, Loaded, in_context, render_prompts
from polyloom.metrics.text import identify, language_confidence, lase, length_penalty
from polyloom.models.device import choose_device
from polyloom.models.load import load_model, load_tokenizer, save_model
from polyloom.models.tokenizers import train_tokenizer

Cli = Callable[..., Any]


def answered(cli: Cli, *words: object) -> dict[str, Any]:
    answer = cli("prefix", *words, "--json")
    assert answer.exit_code == 0, answer.stderr
    result: dict[str, Any] = json.loads(answer.stdout)
    return result


def lines(tmp_path: Path, name: str) -> list[dict[str, Any]]:
    (found,) = (tmp_path / "runs").glob(f"*/artifacts/{name}")
    return [json.loads(line) for line in found.read_text(encoding="utf-8").splitlines()]


def common(folders: dict[str, Path], texts: Path) -> list[object]:
    return ["--base", folders["base"], "--input", texts, "--target-language", "de", "--max-new-tokens", 8]


def test_translate_without_a_prior_is_plain_generation(
    cli: Cli,
    tmp_path: Path,
    folders: dict[str, Path],
    texts: Path,
    base: PreTrainedModel,
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    result = answered(cli, "translate", *common(folders, texts), "--template", "{{ source }} =", "--k", 0)
    assert result["scalars"]["num_texts"]["value"] == 2
    rows = lines(tmp_path, "answers.jsonl")
    prompts = [Loaded(base, byte_tokenizer).encode_prompt(f"{row['source']} =") for row in rows]
    plain = decode(base, prompts, Decoding(8, stop=("\n",)), tokenizer=byte_tokenizer)
    assert [row["output"] for row in rows] == [one.text.strip() for one in plain]


SOURCES = {
    "sft": ["--sft", "tuned"],
    "refined": ["--small", "t5"],
    "small-lm": ["--small", "tuned", "--max-rank", 1000],
    "pseudo": ["--dictionary", "muse"],
    "lexicon-gate": ["--dictionary", "muse"],
    "language-gate": ["--memory", "texts"],
    "gold": [],
    "translation-memory": ["--memory", "texts"],
    "constant": ["--constant", "Gern: "],
    "wrong-language": ["--sft", "tuned", "--wrong-language", "fr"],
    "foreign-content": ["--sft", "tuned"],
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_priors_that_answers_begin_with(
    cli: Cli, tmp_path: Path, folders: dict[str, Path], texts: Path, muse: Path, source: str
) -> None:
    places = {**folders, "muse": muse, "texts": texts}
    extra = [places.get(str(word), word) for word in SOURCES[source]]
    result = answered(cli, "translate", *common(folders, texts), "--prior", source, *extra)
    rows = lines(tmp_path, "answers.jsonl")
    assert {row["prior_source"] for row in rows} == {source}
    assert result["scalars"]["num_without_prior"]["value"] < 2
    for row in rows:
        assert row["output"].startswith(row["prior"].strip()) or "�" in row["prior"] or "\n" in row["prior"]


def test_sources_fall_back_in_their_order(
    cli: Cli, tmp_path: Path, folders: dict[str, Path], texts: Path, muse: Path
) -> None:
    muse.write_text("dog Hund\n", encoding="utf-8")
    answered(cli, "translate", *common(folders, texts), "--prior", "pseudo", "--prior", "gold", "--dictionary", muse)
    rows = lines(tmp_path, "answers.jsonl")
    assert [row["prior_source"] for row in rows] == ["pseudo", "gold"]


def test_priors_go_to_a_file_and_come_back(
    cli: Cli, tmp_path: Path, folders: dict[str, Path], texts: Path, muse: Path
) -> None:
    answered(cli, "prior", *common(folders, texts), "--prior", "gold", "--k", 3)
    built = lines(tmp_path, "priors.jsonl")
    assert all("der Hund".startswith(row["prior"].strip()) for row in built[:1])
    (path,) = (tmp_path / "runs").glob("*/artifacts/priors.jsonl")
    answered(cli, "translate", *common(folders, texts), "--prior", "file", "--priors", path, "--k", 3)
    assert [row["prior"].strip() for row in lines(tmp_path, "answers.jsonl")] == [row["prior"].strip() for row in built]


def test_search_finds_the_gold_prior(cli: Cli, folders: dict[str, Path], texts: Path) -> None:
    words = [*common(folders, texts), "--search", "--prior", "gold", "--prior", "constant", "--constant", "x"]
    result = answered(cli, "prior", *words, "--k", 3)
    assert result["scalars"]["best_source"]["value"] == "gold"
    assert len(result["tables"]["search"]["rows"]) == 7


def test_search_shows_the_ceiling_beside_the_result(cli: Cli, folders: dict[str, Path], texts: Path) -> None:
    scalars = answered(cli, "prior", *common(folders, texts), "--search", "--prior", "constant", "--constant", "x")[
        "scalars"
    ]
    assert scalars["best_source"]["value"] in ("none", "constant")
    assert scalars["ceiling_chrf"]["value"] > scalars["best_chrf"]["value"]


def test_candidates_keep_the_answer_that_the_base_finds_best(
    cli: Cli, tmp_path: Path, folders: dict[str, Path], texts: Path, muse: Path
) -> None:
    answered(cli, "translate", *common(folders, texts), "--prior", "pseudo", "--dictionary", muse, "--candidates", 3)
    assert all(
        row["prior"].strip() in ("der", "die", "d") or row["prior_tokens"] for row in lines(tmp_path, "answers.jsonl")
    )


def test_the_dictionary_is_read_once_and_measured_on_all_texts(
    cli: Cli, folders: dict[str, Path], texts: Path, muse: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verbs, "ROWS_PER_STEP", 1)
    calls = []
    read = sources.open_dictionary
    monkeypatch.setattr(sources, "open_dictionary", lambda *given: (calls.append(given), read(*given))[1])
    result = answered(cli, "translate", *common(folders, texts), "--prior", "pseudo", "--dictionary", muse)
    assert len(calls) == 1
    assert [line for line in result["verdicts"] if "of the 4 words" in line]


def test_a_lexicon_of_tags_begins_a_tagged_sentence(
    cli: Cli, tmp_path: Path, folders: dict[str, Path], texts: Path
) -> None:
    lexicon = tmp_path / "tags.csv"
    lexicon.write_text("source,target\nthe,det\ndog,noun\ncat,noun\n", encoding="utf-8")
    words = ["--task", "tag", "--prior", "pseudo", "--dictionary", lexicon, "--k", 30, "--max-new-tokens", 40]
    answered(cli, "generate", "--base", folders["base"], "--input", texts, "--target-language", "en", *words)
    assert [row["prior"].strip() for row in lines(tmp_path, "answers.jsonl")] == [
        "the_DET dog_NOUN",
        "the_DET cat_NOUN",
    ]


def test_a_costly_language_and_a_long_wait_are_said(
    cli: Cli, tmp_path: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "costly.jsonl"
    path.write_text(json.dumps({"text": "the dog", "reference": "犬と猫と犬と猫と犬と猫"}) + "\n", encoding="utf-8")
    monkeypatch.setattr(checks, "SLOW_PARAMETERS", 0)
    verdicts = answered(cli, "translate", *common(folders, path))["verdicts"]
    assert [line for line in verdicts if "may not know German" in line]
    waits = [line for line in verdicts if "billion parameters on the CPU" in line]
    assert bool(waits) == (choose_device().type == "cpu")
    cheap = tmp_path / "cheap.jsonl"
    cheap.write_text(json.dumps({"text": "犬と猫と犬と猫と犬と猫", "reference": "der Hund"}) + "\n", encoding="utf-8")
    assert not [line for line in answered(cli, "translate", *common(folders, cheap))["verdicts"] if "not know" in line]


def test_an_encoder_decoder_begins_with_its_prior(
    cli: Cli, tmp_path: Path, folders: dict[str, Path], texts: Path
) -> None:
    words = ["--base", folders["t5"], *common(folders, texts)[2:], "--prior", "gold", "--task", "summarize"]
    answered(cli, "generate", *words, "--output", tmp_path / "greedy.jsonl")
    answered(cli, "generate", *words, "--output", tmp_path / "beams.jsonl", "--beams", 3)
    for name in ("greedy", "beams"):
        for line in (tmp_path / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            assert row["output"].startswith(row["prior"].strip())


def test_examples_stand_before_the_prompt(cli: Cli, folders: dict[str, Path], texts: Path) -> None:
    for style in ("plain", "urial"):
        answered(
            cli, "translate", *common(folders, texts), "--shots", 1, "--memory", texts, "--in-context", style,
            "--template", "{{ source }}\n",
        )  # fmt: skip
    assert in_context(["c:"], [("a:", "b")], "plain") == ["a: b\n\nc:"]
    urial = in_context(["c"], [("a", "b")], "urial")[0]
    assert urial.endswith("# Query:\na\n\n# Answer:\nb\n\n# Query:\nc\n\n# Answer:\n")


def test_a_server_continues_the_prefilled_turn(cli: Cli, tmp_path: Path, texts: Path) -> None:
    pytest.importorskip("openai")

    def reply(request: dict[str, Any]) -> str:
        assert request["messages"][-1]["role"] == "assistant"
        return f" nach {request['messages'][-1]['content']}"

    with FakeServer(reply) as server:
        words = [
            "--base",
            f"{server.base_url}#m",
            "--input",
            texts,
            "--target-language",
            "de",
            "--prior",
            "gold",
            "--k",
            1,
        ]
        answered(cli, "translate", *words)
    assert [row["output"] for row in lines(tmp_path, "answers.jsonl")] == ["der nach der", "die nach die"]


def test_decide_reports_both_models(cli: Cli, folders: dict[str, Path], texts: Path) -> None:
    words = [*common(folders, texts), "--positions", 6]
    own = answered(cli, "decide", *words, "--sft", folders["base"])["scalars"]
    assert own["agreement_at_1"]["value"] == 1
    assert own["kl"]["value"] == own["suggested_k"]["value"] == 0
    assert own["js"]["value"] == pytest.approx(0, abs=1e-15)
    assert own["free_equal"]["value"] == 1
    other = answered(cli, "decide", *words, "--sft", folders["tuned"])
    assert other["scalars"]["kl"]["value"] > 0
    values = [other["scalars"][f"agreement_at_{k}"]["value"] for k in (1, 5, 10, 20)]
    assert values == sorted(values)
    assert len(other["tables"]["positions"]["rows"]) <= 6


BAD = {
    "tokenizers differ: id ": ["decide", "--sft", "foreign"],
    "of the family gpt2": ["decide", "--sft", "gpt2"],
    "longer than the answer's budget": ["translate", "--k", 9],
    "needs --dictionary": ["translate", "--prior", "pseudo"],
    "needs --sft": ["translate", "--prior", "sft"],
    "no slot for the source": ["translate", "--template", "Translate this."],
    "there is no language 'dee'": ["translate", "--target-language", "dee"],
    "needs a model": ["translate", "--base", ""],
    "the template fails": ["translate", "--template", "{{ source }} {% if %}"],
    "has only one side": ["translate", "--prior", "pseudo", "--dictionary", "one-sided"],
    "holds no dictionary entry": ["translate", "--prior", "pseudo", "--dictionary", "empty"],
    "Did you swap source and target?": ["translate", "--prior", "pseudo", "--dictionary", "swapped"],
    "needs a template": ["generate"],
    "cannot be read": ["translate", "--input", "absent.txt"],
    "no references under": ["translate", "--prior", "gold", "--reference-field", "none"],
    "another language than the target": [
        "translate",
        "--prior",
        "wrong-language",
        "--sft",
        "tuned",
        "--wrong-language",
        "de",
    ],
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused_in_one_line(
    cli: Cli, tmp_path: Path, folders: dict[str, Path], texts: Path, message: str
) -> None:
    files = {"one-sided": "dog\ncat\n", "empty": "", "swapped": "Hund dog\nKatze cat\nder the\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    places = {**folders, **{name: tmp_path / name for name in files}}
    verb, *words = (places.get(str(word), word) for word in BAD[message])
    given = {"--base": folders["base"], "--input": texts, "--target-language": "de", "--max-new-tokens": 8}
    given |= dict(zip(words[::2], words[1::2], strict=True)) if len(words) % 2 == 0 else {}
    answer = cli("prefix", verb, *(word for pair in given.items() for word in pair))
    assert answer.exit_code == 2, answer.stderr
    assert message in answer.stderr
    assert "Traceback" not in answer.stderr
    assert len([line for line in answer.stderr.splitlines() if line.startswith("polyloom")]) <= 1


def test_a_tuned_model_with_another_tokenizer_gives_its_prior_as_text(
    cli: Cli, folders: dict[str, Path], texts: Path
) -> None:
    result = answered(cli, "translate", *common(folders, texts), "--prior", "sft", "--sft", folders["foreign"])
    assert any("passed as text" in line for line in result["verdicts"])


def test_evaluate_sets_systems_side_by_side(cli: Cli, tmp_path: Path) -> None:
    rows = [("ein schönes großes Haus am See", "a fine house"), ("wir gehen morgen alle nach Hause", "we go home")]
    for name, outputs in {"sft": [a for a, _ in rows], "copy": [b for _, b in rows]}.items():
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(
                json.dumps({"id": i, "output": out, "reference": a, "source": b}) + "\n"
                for i, (out, (a, b)) in enumerate(zip(outputs, rows, strict=True))
            )
        )
    files = [tmp_path / "sft.jsonl", tmp_path / "copy.jsonl"]
    words = [word for path in files for word in ("--outputs", path)]
    result = answered(cli, "evaluate", *words, "--target-language", "de", "--languages", "en")
    scalars = {name: one["value"] for name, one in result["scalars"].items()}
    assert scalars["0_bleu"] == pytest.approx(100)
    assert scalars["0_rouge_l"] == pytest.approx(100)
    assert (scalars["0_off_target_rate"], scalars["1_off_target_rate"]) == (0, 1)
    assert (scalars["0_copy_rate"], scalars["1_copy_rate"]) == (0, 1)
    assert result["tables"]["systems"]["rows"][0][-1] == 100
    (tmp_path / "short.txt").write_text("nur eine\n", encoding="utf-8")
    bad = cli(
        "prefix", "evaluate", "--outputs", files[0], "--target-language", "de", "--references", tmp_path / "short.txt"
    )
    assert bad.exit_code == 2
    assert "1 references do not fit 2 answers" in bad.stderr


def test_evaluate_tags_and_lase(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "tags.jsonl"
    path.write_text(json.dumps({"output": "a_DET b_VERB", "reference": "a_DET b_NOUN"}) + "\n")
    scalars = answered(cli, "evaluate", "--outputs", path, "--target-language", "en", "--task", "tag")["scalars"]
    assert {scalars[f"tag_{name}"]["value"] for name in ("precision", "recall", "f1", "accuracy")} == {0.5}
    # LaSE by hand, with the vectors of a small encoder that averages its tokens.
    encoder = save_encoder(tmp_path / "encoder")
    pair = {"output": "wir gehen morgen alle nach Hause", "reference": "wir gehen alle nach Haus"}
    path.write_text(json.dumps(pair) + "\n")
    words = ["--target-language", "de", "--task", "summarize", "--encoder", encoder]
    got = answered(cli, "evaluate", "--outputs", path, *words)["scalars"]["lase"]["value"]
    model, tokenizer = load_model(encoder, "encoder"), load_tokenizer(encoder)
    with torch.inference_mode():
        a, b = (model(**tokenizer(t, return_tensors="pt")).last_hidden_state[0].mean(0) for t in pair.values())
    meaning = float(torch.nn.functional.cosine_similarity(a, b, dim=0))
    confidence = language_confidence(identify([pair["output"]])[0], "de")
    assert got == pytest.approx(lase(meaning, confidence, length_penalty(6, 5)), abs=1e-5)


def save_encoder(folder: Path) -> Path:
    """Save a small encoder as sentence-transformers lays it out."""
    tokenizer = train_tokenizer(["wir gehen morgen alle nach Hause"] * 40, 300)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    save_model(BertModel(BertConfig(vocab_size=len(tokenizer), **shape)), folder, tokenizer)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return folder


@pytest.mark.parametrize(
    ("output", "precision", "recall"),
    [
        ("a_DET b_VERB", 0.5, 0.5),
        ("a_DET", 1, 0.5),
        ("", 0, 0),
        ("a b", 0, 0),
        ("x_X a_DET b_NOUN", 2 / 3, 1),
    ],
)
def test_tag_scores(output: str, precision: float, recall: float) -> None:
    found = tag_score(output, "a_DET b_NOUN")
    assert (found.precision, found.recall) == (pytest.approx(precision), pytest.approx(recall))


def test_real_tags_score_themselves(real_data: Callable[[str], Path]) -> None:
    rows = [json.loads(line) for line in (real_data("ud") / "pud_parallel_200.jsonl").read_text("utf-8").splitlines()]
    for row in rows[:50]:
        tags = " ".join(f"{word.replace(' ', '')}_{tag}" for word, tag in row["de_pos"])
        assert tag_score(tags, tags).f1 == 1


def test_dictionary_measures_its_hit_rate(cli: Cli, tmp_path: Path, muse: Path, texts: Path) -> None:
    result = answered(cli, "dictionary", "--dictionary", muse, "--text", texts, "--word", "the")
    scalars = {name: one["value"] for name, one in result["scalars"].items()}
    assert (scalars["num_headwords"], scalars["num_translations"], scalars["hit_rate"]) == (3, 4, 1)
    assert result["tables"]["words"]["rows"] == [["the", "der, die"]]
    (tmp_path / "german.txt").write_text("Hund Katze der\n", encoding="utf-8")
    bad = cli("prefix", "dictionary", "--dictionary", muse, "--text", tmp_path / "german.txt")
    assert bad.exit_code == 2
    assert "--invert" in bad.stderr
    turned = answered(cli, "dictionary", "--dictionary", muse, "--text", tmp_path / "german.txt", "--invert")
    assert turned["scalars"]["hit_rate"]["value"] == 1


def test_real_dictionary_on_real_text(cli: Cli, real_data: Callable[[str], Path]) -> None:
    path = real_data("wiktionary") / "en-de-enwiktionary.txt.gz"
    text = real_data("ud") / "pud_parallel_200.jsonl"
    result = answered(cli, "dictionary", "--dictionary", path, "--text", text, "--text-field", "en")
    assert result["scalars"]["hit_rate"]["value"] > 0.5


def test_templates_name_languages() -> None:
    items = [Item("1", "dog")]
    assert render_prompts("{{ source_lang }}>{{ target_lang }}: {{ source }}\n", items, "en", "de") == [
        "English>German: dog\n"
    ]
    with pytest.raises(UserError, match="'nothing' is undefined"):
        render_prompts("{{ source }} {{ nothing }}", items, "en", "de")


def test_card_names_what_exists() -> None:
    assert len(prefix.CARD.verbs) == 7
    for verb in prefix.CARD.verbs:
        load(verb.config)
        load(verb.run)
    for equation in prefix.CARD.equations:
        load(equation.function)
    for name in prefix.__all__:
        assert getattr(prefix, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        prefix.nothing  # noqa: B018
