"""Figures of a report: curves with bands over seeds, score against aux weight, rliable's measures.

Colours are Okabe and Ito's (distinguishable without full colour vision); lines carry their names.
A figure is saved as PNG and SVG files on white, and as an SVG for a page, whose text and axes take
the page's own colour.
"""

import io
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rayssl.intervals import Band, Interval, curve_band

PALETTE: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
PLAIN: Final = "#7a7a7a"  # of arms without a pretext loss
INK: Final = "#24292e"  # text and axes; becomes `currentColor` on a page
STYLES: Final = ("-", "--", ":", "-.")  # when the palette has come round
Floats = npt.NDArray[np.float64]
MEASURE_WIDTH: Final = 36  # characters of a measure beside or below axes of 2 to 3 inches
NAME_WIDTH: Final = 24  # characters of a line's name right of its axes
TICK_WIDTH: Final = 32  # likewise, of an arm's name left of them
TITLES_WIDTH: Final = 116  # characters of all titles in a row of panels
_PLAIN_TEXT = matplotlib.rc_context({"text.parse_math": False})  # a name may hold a $


@dataclass(frozen=True)
class Line:
    """One arm's curves in a panel: thin lines of single seeds, mean and band on top.

    Attributes:
      name: of the arm, which gives the line its look.
      curves: (x, y) of the runs that mean and band are made of.
      others: of runs that ended early: thin lines only.
      label: what stands beside the line; empty: the name.
    """

    name: str
    curves: Sequence[tuple[Floats, Floats]]
    others: Sequence[tuple[Floats, Floats]] = ()
    label: str = ""


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
      title, x_label, y_label: texts; title and y_label are broken into lines where too long.
      lines: drawn on top of one another.
      levels: horizontal lines, name -> value, e.g. the random agent's score.
      whole_x: ticks at whole numbers only (epochs).
      range: least and greatest value that the quantity can have; an interval that reaches past them
        does not widen the axis.
    """

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    levels: Mapping[str, float] = field(default_factory=dict)
    whole_x: bool = False
    range: tuple[float, float] | None = None


@dataclass(frozen=True)
class WeightCurve:
    """One pretext task of a study, over its weights, 0 (the plain arm) among them.

    Attributes:
      name: of the task and what else names the arms.
      weights: ascending, `[W]`.
      scores: the seeds' scores at each weight.
      means: their means with intervals.
      gains: means of the paired differences to weight 0, with intervals; None at 0 itself and
        where no seed is shared.
    """

    name: str
    weights: Sequence[float]
    scores: Sequence[Sequence[float]]
    means: Sequence[Interval]
    gains: Sequence[Interval | None]


@dataclass(frozen=True)
class Profile:
    """A performance profile: share of runs above each threshold."""

    name: str
    thresholds: Floats
    share: Floats
    low: Floats
    high: Floats


def arm_colours(names: Sequence[str], plain: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Returns name -> (colour, line style), the same name the same look in every figure."""
    looks: dict[str, tuple[str, str]] = {}
    for i, name in enumerate(dict.fromkeys(n for n in names if n in plain)):
        looks[name] = PLAIN, STYLES[i % len(STYLES)]
    for i, name in enumerate(dict.fromkeys(n for n in names if n not in plain)):
        looks[name] = PALETTE[i % len(PALETTE)], STYLES[i // len(PALETTE) % len(STYLES)]
    return looks


@_PLAIN_TEXT
def draw_panels(
    panels: Sequence[Panel], looks: Mapping[str, tuple[str, str]], *, columns: int = 2
) -> Figure:
    """Returns a figure of curves, row by row; names stand at the ends of the lines."""
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = _figure(11 if columns > 1 else 7, (3.6 if columns < 3 else 2.9) * rows)
    axes = np.atleast_1d(figure.subplots(rows, columns)).flatten()
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for axis, panel in zip(axes, panels, strict=False):
        _draw_panel(axis, panel, looks)
        # Set beside the others, a title starts left of its axes, and ends past them.
        title = _wrapped(panel.title, TITLES_WIDTH // max(columns, 2))
        axis.set_title(title, color=INK, size=10)
    return figure


@_PLAIN_TEXT
def draw_weights(studies: Sequence[tuple[str, str, Sequence[WeightCurve]]]) -> Figure:
    """Returns score, and gain over weight 0, against the aux weight.

    The axis is logarithmic; 0, which has no place on it, stands left of a gap.

    Args:
      studies: (title, measure, curves) of each.
    """
    columns = min(2, len(studies))
    rows = math.ceil(len(studies) / columns)
    figure = _figure(11 if columns > 1 else 7, 5.6 * rows)
    axes = np.asarray(figure.subplots(2 * rows, columns, squeeze=False))
    for axis in axes.flatten():
        axis.set_visible(False)
    for i, (title, measure, curves) in enumerate(studies):
        top, bottom = (axes[2 * (i // columns) + k, i % columns] for k in (0, 1))
        for axis in (top, bottom):
            axis.set_visible(True)
        _draw_weights(top, bottom, curves)
        top.set_title(_wrapped(title, TITLES_WIDTH // 2), color=INK, size=10)
        top.set(ylabel=_wrapped(measure, MEASURE_WIDTH))
        bottom.set(ylabel="gain over weight 0", xlabel="aux weight (log scale; 0 apart)")
    return figure


@_PLAIN_TEXT
def draw_aggregates(
    iqm: Sequence[tuple[str, Interval]],
    improvement: Sequence[tuple[str, Interval]],
    profiles: Sequence[Profile],
    looks: Mapping[str, tuple[str, str]],
    *,
    measure: str,
) -> Figure:
    """Returns IQM, probability of improvement over the plain arm, and performance profiles."""
    figure = _figure(11, max(2.6, 1.3 + 0.4 * len(iqm)))
    left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1, 1.15])
    names = [name for name, _ in iqm]
    _draw_intervals(left, names, iqm, looks)
    measure = _wrapped(measure, MEASURE_WIDTH)
    left.set(xlabel=measure, title="IQM over runs and tasks")
    left.margins(x=0.06)
    _draw_intervals(middle, names, improvement, looks)
    middle.axvline(0.5, color=INK, lw=1, ls=":")
    middle.set(
        xlabel="P(better than plain)", title="Probability of improvement", xlim=(-0.03, 1.03)
    )
    middle.tick_params(labelleft=False)
    _style(right)
    for profile in profiles:
        colour, style = looks[profile.name]
        right.step(profile.thresholds, profile.share, style, where="post", color=colour, lw=1.6)
        if np.isfinite(profile.low).all():
            right.fill_between(profile.thresholds, profile.low, profile.high, step="post",
                               color=colour, alpha=0.15, lw=0)  # fmt: skip
    for axis in (left, right):
        axis.xaxis.set_major_locator(MaxNLocator(5))
    right.set(xlabel=measure, ylabel="share of runs above", title="Performance profiles",
              ylim=(-0.03, 1.03))  # fmt: skip
    return figure


@dataclass(frozen=True)
class ProbeScores:
    """What linear probes read of one number of a game's state.

    Attributes:
      name: of the number.
      f1, r2: network -> score with interval; absent where there is none.
    """

    name: str
    f1: Mapping[str, Interval]
    r2: Mapping[str, Interval]


@_PLAIN_TEXT
def draw_probes(rows: Sequence[ProbeScores], looks: Mapping[str, tuple[str, str]]) -> Figure:
    """Returns F1 on the left and R2 on the right, a line for each number, a point a network."""
    figure = _figure(10, 1.3 + (0.18 * len(looks) + 0.16) * len(rows))
    for axis, measure in zip(figure.subplots(1, 2, sharey=True), ("f1", "r2"), strict=True):
        _style(axis)
        for k, (name, (colour, _)) in enumerate(looks.items()):
            found = [(i, getattr(row, measure).get(name)) for i, row in enumerate(rows)]
            shown = [(i, each) for i, each in found if each and math.isfinite(each.value)]
            if not shown:
                continue
            places = [i + 0.8 * ((k + 0.5) / len(looks) - 0.5) for i, _ in shown]
            values = np.array([[e.value, e.low, e.high] for _, e in shown]).T
            ends = np.nan_to_num(np.abs(values[1:] - values[0]))
            axis.errorbar(values[0], places, xerr=ends, fmt="o", ms=4, color=colour, capsize=2,
                          lw=1.2, label=name)  # fmt: skip
        axis.set_yticks(range(len(rows)), [row.name for row in rows])
        axis.set_ylim(len(rows) - 0.4, -0.6)
        axis.set_title({"f1": "F1, classification", "r2": "R2, regression"}[measure])
        axis.set_xlim(left=max(axis.get_xlim()[0], -0.5), right=1.02)  # R2 has no lowest value
    figure.axes[0].legend(frameon=False, fontsize=8, loc="best")
    return figure


def save(figure: Figure, stem: Path) -> str:
    """Writes stem.png and stem.svg and returns the SVG of a page; the same figure, the same bytes.

    In the returned SVG the background is clear, ink is `currentColor`, and every id begins with the
    stem's name, so that several SVGs can stand in one page.
    """
    figure.draw_without_rendering()  # lays out; once is enough
    figure.set_layout_engine("none")
    for axis in figure.axes:
        axis.set_facecolor("none")
    with matplotlib.rc_context({"svg.hashsalt": "rayssl"}):
        figure.savefig(stem.with_suffix(".png"), dpi=130, metadata={"Software": None})
        buffer = io.StringIO()
        metadata: dict[str, Any] = {"Date": None, "Creator": None}
        figure.savefig(buffer, format="svg", metadata=metadata, facecolor="none")
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", buffer.getvalue(), flags=re.DOTALL)
    start, body = text.index("<svg"), text.index(">", text.index("<svg")) + 1
    white = '<rect width="100%" height="100%" fill="white"/>'
    stem.with_suffix(".svg").write_text(text[:body] + white + text[body:], encoding="utf-8")
    text = text[start:].replace(INK, "currentColor")
    text = re.sub(r'\bid="', f'id="{stem.name}-', text)
    text = re.sub(r"url\(#", f"url(#{stem.name}-", text)
    return re.sub(r'href="#', f'href="#{stem.name}-', text)


def _figure(width: float, height: float) -> Figure:
    # Not pyplot: it would keep the figure, and choose a backend for whoever imports this module.
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def _wrapped(text: str, width: int) -> str:
    """A text in lines of `width` characters at most, but for longer words; its own breaks stay."""
    return "\n".join(
        textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False)
        for line in text.splitlines()
    )


def _style(axis: Axes) -> None:
    axis.grid(alpha=0.35, color="#9a9a9a", lw=0.5)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(INK)
    axis.tick_params(colors=INK, labelsize=8)
    axis.xaxis.label.set(color=INK, size=9)
    axis.yaxis.label.set(color=INK, size=9)
    axis.title.set(color=INK, size=10)


def _draw_panel(axis: Axes, panel: Panel, looks: Mapping[str, tuple[str, str]]) -> None:
    _style(axis)
    labels: list[tuple[str, float, str]] = []
    for line in panel.lines:
        colour, style = looks[line.name]
        thin = [*(line.curves if len(line.curves) > 1 else ()), *line.others]
        for x, y in thin:
            axis.plot(x, y, color=colour, lw=0.6, alpha=0.45)
        band = curve_band(line.curves) if line.curves else None
        end = _draw_band(axis, band, colour, style) if band else None
        if end is None and thin:
            end = float(np.mean([y[-1] for _, y in thin]))
        if end is not None:
            labels.append((line.label or line.name, end, colour))
    for name, value in panel.levels.items():
        axis.axhline(value, color=INK, lw=0.8, ls=":")
        labels.append((name, value, INK))
    if not any(line.curves or line.others for line in panel.lines):
        axis.text(0.5, 0.5, "no data", transform=axis.transAxes, ha="center", color=INK)
    axis.set(xlabel=panel.x_label, ylabel=_wrapped(panel.y_label, MEASURE_WIDTH))
    axis.margins(x=0.01)
    if axis.dataLim.width == 0:  # one report: room for its point
        only = axis.dataLim.x0
        axis.set_xlim(*((only - 1, only + 1) if panel.whole_x else (0, 1.1 * only)))
    if panel.whole_x:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        axis.xaxis.set_major_formatter(lambda value, _: _steps(value))
    if panel.range is not None:
        least, greatest = panel.range
        low, high = axis.get_ylim()
        room = 0.03 * (greatest - least)  # for a line that lies on the edge
        axis.set_ylim(max(low, least - room), min(high, greatest + room))
    _label_ends(axis, labels)


def _draw_band(axis: Axes, band: Band, colour: str, style: str) -> float | None:
    """Draws mean and interval; returns where the line ends, None if there is nothing to draw."""
    if not band.x.size:
        return None
    marker = "o" if band.x.size < 8 else ""
    axis.plot(band.x, band.mean, style, color=colour, lw=1.8, marker=marker, ms=3.5)
    if band.low is not None and band.high is not None:
        axis.fill_between(band.x, band.low, band.high, color=colour, alpha=0.18, lw=0)
    return float(band.mean[-1])


def _label_ends(axis: Axes, labels: Sequence[tuple[str, float, str]]) -> None:
    """Writes names right of the axes at the heights of their lines, pushed apart."""
    low, high = axis.get_ylim()
    axis.set_ylim(low, high)
    gap = 0.058  # of the axes' height, from one line of text to the next
    places: list[tuple[float, str, str]] = []
    half = 0.0
    for name, value, colour in sorted(labels, key=lambda label: (label[1], label[0])):
        text = _wrapped(name, NAME_WIDTH)
        height = (value - low) / (high - low) if high > low else 0.5
        own = gap * (text.count("\n") + 1) / 2
        lowest = places[-1][0] + half + own if places else 0.0
        places.append((max(min(height, 1.0), lowest), text, colour))
        half = own
    if places and places[-1][0] > 1.0:  # pushed out at the top: move back what stands close
        top = 1.0 + half
        for i in range(len(places) - 1, -1, -1):
            own = gap * (places[i][1].count("\n") + 1) / 2
            height = min(places[i][0], top - own)
            places[i] = height, *places[i][1:]
            top = height - own
    for height, text, colour in places:
        axis.text(1.02, height, text, transform=axis.transAxes, va="center", fontsize=8,
                  color=colour)  # fmt: skip


def _draw_weights(top: Axes, bottom: Axes, curves: Sequence[WeightCurve]) -> None:
    positive = sorted({w for curve in curves for w in curve.weights if w > 0})
    start = math.log10(positive[0])
    zero = start - max(0.6, 0.22 * (math.log10(positive[-1]) - start))
    ticks = positive
    if len(positive) > 8:  # drawn from a range: decades
        exponents = range(math.ceil(start), math.floor(math.log10(positive[-1])) + 1)
        ticks = [10.0**exponent for exponent in exponents] or [positive[0], positive[-1]]
    for axis in (top, bottom):
        _style(axis)
    shift = 0.0
    for i, curve in enumerate(curves):
        colour = PALETTE[i % len(PALETTE)]
        x = np.array([math.log10(w) if w > 0 else zero for w in curve.weights]) + shift
        for position, scores in zip(x, curve.scores, strict=True):
            # Left of the mean, whose interval would hide them.
            top.plot([position - 0.05] * len(scores), scores, ".", color=colour, ms=5, alpha=0.6)
        _draw_points(top, x, curve.means, colour, curve.name, curve.weights)
        kept = [k for k, gain in enumerate(curve.gains) if gain is not None]
        gains = [gain for gain in curve.gains if gain is not None]
        _draw_points(bottom, x[kept], gains, colour, curve.name, [curve.weights[k] for k in kept])
        shift += 0.03
    bottom.axhline(0, color=INK, lw=0.9, ls=":")
    for axis in (top, bottom):
        axis.set_xlim(zero - 0.2, math.log10(positive[-1]) + 0.25)
        axis.set_xticks([zero, *map(math.log10, ticks)], ["0\n(plain)", *(f"{w:g}" for w in ticks)])
        middle = (zero + start) / 2
        axis.axvspan(middle - 0.03, middle + 0.03, color="#9a9a9a", alpha=0.35, lw=0)
        axis.text(middle, -0.012, "//", transform=axis.get_xaxis_transform(), ha="center",
                  va="center", fontsize=9, color=INK)  # fmt: skip
    if len(curves) > 1:
        top.legend(frameon=False, fontsize=7, labelcolor=INK)


def _draw_points(
    axis: Axes, x: Floats, points: Sequence[Interval], colour: str, name: str,
    weights: Sequence[float],
) -> None:  # fmt: skip
    if not len(x):
        return
    value = np.array([p.value for p in points])
    low = np.array([p.low for p in points])
    high = np.array([p.high for p in points])
    joined = [k for k, weight in enumerate(weights) if weight > 0]  # nothing joins 0 to the rest
    axis.plot(x[joined], value[joined], "-", color=colour, lw=1.2)
    axis.plot(x, value, "o", color=colour, ms=5, label=name)
    known = np.isfinite(low)
    axis.errorbar(x[known], value[known], yerr=[(value - low)[known], (high - value)[known]],
                  fmt="none", ecolor=colour, elinewidth=1.4, capsize=3)  # fmt: skip


def _draw_intervals(
    axis: Axes, names: Sequence[str], rows: Sequence[tuple[str, Interval]],
    looks: Mapping[str, tuple[str, str]],
) -> None:  # fmt: skip
    _style(axis)
    axis.use_sticky_edges = False  # of bars
    for name, found in rows:
        place, colour = names.index(name), looks[name][0]
        if math.isfinite(found.low):
            axis.barh(place, found.high - found.low, left=found.low, height=0.5, color=colour,
                      alpha=0.35)  # fmt: skip
        axis.plot([found.value], [place], "|", color=colour, ms=12, mew=2.4)
    axis.set_yticks(range(len(names)), [_wrapped(name, TICK_WIDTH) for name in names])
    axis.set_ylim(len(names) - 0.4, -0.6)
    if not rows:
        axis.text(0.5, 0.5, "nothing to compare", transform=axis.transAxes, ha="center", color=INK)


def _steps(value: float) -> str:
    """Steps as a person says them: `250k`, `1M`."""
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"
