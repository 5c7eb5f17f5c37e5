"""A year of nights: how often challengers that are no better than the champion are promoted, and how soon better ones are found.

Each sample of the holdout is read rightly by a model of the recipe with a chance of its own, from Beta(0.45, 0.05): on average
0.9, and two models that are trained alike differ on about 6 % of the samples, as retrained image models do. A night resembles the
one before: each sample keeps its outcome with the chance `--correlation`. The champion is such a model, too. What is judged, when
and how, are the gate's own functions (`flows.gate.account`, `flows.gate.classes`).

    tests/benchmarks/promotion_year.py                                # false promotions, 2,000 labels
    tests/benchmarks/promotion_year.py --gain 0.01 --labels 4000      # a recipe that is a point better
    tests/benchmarks/promotion_year.py --mode non_inferior --margin 0.01 --gain -0.01    # as much worse as is too much
    tests/benchmarks/promotion_year.py --evidence fresh --new-labels-a-night 100         # bets on labels that arrive each night
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from flows.gate.account import Account, first_level, is_proven, look_at_mean
from flows.gate.classes import mcnemar, paired_score
from flows.gate.evidence import one_sided
from flows.gate.fresh import is_proven as is_won
from flows.gate.fresh import log_wealths
from flows.records import ScoreTable

NIGHTS, ALPHA = 365, 0.05
# Of Beta(0.45, 0.05) the disagreement of two models is 6 %; another one scales both.
DISAGREEMENT, SHAPE = 0.06, (0.45, 0.05)
MISREAD = 0.1
NOBODY = ScoreTable("", "", (), {})

Right = NDArray[np.bool_]


@dataclass(frozen=True)
class Year:
    """What is drawn. At night `from_night` comes a recipe that is `gain` better; all `change_every` nights another equal one."""

    labels: int
    correlation: float
    gain: float
    from_night: int
    new_labels: int
    change_every: int
    disagreement: float
    margin: float | None = None
    is_fresh: bool = False

    @property
    def is_null(self) -> bool:
        """Whether every promotion is a false one: of an equal challenger, or of one that is worse by the margin."""
        return self.gain <= -(self.margin or 0.0)


def draw_chances(year: Year, count: int, random: np.random.Generator) -> NDArray[np.float64]:
    """The chance of each sample to be read rightly, spread so that two models disagree as asked."""
    # Of Beta(a, b) two draws differ on 2 a b / ((a + b) (a + b + 1)) of the samples.
    mean, spread = SHAPE[0] / sum(SHAPE), 2 * (SHAPE[0] / sum(SHAPE)) * (SHAPE[1] / sum(SHAPE))
    total = year.disagreement / (spread - year.disagreement)
    return random.beta(mean * total, (1 - mean) * total, count)


def draw_nights(year: Year, random: np.random.Generator) -> tuple[Right, Right, NDArray[np.int64]]:
    """The champion's outcomes (n), the challengers' (nights, n), and how many labels each night has.

    From `from_night` on the recipe turns as many misread samples right as it gains, half of them where the champion is right, so
    that the two disagree as often as before. A recipe that is worse misreads so many more, whichever they are.
    """
    sizes = year.labels + year.new_labels * np.arange(NIGHTS)
    count = int(sizes[-1])
    chances = draw_chances(year, count, random).astype(np.float32)
    champion = random.random(count, dtype=np.float32) < chances
    learnt, lost = skill(year, champion)
    nights = np.empty((NIGHTS, count), dtype=bool)
    luck, more_luck = random.random((2, count), dtype=np.float32)
    for night in range(NIGHTS):
        if night:
            renewed = random.random(count, dtype=np.float32) >= year.correlation
            luck = np.where(renewed, random.random(count, dtype=np.float32), luck)
            more_luck = np.where(renewed, random.random(count, dtype=np.float32), more_luck)
        nights[night] = luck < chances
        if night >= year.from_night and year.gain:
            nights[night] = (nights[night] | (more_luck < learnt)) & (more_luck >= lost)
    return champion, nights, sizes


def skill(year: Year, champion: Right) -> tuple[NDArray[np.float32], np.float32]:
    """With what chance the better recipe turns each misread sample right, and a worse one each right sample wrong."""
    # What another model misreads of the samples that the champion reads rightly, and of the others: 3 and 7 % of all.
    misread = np.where(champion, year.disagreement / 2, MISREAD - year.disagreement / 2)
    return (max(0.0, year.gain) / 2 / misread).astype(np.float32), np.float32(max(0.0, -year.gain) / (1 - MISREAD))


def fresh_gate(year: Year, random: np.random.Generator) -> int | None:
    """The first night whose bets promote: each night's new labels are read by the champion and by the challenger before.

    How much that one resembles its predecessors does not matter, since none of them reads these labels.
    """
    chances = draw_chances(year, NIGHTS * year.new_labels, random).reshape(NIGHTS, year.new_labels)
    champion, challengers = random.random((2, *chances.shape)) < chances
    learnt, lost = skill(year, champion)
    luck, better = random.random(chances.shape), np.arange(NIGHTS)[:, None] > year.from_night
    challengers = np.where(better & bool(year.gain), (challengers | (luck < learnt)) & (luck >= lost), challengers)
    nights = challengers.astype(np.float64) - champion
    won = (is_won(wealth, night, ALPHA) for wealth, night in zip(log_wealths(nights), nights, strict=True))
    return next((night for night, is_over in enumerate(won) if is_over), None)


def nightly_gate(year: Year, champion: Right, nights: Right, sizes: NDArray[np.int64]) -> int | None:
    """The first night whose challenger the gate promotes."""
    num_looks, last_look, first_of_recipe = 0, -math.inf, 0
    for night in range(NIGHTS):
        if (year.change_every and night % year.change_every == 0) or (year.gain and night == year.from_night):
            first_of_recipe = night
        earlier = min(night - first_of_recipe, 6)
        look = Account(num_looks, night - last_look, (NOBODY,) * earlier).next_look
        if look == "none":
            continue
        n, promoted = sizes[night], False
        if look == "first":
            promoted = _wins(champion[:n], nights[night, :n], first_level(ALPHA, n, year.margin).value, year.margin)
        else:
            challengers, reference = nights[night - 6 : night + 1, :n].astype(np.float64), champion[:n].astype(np.float64)
            # Earlier ones were scored on what the holdout held then.
            for each, size in zip(challengers, sizes[night - 6 : night + 1], strict=True):
                each[size:] = np.nan
            promoted = is_proven(look_at_mean(challengers, reference), ALPHA, year.margin)
        if promoted:
            return night
        num_looks, last_look = num_looks + 1, night
    return None


def _wins(champion: Right, challenger: Right, level: float, margin: float | None) -> bool:
    fixed, broken = int((challenger & ~champion).sum()), int((champion & ~challenger).sum())
    if margin is not None:
        return bool(norm.sf(paired_score(fixed, broken, champion.size, -margin)) < level)
    return one_sided(mcnemar(fixed, broken), fixed - broken) < level


def _nightly_mcnemar(year: Year, champion: Right, nights: Right, sizes: NDArray[np.int64]) -> int | None:
    """Two-sided McNemar at alpha each night: what was here before, and what is usual where there is a test at all."""
    fixed = (nights & ~champion).sum(axis=1)
    broken = (champion & ~nights).sum(axis=1)
    return next((t for t in range(NIGHTS) if fixed[t] > broken[t] and mcnemar(int(fixed[t]), int(broken[t])) < ALPHA), None)


def _by_gain(least: float, year: Year, champion: Right, nights: Right, sizes: NDArray[np.int64]) -> int | None:
    gains = nights.mean(axis=1) - champion.mean()
    return next((t for t in range(NIGHTS) if gains[t] >= least), None)


RULES: dict[str, Callable[[Year, Right, Right, NDArray[np.int64]], int | None]] = {
    "the gate": nightly_gate,
    "McNemar 0.05 every night": _nightly_mcnemar,
    "+0.5 point": partial(_by_gain, 0.005),
    ">=": partial(_by_gain, 0.0),
}


def run_years(year: Year, seeds: range) -> dict[str, list[int | None]]:
    """By rule the night of the first promotion of each year."""
    found: dict[str, list[int | None]] = {name: [] for name in RULES}
    for seed in seeds:
        if year.is_fresh:
            found["the gate"].append(fresh_gate(year, np.random.default_rng((seed, 20261127))))
            continue
        drawn = draw_nights(year, np.random.default_rng((seed, 20261127)))
        for name, rule in RULES.items():
            # Of a better recipe it is asked only how soon the gate finds it.
            found[name].append(rule(year, *drawn) if name == "the gate" or not (year.gain or year.margin) else None)
    return found


def say(text: str) -> None:
    """A line of the table."""
    sys.stdout.write(f"{text}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=2000)
    parser.add_argument("--disagreement", type=float, default=DISAGREEMENT)
    parser.add_argument("--correlation", type=float, default=0.0)
    parser.add_argument("--new-labels-a-night", type=int, default=0)
    parser.add_argument("--evidence", choices=("holdout", "fresh"), default="holdout")
    parser.add_argument("--gain", type=float, default=0.0)
    parser.add_argument("--mode", choices=("superior", "non_inferior"), default="superior")
    parser.add_argument("--margin", type=float, default=0.01, help="of mode non_inferior: the loss that is too much")
    parser.add_argument("--from-night", type=int, default=0, help="the night from which on challengers gain")
    parser.add_argument("--change-every", type=int, default=0, help="nights after which the recipe changes; 0: never")
    parser.add_argument("--years", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=2)
    asked = parser.parse_args()
    year = Year(
        asked.labels,
        asked.correlation,
        asked.gain,
        asked.from_night,
        asked.new_labels_a_night,
        asked.change_every,
        asked.disagreement,
        asked.margin if asked.mode == "non_inferior" else None,
        asked.evidence == "fresh",
    )
    if year.is_fresh and (year.margin or not year.new_labels):
        parser.error("--evidence fresh needs --new-labels-a-night, and has no mode but superior")
    start, step = perf_counter(), 25
    parts = [range(first, min(first + step, asked.years)) for first in range(0, asked.years, step)]
    nights: dict[str, list[int | None]] = {name: [] for name in RULES}
    with ProcessPoolExecutor(asked.processes) as pool:
        for part in pool.map(partial(run_years, year), parts):
            for name, found in part.items():
                nights[name] += found
    say(f"{year}: {asked.years} years in {perf_counter() - start:.0f} s")
    for name in RULES if not (year.gain or year.margin or year.is_fresh) else ("the gate",):
        _tell(name, nights[name], year)
    if year.is_null and sum(night is not None for night in nights["the gate"]) > ALPHA * asked.years:
        raise SystemExit(f"more than {ALPHA:.0%} of years")


def _tell(name: str, nights: list[int | None], year: Year) -> None:
    promoted = [night for night in nights if night is not None]
    share = len(promoted) / len(nights)
    error = math.sqrt(share * (1 - share) / len(nights))
    if year.is_null:
        say(f"{name:>26}: {share:.3f} of years hold a false promotion (standard error {error:.3f})")
        return
    usable = [night for night in nights if night is None or night >= year.from_night]
    for within in (1, 30, 60, 100, NIGHTS):
        found = sum(night is not None and night < year.from_night + within for night in usable) / len(usable)
        say(f"{name:>26}: found within {within:>3} nights: {found:.3f}")


if __name__ == "__main__":
    main()
