"""The losses by hand and by double loops, the exact gradient, candidates, and the search beside nanogcg."""

import logging
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from polyloom.core.errors import UserError
from polyloom.methods.redteam import method
from polyloom.methods.redteam.method import Objective
from polyloom.methods.redteam.sandbox import build_sandbox
from polyloom.methods.redteam.search import Scorer, Search, Settings, Slot, State, run_search
from tests import families

KEYWORDS = ((5, 9), (7,), (3, 4, 11, 2))
DSN = Objective("dsn", "code", 1.0, 1.0, KEYWORDS)


def tiny_model(vocabulary: int = 61, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return families.llama(vocab_size=vocabulary).eval()


def random_slot(seed: int, before: int = 7, after: int = 3, target: int = 5) -> Slot:
    ids = torch.randint(0, 61, (before + after + target,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Slot(tuple(ids[:before]), tuple(ids[before : before + after]), tuple(ids[before + after :]))


def free() -> torch.Tensor:
    return torch.zeros(61, dtype=torch.bool)


def search_of(objective: Objective, settings: Settings, slots: Sequence[Slot] = (), seed: int = 0) -> Search:
    return Search(tiny_model(), slots or [random_slot(1)], objective, settings, free(), None, seed=seed)


SMALL = Settings(num_steps=3, width=24, topk=16)


def test_weights_by_hand() -> None:
    code = [1, 0.961940, 0.853553, 0.691342, 0.5]
    paper = [0.975528, 0.904508, 0.793893, 0.654508, 0.5]
    assert method.decay_weights(5).tolist() == pytest.approx(code, abs=5e-7)
    assert method.decay_weights(5, "paper").tolist() == pytest.approx(paper, abs=5e-7)
    assert method.decay_weights(1).tolist() == [1.0]
    assert method.decay_weights(3, "none").tolist() == [1, 1, 1]


def test_unlikelihood_by_hand() -> None:
    p = torch.tensor([0.1, 0.5, 0.9, 0.99, 1.0], dtype=torch.float64)
    expected = [0.105361, 0.693147, 2.302585, 4.605170, 4.605170]
    assert method.unlikelihood(p).tolist() == pytest.approx(expected, abs=5e-7)


def test_cap_has_no_gradient_unless_passed_straight_through() -> None:
    for straight, expected in ((False, 0.0), (True, 100.0)):
        p = torch.tensor([0.999], dtype=torch.float64, requires_grad=True)
        method.unlikelihood(p, straight).sum().backward()
        assert p.grad is not None
        assert float(p.grad) == pytest.approx(expected)


def hand_logits() -> torch.Tensor:
    rows = [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.25, 0.25, 0.5], [0.2, 0.2, 0.6]]
    return torch.tensor([rows], dtype=torch.float64).log()


def test_losses_by_hand() -> None:
    logits, target = hand_logits(), torch.tensor([0, 1, 2])
    windows = [-(math.log(1 - 0.2) + math.log(1 - 0.1)) / 2, -(math.log(1 - 0.8) + math.log(1 - 0.5)) / 2]
    windows.append(-(math.log(1 - 0.25) + math.log(1 - 0.6)) / 2)
    assert windows == pytest.approx([0.164252, 1.151293, 0.601986], abs=5e-7)
    assert float(method.refusal_loss(logits, [(1, 2)])) == pytest.approx(0.639177, abs=5e-7)
    assert float(method.refusal_loss(logits, [(1, 2)], "sum")) == pytest.approx(sum(windows), abs=1e-9)
    assert float(method.objective_loss(logits, target, Objective("gcg"), 0.0).loss) == pytest.approx(0.424322, abs=5e-7)
    parts = method.objective_loss(logits, target, Objective("dsn", "code", 2.0, keywords=((1, 2),)), 2.0)
    assert float(parts.target) == pytest.approx(0.297904, abs=5e-7)
    assert float(parts.loss) == pytest.approx(0.297904 + 2 * 0.639177, abs=2e-6)


def naive_refusal(logits: torch.Tensor, keywords: Sequence[Sequence[int]]) -> list[float]:
    """Average over keywords and windows in plain loops, a row at a time."""
    values = []
    for row in logits.softmax(dim=-1):
        costs = []
        for keyword in keywords:
            for start in range(len(row) - len(keyword) + 1):
                terms = [-math.log(1 - min(0.99, float(row[start + k, token]))) for k, token in enumerate(keyword)]
                costs.append(sum(min(10.0, term) for term in terms) / len(terms))
        values.append(sum(costs) / len(costs))
    return values


@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(1, 6), st.lists(st.lists(st.integers(0, 8), min_size=1, max_size=4), min_size=1))
def test_refusal_loss_equals_the_double_loop(batch: int, rows: int, keywords: list[list[int]]) -> None:
    logits = 3 * torch.randn(batch, rows, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(rows))
    fitting = [keyword for keyword in keywords if len(keyword) <= rows]
    if fitting:
        assert method.refusal_loss(logits, keywords).tolist() == pytest.approx(naive_refusal(logits, fitting), abs=1e-9)
    else:
        assert method.num_windows(rows, keywords) == 0


def test_one_token_keyword_ranks_candidates() -> None:
    logits = torch.randn(4, 3, 9, generator=torch.Generator().manual_seed(0))
    assert len(set(method.refusal_loss(logits, [(2,)]).tolist())) == 4


def test_mellowmax_lies_between_mean_and_maximum() -> None:
    values = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    assert float(method.mellowmax(values, 1.0)) == pytest.approx(2.308994, abs=5e-7)
    assert float(method.mellowmax(values, 1e-4)) == pytest.approx(2.0, abs=1e-3)
    assert float(method.mellowmax(values, 1e3)) == pytest.approx(3.0, abs=2e-3)


@pytest.mark.parametrize("objective", [Objective("gcg"), DSN, Objective("soft", mellowmax=2.0)], ids=lambda o: o.name)
@pytest.mark.parametrize("use_cache", [True, False])
def test_gradient_equals_central_differences(objective: Objective, use_cache: bool) -> None:
    # Llama's norms compute in float32 whatever the weights are; GPT-2's do not.
    torch.manual_seed(0)
    model = families.gpt2().double().eval()
    slot = random_slot(2)
    scorer = Scorer(model, slot, Settings(use_cache=use_cache))
    suffix = torch.tensor([4, 17, 33, 8])
    gradient, _ = scorer.gradient(suffix, objective)
    table = model.get_input_embeddings().weight.detach()

    def loss_at(embeds: torch.Tensor) -> float:
        parts = [table[list(slot.before)], embeds, table[[*slot.after, *slot.target]]]
        logits = model(inputs_embeds=torch.cat(parts)[None]).logits[:, -len(slot.target) - 1 :]
        return float(method.objective_loss(logits, scorer.target, objective, objective.gradient_alpha).loss)

    step = 1e-5
    with torch.no_grad():
        for i, v in ((0, 3), (1, 60), (3, 21)):
            up, down = table[suffix].clone(), table[suffix].clone()
            up[i] += step * table[v]
            down[i] -= step * table[v]
            assert float(gradient[i, v]) == pytest.approx((loss_at(up) - loss_at(down)) / (2 * step), abs=1e-7)


def test_weights_keep_their_gradient_flags() -> None:
    model = tiny_model()
    Scorer(model, random_slot(2), Settings()).gradient(torch.tensor([1, 2]), Objective("gcg"))
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_cache_groups_and_micro_batches_change_no_loss() -> None:
    model, slot, suffix = tiny_model(), random_slot(3), torch.tensor([4, 17, 33, 8, 9])
    candidates = method.sample_candidates(suffix, torch.arange(61).expand(5, -1), 23, torch.Generator().manual_seed(1))
    found = []
    for options, rows in ((Settings(use_cache=False), 0), (Settings(num_groups=1), 0), (Settings(num_groups=4), 1)):
        scorer = Scorer(model, slot, options)
        scorer.max_rows = rows
        _, shared = scorer.gradient(suffix, DSN)
        parts, exact = scorer.losses(candidates, DSN, suffix, shared)
        found.append((parts.loss, exact))
    for loss, exact in found[1:]:
        assert torch.allclose(loss, found[0][0], atol=1e-5)
        assert torch.equal(exact, found[0][1])


def test_lack_of_memory_halves_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = Scorer(tiny_model(), random_slot(3), Settings())
    suffix = torch.tensor([1, 2, 3])
    candidates, whole = suffix.repeat(16, 1), scorer.logits

    def small(part: torch.Tensor, shared: object, start: int = 0) -> torch.Tensor:
        if len(part) > 4:
            raise torch.OutOfMemoryError("no memory")
        return whole(part, shared, start)  # type: ignore[arg-type]

    monkeypatch.setattr(scorer, "logits", small)
    parts, _ = scorer.losses(candidates, Objective("gcg"), suffix, scorer.prefix)
    assert parts.loss.shape == (16,)
    assert scorer.max_rows <= 4


@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(0, 60))
def test_even_positions_differ_by_at_most_one(num_positions: int, extra: int) -> None:
    positions = method.even_positions(num_positions + extra, num_positions)
    counts = torch.bincount(positions, minlength=num_positions)
    assert len(positions) == num_positions + extra
    assert int(counts.max() - counts.min()) <= 1


@given(st.integers(1, 4), st.sampled_from(["even", "random"]))
def test_candidates_change_so_many_places_and_take_no_banned_token(num_replaced: int, rule: str) -> None:
    suffix, banned = torch.arange(6), torch.arange(40) % 3 == 0
    gradient = torch.randn(6, 40, generator=torch.Generator().manual_seed(num_replaced))
    before = gradient.clone()
    choices = method.best_choices(gradient, banned, 8)
    assert torch.equal(gradient, before)
    drawn = method.sample_candidates(suffix, choices, 30, torch.Generator(), rule, num_replaced)  # type: ignore[arg-type]
    changed = drawn != suffix
    assert int(changed.sum(dim=-1).max()) <= num_replaced
    assert not banned[drawn[changed]].any()


def test_dsn_without_alpha_and_decay_is_gcg() -> None:
    found = [
        run_search(search_of(objective, SMALL), State([1, 2, 3, 4])).steps
        for objective in (Objective("gcg"), Objective("dsn", "none", 0.0, keywords=KEYWORDS))
    ]
    assert found[0] == found[1]


def test_order_of_behaviours_changes_nothing() -> None:
    slots = [random_slot(k) for k in (1, 2, 3)]
    found = [run_search(search_of(DSN, SMALL, order), State([1, 2, 3])) for order in (slots, slots[::-1])]
    assert [s.suffix for s in found[0].steps] == [s.suffix for s in found[1].steps]
    assert found[0].best.loss == pytest.approx(found[1].best.loss, abs=1e-5)


def test_search_lowers_the_loss_and_repeats() -> None:
    options = Settings(num_steps=12, width=48, topk=32, buffer_size=2)
    first, again = (run_search(search_of(Objective("gcg"), options), State([1] * 6)) for _ in range(2))
    assert first.to_json() == again.to_json()
    assert first.best.loss < first.steps[0].loss
    assert first.buffer[0][0] == pytest.approx(first.best.loss)


def test_interrupted_search_goes_on_to_the_same_end() -> None:
    whole = run_search(search_of(DSN, Settings(num_steps=5, width=24, topk=16)), State([1, 2, 3]))
    half = run_search(search_of(DSN, Settings(num_steps=2, width=24, topk=16)), State([1, 2, 3]))
    resumed = State.from_json(half.to_json())
    assert run_search(search_of(DSN, Settings(num_steps=5, width=24, topk=16)), resumed).to_json() == whole.to_json()


def test_early_stop_ends_on_the_exact_target() -> None:
    model = tiny_model()
    scorer = Scorer(model, random_slot(1, target=1), Settings())
    best = int(scorer.logits(torch.tensor([[1, 2, 3]]), scorer.prefix)[0, 0].argmax())
    slot = Slot(scorer.slot.before, scorer.slot.after, (best,))
    options = Settings(num_steps=50, width=61, topk=61, early_stop=True)
    state = run_search(Search(model, [slot], Objective("gcg"), options, free(), None), State([1, 2, 3]))
    assert state.stopped_early
    assert len(state.steps) < 50


def test_null_control_ignores_the_loss() -> None:
    search = search_of(Objective("random", uniform=True, ranked=False), SMALL)
    losses = [step.loss for step in run_search(search, State([1, 2, 3])).steps]
    assert losses != sorted(losses, reverse=True) or len(set(losses)) == len(losses)
    assert len({tuple(step.suffix) for step in run_search(search, State([1, 2, 3])).steps}) == 3


def test_probe_sampling_with_the_victim_as_draft_finds_the_same() -> None:
    model, slot = tiny_model(), random_slot(1)
    options = Settings(num_steps=2, width=96, topk=32)
    plain = run_search(Search(model, [slot], Objective("gcg"), options, free(), None), State([1, 2, 3, 4]))
    probed = run_search(
        Search(model, [slot], Objective("gcg"), options, free(), None, draft=model), State([1, 2, 3, 4])
    )
    assert probed.steps[0].suffix == plain.steps[0].suffix
    assert method.probe_size(torch.ones(6), torch.ones(6), 96) == 6  # constant: rho counts as 0, (1 - 1/2) 96 / 8
    assert method.probe_size(torch.arange(6.0), torch.arange(6.0), 96) == 1


def test_no_fitting_keyword_and_other_forms_are_refused() -> None:
    long = Objective("dsn", alpha=1.0, keywords=((1,) * 9,))
    with pytest.raises(UserError, match="too short for any refusal keyword"):
        search_of(long, SMALL)
    with pytest.raises(UserError, match="no behaviour"):
        Search(tiny_model(), [], Objective("gcg"), SMALL, free(), None)


def test_rows_are_normalised() -> None:
    rows = method.normalise_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    assert rows.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0.0, 0.0]]


@pytest.mark.filterwarnings("ignore")
def test_losses_equal_nanogcg_over_20_steps() -> None:
    nanogcg = pytest.importorskip("nanogcg", reason="nanogcg is the oracle")
    logging.getLogger("nanogcg").setLevel(logging.ERROR)
    sandbox = build_sandbox(0)
    tokenizer, behaviour = sandbox.tokenizer, sandbox.sealed[0]
    model = tiny_model(len(tokenizer))
    config = nanogcg.GCGConfig(
        num_steps=20,
        search_width=32,
        topk=48,
        optim_str_init="!" * 10,
        use_prefix_cache=False,
        seed=0,
        verbosity="ERROR",
    )
    try:
        theirs = nanogcg.run(model, tokenizer, behaviour.goal, behaviour.target, config).losses
    finally:
        torch.use_deterministic_algorithms(False)

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    def keep(candidates: torch.Tensor) -> torch.Tensor:
        rows = candidates.tolist()
        again = tokenizer(tokenizer.batch_decode(rows), add_special_tokens=False)["input_ids"]
        return torch.tensor([a == b for a, b in zip(rows, again, strict=True)])

    banned = torch.zeros(len(tokenizer), dtype=torch.bool)
    banned[nanogcg.utils.get_nonascii_toks(tokenizer)] = True
    # nanogcg drops the template's start token and adds none, since this tokenizer adds none.
    slot = Slot(ids(f"<user>{behaviour.goal}"), ids("<assistant>"), ids(behaviour.target))
    options = Settings(num_steps=20, width=32, topk=48, rule="random")
    generator = torch.Generator().manual_seed(0)
    search = Search(model, [slot], Objective("gcg"), options, banned, keep, generator=generator)
    ours = [step.loss for step in run_search(search, State(list(ids("!" * 10)))).steps]
    assert ours == pytest.approx(theirs, abs=1e-4)
