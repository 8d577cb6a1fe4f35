"""Rows of a report's tables: arms, claims, the paper's tables, measures of rliable, seeds."""

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final

import numpy as np

from rayssl import classification_report as classes
from rayssl.claims import CLAIMS
from rayssl.comparison import (
    EVALUATED,
    PERCENT_JOBS,
    Arm,
    Contrast,
    Finding,
    Study,
    judge,
    seed_list,
)
from rayssl.deepfake import TABLE_III
from rayssl.intervals import (
    Difference,
    Interval,
    difference,
    interquartile_mean,
    probability_of_improvement,
)
from rayssl.metrics import (
    HUMAN_AND_RANDOM,
    TABLE_I,
    TABLE_II,
    TABLE_IV,
    mean_interval,
)
from rayssl.plays import played_alike
from rayssl.results import Evaluation, Pairs, Probe, Run, Settings

Row = dict[str, Any]
NOT_RUN: Final = "not run"
PAPER_AGENTS: Final = {"none": "DQN", "rotation": "Rotation", "permutation": "Sequence",
                       "permutation-6": "Sequence"}  # fmt: skip


def span(low: float | None, high: float | None, *, sign: bool = False) -> str | None:
    """Returns `1.20 to 3.40`; None where there is no interval.

    An end that rounding would put on the other side of zero, or on it, has more digits.
    """
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return None
    return f"{number(low, sign=sign)} to {number(high, sign=sign)}"


def number(value: float, *, sign: bool = False) -> str:
    """Returns a score with two digits, or as many as show that it is not zero."""
    digits = 2
    while value != 0 and round(value, digits) == 0 and digits < 6:
        digits += 1
    if round(value, digits) == 0:
        return "0.00"
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def score_interval(scores: Iterable[float]) -> Interval:
    """Returns mean and Student's t interval of seeds' scores; NaN if there are none."""
    values = list(scores)
    if not values:
        return Interval(math.nan, math.nan, math.nan)
    return Interval(*mean_interval(values))


def arm_rows(study: Study) -> list[Row]:
    """Returns a study's arms with score, interval, and gain over the plain arm."""
    rows = []
    for arm in study.arms:
        found = score_interval(arm.scores.values())
        gain = study.gain(arm)
        row: Row = {
            "arm": arm.key.name,
            "seeds": seed_list(arm.scores) or "none",
            "missing seeds": seed_list(arm.missing) or None,
            "mean": None if math.isnan(found.value) else number(found.value),
            "95% interval": span(found.low, found.high),
            "gain over plain": number(gain.mean, sign=True) if gain else None,
            "interval of the gain": span(gain.low, gain.high, sign=True) if gain else None,
            "compared": _how(gain),
        }
        accuracy = [arm.runs[seed].value_at("aux_accuracy", study.budget) for seed in arm.scores]
        known = [value for value in accuracy if value is not None]
        row["aux accuracy"] = f"{np.mean(known):.3f}" if known else None
        rows.append(row)
    return rows


def contrast_rows(contrast: Contrast) -> list[Row]:
    """Returns a contrast's arms with score, interval, and difference to the first of their task."""
    rows = []
    for arm in contrast.study.arms:
        found = score_interval(arm.scores.values())
        base = contrast.base_of(arm)
        gap = difference(arm.scores, base.scores) if base and arm.scores else None
        rows.append({
            "arm": arm.key.name,
            "seeds": seed_list(arm.scores) or "none",
            "mean": None if math.isnan(found.value) else number(found.value),
            "95% interval": span(found.low, found.high),
            "beside": base.key.name if base else None,
            "difference": number(gap.mean, sign=True) if gap else None,
            "interval of the difference": span(gap.low, gap.high, sign=True) if gap else None,
            "compared": _how(gap),
        })  # fmt: skip
    return rows


def _how(gain: Difference | None) -> str | None:
    if gain is None:
        return None
    if not gain.paired:
        return "unpaired (Welch)"
    return f"{gain.num_seeds} pair{'' if gain.num_seeds == 1 else 's'}"


def game_rows(runs: Sequence[Run], above: float) -> list[Row]:
    """Returns one row for each run of a game, over all of its steps.

    Where runs differ in their setting (network, protocol, ...), a column says it.
    """
    rows = []
    several = len({run.key.context for run in runs}) > 1
    for run in runs:
        last = run.rows.iloc[-1]
        scores = run.curve("score_mean_100")
        crossed = scores[scores["score_mean_100"] > above]
        updates = [run.value_at(name, math.inf) for name in ("td_updates", "aux_updates")]
        rows.append({
            "game": run.settings["game"],
            **({"setting": run.key.setting} if several else {}),
            "task": run.settings["aux_task"] if run.key.is_from_scratch else run.key.name,
            "weight": run.key.weight,
            "seed": run.seed,
            "steps": run.reached,
            "TD / aux updates": " / ".join("-" if u is None else f"{int(u):,}" for u in updates),
            "last score": last["score_mean_100"],
            "best score": scores["score_mean_100"].max(),
            f"first above {above:g}": int(crossed["env_steps"].iloc[0]) if len(crossed) else None,
            "aux accuracy": last.get("aux_accuracy"),
            "minutes": last.get("wall_s", math.nan) / 60,
            "commit": ", ".join(run.commits),
        })  # fmt: skip
    return rows


def claim_findings(studies: Sequence[Study]) -> list[Finding]:
    """Returns every claim of the paper beside what was run."""
    return [finding for claim in CLAIMS for finding in judge(claim, studies)]


def claim_rows(findings: Sequence[Finding]) -> list[Row]:
    """Returns one row for each claim and each arm that tests it; parts of a claim apart."""
    rows = []
    for found in findings:
        if not found.part.isdigit():
            rows.append(_claim_row(found))
    return rows


def class_rows(findings: Sequence[Finding]) -> list[Row]:
    """Returns one row for each class that a claim names and each arm."""
    return [
        {
            "class": found.part,
            "tested on": _tested_on(found),
            **_gap(found),
            "verdict": found.verdict,
        }
        for found in findings
        if found.part.isdigit()
    ]


def _claim_row(found: Finding) -> Row:
    text, judged = f"{found.claim.text} ({found.claim.source})", found.claim.quantity
    gap = _gap(found)
    if found.part == "all":
        judged = f"{judged}, each of the four"
        gap["difference"] = "below" if found.study else None
    elif found.part:
        text = f"... {found.part} (their explanation, {found.claim.source})"
        judged = "mean of the four minus mean of the others, rotation - plain < 0"
    return {
        "claim": text, "judged by": judged, "tested on": _tested_on(found),
        "protocol: measure": found.study.judged_by if found.study else None, **gap,
        "verdict": found.verdict,
    }  # fmt: skip


def _tested_on(found: Finding) -> str:
    if found.study is None or found.arm is None:
        return NOT_RUN
    small = " (small)" if found.study.is_small else ""
    size = f"{found.study.budget:,} {found.study.unit}{small}"
    return f"{found.study.name}: {found.arm.key.name}; {size}"


def _gap(found: Finding) -> Row:
    gap = found.difference
    return {
        "seeds": (gap.num_seeds if gap.paired else f"{gap.num_seeds}, unpaired") if gap else None,
        "difference": number(gap.mean, sign=True) if gap else None,
        "95% interval": span(gap.low, gap.high, sign=True) if gap else None,
    }


def classification_arms(studies: Sequence[Study]) -> dict[tuple[str, str], list[classes.Arm]]:
    """Returns (data set, other settings) -> arms with a score, as classification_report has them.

    Arms that would bear the same name there stand under different settings.
    """
    groups: dict[tuple[str, str], list[classes.Arm]] = {}
    for study in studies:
        if study.job != "mnist" or study.stands_alone:
            continue
        for arm in study.arms:
            other = [f"{k} {v}" for k, v in study.context if k != "protocol"]
            copies = dict(arm.key.aux).get("aux_copies")
            other += [f"copies {copies}"] if copies is not None else []
            runs = {seed: list(arm.runs[seed].epochs) for seed in arm.scores}
            if runs:
                weight = 1.0 if arm.key.task == "none" else arm.key.weight
                made = classes.Arm(str(dict(study.context)["protocol"]), arm.key.task, weight, runs)
                groups.setdefault((study.where, ", ".join(other)), []).append(made)
    return groups


def not_run_table_1() -> list[Row]:
    """Returns the paper's Table I without anything beside it."""
    return [{"pretext task": task, "accuracy": NOT_RUN, "paper": f"{value:.2f}"}
            for task, value in TABLE_I.items()]  # fmt: skip


def not_run_table_2() -> list[Row]:
    """Returns the paper's Table II without anything beside it."""
    return [
        {"class": str(digit), "accuracy": NOT_RUN}
        | {f"printed: {task}": f"{values[digit]:.2f}" for task, values in TABLE_II.items()}
        for digit in range(10)
    ]


def paper_weight_only(arms: Sequence[classes.Arm]) -> list[classes.Arm]:
    """Returns the plain arms and those of weight 1, the paper's; all where weight 1 was not run."""
    if not any(arm.aux_weight == 1 and arm.aux_task != "none" for arm in arms):
        return list(arms)
    return [arm for arm in arms if arm.aux_weight in (0, 1)]


def table_3(probes: Sequence[Probe]) -> dict[str, list[Row]]:
    """Returns the paper's Table III with what was run beside it: title -> rows.

    One table for each set of faces and protocol; one, of rows not run, without any probe. Further
    splits (family, actor, ...) have columns of their own; the paper's hard split is `video`.
    """
    groups: dict[str, list[Probe]] = {}
    for probe in probes:
        groups.setdefault(f"{probe.faces}, protocol {probe.protocol}", []).append(probe)
    return {
        title: [
            {
                "model": paper.name,
                **_table_3_cells(backbone, (paper.random_split, paper.hard_split), own),
            }
            for backbone, paper in TABLE_III.items()
        ]
        for title, own in (groups or {"DFDC": []}).items()
    }


def _table_3_cells(backbone: str, paper: Sequence[float], probes: Sequence[Probe]) -> Row:
    named = {"random": "random split", "video": "hard split"}
    row: Row = {}
    for (split, name), printed in zip(named.items(), paper, strict=True):
        row |= {f"{name}, paper": f"{printed:.1f}", name: _probe_cell(backbone, split, probes)}
    for split in dict.fromkeys(probe.split for probe in probes):
        if split not in named:
            row[f"{split} split"] = _probe_cell(backbone, split, probes)
    return row


def _probe_cell(backbone: str, split: str, probes: Sequence[Probe]) -> str:
    """Mean accuracy over seeds of each layer and classifier; one seed: its interval over videos."""
    arms: dict[str, list[Probe]] = {}
    for probe in probes:
        if (probe.backbone, probe.split) == (backbone, split):
            arms.setdefault(f"{probe.classifier} on {probe.layer}", []).append(probe)
    cells = []
    for name, own in arms.items():
        found = score_interval(probe.accuracy[0] for probe in own)
        interval, over = span(found.low, found.high), "seeds"
        if len(own) == 1:
            interval, over = span(*own[0].accuracy[1:]), "videos"
        spread = f"{interval} over {over}, " if interval else ""
        seeds = f"{len(own)} seed{'' if len(own) == 1 else 's'}"
        cells.append(f"{number(found.value)} ({spread}{seeds}; {name})")
    return "; ".join(cells) or NOT_RUN


def table_4(studies: Sequence[Study], evaluations: Sequence[Evaluation]) -> list[Row]:
    """Returns the paper's Table IV: its rows, then each arm of ours at weight 1 under its row.

    For each game: the paper's number; ours by the paper's measure (`paper_code_score`) over the
    seeds that the arm compares, of which some may not have 100 lives yet (`2 of 3 seeds`); the mean
    over whole games of trained agents, from the evaluations in the runs' logs, else from those
    evaluation files that `played_alike` chooses.
    """
    games = ("Pong", "Breakout")
    rows = []
    for agent, printed in TABLE_IV.items():
        own = _own_arms(agent, studies)
        evaluated = [e for e in evaluations if _paper_agent(e) == agent]
        for name in own or [""]:
            pairs = [pair for found in own.get(name, {}).values() for pair in found]
            files = [e for e in evaluated if not pairs or any(_may_be_of(e, *p) for p in pairs)]
            row: Row = {"agent": agent if name in ("", "none") else f"{agent}: {name}"}
            for game in games:
                arms = own.get(name, {}).get(game, [])
                row[f"{game}, paper"] = f"{printed[game]:g}"
                if agent not in ("Human", "World Record"):
                    row |= {
                        f"{game}, same measure": _best_cells(arms)
                        or ("no score yet" if arms else _lives(files, game) or NOT_RUN),
                        f"{game}, whole games": _logged(arms)
                        or _evaluated(files, game, arms, own)
                        or _evaluated_apart(arms)
                        or NOT_RUN,
                    }
            rows.append(row)
    return rows


def _own_arms(agent: str, studies: Sequence[Study]) -> dict[str, dict[str, list[Any]]]:
    """Name -> game -> (study, arm) of what stands for an agent of Table IV."""
    found: dict[str, dict[str, list[Any]]] = {}
    games = [study for study in studies if study.job == "atari" and not study.stands_alone]
    several = len({study.context for study in games}) > 1
    for study in games:
        for arm in study.arms:
            if PAPER_AGENTS.get(arm.key.task) != agent or not arm.runs:
                continue
            if arm.key.task != "none" and arm.key.weight != 1 or not arm.key.is_from_scratch:
                continue
            setting = f", {arm.key.setting}" if several else ""
            name = f"{arm.key.name}{setting}"
            found.setdefault(name, {}).setdefault(study.where, []).append((study, arm))
    return found


def _paper_agent(found: Evaluation) -> str:
    """The row of Table IV; a name that is none: other tasks or weights, never a TD update."""
    if found.agent == "random":
        return "Random"
    if found.td_updates == 0:
        return found.agent
    if found.aux_task != "none" and found.aux_weight not in (1, None):
        return found.agent
    return PAPER_AGENTS.get(found.aux_task, found.aux_task)


def _lives(found: Sequence[Evaluation], game: str) -> str | None:
    """What an agent whose training is not at hand gets per life, with clipped rewards."""
    alike = played_alike([e for e in found if e.game == game and e.life_mean is not None])
    own = [e.life_mean for e in next(iter(alike.values()), []) if e.life_mean is not None]
    return number(float(np.mean(own))) if own else None


def _best_cells(arms: Sequence[tuple[Study, Arm]]) -> str | None:
    """Mean by the paper's measure over the seeds that an arm compares."""
    cells = []
    for study, arm in arms:
        found = study.code_scores(arm)
        if found:
            cells.append(_over_seeds(list(found.values()), len(arm.scores), study.budget))
    return "; ".join(cells) or None


def _logged(arms: Sequence[tuple[Study, Arm]]) -> str | None:
    """Mean over seeds of the evaluations that the runs' own logs hold."""
    found = [
        _over_seeds(list(arm.scores.values()), len(arm.scores), study.budget)
        for study, arm in arms
        if study.column == EVALUATED and arm.scores
    ]
    return "; ".join(found) or None


def _evaluated_apart(arms: Sequence[tuple[Study, Arm]]) -> str | None:
    """What stands for an arm's evaluations where none is at a step that all runs share."""
    runs = [run for study, arm in arms if study.was_evaluated_apart for run in arm.runs.values()]
    return "at no common step" if any(len(run.curve(EVALUATED)) for run in runs) else None


def _over_seeds(values: Sequence[float], compared: int, steps: int) -> str:
    """`14.90 (13.10 to 16.70, 3 seeds of 1,000,000 steps)`; `2 of 3 seeds` where some have none."""
    found = score_interval(values)
    interval = span(found.low, found.high)
    number_of = f"{len(values)} of " if len(values) < compared else ""
    size = f"{number_of}{compared} seed{'s' if compared > 1 else ''} of {steps:,} steps"
    return f"{number(found.value)} ({f'{interval}, ' if interval else ''}{size})"


def _evaluated(
    found: Sequence[Evaluation], game: str, arms: Sequence[tuple[Study, Arm]],
    own_arms: dict[str, dict[str, list[Any]]],
) -> str | None:  # fmt: skip
    """Mean over agents of their mean whole-game scores, of those that were played alike.

    An evaluation knows what its agent was trained with, if its file is not older than that: where
    it may be of several arms, none is named.
    """
    every = [each for games in own_arms.values() for each in games.get(game, [])]
    own = []
    for each in [e for e in found if e.game == game]:
        of_row = any(_may_be_of(each, *arm) for arm in arms)
        of_any = sum(_may_be_of(each, *arm) for arm in every)
        if of_row and of_any > len(arms):
            return "see Trained agents"
        if of_row or not arms and not of_any:
            own.append(each)
    if not own:
        return None
    alike = played_alike(own)
    play, agents = next(iter(alike.items()))
    value = score_interval([e.mean for e in agents])
    after = "" if play.env_steps is None else f" of {play.env_steps:,} steps"
    words = [
        span(value.low, value.high),
        f"{len(agents)} agent{'s' if len(agents) > 1 else ''}{after}",
        f"{sum(e.num for e in agents)} games",
        play.oddity,
    ]
    others = "; others: see Trained agents" if len(alike) > 1 else ""
    return f"{number(value.value)} ({', '.join(filter(None, words))}{others})"


def _may_be_of(found: Evaluation, study: Study, arm: Arm) -> bool:
    """Whether an arm's training may have made the agent of an evaluation."""
    network = dict(study.context).get("network")
    return (
        found.aux_task == arm.key.task
        and found.network in (network, None)
        and found.aux_weight in (arm.key.weight, None)
        and any(_agree(found.training or (), run.settings) for run in arm.runs.values())
    )


def _agree(training: Pairs, settings: Settings) -> bool:
    return all(settings.get(name, value) == value for name, value in training)


def evaluation_rows(found: Sequence[Evaluation]) -> list[Row]:
    """Returns one row for each evaluation of a trained agent."""
    return [
        {
            "agent": each.agent, "game": each.game, "seed": each.seed, "games": each.num,
            "epsilon": f"{each.epsilon:g}", "sticky": f"{each.sticky:g}",
            "mean": number(each.mean),
            "interval over games": span(each.low, each.high), "IQM over games": number(each.iqm),
            "per life, clipped": None if each.life_mean is None else number(each.life_mean),
            "commit": each.commit, "file": each.source,
        }
        for each in found
    ]  # fmt: skip


class Suite:
    """Arms over the tasks (games, data sets) that they share: what rliable's measures are made of.

    Args:
      studies: of one job and context, one a task; several games need scores in HUMAN_AND_RANDOM.

    Attributes:
      name: the task, or the job of several, and the context.
      tasks: games or data sets, the second axis; the first is seeds.
      measure: unit of the scores.
      arms: name -> one array of scores for each task.
      left_out: arms that some task lacks, in words.
    """

    def __init__(self, studies: Sequence[Study]) -> None:
        first = studies[0]
        several = len(studies) > 1
        setting = first.arms[0].key.setting
        self.name = ", ".join(filter(None, [first.job if several else first.where, setting]))
        self.tasks = [study.where for study in studies]
        normalised = several and first.job not in PERCENT_JOBS
        self.measure = "human-normalised score" if normalised else first.measure
        self.arms: dict[str, list[Any]] = {}
        self.left_out: list[str] = []
        for name in dict.fromkeys(a.key.name for s in studies for a in s.arms if a.scores):
            found = [next((a for a in s.arms if a.key.name == name), None) for s in studies]
            pairs = [(s, a) for s, a in zip(studies, found, strict=True) if a and a.scores]
            if len(pairs) < len(studies):
                has = ", ".join(study.where for study, _ in pairs)
                self.left_out.append(f"{name} has scores on {has} only")
                continue
            self.arms[name] = [
                _normalised(np.array(list(arm.scores.values())), study.where, normalised)
                for study, arm in pairs
            ]
        self._plain = [a.key.name for s in studies for a in s.arms if a.key.is_plain]

    @property
    def plain(self) -> str | None:
        """Name of the plain arm; None without one."""
        return next((name for name in self._plain if name in self.arms), None)

    def keep(self, names: Collection[str]) -> None:
        """Leaves out all arms but these."""
        self.arms = {name: scores for name, scores in self.arms.items() if name in names}

    def iqm(self) -> list[tuple[str, Interval]]:
        """Returns each arm's IQM with its interval."""
        return [(name, interquartile_mean(scores)) for name, scores in self.arms.items()]

    def improvement(self) -> list[tuple[str, Interval]]:
        """Returns each arm's probability of improvement over the plain one."""
        plain = self.plain
        if plain is None:
            return []
        return [
            (name, probability_of_improvement(scores, self.arms[plain]))
            for name, scores in self.arms.items()
            if name != plain
        ]

    def rows(
        self, iqm: Sequence[tuple[str, Interval]], improvement: Sequence[tuple[str, Interval]]
    ) -> list[Row]:
        """Returns one row an arm."""
        chances = dict(improvement)
        rows = []
        for name, found in iqm:
            runs = [len(scores) for scores in self.arms[name]]
            chance = chances.get(name)
            rows.append({
                "arm": name,
                "runs x tasks": f"{'/'.join(map(str, dict.fromkeys(runs)))} x {len(self.tasks)}",
                "IQM": number(found.value),
                "95% interval": span(found.low, found.high),
                "P(better than plain)": number(chance.value) if chance else None,
                "its interval": span(chance.low, chance.high) if chance else None,
            })  # fmt: skip
        return rows


def make_suites(studies: Sequence[Study]) -> list[Suite]:
    """Returns the suites of these studies: one for each job and context.

    A game that no human score is on file for cannot share a scale and has a suite of its own; so
    has each task where no two arms have scores on all of them: one arm compares with nothing.
    """
    groups: dict[tuple[Any, ...], list[Study]] = {}
    for study in studies:
        if any(arm.scores for arm in study.arms):
            apart = study.job not in PERCENT_JOBS and study.where not in HUMAN_AND_RANDOM
            key = study.job, study.context, study.where if apart else ""
            groups.setdefault(key, []).append(study)
    suites = []
    for group in groups.values():
        suite = Suite(group)
        suites += [suite] if len(suite.arms) > 1 else [Suite([study]) for study in group]
    return [suite for suite in suites if suite.arms]


def _normalised(scores: Any, game: str, wanted: bool) -> Any:
    if not wanted:
        return scores
    human, random = HUMAN_AND_RANDOM[game]
    return (scores - random) / (human - random)


def seed_rows(studies: Sequence[Study]) -> list[Row]:
    """Returns one row an arm: seeds, commits, and what is odd about them."""
    return [
        {
            "compared in": study.name,
            "arm": arm.key.name,
            "seeds run": seed_list(arm.runs) or "none",
            "seeds compared": seed_list(arm.scores) or "none",
            "missing seeds": seed_list(arm.missing) or None,
            "commits": ", ".join(dict.fromkeys(c for r in arm.runs.values() for c in r.commits))
            or None,
            "remarks": "; ".join(arm.flags) or None,
        }
        for study in studies
        for arm in study.arms
    ]
