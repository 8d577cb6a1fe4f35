"""Results -> the page: which tables and figures, in which order, with the words beside them."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from rayssl import classification_report as classes
from rayssl import tables
from rayssl.claims import NOT_WORSE_MARGIN
from rayssl.comparison import CURVE, EVALUATED, Arm, Study, make_contrasts, make_studies
from rayssl.figures import (
    NAME_WIDTH,
    Line,
    Panel,
    Profile,
    WeightCurve,
    arm_colours,
    draw_aggregates,
    draw_panels,
    draw_weights,
)
from rayssl.intervals import MIN_SEEDS, PROFILE_RESAMPLES, Interval, difference, performance_profile
from rayssl.metrics import BOOTSTRAP_RESAMPLES, HUMAN_AND_RANDOM
from rayssl.page import Page, Picture, Section, Table
from rayssl.results import ArmKey, Results
from rayssl.tables import Suite
from rayssl.tasks import available_pretext_tasks, make_task

MAX_ARMS: Final = 8  # in a figure; tables have them all
MAX_STUDIES: Final = 6  # likewise
GAME_SCORE: Final = (
    "mean of the last 100 whole training games (of all, where there were fewer), unclipped, "
    "exploration on"
)
EVALUATED_SCORE: Final = (
    "mean over the whole games of the trained agent's evaluation at that step, unclipped, epsilon "
    "0.01, games fixed beforehand"
)
RULE: Final = (
    "A claim is supported if the whole 95% interval of the difference lies on the side that it "
    "says, refuted if the whole interval lies on the other side, and undecided otherwise. With "
    f"fewer than {MIN_SEEDS} seeds, or where all seeds agree to the last digit, it is undecided "
    "whatever the mean. Differences are taken seed by seed (Student's t over the differences); "
    f"where fewer than {MIN_SEEDS} seeds are shared, Welch's interval of two independent means is "
    "used and the row says so. Each interval stands for itself: they are not widened for the "
    "number of claims. Arms of the paper's weight 1 are judged. Games that ran the preset "
    "paper-code are judged as the authors' code counts (Table IV, \"same measure\"), all others, "
    "under strict, by whole games: of the trained agents' evaluations, or, where the runs share no "
    "step of evaluation, of training. \"Almost doubles\" is judged as "
    "1.5 times the plain score or more (the paper's 14.9 and 9.9), \"does not hurt Pong\" as no "
    f"more than {NOT_WORSE_MARGIN} points worse (5% of Pong's range of 42). A verdict on runs "
    "marked small is one on small runs."
)  # fmt: skip


def make_page(results: Results, *, command: str, above: float) -> Page:
    """Returns the page of these results.

    Args:
      results: not empty.
      command: that makes this page.
      above: score whose first crossing the table of runs tells, in games.
    """
    studies = make_studies(results)
    looks = _looks(studies)
    sections = [
        _claims(studies),
        _learning(results, studies, looks, above),
        _contrasts(studies),
        _weights(studies),
        _aggregates(studies, looks),
        _paper_tables(results, studies),
        _evaluations(results),
        _provenance(results, studies),
        _left_out(results),
        _method(),
    ]
    num_arms = sum(bool(arm.runs) for study in studies for arm in study.arms)
    return Page(
        title="Does the pretext task help?",
        lead=[
            f"{_count(len(results.runs), 'run')} of {_count(num_arms, 'arm')}"
            + (f": {'; '.join(s.name for s in studies[:MAX_STUDIES])}" if studies else "")
            + (f"; {len(studies) - MAX_STUDIES} more" if len(studies) > MAX_STUDIES else "")
            + (f". {_count(len(results.evaluations), 'evaluation')} of trained agents"
               if results.evaluations else "")
            + (f". {_count(len(results.probes), 'probe')} of frozen features"
               if results.probes else "") + ".",
            f"Made by: {command}",
        ],
        warnings=_warnings(results, studies),
        sections=[section for section in sections if section is not None],
    )  # fmt: skip


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _looks(studies: Sequence[Study]) -> dict[str, tuple[str, str]]:
    shown = [arm for study in studies for arm in shown_arms(study)]
    plain = [arm.key.name for arm in shown if arm.key.is_plain]
    return arm_colours([arm.key.name for arm in shown], plain)


def shown_arms(study: Study) -> list[Arm]:
    """Returns the arms of a study that figures show: those that ran, MAX_ARMS at most.

    Plain arms first, then those of the paper's weight, then those with the highest scores.
    """
    ran = [arm for arm in study.arms if arm.runs]

    def rank(arm: Arm) -> tuple[bool, bool, float]:
        score = tables.score_interval(arm.scores.values()).value
        return not arm.key.is_plain, arm.key.weight != 1, -score if score == score else np.inf

    kept = sorted(ran, key=rank)[:MAX_ARMS]
    return [arm for arm in ran if arm in kept]


def _warnings(results: Results, studies: Sequence[Study]) -> list[str]:
    lines = []
    small = [f"{study.name} ({study.size})" for study in studies if study.is_small]
    if small:
        lines.append(f"Small runs, shorter than the paper's: {'; '.join(small)}.")
    few = {1: "One seed only, so no interval and no verdict", 2: "Two seeds only, so no verdict"}
    for count, text in few.items():
        found = [
            f"{study.name} ({'; '.join(names)})"
            for study in studies
            if (names := [a.key.name for a in study.arms if len(a.scores) == count])
        ]
        if found:
            lines.append(f"{text}: {'; '.join(found)}.")
    if results.left_out:
        number = len(results.left_out)
        lines.append(f"Left out: {number} of what was given, listed at the end with the reason.")
    return lines


def _claims(studies: Sequence[Study]) -> Section:
    findings = tables.claim_findings(studies)
    blocks = [Table("", tables.claim_rows(findings), RULE)]
    parts = tables.class_rows(findings)
    if any(finding.difference for finding in findings if finding.part.isdigit()):
        note = "Percentage points, rotation minus plain. The claim needs all four."
        blocks.append(Table("Classes 2, 5, 6 and 9 one by one", parts, note))
    return Section("The paper's claims", (), blocks)


def _learning(
    results: Results, studies: Sequence[Study], looks: dict[str, tuple[str, str]], above: float
) -> Section | None:
    """Curves and arms of each job."""
    if not studies:
        return None
    blocks: list[Table | Picture] = []
    games = [study for study in studies if study.job == "atari"]
    classifiers = [study for study in studies if study.job == "mnist"]
    taken = ["curves" if not games else "curves-classification", "explanation-classification"]
    if games:
        blocks += _game_pictures(games, looks)
    if classifiers:
        blocks += _classifier_pictures(classifiers, looks, *taken)
    for study in studies:
        small = ": small" if study.is_small else ""
        notes = [f"Compared at {study.size}{small}. {_measure_note(study)}"]
        longest = max(run.reached for arm in study.arms for run in arm.runs.values())
        if longest > 1.1 * study.budget:
            runs = [run for arm in study.arms for run in arm.runs.values()]
            finished = any(run.finished for run in runs)
            until = (
                "the shortest finished run" if finished else "the shortest run (none has finished)"
            )
            if study.column == EVALUATED:
                until = "the last step at which all were evaluated"
            notes.append(
                f"Some runs are longer, up to {longest:,} {study.unit}; {until} "
                "sets where all are compared. Leave short runs out to compare later."
            )
        if study.flags:
            notes.append(
                f"The arms differ in more than the pretext task: {'; '.join(study.flags)}."
            )
        blocks.append(Table(f"{study.name}: arms", tables.arm_rows(study), " ".join(notes)))
    runs = [run for run in results.runs if run.key.job == "atari"]
    if runs:
        note = f"Over all steps of each run. Scores: {GAME_SCORE}."
        blocks.append(Table("Runs of games", tables.game_rows(runs, above), note))
    return Section("Learning", _hidden(studies), blocks)


def _hidden(studies: Sequence[Study]) -> list[str]:
    """What the figures leave out, in words."""
    lines = []
    for study in studies:
        ran = sum(bool(arm.runs) for arm in study.arms)
        if ran > MAX_ARMS:
            lines.append(
                f"{study.name}: figures show {MAX_ARMS} of {ran} arms (plain, weight 1, then the "
                "highest scores); the tables have them all."
            )
    if len(studies) > MAX_STUDIES:
        lines.append(f"Figures show the first {MAX_STUDIES} of {len(studies)} settings.")
    return lines


def _measure_note(study: Study) -> str:
    lives = " Claims are judged by the authors' own score instead, Table IV's \"same measure\"."
    lives *= study.judged_by_lives
    if study.job == "atari" and study.column == EVALUATED:
        first, last = study.read_at
        reports = f" (each run's first report from there on: {first:,} to {last:,} steps)"
        return f"Scores: {EVALUATED_SCORE}{reports * (first < last)}.{lives}"
    if study.job == "atari":
        apart = " Runs were evaluated, but not all of them at one step." * study.was_evaluated_apart
        return f"Scores: {GAME_SCORE}.{apart}{lives}"
    if study.job == "mnist":
        return "Scores: test accuracy in per cent, of the epoch that the protocol reports."
    return "Scores: the value that the sweep reports."


def _curve_note(seeds: str) -> str:
    return (
        "Thick lines: mean over the seeds that are compared; thin lines: single seeds, those that "
        f"ended early too. Bands: {seeds}, from {MIN_SEEDS} seeds on, where all have values."
    )


BAND: Final = "95% interval of the mean (Student's t over seeds)"


def _lines(study: Study, column: str, factor: float = 1.0, *, pretext: bool = False) -> list[Line]:
    """The arms' curves of a column; with `pretext` only of those that have a pretext head."""
    lines = []
    shared = shared_words(study)
    for arm in shown_arms(study):
        curves: list[tuple[Any, Any]] = []
        others: list[tuple[Any, Any]] = []
        for seed, run in arm.runs.items():
            rows = run.curve(column)
            if len(rows) and not (pretext and arm.key.is_plain):
                curve = rows[run.x].to_numpy(float), factor * rows[column].to_numpy(float)
                (curves if seed in arm.scores else others).append(curve)
        words = arm.key.name.split(", ")
        label = ", ".join(word for word in words if word not in shared)
        lines.append(Line(arm.key.name, curves, others, label))
    return lines


def shared_words(study: Study) -> list[str]:
    """Returns what the names of all of a study's arms with a pretext loss have in common.

    Nothing where such an arm is alone, or all names are short enough to stand beside their lines.
    """
    names = [arm.key.name for arm in shown_arms(study) if arm.key.weight > 0]
    if len(names) < 2 or max(map(len, names)) <= NAME_WIDTH:
        return []
    first, *others = [name.split(", ")[1:] for name in names]
    return [word for word in first if all(word in other for other in others)]


def _title(study: Study, about: str = "") -> str:
    """Of a panel: the study, what is drawn, and on a line of its own what the names leave out."""
    shared = ", ".join(shared_words(study))
    return f"{study.name}{about and f': {about}'}" + (shared and f"\npretext arms: {shared}")


def _chance(study: Study) -> dict[str, float]:
    tasks = {arm.key.task for arm in shown_arms(study)} & set(available_pretext_tasks())
    chances = sorted({1 / make_task(task).num_classes for task in tasks})
    return {f"chance {chance:.3g}": chance for chance in chances}


def _game_pictures(
    studies: Sequence[Study], looks: dict[str, tuple[str, str]]
) -> list[Table | Picture]:
    scores, reasons = [], []
    for study in studies[:MAX_STUDIES]:
        levels = {}
        column, measure = study.drawn
        if study.where in HUMAN_AND_RANDOM and not study.judged_by_lives:  # of whole games
            levels = {"random play": HUMAN_AND_RANDOM[study.where][1]}
        scores.append(Panel(_title(study), "agent steps", measure,
                            _lines(study, column), levels))  # fmt: skip
        if any(not arm.key.is_plain for arm in shown_arms(study)):
            reasons += [
                Panel(_title(study, "pretext head"), "agent steps", "aux accuracy",
                      _lines(study, "aux_accuracy", pretext=True), _chance(study), range=(0, 1)),
                Panel(_title(study, "do the losses pull together?"), "agent steps",
                      "cosine of TD and aux gradients",
                      _lines(study, "gradient_cosine", pretext=True), {"at right angles": 0.0},
                      range=(-1, 1)),
            ]  # fmt: skip
    lives = (
        "Runs whose claims are judged by lives: mean of the last 100 lives of training (of all, "
        "where there were fewer), rewards clipped, as in the paper's Figure 10. "
    ) * any(study.judged_by_lives for study in studies[:MAX_STUDIES])
    blocks: list[Table | Picture] = [Picture(
        "curves", "Learning curves (Figure 10)", draw_panels(scores, looks),
        "Score against agent steps (4 frames each); whole games, unclipped: of evaluations where "
        f"all runs have {CURVE} or more and share a step, else of training. " + lives
        + _curve_note(BAND),
    )]  # fmt: skip
    if any(line.curves or line.others for panel in reasons for line in panel.lines):
        blocks.append(Picture(
            "explanation", "Pretext head and gradients", draw_panels(reasons, looks),
            "Accuracy of the pretext head on samples with a label, and the cosine of the two "
            "losses' gradients on the shared trunk. " + _curve_note(BAND),
        ))  # fmt: skip
    return blocks


def _classifier_pictures(
    studies: Sequence[Study], looks: dict[str, tuple[str, str]], name: str, other: str
) -> list[Table | Picture]:
    panels, reasons = [], []
    for study in studies[:MAX_STUDIES]:
        strict = dict(study.context).get("protocol") == "strict"
        shown = "validation_accuracy" if strict else "test_accuracy"
        what = "validation accuracy (%)" if strict else "test accuracy (%)"
        panels += [
            Panel(_title(study, "loss"), "epoch", "training loss", _lines(study, "loss"),
                  whole_x=True),
            Panel(_title(study, "accuracy"), "epoch", what, _lines(study, shown, 100),
                  whole_x=True, range=(0, 100)),
        ]  # fmt: skip
        if any(not arm.key.is_plain for arm in shown_arms(study)):
            reasons.append(Panel(
                _title(study), "epoch", "aux accuracy (%)",
                _lines(study, "aux_accuracy", 100, pretext=True), whole_x=True, range=(0, 100),
            ))  # fmt: skip
    blocks: list[Table | Picture] = [Picture(
        name, "Training loss and accuracy (Figure 8)", draw_panels(panels, looks),
        "By epoch. Under strict the test set is read once, so the validation split is drawn. The "
        "training loss of an arm with a pretext head holds both losses. " + _curve_note(BAND),
    )]  # fmt: skip
    if any(line.curves or line.others for panel in reasons for line in panel.lines):
        blocks.append(Picture(
            other, "Accuracy of the pretext head", draw_panels(reasons, looks, columns=3),
            "On transformed test images (validation images under strict). " + _curve_note(BAND),
        ))  # fmt: skip
    return blocks


def _contrasts(studies: Sequence[Study]) -> Section | None:
    """Other settings than the pretext task's that have several values, on top of one another."""
    contrasts = make_contrasts(studies)
    if not contrasts:
        return None
    blocks: list[Table | Picture] = []
    shown = [each.study for each in contrasts if each.study.job == "atari"][:MAX_STUDIES]
    if shown:
        names = [arm.key.name for study in shown for arm in shown_arms(study)]
        panels = [
            Panel(_title(study), "agent steps", study.drawn[1], _lines(study, study.drawn[0]))
            for study in shown
        ]
        blocks.append(Picture(
            "settings", "Learning curves of other settings",
            draw_panels(panels, arm_colours(names, [])), _curve_note(BAND),
        ))  # fmt: skip
    for each in contrasts:
        study, words = each.study, " and ".join(name.replace("_", "-") for name in each.names)
        note = (
            f"Compared at {study.size}. Difference to the arm that stands beside it, of the same "
            f"pretext task: the first value of {words} here. {_measure_note(study)}"
        )
        blocks.append(Table(f"{study.name}: {words}", tables.contrast_rows(each), note))
    return Section("Other settings beside one another", (), blocks)


def _weights(studies: Sequence[Study]) -> Section | None:
    drawn = []
    for study in studies:
        curves = weight_curves(study)
        if curves:
            drawn.append((study.name, study.measure, curves))
    if not drawn:
        return None
    caption = (
        "Above: each seed's score (small), mean and 95% interval (Student's t; one seed: none). "
        "Below: the mean of the differences to weight 0 of the same seed, with its interval; an "
        "interval across the dotted line decides nothing. Weight 0 is the plain arm; it has no "
        "place on a logarithmic axis and stands left of the break."
    )
    picture = Picture("weights", "Score against aux weight", draw_weights(drawn[:MAX_STUDIES]),
                      caption)  # fmt: skip
    return Section("Aux weight", (), [picture])


def weight_curves(study: Study) -> list[WeightCurve]:
    """Returns score and gain over weight for each pretext task that ran at two weights or more."""
    groups: dict[Any, list[Arm]] = {}
    for arm in study.arms if not study.stands_alone else ():
        if not arm.key.is_plain and arm.scores:
            other = tuple(pair for pair in arm.key.aux if pair[0] != "aux_weight")
            groups.setdefault(other, []).append(arm)
    curves = []
    for other, arms in groups.items():
        if len(arms) < 2:
            continue
        plain = study.plain_of(arms[0])
        arms = [*([plain] if plain else []), *sorted(arms, key=lambda arm: arm.key.weight)]
        gains: list[Interval | None] = []
        for arm in arms:
            gain = None
            if plain is not None and arm is not plain:
                gain = difference(arm.scores, plain.scores)
            gains.append(Interval(gain.mean, gain.low, gain.high) if gain else None)
        named = ArmKey(study.job, study.where, (), (*other, ("aux_weight", 1.0))).name
        curves.append(WeightCurve(
            name=named.replace(", weight 1", ""),
            weights=[arm.key.weight for arm in arms],
            scores=[list(arm.scores.values()) for arm in arms],
            means=[tables.score_interval(arm.scores.values()) for arm in arms],
            gains=gains,
        ))  # fmt: skip
    return curves


def _aggregates(studies: Sequence[Study], looks: dict[str, tuple[str, str]]) -> Section | None:
    suites = tables.make_suites(studies)
    for suite in suites:
        suite.keep(looks)  # all may be too many for a figure: see shown_arms
    suites = [suite for suite in suites if suite.arms]
    if not suites:
        return None
    blocks: list[Table | Picture] = []
    for i, suite in enumerate(suites[:MAX_STUDIES]):
        iqm, improvement = suite.iqm(), suite.improvement()
        note = f"Tasks: {', '.join(suite.tasks)}. Unit: {suite.measure}."
        if suite.left_out:
            note += f" Left out: {'; '.join(suite.left_out)}."
        blocks += [
            Picture(
                f"aggregates-{i + 1}" if len(suites) > 1 else "aggregates",
                f"{suite.name}: IQM, probability of improvement, profiles",
                draw_aggregates(iqm, improvement, _profiles(suite), looks, measure=suite.measure),
                "Colours as on the left. Bars and bands: 95% stratified bootstrap intervals; a "
                "mark without a bar has one run in some task, or no width. " + note,
            ),
            Table("", suite.rows(iqm, improvement)),
        ]
    text = (
        "IQM, probability of improvement and performance profiles as rliable defines them (Agarwal "
        "et al. 2021). Runs, the first axis, are seeds; tasks, the second, are games or data sets. "
        "With one task the scores stand in its own unit; several games are put on one scale by the "
        "scores of a human and of random play (1 and 0). Intervals: percentile bootstrap with "
        f"{BOOTSTRAP_RESAMPLES:,} resamples (profiles: {PROFILE_RESAMPLES:,}), stratified by task, "
        "through scipy.stats.bootstrap (the package rliable 1.2.0 needs arch below 8, which does "
        "not import beside pandas 3). With three seeds such an interval "
        "is too narrow, and has no width where all runs of one arm beat all of the other; the "
        "verdicts above rest on Student's t."
    )
    return Section("Measures of rliable", [text], blocks)


def _profiles(suite: Suite) -> list[Profile]:
    pooled = np.concatenate([scores for arm in suite.arms.values() for scores in arm])
    low, high = float(pooled.min()), float(pooled.max())
    margin = 0.05 * (high - low) or 1.0
    thresholds = np.linspace(low - margin, high + margin, 101)
    return [
        Profile(name, thresholds, *performance_profile(scores, thresholds))
        for name, scores in suite.arms.items()
    ]


def _paper_tables(results: Results, studies: Sequence[Study]) -> Section:
    blocks: list[Table | Picture] = []
    groups = tables.classification_arms(studies)
    for (dataset, other), arms in groups.items():
        title = f"{dataset}, {other}" if other else dataset
        note = "Intervals: Student's t over seeds, 95%."
        blocks.append(Table(f"Table I: test accuracy in per cent, {title}",
                            classes.table_1(arms, dataset), note))  # fmt: skip
        few = tables.paper_weight_only(arms)
        blocks.append(Table(f"Table II: test accuracy of each class in per cent, {title}",
                            classes.table_2(few, dataset), f"{note} Columns \"printed\" are the "
                            "paper's, whatever the data set's size or epochs here."))  # fmt: skip
        if dataset in classes.DIGITS:
            blocks.append(Table(f"{classes.HALF_TURNS}: {title}", classes.half_turns(arms)))
        pretext = classes.pretext_accuracies(arms)
        if pretext:
            blocks.append(Table(f"{classes.PRETEXT}: {title}", pretext))
    if not groups:
        blocks += [Table("Table I: test accuracy of MNIST in per cent", tables.not_run_table_1()),
                   Table("Table II: test accuracy of each class in per cent",
                         tables.not_run_table_2())]  # fmt: skip
    blocks += [
        *(
            Table(f"Table III: accuracy of DeepFake detection per frame in per cent, {title}", rows,
                  "The paper's numbers are of DFDC." if results.probes else "")
            for title, rows in tables.table_3(results.probes).items()
        ),
        Table(
            "Table IV: mean score in 100 episodes",
            tables.table_4(studies, results.evaluations),
            "\"Same measure\": the best mean of 100 training episodes as the authors' code counts "
            "them (per life, clipped rewards) and takes it (every 10,000 steps past the start of "
            "learning, from 100 lives on, to one decimal), up to the steps that are compared; mean "
            "over seeds with Student's t interval. \"Whole games\": trained agents over unclipped "
            "whole games, from the runs' own evaluations or experiments/evaluate.py, interval over "
            "agents: each once, and only such as were evaluated after as many steps, at one "
            "epsilon and stickiness (the most agents; then the usual play, then the most steps). "
            "Human and world record are whole games. By our numbers so is the paper's Random row: "
            "on Breakout it lies beside a random agent's whole games, far above its score per "
            "life, so it compares with that row's \"whole games\" cell, not with \"same measure\".",
        ),
    ]  # fmt: skip
    return Section("The paper's tables", (), blocks)


def _evaluations(results: Results) -> Section | None:
    if not results.evaluations:
        return None
    note = (
        "Whole games, unclipped. The interval is the bootstrap's over games of one agent: it says "
        "how well that agent is known, nothing about other seeds."
    )
    return Section(
        "Trained agents", (), [Table("", tables.evaluation_rows(results.evaluations), note)]
    )


def _provenance(results: Results, studies: Sequence[Study]) -> Section | None:
    if not studies:
        return None
    note = (
        "Missing seeds: asked for by the sweep's or the experiment's settings, without a score "
        "that could be compared. A run of a single command asks for no others."
    )
    return Section("Seeds and commits", (), [Table("", tables.seed_rows(studies), note)])


def _left_out(results: Results) -> Section | None:
    blocks: list[Table | Picture] = []
    for title, lines in (("", results.left_out), ("Trials that ended otherwise", results.notes)):
        if lines:
            rows = [{"folder or file": line.source, "why": line.why} for line in lines]
            blocks.append(Table(title, rows))
    return Section("Left out", (), blocks) if blocks else None


def _method() -> Section:
    return Section("How the numbers are made", [
        "Every number is computed from the files that the runs wrote. A run is one training; an "
        "arm is what runs share that differ in their seed only.",
        "Arms are compared within one game or data set and one setting (network, protocol, "
        "whatever a sweep varied), at equal steps: those of the shortest finished run (the "
        "shortest of all, if none has finished), or, where games were evaluated on the way, the "
        "last step at which every run was. Evaluations are of "
        "one step if they were asked for at the same one: each is made at its run's first report "
        "from there on. Runs without such a step are compared by their training scores. A run that "
        "did not come that far is not compared, and is listed. Classifiers, of which one value is "
        "reported, are compared with those of as many epochs only. Of two runs of one seed in one "
        "arm the first counts. Runs of the aux loss alone (schedule aux-only) stand by themselves: "
        "no claim, gain or row of Table IV counts an agent that never made a TD update. So do the "
        "trials of population-based training, which changes settings and copies weights on the "
        "way: their arms are called by the settings of the start.",
        "Intervals of means and differences are Student's t over seeds, 95%. With one seed there "
        "is none.",
    ])  # fmt: skip
