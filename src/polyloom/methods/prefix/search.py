"""The verb prior: build priors, or search the best source and k on a small development set."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from polyloom.core.errors import UserError
from polyloom.core.files import json_lines, write_text
from polyloom.core.result import Artifact, Result, Scalar, Series, Table
from polyloom.generation.decode import Decoding
from polyloom.generation.text import decode_tokens
from polyloom.methods.prefix.config import PriorConfig
from polyloom.methods.prefix.method import generate_with_priors
from polyloom.methods.prefix.sources import Session, build_priors, open_session
from polyloom.methods.prefix.verbs import SHOWN_ROWS, counts_table, remarks
from polyloom.metrics.text import chrf
from polyloom.models.device import pin_threads
from polyloom.runs.folder import Run


@dataclass(frozen=True)
class Trial:
    """One prior source at one k on the development set."""

    source: str
    k: int
    chrf: float
    num_without: int


def run_prior(config: PriorConfig, run: Run) -> Result:
    """Build priors and write them as JSON lines, or search the best source and k by chrF on references.

    Args:
        config: models, texts, sources; `search` needs references.
        run: the run.

    Returns:
        The priors, or the table of the search with the best source and k.

    Raises:
        UserError: anything that `open_session` and the sources refuse.
    """
    pin_threads()
    session = open_session(config, config.task)
    remarks(session)
    if config.search:
        return _search(config, run, session)
    priors = build_priors(session, config.prior, config.k)
    rows = [
        {
            "id": item.id,
            "prior": decode_tokens(session.base.tokenizer, prior.tokens),
            "tokens": list(prior.tokens),
            "source": prior.source,
            "note": prior.note,
        }
        for item, prior in zip(session.items, priors, strict=True)
    ]
    write_text(run.artifact("priors.jsonl"), json_lines(rows))
    missing = sum(not prior.tokens for prior in priors)
    verdict = f"{len(priors) - missing} of {len(priors)} texts have a prior."
    artifact = Artifact(path="artifacts/priors.jsonl", media_type="application/jsonl", description=verdict)
    return run.result(
        scalars={
            "num_texts": Scalar(value=len(priors)),
            "num_without_prior": Scalar(value=missing),
            "mean_prior_tokens": Scalar(value=sum(len(p.tokens) for p in priors) / len(priors), unit="tokens"),
        },
        tables={
            "priors": Table(
                columns=["id", "source", "prior", "tokens", "from", "note"],
                rows=[
                    [item.id, item.source[:200], row["prior"], len(row["tokens"]), row["source"], row["note"]]
                    for item, row in zip(session.items[:SHOWN_ROWS], rows, strict=False)
                ],
                title="The first priors",
            ),
            "sources": counts_table(
                Counter(p.source for p in priors if p.tokens), Counter(p.note for p in priors if p.note)
            ),
        },
        artifacts={"priors": artifact},
        verdicts=[verdict, *session.notes],
    )


def _search(config: PriorConfig, run: Run, session: Session) -> Result:
    references = [item.reference for item in session.items]
    if not all(references):
        raise UserError(
            "a search needs a reference for every text.", where="--input", hint="Give JSON lines with both."
        )

    def trial(source: str, k: int) -> dict[str, Any]:
        priors = build_priors(session, [source], k)
        settings = Decoding(config.max_new_tokens, stop=("\n",))
        tokens = [prior.tokens for prior in priors]
        found = generate_with_priors(
            session.base.model, session.base.tokenizer, session.prompts, tokens, settings, batch_size=config.batch_size
        )
        score = chrf([one.text.strip() for one in found], references)
        return asdict(Trial(source, k, score, sum(not one for one in tokens)))

    # The reference's own tokens are tried in any case: what no prior can pass.
    sources = dict.fromkeys([*(source for source in config.prior if source != "none"), "gold"])
    plan = [("none", 0)] + [(source, k) for source in sources for k in range(1, config.k + 1)]
    trials: list[Trial] = []
    with run.progress("prefix: search", len(plan)) as advance:
        for source, k in plan:
            trials.append(Trial(**run.once(f"trial {source} {k}", lambda source=source, k=k: trial(source, k))))  # type: ignore[misc]
            advance(1)
    best = max((one for one in trials if one.source in ("none", *config.prior)), key=lambda one: one.chrf)
    ceiling = max(one.chrf for one in trials if one.source in ("none", "gold"))
    curves = {
        source: Series(
            x=[float(one.k) for one in trials if one.source in (source, "none")],
            y=[one.chrf for one in trials if one.source in (source, "none")],
            x_label="prior tokens k",
            y_label="chrF on the development set",
            group="search",
        )
        for source in dict.fromkeys(one.source for one in trials if one.source != "none")
    }
    return run.result(
        scalars={
            "best_source": Scalar(value=best.source),
            "best_k": Scalar(value=best.k),
            "best_chrf": Scalar(value=best.chrf),
            "base_chrf": Scalar(value=trials[0].chrf),
            "ceiling_chrf": Scalar(value=ceiling),
        },
        tables={
            "search": Table(
                columns=["source", "k", "chrF", "texts without prior"],
                rows=[list(asdict(one).values()) for one in sorted(trials, key=lambda one: -one.chrf)],
                title=f"Prior sources on {len(references)} development texts",
            )
        },
        series=curves,
        verdicts=[
            f"The best prior is {best.source} with k = {best.k}: chrF {best.chrf:.1f}, {trials[0].chrf:.1f} without; "
            f"the reference's own tokens give {ceiling:.1f}.",
            *session.notes,
        ],
        limitations=["The best of several tries on a small set is too good: measure it on other texts."],
    )
