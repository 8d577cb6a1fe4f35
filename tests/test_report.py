"""Result folders become tables and figures."""

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rayssl.report import (
    COLOURS,
    markdown_table,
    plot_learning_curves,
    read_run,
    time_shares,
)

PNG_PIXELS = (1300, 832)  # 10 x 6.4 inches at 130 dots each


def written(folder: Path, text: str) -> Path:
    """Writes a progress.csv and returns its folder."""
    folder.mkdir(exist_ok=True)
    (folder / "progress.csv").write_text(text)
    return folder


def png_pixels(path: Path) -> tuple[int, int]:
    """Returns width and height as a PNG's first chunk gives them."""
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:24])
    return width, height


def run_rows(**columns: list[float]) -> pd.DataFrame:
    """Returns rows of a run with these columns, a report every 1,000 steps."""
    number = len(next(iter(columns.values())))
    return pd.DataFrame({"env_steps": range(1000, 1000 * number + 1, 1000), **columns})


def test_rows_are_sorted_and_of_duplicates_the_last_counts(tmp_path: Path) -> None:
    text = "env_steps,td_loss\n3000,99\n1000,1\n2000,98\n2000,2\n3000,3\n"
    rows = read_run(written(tmp_path, text))
    assert rows["env_steps"].tolist() == [1000, 2000, 3000]
    assert rows["td_loss"].tolist() == [1, 2, 3]
    assert rows.index.tolist() == [0, 1, 2]


def test_last_line_that_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    # Of 12000,0.5 only the first two signs: as a row, it would be the first of the run.
    rows = read_run(written(tmp_path, "env_steps,td_loss\n10000,0.7\n11000,0.6\n12"))
    assert rows["env_steps"].tolist() == [10_000, 11_000]


def test_empty_cells_and_nan_are_missing_values(tmp_path: Path) -> None:
    rows = read_run(written(tmp_path, "env_steps,a,b\n1000,,nan\n2000,1,2\n"))
    assert rows[["a", "b"]].isna().to_numpy().tolist() == [[True, True], [False, False]]


def test_folder_without_a_log_is_refused_with_what_to_pass(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no progress\.csv: pass the folder of"):
        read_run(tmp_path)


@pytest.mark.parametrize("text", ["", "env_steps,td_loss\n", "env_steps,td_loss\n1000"])
def test_log_without_a_whole_row_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match="no row yet"):
        read_run(written(tmp_path, text))


def test_table_is_aligned_with_a_dash_for_what_is_missing() -> None:
    rows = [
        {"task": "none", "steps": 400_000, "score": -20.25, "aux": float("nan")},
        {"task": "rotation", "steps": 24_000, "score": 0.12345, "aux": None},
        {"task": "permutation", "steps": 5, "aux": 1234.56},
    ]
    assert markdown_table(rows).splitlines() == [
        "| task        | steps   | score | aux     |",
        "| ----------- | ------- | ----- | ------- |",
        "| none        | 400,000 | -20.2 | -       |",
        "| rotation    | 24,000  | 0.123 | -       |",
        "| permutation | 5       | -     | 1,234.6 |",
    ]


def test_table_takes_numpy_numbers_as_pythons() -> None:
    row = {
        "steps": np.int64(400_000), "loss": np.float32(0.5), "score": np.float64("nan"),
        "aux": np.float32("nan"), "whole": np.bool_(True),
    }  # fmt: skip
    last = markdown_table([row]).splitlines()[-1]
    assert last.split() == ["|", "400,000", "|", "0.5", "|", "-", "|", "-", "|", "True", "|"]


def test_table_has_the_columns_of_all_rows_and_survives_a_pipe() -> None:
    lines = markdown_table([{"a": 1}, {"a": 2, "b": "x|y"}]).splitlines()
    assert lines[0].split() == ["|", "a", "|", "b", "|"]
    assert lines[2].split() == ["|", "1", "|", "-", "|"]
    assert lines[3] == r"| 2   | x\|y |"
    assert len({len(line) for line in lines}) == 1


def test_curve_is_a_png_of_the_expected_size_in_a_new_folder(tmp_path: Path) -> None:
    rows = run_rows(
        score_mean_100=[float("nan"), -21, -20], aux_accuracy=[0.25, 0.3, 0.9],
        td_loss=[0.1, 0.2, 0.1], gradient_cosine=[0.0, -0.1, 0.1],
    )  # fmt: skip
    path = plot_learning_curves(
        {"permutation": rows, "none": rows[["env_steps", "td_loss"]]},
        tmp_path / "new" / "curve.png", chance=0.25, random_score=-20.7, title="Pong, seed 0",
    )  # fmt: skip
    assert path == tmp_path / "new" / "curve.png"
    assert png_pixels(path) == PNG_PIXELS
    assert path.stat().st_size > 20_000


@pytest.mark.parametrize(
    "rows",
    [
        run_rows(td_loss=[0.1, 0.2]),
        run_rows(score_mean_100=[float("nan")] * 2, aux_accuracy=[float("nan")] * 2),
        run_rows(td_loss=[0.5]),
    ],
    ids=["columns missing", "columns empty", "one row"],
)
def test_curve_is_drawn_where_there_is_little_or_nothing(
    rows: pd.DataFrame, tmp_path: Path
) -> None:
    path = plot_learning_curves({"none": rows}, tmp_path / "curve.png", chance=0.25)
    assert png_pixels(path) == PNG_PIXELS


def test_every_run_is_drawn_when_there_are_more_runs_than_colours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.axes import Axes

    names, real = [], Axes.plot

    def plot(self: Axes, *args: Any, **kwargs: Any) -> Any:
        names.append(kwargs["label"])
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Axes, "plot", plot)
    runs = {f"seed {i}": run_rows(td_loss=[i, i + 1]) for i in range(len(COLOURS) + 2)}
    plot_learning_curves(runs, tmp_path / "curve.png")
    assert names == list(runs)


def test_import_leaves_pyplot_and_its_backend_alone() -> None:
    script = "import sys, rayssl.report; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=120).returncode == 0


def test_shares_of_time_are_weighted_by_the_seconds_of_their_rows() -> None:
    rows = pd.DataFrame(
        {
            "env_steps": [1_000, 4_000],
            "env_steps_per_s": [100.0, 100.0],  # so 10 s, then 30 s
            "time_learning": [0.5, 0.9],  # 5 s and 27 s
            "time_sampling": [0.5, 0.1],  # 5 s and 3 s
            "time_waiting": [0.0, float("nan")],  # no runners: no such part
        }
    )
    assert time_shares(rows) == pytest.approx({"learning": 32 / 40, "sampling": 8 / 40})
    assert list(time_shares(rows)) == ["learning", "sampling"]
    assert time_shares(rows[["env_steps"]]) == {}
