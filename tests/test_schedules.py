"""When a value has moved, and which updates a slot makes: tapes of events."""

from typing import cast

import pytest

from rayssl.schedules import AUX_SCHEDULES, AuxSchedule, AuxScheduleName, LinearSchedule


def tape(schedule: AuxSchedule, slots: int) -> str:
    """The updates of the first slots, a word each, a bar between slots."""
    return " | ".join(" ".join(schedule.updates(slot)) for slot in range(slots))


def td_updates(schedule: AuxSchedule, slots: int) -> int:
    """How many of the first slots train the Q-values; a joint update does."""
    return sum(
        update in ("td", "joint") for slot in range(slots) for update in schedule.updates(slot)
    )


# Epsilon and beta


@pytest.mark.parametrize(
    ("step", "epsilon"),
    [
        (0, 1.0),
        (25_000, 0.7525),
        (50_000, 0.505),
        (99_999, 0.0100099),
        (100_000, 0.01),
        (1_000_000, 0.01),
    ],
)
def test_epsilon_goes_from_1_to_001_over_the_first_100_000_steps(step: int, epsilon: float) -> None:
    assert LinearSchedule(1.0, 0.01, 100_000)(step) == pytest.approx(epsilon, rel=1e-9)


def test_linear_schedule_rises_as_well_as_it_falls() -> None:
    beta = LinearSchedule(0.4, 1.0, 10)
    assert [beta(t) for t in (0, 5, 10, 11)] == pytest.approx([0.4, 0.7, 1.0, 1.0])


def test_linear_schedule_is_exactly_its_ends_at_its_ends() -> None:
    schedule = LinearSchedule(0.1, 0.7, 3)  # 0.1 + (0.7 - 0.1) is not 0.7 in binary
    assert schedule(0) == 0.1
    assert schedule(3) == 0.7


def test_linear_schedule_of_duration_0_is_its_end_from_the_beginning() -> None:
    assert [LinearSchedule(1.0, 0.05, 0)(t) for t in (0, 1, 100)] == [0.05] * 3


# "We alternate between Q(s, a) prediction and sequence prediction"


def test_we_alternate() -> None:
    assert tape(AuxSchedule("alternate"), 3) == "td aux | td aux | td aux"


def test_alternate_of_period_4_makes_an_aux_update_after_every_fourth_td_update() -> None:
    assert tape(AuxSchedule("alternate", every=4), 9) == (
        "td | td | td | td aux | td | td | td | td aux | td"
    )


def test_joint_is_one_update_of_the_sum_in_place_of_the_td_update() -> None:
    assert tape(AuxSchedule("joint"), 3) == "joint | joint | joint"
    assert tape(AuxSchedule("joint", every=3), 7) == "td | td | joint | td | td | joint | td"


def test_pretrain_is_aux_updates_only_and_then_td_updates_only() -> None:
    assert tape(AuxSchedule("pretrain", pretrain_updates=3), 6) == "aux | aux | aux | td | td | td"


def test_aux_only_never_makes_a_td_update() -> None:
    assert tape(AuxSchedule("aux-only", every=2), 4) == "aux | aux | aux | aux"
    assert td_updates(AuxSchedule("aux-only"), 100) == 0


def test_pretraining_ignores_the_period() -> None:
    assert tape(AuxSchedule("pretrain", every=2, pretrain_updates=3), 5) == (
        "aux | aux | aux | td | td"
    )


def test_pretraining_may_precede_the_other_schedules_whose_period_starts_after_it() -> None:
    assert tape(AuxSchedule("alternate", pretrain_updates=2), 4) == "aux | aux | td aux | td aux"
    assert tape(AuxSchedule("alternate", every=2, pretrain_updates=3), 8) == (
        "aux | aux | aux | td | td aux | td | td aux | td"
    )
    assert tape(AuxSchedule("joint", every=2, pretrain_updates=1), 5) == (
        "aux | td | joint | td | joint"
    )


def test_without_a_task_every_slot_is_a_td_update() -> None:
    assert tape(AuxSchedule(), 4) == "td | td | td | td"
    assert tape(AuxSchedule(None, every=2, pretrain_updates=3), 4) == "td | td | td | td"


@pytest.mark.parametrize(
    "schedule",
    [
        AuxSchedule(),
        AuxSchedule("alternate"),
        AuxSchedule("alternate", every=4),
        AuxSchedule("joint"),
        AuxSchedule("joint", every=3),
    ],
    ids=str,
)
def test_every_arm_makes_the_same_number_of_td_updates(schedule: AuxSchedule) -> None:
    assert td_updates(schedule, 100) == 100


def test_pretrained_arms_make_one_td_update_less_for_each_pretraining_update() -> None:
    assert td_updates(AuxSchedule("pretrain", pretrain_updates=30), 100) == 70
    assert td_updates(AuxSchedule("alternate", every=4, pretrain_updates=30), 100) == 70


def test_an_update_depends_on_its_slot_alone() -> None:
    schedule = AuxSchedule("alternate", every=4, pretrain_updates=5)
    asked_in_order = [schedule.updates(slot) for slot in range(20)]
    assert [schedule.updates(slot) for slot in reversed(range(20))] == asked_in_order[::-1]


# Errors


def test_unknown_schedule_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ValueError,
        match=r"^Unknown schedule 'alternating'\. Available: alternate, joint, pretrain, aux-o",
    ):
        AuxSchedule(cast(AuxScheduleName, "alternating"))
    assert AUX_SCHEDULES == ("alternate", "joint", "pretrain", "aux-only")


@pytest.mark.parametrize("every", [0, -1])
def test_a_period_below_1_is_refused(every: int) -> None:
    with pytest.raises(
        ValueError, match=rf"^aux_every must be 1 or more TD updates, got {every}\.$"
    ):
        AuxSchedule("alternate", every=every)


def test_pretraining_of_negative_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^pretrain_updates must be 0 or more, got -1\.$"):
        AuxSchedule("alternate", pretrain_updates=-1)


def test_schedule_pretrain_without_pretraining_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^Schedule 'pretrain' needs pretrain_updates of 1 or more, got 0"
    ):
        AuxSchedule("pretrain")
