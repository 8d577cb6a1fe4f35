"""A claim is judged by its interval, never by its mean."""

import math

import pytest

from rayssl.claims import CLAIMS, Side, Verdict, all_of, verdict
from rayssl.intervals import Difference


def found(low: float, high: float, seeds: int = 3) -> Difference:
    """A difference with this interval."""
    return Difference((low + high) / 2, low, high, seeds, True)


@pytest.mark.parametrize(
    ("low", "high", "side", "threshold", "expected"),
    [
        (-2.0, -1.0, "below", 0.0, "supported"),
        (-99.0, 0.001, "below", 0.0, "undecided"),  # whatever the mean
        (-2.0, 0.0, "below", 0.0, "undecided"),  # no difference at all is not excluded
        (0.0, 2.0, "below", 0.0, "refuted"),
        (1.0, 2.0, "below", 0.0, "refuted"),
        (1.0, 2.0, "above", 0.0, "supported"),
        (0.0, 2.0, "above", 0.0, "undecided"),
        (-2.0, 0.0, "above", 0.0, "refuted"),
        (-2.0, 5.0, "above", -2.1, "supported"),  # no more than 2.1 worse
        (-3.0, 5.0, "above", -2.1, "undecided"),
        (-9.0, -2.2, "above", -2.1, "refuted"),
        (0.0, 0.0, "below", 0.0, "undecided"),  # two agents that lose every game
        (-1.0, -1.0, "below", 0.0, "undecided"),
        (math.nan, math.nan, "below", 0.0, "undecided"),
    ],
)
def test_verdict_is_where_the_whole_interval_lies(
    low: float, high: float, side: Side, threshold: float, expected: Verdict
) -> None:
    assert verdict(found(low, high), side, threshold) == expected


@pytest.mark.parametrize(("seeds", "expected"), [(1, "undecided"), (2, "undecided"),
                                                 (3, "supported")])  # fmt: skip
def test_fewer_than_three_seeds_decide_nothing(seeds: int, expected: Verdict) -> None:
    assert verdict(found(1, 2, seeds), "above") == expected


def test_what_was_not_run_is_undecided() -> None:
    assert verdict(None, "above") == "undecided"


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (["supported", "supported"], "supported"),
        (["supported", "undecided"], "undecided"),
        (["supported", "undecided", "refuted"], "refuted"),
        ([], "undecided"),
    ],
)
def test_claim_of_several_parts_needs_all_of_them(parts: list[Verdict], expected: Verdict) -> None:
    assert all_of(parts) == expected


def test_papers_own_numbers_lie_where_its_claims_say() -> None:
    from rayssl.metrics import TABLE_I, TABLE_II, TABLE_IV

    rows = {"rotation": "Rotation", "sequence": "Sequence"}
    for claim in CLAIMS:
        if claim.job == "atari":
            treated = TABLE_IV[rows[claim.name]][claim.where]
            gap = treated - claim.scale * TABLE_IV["DQN"][claim.where]
            inside = gap < claim.threshold if claim.side == "below" else gap > claim.threshold
            assert inside, claim.text
        else:
            assert TABLE_I["rotation"] < TABLE_I["none"]
            for digit in claim.per_class:
                assert TABLE_II["rotation"][digit] < TABLE_II["none"][digit]


def test_claims_say_what_is_judged() -> None:
    assert [claim.quantity for claim in CLAIMS[:5]] == [
        "rotation - plain < 0",
        "rotation - plain < 0",
        "sequence - plain > 0",
        "sequence - 1.5 x plain > 0",
        "sequence - plain > -2.1",
    ]
