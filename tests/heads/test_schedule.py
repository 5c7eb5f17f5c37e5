"""The learning rate's way over the epochs, without a model."""

import math

import pytest

from heads.phases import Phase
from heads.spec import Fit
from heads.training.schedule import num_plateaus, num_warm_up_updates, rate_factors

WHOLE = Phase(0, 8, 0)


def factors(
    phase: Phase = WHOLE, num_updates: int = 5, scores: tuple[tuple[float, float], ...] = (), **fit: object
) -> list[float]:
    epochs = range(phase.first_epoch, phase.first_epoch + phase.num_epochs)
    settings = Fit.model_validate({"epochs": 8, **fit})
    return [factor for epoch in epochs for factor in rate_factors(settings, phase, epoch, num_updates, scores[:epoch])]


def test_the_cosine_falls_from_one_to_nearly_nothing() -> None:
    found = factors(warmup=0)
    assert found[0] == 1
    assert found[20] == pytest.approx(0.5)
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.01


def test_a_step_divides_by_ten_at_a_half_and_at_three_quarters() -> None:
    assert factors(schedule="step", warmup=0) == [pytest.approx(x) for x in [1.0] * 20 + [0.1] * 10 + [0.01] * 10]


def test_constant_stays_after_its_warm_up() -> None:
    assert factors(schedule="constant", warmup=0) == [1.0] * 40
    assert factors(schedule="constant", warmup=0.1) == [0.25, 0.5, 0.75] + [1.0] * 37
    assert factors(schedule="constant", warmup=2)[:11] == [pytest.approx(min(1, (i + 1) / 10)) for i in range(11)]


def test_the_warm_up_begins_anew_with_a_phase_and_is_never_longer_than_it() -> None:
    late = Phase(6, 2, 0, 0.1)
    assert factors(late, schedule="constant", warmup=1)[:6] == [pytest.approx(x) for x in (0.2, 0.4, 0.6, 0.8, 1, 1)]
    assert num_warm_up_updates(Fit(warmup=50), late, 5) == 10
    assert num_warm_up_updates(Fit(), late, 5) == 1
    assert num_warm_up_updates(Fit(), late, 5000) == 100


def test_a_plateau_divides_by_ten_after_two_epochs_that_brought_nothing_better() -> None:
    scores = tuple((accuracy, -0.5) for accuracy in (0.5, 0.6, 0.6, 0.55, 0.6, 0.6, 0.7, 0.1))
    found = factors(schedule="plateau", warmup=0, num_updates=1, scores=scores)
    assert found == [pytest.approx(x) for x in (1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01)]
    assert num_plateaus(()) == 0
    assert num_plateaus([(0.5, -math.inf)] * 3) == 1
    assert num_plateaus([(0.5, -0.4), (0.5, -0.3), (0.5, -0.2)]) == 0, "a lower loss is better"


def test_a_plateau_forgets_the_phase_before() -> None:
    scores = ((0.5, 0.0),) * 6
    assert factors(Phase(4, 4, 0), schedule="plateau", warmup=0, num_updates=1, scores=scores)[0] == 1
