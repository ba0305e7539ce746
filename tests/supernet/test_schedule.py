import math

import pytest

from nas.errors import ConfigError
from nas.supernet import TrainConfig
from nas.supernet.schedule import Schedule


def schedule(**changes: object) -> Schedule:
    config = TrainConfig(**{"steps": 100, "largest": 0.1, "sandwich": 0.2, **changes})  # type: ignore[arg-type]
    return Schedule.of(config, steps_per_epoch=7)


def test_phases_follow_one_another_in_their_shares():
    phases = [schedule().phase(step) for step in range(100)]
    assert phases == ["largest"] * 10 + ["single"] * 70 + ["sandwich"] * 20


def test_epochs_become_steps_and_steps_win():
    assert schedule(steps=0, epochs=3).steps == 21
    assert schedule(steps=0, epochs=0.01).steps == 1
    assert schedule(steps=5, epochs=3).steps == 5


def test_the_learning_rate_rises_falls_and_starts_again_at_a_quarter():
    whole = schedule(lr=0.01, warmup=0.1)
    rates = [whole.learning_rate(step) for step in range(100)]
    assert rates[:9] == sorted(rates[:9]) and max(rates) == rates[8] == 0.01
    assert rates[8:80] == sorted(rates[8:80], reverse=True) and rates[79] < 0.0003
    assert rates[80] == 0.0025 and rates[80:] == sorted(rates[80:], reverse=True)
    assert all(rate > 0 for rate in rates)


def test_choice_steps_are_counted_as_they_come():
    whole = schedule(choice_every=3)
    number = 0
    for step in range(100):
        assert whole.choices_before(step) == number
        number += whole.is_followed_by_choice(step)
    assert whole.choices_before(100) == number > 20
    assert not any(whole.is_followed_by_choice(step) for step in range(10))
    assert schedule(choice_every=0).choices_before(100) == 0


def test_channels_are_put_in_order_once_if_the_largest_paths_were_trained():
    def orderings(**changes: object) -> list[int]:
        whole = schedule(**changes)
        return [step for step in range(100) if whole.is_preceded_by_ordering(step)]

    assert orderings() == [10]
    assert orderings(order_images=0) == orderings(largest=0.0) == []


def test_the_temperature_falls_from_start_to_end():
    whole = schedule(choice_every=3, tau_start=4.0, tau_end=0.25)
    last = whole.choices_before(100) - 1
    assert whole.temperature(0) == 4.0 and math.isclose(whole.temperature(last), 0.25)
    assert math.isclose(whole.temperature(1) / whole.temperature(0), (1 / 16) ** (1 / last))


def test_the_largest_teaches_only_in_the_sandwich_and_a_network_in_every_phase():
    def taught(**changes: object) -> dict[str, list[int]]:
        whole = schedule(**changes)
        found: dict[str, list[int]] = {}
        for step in range(100):
            found.setdefault(whole.teacher(step), []).append(step)
        return found

    assert taught() == {"": [*range(100)]}
    assert taught(distill_start=0.95) == {"": [*range(95)], "largest": [*range(95, 100)]}
    assert taught(distill_start=0.0) == {"": [*range(80)], "largest": [*range(80, 100)]}
    network = taught(distill_start=0.05, distill_from="teacher")
    assert network == {"": [*range(5)], "teacher": [*range(5, 100)]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.0}, "lr must be from 1e-09 to 1000, but is 0.0"),
        ({"lr": float("nan")}, "lr must be"),
        ({"steps": -1}, "steps must be"),
        ({"steps": 0, "epochs": 0.0}, "epochs or steps must be above 0"),
        ({"largest": 0.7, "sandwich": 0.5}, "add up to at most 1"),
        ({"tau_start": 1.0, "tau_end": 2.0}, "tau_end must be at most tau_start"),
        ({"order_images": 1}, "order_images must be from 2 to 1e\\+06, but is 1"),
        ({"batch_size": 0}, "batch_size must be at least 2, but is 0"),
        ({"batch_size": 1}, "batch_size must be at least 2, but is 1: BatchNorm"),
        ({"batch_size": 64, "accumulate": 64}, "of these 64 passes, but is 64. Take 128."),
        ({"batch_size": 64, "workers": 3}, "multiple of workers x accumulate.* Take 63."),
        ({"batch_size": 24, "workers": 2, "accumulate": 8}, "16 passes, but is 24. Take 32."),
        ({"workers": 0}, "workers must be from 1"),
        ({"sampling": "levels"}, "sampling must be uniform or level, but is 'levels'"),
        ({"regularise": "none"}, "regularise must be all or largest"),
        ({"distill_from": "me"}, "distill_from must be largest or teacher"),
        ({"ema_decay": 1.5}, "ema_decay must be from 0 to 1"),
        ({"end_lr": -0.1}, "end_lr must be"),
        ({"checkpoint_steps": 0}, "checkpoint_steps must be"),
    ],
)
def test_numbers_that_cannot_be_are_refused_with_the_rule(changes, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**changes)
