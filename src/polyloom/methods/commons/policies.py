"""Scripted policies: what an agent asks for, from what it may know. All asks are whole and within 0..h."""

from __future__ import annotations

from collections.abc import Callable

from polyloom.core.errors import UserError, closest
from polyloom.core.seeding import python_random
from polyloom.methods.commons.engine import Policy, View


def sustainable(view: View, agent: int) -> int:
    """Ask for f_a, the share of the sustainability threshold."""
    return view.threshold


def constant(amount: int) -> Policy:
    """Ask for the same amount each month."""
    return lambda view, agent: min(amount, view.stock)


def proportional(share: float) -> Policy:
    """Ask for floor(p h)."""
    return lambda view, agent: min(view.stock, int(share * view.stock + 1e-9))


def greedy(view: View, agent: int) -> int:
    """Ask for everything."""
    return view.stock


def random_uniform(view: View, agent: int) -> int:
    """Ask for a uniform number in 0..h, from the agent's own stream of the month."""
    return python_random(view.seed, "policy", agent, view.month).randint(0, view.stock)


def rebuild(view: View, agent: int) -> int:
    """Ask for max(0, floor((h - K/2) / N)): the best own action if all act alike."""
    return max(0, (view.stock - view.resource.capacity // 2) // view.num_agents)


def defect_at_end(view: View, agent: int) -> int:
    """Ask for f_a, and for everything in the last month."""
    return view.stock if view.month == view.resource.num_months - 1 else view.threshold


def tit_for_tat(view: View, agent: int) -> int:
    """Ask for f_a; after a month in which another took more than f_a, for as much as the largest of them."""
    others = [amount for other, amount in enumerate(view.last_obtained) if other != agent]
    largest = max(others, default=0)
    return view.threshold if largest <= view.last_threshold else min(view.stock, largest)


def grim(view: View, agent: int) -> int:
    """Ask for f_a until anyone exceeds it, then for everything."""
    return view.stock if view.offenders else view.threshold


def limit_follower(view: View, agent: int) -> int:
    """Ask for the agreed limit where there is one, else for f_a."""
    return min(view.stock, view.threshold if view.limit is None else view.limit)


def optimal_universalizer(view: View, agent: int) -> int:
    """Ask for what is best if all act alike: `rebuild`, and floor(h / N) in the known last month."""
    last = view.month == view.resource.num_months - 1
    return view.stock // view.num_agents if last else rebuild(view, agent)


def noisy(policy: Policy, chance: float) -> Policy:
    """Follow `policy`, and with probability `chance` ask for a random amount."""

    def ask(view: View, agent: int) -> int:
        stream = python_random(view.seed, "noise", agent, view.month)
        return stream.randint(0, view.stock) if stream.random() < chance else policy(view, agent)

    return ask


def scripted_list(amounts: list[int]) -> Policy:
    """Ask for listed amounts, month by month; the last one goes on."""
    return lambda view, agent: amounts[min(view.month, len(amounts) - 1)]


PLAIN: dict[str, Policy] = {
    "sustainable": sustainable,
    "greedy": greedy,
    "random": random_uniform,
    "rebuild": rebuild,
    "defect-at-end": defect_at_end,
    "tit-for-tat": tit_for_tat,
    "grim": grim,
    "limit-follower": limit_follower,
    "universalizing": sustainable,
    "optimal-universalizer": optimal_universalizer,
}
WITH_ARGUMENT: dict[str, str] = {
    "constant": "constant:AMOUNT",
    "proportional": "proportional:SHARE",
    "noisy": "noisy:CHANCE:POLICY",
    "list": "list:A,B,C",
    "learned": "learned:independent or learned:universalizing",
}


def is_policy(spec: str) -> bool:
    """Say whether a mind's specification names a policy rather than a model."""
    return spec.partition(":")[0] in PLAIN | WITH_ARGUMENT


def read_policy(spec: str) -> Policy:
    """Return the policy that a string names, such as `sustainable`, `constant:11` or `noisy:0.1:greedy`.

    Raises:
        UserError: there is no such policy, or its number does not fit.
    """
    name, _, argument = spec.partition(":")
    if name in PLAIN and not argument:
        return PLAIN[name]
    makers: dict[str, Callable[[str], Policy]] = {
        "constant": lambda text: constant(_whole(text)),
        "proportional": lambda text: proportional(_share(text)),
        "noisy": lambda text: noisy(read_policy(text.partition(":")[2]), _share(text.partition(":")[0])),
        "list": lambda text: scripted_list([_whole(one) for one in text.split(",")]),
        "learned": _learned,
    }
    if name not in makers:
        raise UserError(f"there is no policy {spec!r}.", where="--minds", hint=closest(name, PLAIN | WITH_ARGUMENT))
    try:
        return makers[name](argument)
    except ValueError:
        raise UserError(f"{spec!r} is no policy.", where="--minds", hint=f"Write {WITH_ARGUMENT[name]}.") from None


def _learned(rule: str) -> Policy:
    """Return the policy of tabular learners; numpy is loaded for it alone."""
    from polyloom.methods.commons.learning import learned

    if rule not in ("independent", "universalizing"):
        raise ValueError(rule)
    return learned(rule)  # type: ignore[arg-type]


def _whole(text: str) -> int:
    amount = int(text)
    if amount < 0:
        raise ValueError(text)
    return amount


def _share(text: str) -> float:
    share = float(text)
    if not 0 <= share <= 1:
        raise ValueError(text)
    return share
