"""Thresholds of the quality rules, by language. No torch.

Defaults are the published ones of Gopher (arXiv 2112.11446, table A1), FineWeb (arXiv 2406.17557) and C4
(arXiv 1910.10683) as datatrove applies them; Tele-FLM publishes none of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from polyloom.core.errors import UserError, closest

# Scripts without spaces whose sentences end in no mark either.
NO_SENTENCE_MARKS = ("th", "lo")
EVERY_LANGUAGE = "*"


class Rules(BaseModel):
    """Thresholds that a document of one language has to meet. Ratios lie in 0 to 1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_words: float = Field(50, ge=0)
    max_words: float = Field(100_000, ge=0)
    min_mean_word_length: float = Field(3, ge=0)
    max_mean_word_length: float = Field(10, ge=0)
    max_symbols_per_word: float = Field(0.1, ge=0)
    max_bullet_lines: float = Field(0.9, ge=0)
    max_ellipsis_lines: float = Field(0.3, ge=0)
    min_alphabetic_words: float = Field(0.8, ge=0, le=1)
    min_stop_words: int = Field(2, ge=0)
    max_duplicate_lines: float = Field(0.3, ge=0)
    max_duplicate_line_characters: float = Field(0.2, ge=0)
    max_duplicate_paragraphs: float = Field(0.3, ge=0)
    max_duplicate_paragraph_characters: float = Field(0.2, ge=0)
    max_top_ngrams: tuple[float, float, float] = (0.20, 0.18, 0.16)
    max_duplicate_ngrams: tuple[float, float, float, float, float, float] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)
    min_punctuated_lines: float = Field(0.12, ge=0, le=1)
    max_short_lines: float = Field(0.67, ge=0)
    short_line_characters: float = Field(30, ge=0)
    max_repeated_line_characters: float = Field(0.01, ge=0)
    max_newlines_per_word: float = Field(0.3, ge=0)
    min_sentences: int = Field(5, ge=0)
    min_line_words: float = Field(3, ge=0)
    terminal_punctuation: bool = False


# Syllables (vi) and blocks (ko) are written as short words; agglutinating languages write long ones.
LANGUAGE_RULES: dict[str, dict[str, object]] = {
    "vi": {"min_mean_word_length": 2},
    "ko": {"min_mean_word_length": 1.5},
    "he": {"min_mean_word_length": 2.5},
    "fi": {"max_mean_word_length": 12},
    "hu": {"max_mean_word_length": 12},
    "tr": {"max_mean_word_length": 12},
    "ml": {"max_mean_word_length": 16},
    "ta": {"max_mean_word_length": 14},
    "te": {"max_mean_word_length": 14},
    "kn": {"max_mean_word_length": 14},
}

# Frequent function words. A language that is not here skips the rule, and the card says so.
STOP_WORDS: dict[str, frozenset[str]] = {
    language: frozenset(words.split())
    for language, words in {
        "ar": "في من على إلى أن عن لا ما هذا التي الذي كل أو و",
        "bg": "на и в за от се да с по не е са като или",
        "ca": "de la el i a que en els les per amb del una o",
        "cs": "a v na je se s z k o že za i nebo do pro",
        "da": "og i at er en til det på for af med som den eller",
        "de": "der die und das in zu den von mit ist des auf für im ein eine oder",
        "el": "και το της η του να τα την με για σε από οι ή",
        "en": "the be to of and that have with",
        "es": "de la que el en y a los del las por un para con una o su",
        "fa": "و در به از که این را با است برای آن هر یا",
        "fi": "ja on ei että se hän tai kuin olla joka sekä niin",
        "fr": "de la le et les des en un une du que dans à est pour ou par",
        "he": "של על את לא כל או עם הוא זה גם כי",
        "hi": "के का में की है और से को पर या एक यह",
        "hr": "i u je na se da za od su s ili koji o a",
        "hu": "a az és hogy nem van egy is vagy meg minden ezt",
        "id": "yang dan di untuk dengan dari dalam atau ini pada tidak setiap",
        "it": "di e il la che in a un per del è della le o con ogni",
        "nl": "de en van het een in te dat is op voor met of zijn",
        "no": "og i er en det til som på av for med at den eller",
        "pl": "w i na z do się nie jest o że lub po oraz przez każdy",
        "pt": "de a o que e em do da para com um uma os ou todo",
        "ro": "de și în la a cu pe o din nu să sau are orice",
        "ru": "и в на с по не что или он от для его к каждый",
        "sl": "in v je na se za da z so ki ali do vsak",
        "sr": "и у је на се да за од су који или i u je na se da za ili",
        "sv": "och i att en som på är av för med det till eller den",
        "sw": "na ya wa kwa ni katika za la kila au haki mtu",
        "tr": "ve bir bu için ile de da veya her olan gibi",
        "uk": "і в на з до не що та або від для його кожна",
        "vi": "và của các có được trong cho là mọi người không với hay",
    }.items()
}


def rules_for(language: str, overrides: Mapping[str, Mapping[str, object]]) -> Rules:
    """Return the thresholds of a language: the user's for it, over the user's for `*`, over the built-in ones.

    Raises:
        UserError: a rule that does not exist or a value that does not fit.
    """
    built_in = LANGUAGE_RULES.get(language, {})
    values = {**built_in, **overrides.get(EVERY_LANGUAGE, {}), **overrides.get(language, {})}
    try:
        return Rules.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        hint = closest(name, Rules.model_fields) if first["type"] == "extra_forbidden" else ""
        raise UserError(f"{name}: {first['msg']}.", where=f"--rules of {language!r}", hint=hint) from None


def check_rules(overrides: Mapping[str, Mapping[str, object]]) -> None:
    """Refuse overrides of which one does not fit, before any work.

    Raises:
        UserError: as `rules_for`.
    """
    for language in overrides:
        rules_for(language, overrides)
