"""The paper's claims, and the rule that calls one supported, refuted or undecided.

A claim says on which side of a threshold a difference between two arms lies. It is judged by the
95% interval of that difference over seeds, never by its mean.
"""

from dataclasses import dataclass
from typing import Final, Literal

from rayssl.intervals import MIN_SEEDS, Difference

Verdict = Literal["supported", "refuted", "undecided"]
Side = Literal["below", "above"]

NOT_WORSE_MARGIN: Final = 2.1  # points of Pong: 5% of its range, -21 to 21; the paper's gap is 1.8
HALF_TURNS: Final = (2, 5, 6, 9)  # digits that section VI-A names


def verdict(found: Difference | None, side: Side, threshold: float = 0.0) -> Verdict:
    """Returns what an interval says about the claim that a difference lies below, or above.

    supported: the whole interval lies on the claimed side of the threshold.
    refuted: the whole interval lies on the other side (the threshold itself included).
    undecided: anything else; fewer than MIN_SEEDS seeds; an interval without width, which seeds
    that agree to the last digit leave (two agents that both lose every game).

    Args:
      found: None where nothing was run.
    """
    if found is None or found.num_seeds < MIN_SEEDS or not found.low < found.high:
        return "undecided"
    if side == "above":
        inside, outside = found.low > threshold, found.high <= threshold
    else:
        inside, outside = found.high < threshold, found.low >= threshold
    return "supported" if inside else "refuted" if outside else "undecided"


def all_of(verdicts: list[Verdict]) -> Verdict:
    """Returns the verdict on a claim that is made of several: one refuted part refutes it."""
    if "refuted" in verdicts:
        return "refuted"
    return "supported" if verdicts and set(verdicts) == {"supported"} else "undecided"


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper as a difference: treated - scale * plain, on one side of a threshold.

    Attributes:
      text: the sentence.
      source: where the paper says it, with its own figures.
      job: `atari` or `mnist`.
      where: the game or data set.
      treated: pretext tasks that the sentence is about, at the paper's weight 1.
      side: where the difference lies if the sentence is true.
      threshold: in points (of the game, or per cent).
      scale: of the plain arm's score.
      per_class: digits whose accuracy is meant, one verdict each; empty: the whole score.
    """

    text: str
    source: str
    job: str
    where: str
    treated: tuple[str, ...]
    side: Side
    threshold: float = 0.0
    scale: float = 1.0
    per_class: tuple[int, ...] = ()

    @property
    def quantity(self) -> str:
        """What is judged, e.g. `rotation - plain < 0`."""
        scale = "" if self.scale == 1 else f"{self.scale:g} x "
        sign = "<" if self.side == "below" else ">"
        return f"{self.name} - {scale}plain {sign} {self.threshold:g}"

    @property
    def name(self) -> str:
        """`rotation` or `sequence`, the paper's words."""
        return "rotation" if self.treated == ("rotation",) else "sequence"


ROTATION: Final = ("rotation",)
SEQUENCE: Final = ("permutation", "permutation-6")
CLAIMS: Final = (
    Claim("Rotation hurts on Pong", "Table IV: -20.1 beside 20.0", "atari", "Pong", ROTATION,
          "below"),
    Claim("Rotation hurts on Breakout", "Table IV: 7.6 beside 9.9", "atari", "Breakout", ROTATION,
          "below"),
    Claim("Sequence prediction helps on Breakout", "Table IV: 14.9 beside 9.9", "atari", "Breakout",
          SEQUENCE, "above"),
    Claim("Sequence prediction almost doubles Breakout", "Table IV: 14.9 is 1.5 x 9.9", "atari",
          "Breakout", SEQUENCE, "above", scale=1.5),
    Claim("Sequence prediction does not hurt Pong", "Table IV: 18.2 beside 20.0", "atari", "Pong",
          SEQUENCE, "above", threshold=-NOT_WORSE_MARGIN),
    Claim("Rotation hurts on MNIST", "Table I: 98.45 beside 99.19", "mnist", "mnist", ROTATION,
          "below"),
    Claim("Classes 2, 5, 6 and 9 suffer", "Table II; section VI-A", "mnist", "mnist", ROTATION,
          "below", per_class=HALF_TURNS),
)  # fmt: skip
