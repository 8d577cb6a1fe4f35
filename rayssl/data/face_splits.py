"""Training, validation and test crops of a face set, by what must not stand on both sides.

| kind | what stays on one side | who splits so |
| --- | --- | --- |
| `random` | nothing: frames of one video are on both sides. It leaks | the paper's random split |
| `video` | a video | the paper's hard split |
| `family` | an original and its fakes | selimsef's DFDC folds |
| `actor` | a person, seen or put in | |
| `first-actor` | the person whose body is seen; who was put in is not checked | authors' code |
| `part` | a part of the data on disk | selimsef, icpr2020dfdc |

`video` is no neutral choice: a fake whose original is in training looks like a known real video, so
a classifier that remembers people gives it the wrong label. `family` has no such trap.
Parts in which a fake's family is unknown (DFDC's test set) are on no side of it: its original may
be any of the real videos there.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import GroupShuffleSplit, train_test_split

from rayssl.data.faces import FaceSet

SplitKind = Literal["random", "video", "family", "actor", "first-actor", "part"]
SPLIT_KINDS: tuple[SplitKind, ...] = get_args(SplitKind)
CANDIDATES = 100  # draws of groups of which the one nearest to the shares asked for is taken
COLUMNS = {
    "video": "video", "family": "family", "actor": "actor", "first-actor": "actor", "part": "part",
}  # fmt: skip


class Leakage(NamedTuple):
    """What training and test have in common.

    Attributes:
      shared: videos, families, actors and parts of the test crops that are also in training or
        validation; None where the data do not say.
      total: how many different ones there are in the test crops; None likewise.
      left_out: crops on no side: of fakes that join people of both, or of `left_out_parts`.
      left_out_parts: parts on no side, because the family of a fake in them is unknown.
      lacking: which methods and parts a side is without, e.g. "test lacks method FaceSwap".
      surplus: fake crops on no side, because there were more of them than real ones.
    """

    shared: dict[str, int | None]
    total: dict[str, int | None]
    left_out: int
    left_out_parts: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()
    surplus: int = 0


class FaceSplit(NamedTuple):
    """Rows of `FaceSet.frames`, int64, sorted, disjoint.

    Attributes:
      train, validation, test: rows; validation is empty where no share of it was asked for.
      kind: of the split.
      leakage: what test shares with training and validation.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    kind: SplitKind
    leakage: Leakage


def split_faces(
    faces: FaceSet,
    kind: SplitKind,
    *,
    seed: int,
    test_share: float = 0.2,
    validation_share: float = 0.0,
) -> FaceSplit:
    """Returns training, validation and test rows; the same for the same seed.

    The shares are of crops (`random`), videos (`video`) or groups, with real and fake in test as
    near to the share as the groups allow: the best of 100 draws. Validation is taken from training
    by the same kind. `family` leaves out the parts in which the family of a fake is unknown.

    Args:
      faces: the crops.
      kind: one of SPLIT_KINDS.
      seed: of the draw.
      test_share: in (0, 1).
      validation_share: of what is not test, in [0, 1); 0: no validation.
    Raises:
      ValueError: for an unknown kind or share, or faces that are all real or all fake.
      SplitError: where the data cannot be split so: a video without actor, a fake without the
        person put in (`actor` only), one part only, a side that would have one label only.
      LeakageError: if what the kind keeps apart is on both sides (a fault of this module).
    """
    if kind not in SPLIT_KINDS:
        raise ValueError(f"Unknown split {kind!r}. Available: {', '.join(SPLIT_KINDS)}.")
    if not 0 < test_share < 1 or not 0 <= validation_share < 1:
        raise ValueError(
            "Expected a test share in (0, 1) and a validation share in [0, 1), got "
            f"{test_share} and {validation_share}."
        )
    real, fake = (int((faces.videos["label"] == label).sum()) for label in (0, 1))
    if not real or not fake:
        raise ValueError(
            f"Expected real and fake videos to tell apart, got {real} real and {fake} fake. "
            "Prepare both: see --real and --fake."
        )
    rows = np.arange(len(faces.frames), dtype=np.int64)
    left_out = _parts_without_families(faces.videos) if kind == "family" else ()
    rows = rows[~pd.Series(faces.column("part")).isin(left_out).to_numpy()]
    rest, test = _split(faces, rows, kind, test_share, seed, "test")
    train, validation = rest, rows[:0]
    if validation_share:
        train, validation = _split(faces, rest, kind, validation_share, seed + 1, "validation")
    leaks = leakage(faces, kind, train, validation, test)._replace(left_out_parts=left_out)
    split = FaceSplit(train, validation, test, kind, leaks)
    check_disjoint(faces, split)
    return split


class SplitError(ValueError):
    """Faces that cannot be split by a kind; `kind` and `why` are its arguments."""

    def __init__(self, kind: SplitKind, why: str) -> None:
        super().__init__(kind, why)
        self.kind, self.why = kind, why

    def __str__(self) -> str:
        others = ", ".join(k for k in SPLIT_KINDS if k not in (self.kind, "random"))
        return (
            f"{_a(self.kind).capitalize()} split cannot be made: {self.why}. Choose another kind: "
            f"{others}, or random (leaks)."
        )


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


class LeakageError(RuntimeError):
    """Something that a split must keep on one side is on two: never the user's fault."""


def check_disjoint(faces: FaceSet, split: FaceSplit) -> None:
    """Raises LeakageError if two sides share a row, or what the split's kind keeps apart."""
    sides = {"train": split.train, "validation": split.validation, "test": split.test}
    names = list(sides)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            shared = set(sides[a].tolist()) & set(sides[b].tolist())
            for column in _apart(split.kind):
                shared |= _values(faces, column, sides[a]) & _values(faces, column, sides[b])
            if shared:
                raise LeakageError(
                    f"The {split.kind} split must keep {a} and {b} apart, and they share "
                    f"{len(shared)}, e.g. {sorted(map(str, shared))[0]}."
                )


def with_as_many_fakes(split: FaceSplit, faces: FaceSet, *, seed: int) -> FaceSplit:
    """Returns the split with no more fake than real crops on any side.

    Args:
      split: of these faces.
      seed: of the draw of the fakes that stay; the others count as `surplus`.
    """
    rng = np.random.default_rng([seed, 2])

    def drawn(rows: np.ndarray) -> np.ndarray:
        fake = faces.labels[rows] == 1
        kept = rng.permutation(rows[fake])[: (~fake).sum()]
        return np.sort(np.concatenate([rows[~fake], kept]))

    train, validation, test = drawn(split.train), drawn(split.validation), drawn(split.test)
    before = split.leakage
    leaks = leakage(faces, split.kind, train, validation, test)
    leaks = leaks._replace(
        left_out=before.left_out, left_out_parts=before.left_out_parts,
        surplus=leaks.left_out - before.left_out,
    )  # fmt: skip
    return FaceSplit(train, validation, test, split.kind, leaks)


def leakage(
    faces: FaceSet, kind: SplitKind, train: np.ndarray, validation: np.ndarray, test: np.ndarray
) -> Leakage:
    """Returns what the test rows share with training and validation rows.

    Args:
      kind: of the split; the column that it divides is not `lacking`.
      train, validation, test: rows of `FaceSet.frames`, int64.
    """
    seen = np.concatenate([train, validation])
    on_a_side = faces.column("video")[np.concatenate([seen, test])]
    used = faces.videos[faces.videos["video"].isin(on_a_side)]
    shared: dict[str, int | None] = {}
    total: dict[str, int | None] = {}
    for name in ("video", "family", "actor", "part"):
        column = "person" if name == "actor" else name
        known = _known(used, column)
        values = _values(faces, column, test)
        shared[name] = len(values & _values(faces, column, seen)) if known else None
        total[name] = len(values) if known else None
    sides = {"training": train, "validation": validation, "test": test}
    return Leakage(
        shared, total, len(faces.frames) - len(seen) - len(test),
        lacking=_lacking(faces, kind, sides),
    )  # fmt: skip


def leakage_report(split: FaceSplit) -> str:
    """Returns the lines about a split that are printed with every result made on it."""
    sizes = f"{len(split.train):,} training, {len(split.validation):,} validation"
    lines = [f"split {split.kind}: {sizes} and {len(split.test):,} test crops"]
    found = []
    for name, count in split.leakage.shared.items():
        total = split.leakage.total[name]
        plural = "families" if name == "family" else f"{name}s"
        found.append(f"{plural} {'unknown' if count is None else f'{count} of {total}'}")
    lines.append(f"test shares with training: {', '.join(found)}")
    if split.leakage.left_out:
        lines.append(f"left out: {split.leakage.left_out:,} crops {_why_left_out(split.leakage)}")
    if split.leakage.surplus:
        lines.append(f"left out: {split.leakage.surplus:,} fake crops more than real ones")
    if split.leakage.lacking:
        lines.append(f"not on every side: {'; '.join(split.leakage.lacking)}")
    if split.kind == "random":
        lines.append(
            "LEAKS: frames of one video are in training and test; the result says how well videos "
            "are recognised again, not how well fakes are."
        )
    return "\n".join(lines)


def _lacking(faces: FaceSet, kind: SplitKind, sides: dict[str, np.ndarray]) -> tuple[str, ...]:
    """Methods and parts that are on some side and not on another; what the kind divides is none."""
    sides = {name: rows for name, rows in sides.items() if len(rows)}
    found = []
    for column in ("method", "part"):
        on = {name: _values(faces, column, rows) for name, rows in sides.items()}
        for name in on if column != kind else ():
            lacks = set().union(*on.values()) - on[name]
            if lacks:
                found.append(f"{name} lacks {column} {_some(lacks)}")
    return tuple(found)


def _why_left_out(leaks: Leakage) -> str:
    if not leaks.left_out_parts:
        return "of fakes that join two sides"
    parts = f"{'part' if len(leaks.left_out_parts) == 1 else 'parts'} {_some(leaks.left_out_parts)}"
    return f"of {parts}: a fake there has no known original, which any real video there may be"


def _some(names: Iterable[str]) -> str:
    """The first of these names, sorted, and how many more there are."""
    first, *others = sorted(names)
    shown, more = [first, *others[:4]], len(others) - 4
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _split(
    faces: FaceSet, rows: np.ndarray, kind: SplitKind, share: float, seed: int, side: str
) -> tuple[np.ndarray, np.ndarray]:
    """Two sorted disjoint subsets of rows, the second of about this share."""
    labels = faces.labels[rows]
    if kind == "random":
        try:
            train, test = train_test_split(
                rows, test_size=share, stratify=labels, random_state=seed
            )
        except ValueError as error:
            raise ValueError(f"A random split needs more crops: {error}") from error
        return np.sort(train), np.sort(test)
    videos = pd.DataFrame({"video": faces.column("video")[rows]}).drop_duplicates()
    table = faces.videos.set_index("video").loc[videos["video"]].reset_index()
    groups = _groups(table, kind)
    if len(set(groups)) < 2:
        column, left = COLUMNS[kind], " that test leaves" if side == "validation" else ""
        raise SplitError(
            kind,
            f"{side} needs {_a(column)} of its own, and all videos{left} are of one: {groups[0]}",
        )
    groupings = [Grouping(groups, np.zeros(len(groups), np.int64))]
    if kind == "actor":
        groupings = [_people(table, share), _people(table, 1.0, in_one=True)]
    best, why = None, f"training or {side} would lack real or fake videos"
    for grouping in groupings:
        try:
            drawn = _draws(grouping, share, seed)
        except ValueError as error:
            why = f"{side}: {str(error).rstrip('.')}"
            continue
        if kind == "actor":
            drawn = [_without_crossing(table, *draw) for draw in drawn]
        misses = [_miss(table, *draw, share) for draw in drawn]
        if np.isfinite(min(misses)):
            best = drawn[int(np.argmin(misses))]
            break
    if best is None:
        raise SplitError(kind, why)
    of_video = pd.Index(table["video"]).get_indexer(faces.column("video")[rows])
    train, test = (rows[np.isin(of_video, i)] for i in best)
    return train, test


class Grouping(NamedTuple):
    """Of each video: what must stay together, and the stratum of which each side has its share."""

    groups: np.ndarray
    strata: np.ndarray


def _draws(grouping: Grouping, share: float, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """CANDIDATES draws of training and test videos; ValueError for a stratum too small to share."""
    of_stratum = []
    for stratum in np.unique(grouping.strata):
        rows = np.flatnonzero(grouping.strata == stratum)
        shuffled = GroupShuffleSplit(CANDIDATES, test_size=share, random_state=seed)
        drawn = shuffled.split(rows, groups=grouping.groups[rows])
        of_stratum.append([(rows[train], rows[test]) for train, test in drawn])
    return [
        (
            np.sort(np.concatenate([d[0] for d in draw])),
            np.sort(np.concatenate([d[1] for d in draw])),
        )
        for draw in zip(*of_stratum, strict=True)
    ]


def _miss(videos: pd.DataFrame, train: np.ndarray, test: np.ndarray, share: float) -> float:
    """How far a draw is from what was asked for; infinite if a side lacks a label.

    The sum of: the larger miss of real and fake, the mean miss over methods by their size, and the
    share of videos on no side.
    """
    label = videos["label"].to_numpy()
    if any(set(label[side]) != set(label) for side in (train, test)):
        return np.inf
    miss = 1 - (len(train) + len(test)) / len(videos)
    for column, reduce in (("label", np.max), ("method", None)):
        codes = pd.factorize(videos[column])[0]
        size, found = np.bincount(codes), np.bincount(codes[test], minlength=codes.max() + 1)
        off = np.abs(found / size - share)
        miss += float(reduce(off) if reduce else np.average(off, weights=size))
    return miss


def _parts_without_families(videos: pd.DataFrame) -> tuple[str, ...]:
    """The parts with a video of unknown family; SplitError if the others have one label or none."""
    unknown = videos["family"].isna()
    parts = videos.loc[unknown, "part"]
    if parts.isna().any() or videos.loc[~videos["part"].isin(parts), "label"].nunique() < 2:
        why = f"the data give no family of {int(unknown.sum())} of {len(videos)} videos"
        raise SplitError("family", why)
    return tuple(sorted(set(parts)))


def _groups(videos: pd.DataFrame, kind: SplitKind) -> np.ndarray:
    """What each video belongs to, and must not be torn from."""
    column = COLUMNS[kind]
    missing = int(videos[column].isna().sum())
    if missing:
        raise SplitError(kind, f"the data give no {column} of {missing} of {len(videos)} videos")
    if kind == "actor" and (missing := int(_unnamed(videos).sum())):
        raise SplitError(
            kind,
            f"the data give no other_actor, the person put in, of {missing} of "
            f"{int(videos['label'].sum())} fakes (first-actor needs none; a fake of one person has "
            "its actor as other_actor)",
        )
    return videos[column].to_numpy(str)


def _unnamed(videos: pd.DataFrame) -> pd.Series:
    """Which videos show somebody whom the data do not name."""
    return videos["actor"].isna() | ((videos["label"] == 1) & videos["other_actor"].isna())


def _people(videos: pd.DataFrame, share: float, *, in_one: bool = False) -> Grouping:
    """Sets of actors that fakes join (FaceForensics++), or single ones of a large set.

    In DFD nearly all of its 28 actors are joined; single actors are then put on one side, and a
    fake whose two are on different sides on none. Such a set is a stratum of its own: beside the
    many small sets of FaceForensics++ it would else hardly be drawn for test.

    Args:
      share: of the videos, asked for; a set above half of it is too coarse to be drawn whole. One
        of so few actors that a single one is above the share stays whole, up to half of all videos:
        a pair that is torn loses all its fakes.
      in_one: no strata; single actors everywhere, or nowhere.
    """
    actors, seen = np.unique(videos["actor"].to_numpy(str), return_inverse=True)
    others = videos["other_actor"].where(videos["other_actor"].notna(), videos["actor"])
    everybody = np.concatenate([actors[seen], others.to_numpy(str)])
    codes, names = pd.factorize(everybody)
    pairs = codes[: len(videos)], codes[len(videos) :]
    graph = coo_array((np.ones(len(videos)), pairs), shape=(len(names), len(names)))
    joined = connected_components(graph, directed=False)[1][pairs[0]]
    size = np.bincount(joined)
    num_actors = pd.Series(seen).groupby(joined).nunique().to_numpy()
    large, most = size > share / 2 * len(videos), size > len(videos) / 2
    torn = large & (num_actors * share >= 1) | most
    if in_one:
        torn[:] = torn.any()
    groups = np.where(torn[joined], len(names) + seen, joined)
    strata = np.where(torn[joined] & (not in_one), 1 + joined, 0)
    for stratum in np.unique(strata):
        if len(set(groups[strata == stratum])) == 1:  # nothing to share
            strata[strata == stratum] = 0
    if len(set(groups[strata == 0])) == 1:
        strata[strata == 0] = strata.max()
    return Grouping(groups, strata)


def _without_crossing(
    videos: pd.DataFrame, train: np.ndarray, test: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Both sides without the fakes whose other actor is seen on the other side."""
    actor, other = videos["actor"].to_numpy(str), videos["other_actor"].fillna("").to_numpy(str)
    own = [set(actor[side]) for side in (train, test)]
    # Somebody who is only ever put in belongs to the side that has him first: training.
    put_in = [
        train[~np.isin(other[train], list(own[1]))],
        test[~np.isin(other[test], list(own[0]))],
    ]
    only_put_in = set(other[put_in[0]]) - {""}
    return put_in[0], put_in[1][~np.isin(other[put_in[1]], list(only_put_in))]


def _apart(kind: SplitKind) -> tuple[str, ...]:
    """The columns whose values a split keeps on one side; a group keeps its videos together."""
    if kind == "random":
        return ()
    return ("video", {"actor": "person", "first-actor": "actor"}.get(kind, kind))


def _values(faces: FaceSet, column: str, rows: np.ndarray) -> set[str]:
    columns = ("actor", "other_actor") if column == "person" else (column,)
    return {v for c in columns for v in pd.unique(pd.Series(faces.column(c)[rows]).dropna())}


def _known(videos: pd.DataFrame, column: str) -> bool:
    unknown = _unnamed(videos) if column == "person" else videos[column].isna()
    return not unknown.any()
