"""Splits of face sets: apart what must be, leaks named, what cannot be made refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rayssl.data.face_splits import (
    SPLIT_KINDS,
    LeakageError,
    SplitError,
    SplitKind,
    check_disjoint,
    leakage_report,
    split_faces,
)
from rayssl.data.faces import FaceSet

FRAMES = 5
APART: dict[SplitKind, tuple[str, ...]] = {
    "video": ("video",),
    "family": ("video", "family"),
    "first-actor": ("video", "family", "actor"),
    "part": ("video", "family", "part"),
}


def face_set(videos: pd.DataFrame) -> FaceSet:
    """A face set of these videos with FRAMES crops each, and no pixels."""
    frames = pd.DataFrame({"video": np.repeat(videos["video"].to_numpy(), FRAMES)})
    frames["frame"] = np.tile(np.arange(FRAMES), len(videos))
    return FaceSet(Path("nowhere"), videos, frames, {"size": 8}, "0")


def dfdc_like(families: int = 40, actors: int = 10, parts: int = 5) -> pd.DataFrame:
    """Each family: an original and two fakes, by methods a and b; the other actor is the next."""
    rows: list[dict[str, Any]] = []
    for f in range(families):
        actor = f % actors
        base = {"family": f"o{f}", "part": f"part_{actor % parts}", "actor": f"p{actor}"}
        rows.append(base | {"video": f"o{f}", "label": 0, "method": "original"})
        for method in "ab":
            other = f"p{(actor + 1) % actors}"
            fake = {"video": f"f{f}{method}", "label": 1, "method": method, "other_actor": other}
            rows.append(base | fake)
    return pd.DataFrame(rows)


def values(faces: FaceSet, column: str, rows: np.ndarray) -> set[str]:
    return set(faces.column(column)[rows])


@pytest.mark.parametrize("kind", APART)
def test_split_shares_nothing_that_its_kind_keeps_apart(kind: SplitKind) -> None:
    faces = face_set(dfdc_like())
    split = split_faces(faces, kind, seed=0, validation_share=0.25)
    sides = (split.train, split.validation, split.test)
    assert min(map(len, sides)) > 0
    for column in APART[kind]:
        for a, b in ((0, 1), (0, 2), (1, 2)):
            assert not values(faces, column, sides[a]) & values(faces, column, sides[b])
    assert sorted(np.concatenate(sides)) == list(range(len(faces.frames)))


def test_random_split_shares_videos_and_says_that_it_leaks() -> None:
    faces = face_set(dfdc_like())
    split = split_faces(faces, "random", seed=0)
    shared = values(faces, "video", split.train) & values(faces, "video", split.test)
    assert shared
    assert split.leakage.shared["video"] == len(shared)
    assert "LEAKS" in leakage_report(split)
    assert "LEAKS" not in leakage_report(split_faces(faces, "family", seed=0))


def test_video_split_tears_fakes_from_their_originals_and_reports_it() -> None:
    split = split_faces(face_set(dfdc_like()), "video", seed=0)
    assert split.leakage.shared["video"] == 0
    assert split.leakage.shared["family"]
    assert "videos 0 of 24, families" in leakage_report(split)


@pytest.mark.parametrize("kind", SPLIT_KINDS)
def test_split_is_the_same_for_the_same_seed_and_another_for_another(kind: SplitKind) -> None:
    faces = face_set(dfdc_like())
    one, again, other = (split_faces(faces, kind, seed=s, test_share=0.3) for s in (1, 1, 2))
    assert np.array_equal(one.test, again.test)
    assert not np.array_equal(one.test, other.test)
    assert len(one.test) > 0


@pytest.mark.parametrize("kind", ["video", "family"])
def test_test_side_has_its_share_of_real_fake_and_each_method(kind: SplitKind) -> None:
    faces = face_set(dfdc_like(families=50))
    split = split_faces(faces, kind, seed=3, test_share=0.2)
    for method in ("original", "a", "b"):
        assert 8 <= (faces.column("method")[split.test] == method).sum() / FRAMES <= 12


def test_actor_split_leaves_out_fakes_whose_two_people_are_on_two_sides() -> None:
    faces = face_set(dfdc_like())  # every actor is joined to the next: one ring, as in DFD
    split = split_faces(faces, "actor", seed=0, test_share=0.4)
    people = [
        values(faces, "actor", rows) | values(faces, "other_actor", rows) - {np.nan}
        for rows in (split.train, split.test)
    ]
    assert not people[0] & people[1]
    assert split.leakage.left_out == len(faces.frames) - len(split.train) - len(split.test) > 0
    assert "left out" in leakage_report(split)


def test_actor_split_keeps_joined_people_together_where_they_are_few() -> None:
    videos = dfdc_like(actors=20)
    pair = videos["actor"].str[1:].astype(int) // 2  # FaceForensics++ swaps within pairs
    videos.loc[videos["label"] == 1, "other_actor"] = "p" + (2 * pair + 1).astype(str)
    split = split_faces(face_set(videos), "actor", seed=0)
    assert split.leakage.left_out == 0
    assert split.leakage.shared["actor"] == 0


def faceforensics_and_dfd_like(pairs: int = 100, actors: int = 10) -> pd.DataFrame:
    """Pairs who swap faces among themselves, and actors (2 videos each) all put into each other."""
    rows: list[dict[str, Any]] = []
    for p in range(2 * pairs):
        pair = {"family": f"y{p}", "part": "youtube", "actor": f"y{p}"}
        rows.append(pair | {"video": f"y{p}", "label": 0, "method": "original"})
        fake = {"video": f"y{p}f", "label": 1, "method": "FaceSwap", "other_actor": f"y{p ^ 1}"}
        rows.append(pair | fake)
    for a in range(actors):
        actor = {"family": f"d{a}", "part": "actors", "actor": f"d{a}"}
        rows += [actor | {"video": f"d{a}{i}", "label": 0, "method": "original"} for i in "ab"]
        for b in set(range(actors)) - {a}:
            fake = {"label": 1, "method": "DeepFakeDetection", "other_actor": f"d{b}"}
            rows.append(actor | fake | {"video": f"d{a}_{b}"})
    return pd.DataFrame(rows)


def test_actor_split_of_faceforensics_beside_dfd_has_both_on_every_side() -> None:
    for pairs, actors in ((40, 14), (100, 12)):  # DFD has 210 of 370 videos, 156 of 556
        faces = face_set(faceforensics_and_dfd_like(pairs, actors))
        for seed in range(3):
            split = split_faces(faces, "actor", seed=seed, validation_share=0.25)
            for rows in (split.train, split.validation, split.test):
                assert values(faces, "method", rows) == {
                    "original",
                    "FaceSwap",
                    "DeepFakeDetection",
                }
                pairs_there = values(faces, "actor", rows) | values(faces, "other_actor", rows)
                people = {int(p[1:]) for p in pairs_there - {np.nan} if p[0] == "y"}
                assert {p ^ 1 for p in people} == people  # small sets stay whole
            assert split.leakage.lacking == ()


def test_pair_above_the_test_share_stays_whole() -> None:
    faces = face_set(faceforensics_and_dfd_like(pairs=4, actors=0))
    split = split_faces(faces, "actor", seed=0, test_share=0.2)
    assert split.leakage.left_out == 0
    assert len(split.test) == 4 * FRAMES


def test_leakage_report_names_the_methods_and_parts_that_a_side_lacks() -> None:
    videos = dfdc_like()
    videos.loc[videos["family"] == "o0", "method"] = "rare"
    report = leakage_report(split_faces(face_set(videos), "family", seed=0))
    assert "not on every side: test lacks method rare" in report
    split = split_faces(face_set(dfdc_like()), "part", seed=0)
    assert split.leakage.lacking == ()  # that parts are apart is what was asked for


def test_actor_split_of_fakes_without_the_person_put_in_is_refused_and_first_actor_is_not() -> None:
    videos = dfdc_like()
    videos.loc[videos["video"].isin(["f3a", "f4b"]), "other_actor"] = np.nan
    faces = face_set(videos)
    text = r"^An actor split .* no other_actor, the person put in, of 2 of 80 fakes \(first-actor "
    with pytest.raises(SplitError, match=text):
        split_faces(faces, "actor", seed=0)
    split = split_faces(faces, "first-actor", seed=0)
    assert split.leakage.shared["actor"] is None
    assert "actors unknown" in leakage_report(split)


def test_fakes_of_one_person_can_be_split_by_actor_if_the_data_say_so() -> None:
    videos = dfdc_like()
    one = videos.assign(other_actor=videos["actor"].where(videos["label"] == 1))
    split = split_faces(face_set(one), "actor", seed=0)
    assert (split.leakage.shared["actor"], split.leakage.left_out) == (0, 0)


def test_first_actor_split_ignores_the_person_put_in_as_the_authors_code_does() -> None:
    split = split_faces(face_set(dfdc_like()), "first-actor", seed=0)
    assert split.leakage.left_out == 0
    assert split.leakage.shared["actor"]


def with_test_set(videos: pd.DataFrame, real: int = 6, fake: int = 9) -> pd.DataFrame:
    """Beside them a test set as DFDC's: no fake names its original, of which any may be real."""
    names = [f"t{i}" for i in range(real + fake)]
    label = [0] * real + [1] * fake
    test = pd.DataFrame({"video": names, "part": "test", "label": label, "method": "fake"})
    test["family"] = test["video"].where(test["label"] == 0)
    return pd.concat([videos, test], ignore_index=True)


def test_family_split_leaves_out_the_parts_where_a_fakes_family_is_unknown_and_counts_them() -> (
    None
):
    faces = face_set(with_test_set(dfdc_like()))
    split = split_faces(faces, "family", seed=0, validation_share=0.25)
    sides = np.concatenate([split.train, split.validation, split.test])
    assert set(faces.column("part")[sides]) == {f"part_{i}" for i in range(5)}
    assert len(sides) == 120 * FRAMES
    assert (split.leakage.left_out, split.leakage.left_out_parts) == (15 * FRAMES, ("test",))
    assert "left out: 75 crops of part test: a fake there has no known" in leakage_report(split)
    # What the split keeps apart is known: of the videos on a side.
    assert split.leakage.shared["family"] == 0
    assert "families 0 of " in leakage_report(split)
    assert len(split_faces(faces, "video", seed=0).leakage.left_out_parts) == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v[(v["part"] == "test") | (v["label"] == 0)].reset_index(drop=True),
        lambda v: v.assign(part="all"),
        lambda v: v.assign(part=v["part"].where(v["family"].notna())),
    ],
    ids=["the other parts are all real", "one part", "unknown part"],
)
def test_family_split_is_refused_where_no_part_is_known_to_hold_whole_families_of_both_labels(
    change: Callable[[pd.DataFrame], pd.DataFrame],
) -> None:
    with pytest.raises(SplitError, match=r"^A family split .* no family of 9 of "):
        split_faces(face_set(change(with_test_set(dfdc_like()))), "family", seed=0)


def test_check_refuses_a_family_on_two_sides() -> None:
    faces = face_set(dfdc_like())
    split = split_faces(faces, "video", seed=0)
    with pytest.raises(LeakageError, match="must keep train and test apart, and they share"):
        check_disjoint(faces, split._replace(kind="family"))


def test_check_refuses_a_row_on_two_sides_even_in_a_random_split() -> None:
    faces = face_set(dfdc_like())
    split = split_faces(faces, "random", seed=0)
    with pytest.raises(LeakageError, match="train and test"):
        check_disjoint(faces, split._replace(test=split.train[:1]))


@pytest.mark.parametrize(
    ("change", "kind", "text"),
    [
        (
            lambda v: v.assign(actor=np.nan),
            "actor",
            "^An actor split .* the data give no actor of 120 of 120",
        ),
        (
            lambda v: v.assign(part="one"),
            "part",
            "^A part split .*: test needs a part of its own, and all videos are of one: one",
        ),
        (lambda v: v.assign(part=np.where(v.label, "a", "b")), "part", "lack real or fake videos"),
        (lambda v: v.assign(family=v.family.where(v.label == 0)), "family", "no family of 80"),
    ],
)
def test_split_that_the_data_do_not_allow_is_refused_with_the_reason(
    change: Callable[[pd.DataFrame], pd.DataFrame], kind: SplitKind, text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        split_faces(face_set(change(dfdc_like())), kind, seed=0)


def test_validation_that_cannot_be_taken_from_what_test_leaves_is_named() -> None:
    faces = face_set(dfdc_like(parts=2))
    assert len(split_faces(faces, "part", seed=0).test)
    text = r"validation needs a part of its own, and all videos that test leaves are of one: part_"
    with pytest.raises(SplitError, match=text):
        split_faces(faces, "part", seed=0, validation_share=0.2)


@pytest.mark.parametrize("kind", SPLIT_KINDS)
def test_faces_that_are_all_real_or_all_fake_are_refused(kind: SplitKind) -> None:
    for label, counts in ((0, "40 real and 0 fake"), (1, "0 real and 80 fake")):
        videos = dfdc_like()
        videos = videos[videos["label"] == label].reset_index(drop=True)
        with pytest.raises(ValueError, match=f"Expected real and fake videos .*, got {counts}"):
            split_faces(face_set(videos), kind, seed=0)


def test_leakage_report_says_unknown_where_the_data_give_no_actor() -> None:
    videos = dfdc_like().assign(actor=np.nan)
    assert "actors unknown" in leakage_report(split_faces(face_set(videos), "family", seed=0))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"kind": "hard"}, "Unknown split 'hard'. Available: random, video"),
        ({"test_share": 0.0}, "Expected a test share in"),
        ({"test_share": 1.0}, "Expected a test share in"),
        ({"validation_share": 1.0}, "a validation share in"),
        ({"kind": "part", "test_share": 0.95}, "A part split cannot be made"),
    ],
)
def test_wrong_share_or_kind_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        split_faces(face_set(dfdc_like()), **{"kind": "family", "seed": 0, **options})
