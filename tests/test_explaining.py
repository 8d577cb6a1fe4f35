"""What attribution explains of Atari and MNIST checkpoints, and the script from end to end."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from experiments import attribution
from rayssl.cli import provenance
from rayssl.data import load_dataset
from rayssl.envs.atari import AtariSettings
from rayssl.evaluation import Agent, load_agent, watch_games
from rayssl.explaining import (
    Explained,
    check_target,
    explain_atari,
    explain_mnist,
    region_shares,
)
from rayssl.training import ClassifierSettings, ClassifierTraining
from tests.toy_agents import SIZE, save_agent


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("agents")
    return {
        "rotation": save_agent(base / "rotation"),
        "other": save_agent(base / "other", seed=1),
        "permutation": save_agent(base / "permutation", "permutation"),
        "none": save_agent(base / "none", None),
        "boxing": save_agent(base / "boxing", None, "boxing"),
    }


@pytest.fixture(scope="module")
def agent(folders: dict[str, Path]) -> Agent:
    return load_agent(folders["rotation"])


def explain(agent: Agent, **changes: Any) -> Explained:
    return explain_atari(agent, **{"count": 6, "games": 2, "epsilon": 1.0} | changes)


@pytest.fixture(scope="module")
def explained(agent: Agent) -> Explained:
    return explain(agent, target="q")


# States


def test_states_have_a_ball_and_no_blank_frame_and_come_from_all_games_alike(
    explained: Explained,
) -> None:
    assert explained.frames is not None
    assert sorted(explained.clusters) == [0, 0, 0, 1, 1, 1]
    assert explained.frames.any((2, 3)).all()
    things = explained.regions["ball and paddles"]  # [6, 4, size, size]
    assert things.shape == explained.x.shape
    assert things.any((2, 3)).all()
    # More than a paddle, which lies in the lowest tenth, but for a ball that is being missed.
    assert things[..., : int(0.88 * SIZE), :].any((1, 2, 3)).sum() >= 4


def test_same_seed_same_states_another_seed_others(agent: Agent, explained: Explained) -> None:
    assert torch.equal(explain(agent, target="q").x, explained.x)
    assert not torch.equal(explain(agent, target="q", seed=1).x, explained.x)


def test_regions_turn_with_the_frames_that_the_task_turns(
    agent: Agent, explained: Explained
) -> None:
    turned = explain(agent, target="aux")
    turns = set()
    for i, text in enumerate(turned.captions):
        k = int(text.split()[1])
        turns.add(k)
        assert torch.equal(turned.x[i], explained.x[i].rot90(k, (1, 2)))
        for name, region in turned.regions.items():
            assert np.array_equal(region[i], np.rot90(explained.regions[name][i], k, (1, 2)))
    assert len(turns) > 1


def test_regions_are_reordered_with_the_frames(folders: dict[str, Path]) -> None:
    agent = load_agent(folders["permutation"])
    plain, shuffled = explain(agent, target="q"), explain(agent, target="aux")
    moved = 0
    for i in range(6):
        order = [
            next(k for k in range(4) if torch.equal(plain.x[i, k], frame))
            for frame in shuffled.x[i]
        ]
        moved += order != [0, 1, 2, 3]
        found = shuffled.regions["ball and paddles"][i]
        assert np.array_equal(found, plain.regions["ball and paddles"][i, order])
    assert moved > 0


def test_score_is_that_of_the_true_label_and_of_the_chosen_action_whatever_the_network(
    agent: Agent, folders: dict[str, Path], explained: Explained
) -> None:
    other = load_agent(folders["other"]).network
    turned = explain(agent, target="aux")
    label = int(turned.captions[0].split()[1])
    for network in (agent.network, other):
        logits = network(turned.x[:1], "aux")
        assert torch.equal(turned.score(network, 0)(turned.x[:1]), logits[:, label])
    action = int(agent.network(explained.x[:1], "q").argmax())
    values = other(explained.x[:1], "q")
    assert torch.equal(explained.score(other, 0)(explained.x[:1]), values[:, action])


def test_games_with_too_few_states_are_refused(agent: Agent) -> None:
    with pytest.raises(ValueError, match="Expected 50 states .* in 1 games, got .*raise --games"):
        explain(agent, count=50, games=1, max_game_frames=200)


def test_states_of_an_agent_that_was_trained_with_sticky_actions_are_drawn_without(
    agent: Agent, explained: Explained
) -> None:
    sticky = dataclasses.replace(agent, settings=agent.settings | {"sticky": 0.25})
    assert torch.equal(explain(sticky, target="q").x, explained.x)


def test_game_whose_ram_is_unknown_has_no_regions(folders: dict[str, Path]) -> None:
    found = explain(load_agent(folders["boxing"]), count=2, games=1, max_game_frames=400)
    assert found.regions == {}


def test_watched_consoles_stand_still_in_the_state_that_is_yielded() -> None:
    class Consoles:
        """Counts steps and puts the count into every pixel; a game has three states."""

        def __init__(self) -> None:
            self.time = 0
            self.single_action_space = type("Space", (), {"n": 4})()

        def reset(self, **_: object) -> tuple[np.ndarray, dict[str, np.ndarray]]:
            self.time = 0
            return self._obs(), {"lives": np.array([5])}

        def send(self, actions: np.ndarray) -> None:
            self.time += 1

        def recv(self) -> tuple[Any, ...]:
            over = np.array([self.time == 3])
            return self._obs(), np.zeros(1), over, ~over & False, {"lives": np.array([5])}

        def _obs(self) -> np.ndarray:
            return np.full((1, 4, 2, 2), self.time, np.uint8)

        def close(self) -> None:
            self.closed = True

    consoles = Consoles()
    seen = []
    settings = AtariSettings(game="breakout", num_envs=1)
    for game, state in watch_games(None, settings, consoles, games=2):
        assert int(state.max()) == consoles.time
        seen.append((game, consoles.time))
    assert seen == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert consoles.closed


# Numbers


def test_share_of_a_region_is_the_one_computed_by_hand_and_each_frame_has_its_own() -> None:
    maps = torch.tensor([[[[1.0, -2.0], [0.0, 1.0]], [[4.0, 0.0], [0.0, 0.0]]]])  # sum 8
    region = np.zeros((1, 2, 2, 2), bool)
    region[0, 0, 0, 1] = True  # 2, in the first frame
    region[0, 1, 1] = True  # 0 + 0, in the second
    found = region_shares(maps, {"ball": region})["ball"]
    assert found.of_map.tolist() == [2 / 8]
    assert found.uniform.tolist() == [3 / 8]


def test_maps_do_not_depend_on_the_batch_size_and_follow_the_seed(
    agent: Agent, explained: Explained
) -> None:
    def maps(seed: int, batch_size: int) -> Tensor:
        return explained.maps(
            agent.network, kind="smoothgrad_sq", samples=3, noise=0.05, seed=seed,
            batch_size=batch_size,
        )  # fmt: skip

    first = maps(0, 2)
    assert first.shape == explained.x.shape
    assert torch.allclose(maps(0, 3), first, rtol=1e-3, atol=1e-9)
    assert not torch.allclose(maps(1, 3), first, rtol=1e-3, atol=1e-9)


def test_heads_without_labels_have_no_score_of_their_own(tmp_path: Path) -> None:
    agent = load_agent(save_agent(tmp_path / "curl", "curl"))
    assert check_target(agent, None) == "q"
    with pytest.raises(ValueError, match=r"no score 'aux' \(pretext task curl\)\. .*--target q\."):
        check_target(agent, "aux")
    several = load_agent(save_agent(tmp_path / "several", "inverse+rotation"))
    explained = explain_atari(several, count=2, games=1, max_game_frames=800)
    assert "(rotation)" in explained.what
    shape = explained.x.shape
    assert explained.maps(several.network, kind="smoothgrad", samples=2, noise=0.1, seed=0,
                          batch_size=2).shape == shape  # fmt: skip


def test_score_that_a_network_does_not_have_is_refused(folders: dict[str, Path]) -> None:
    plain, rotation = load_agent(folders["none"]), load_agent(folders["rotation"])
    assert (check_target(plain, None), check_target(rotation, None)) == ("q", "aux")
    with pytest.raises(ValueError, match=r"no score 'aux' \(pretext task none\). .*--target q\."):
        check_target(plain, "aux")
    with pytest.raises(ValueError, match="no score 'class' .*--target aux or q"):
        check_target(rotation, "class")


# Classifiers


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment of mnist.py with the checkpoint of one trial."""
    folder = tmp_path_factory.mktemp("mnist")
    trial = folder / "paper-rotation-w1-s0_0" / "checkpoint_000000"
    trial.mkdir(parents=True)
    training = ClassifierTraining(load_dataset("digits"), ClassifierSettings())
    torch.save(training.state_dict(), trial / "state.pt")
    settings = {"dataset": "digits", "data_dir": None, "verify": True}
    (folder / "settings.json").write_text(json.dumps({"settings": settings}))
    return folder


def test_classifier_is_asked_for_the_label_of_its_test_images(classifier: Path) -> None:
    data = load_dataset("digits")
    state = torch.load(next(classifier.rglob("state.pt")), weights_only=True)
    found = explain_mnist(state, data, count=4)
    for i in range(4):
        label = int(found.captions[i].split()[1])
        matches = [
            int(y) for x, y in zip(data.test_x, data.test_y, strict=True)
            if torch.equal(x.float(), found.x[i])
        ]  # fmt: skip
        assert label in matches
        logits = found.network(found.x[i : i + 1], "class")
        assert torch.equal(found.score(found.network, i)(found.x[i : i + 1]), logits[:, label])
    with pytest.raises(ValueError, match="no score 'q'"):
        explain_mnist(state, data, target="q")


# The script

FEW = ("--samples", "2", "--shown", "2", "--scored", "4")
QUICK = (*FEW, "--games", "2", "--epsilon", "1")


def test_maps_of_an_atari_run_with_shares_and_a_row_for_each_network(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(folders["rotation"]), *QUICK, "--beside", f"second={folders['other']}"]
    video = tmp_path / "maps.mp4"
    found = attribution.main(
        [*words, "--out", str(tmp_path / "a"), "--video", str(video), "--video-steps", "3"]
    )
    assert [row["maps"] for row in found["rows"]] == [
        "as trained", "second", "all weights drawn anew", "a uniform map",
    ]  # fmt: skip
    for row in found["rows"]:
        assert 0 < row["share on score bar"][0] < 0.5
        assert 0 < row["share on ball and paddles"][0] < 0.5
    assert found["rows"][3]["share on score bar"][0] == pytest.approx(17 / 210, abs=0.02)
    assert len(found["likeness_of_each"]["second"]) == 4
    out = capsys.readouterr().out
    assert "| a uniform map " in out
    assert "second: mean " in out
    assert "| as trained " in (tmp_path / "a" / "attribution.md").read_text()
    for name in ("panel.png", "redrawn.png", "conditions.png"):
        assert (tmp_path / "a" / name).read_bytes().startswith(b"\x89PNG")
    with av.open(str(video)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 3
    again = attribution.main([*words, "--out", str(tmp_path / "b"), "--batch-size", "1"])
    for row, other in zip(found["rows"], again["rows"], strict=True):
        assert np.allclose(row["share on score bar"], other["share on score bar"], rtol=1e-3)
    assert again["inputs"] == found["inputs"]


def test_maps_of_a_classifier_are_drawn(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for target in ("class", "aux"):
        out = tmp_path / "results/local/attribution" / f"{classifier.name}-{target}"
        found = attribution.main([str(classifier), *FEW, "--target", target])
        assert "rows" not in found
        assert (out / "conditions.png").is_file()
        assert target != "aux" or "rotation" in found["what"]


def test_checkpoint_has_a_folder_of_its_own_and_takes_no_other_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("w0.1-s0", "second/w0.1-s0"):
        Path(name).mkdir(parents=True)
    first = attribution.Settings(Path("w0.1-s0"))
    folder = attribution.folder_of(first)
    assert folder == Path("results/local/attribution/w0.1-s0")
    assert attribution.folder_of(attribution.Settings(Path("heads/w0.1-s0.pt"))) == folder
    folder.mkdir(parents=True)
    (folder / "attribution.json").write_text(json.dumps(provenance(first)))
    assert attribution.folder_of(attribution.Settings(Path("w0.1-s0").resolve())) == folder
    second = attribution.Settings(Path("second/w0.1-s0"))
    with pytest.raises(ValueError, match="holds the maps of w0.1-s0. Choose another folder with"):
        attribution.folder_of(second)
    assert attribution.folder_of(dataclasses.replace(second, out=folder)) == folder


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """A function that runs main, expects exit code 2 and no trace, and returns stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> str:
        with pytest.raises(SystemExit) as stop:
            attribution.main([*words, *FEW])
        err = capsys.readouterr().err
        assert (stop.value.code, err.count("\n"), list(tmp_path.iterdir())) == (2, 1, [])
        return err

    return run


def test_networks_of_one_game_stand_beside_each_other_however_it_is_spelled(
    agent: Agent, explained: Explained, tmp_path: Path
) -> None:
    subject = attribution.Subject(explained, agent)
    for game in ("ALE/Breakout-v5", "pong"):
        path = save_agent(tmp_path / game, game=game)
        settings = attribution.Settings(Path("run"), target="q", beside=(f"second={path}",))
        if game == "pong":
            with pytest.raises(ValueError, match="plays another game"):
                attribution.networks(subject, settings)
        else:
            assert list(attribution.networks(subject, settings)) == ["as trained", "second"]


@pytest.mark.parametrize(
    ("arm", "words", "text"),
    [
        ("none", ["--target", "aux"], "no score 'aux' (pretext task none). Available: --target q."),
        ("rotation", ["--beside", "x"], "Expected --beside NAME=CHECKPOINT with a name of its own"),
        ("rotation", ["--beside", "x=gone"], "No checkpoint folder at gone."),
        ("rotation", ["--beside", "x=PERMUTATION"], "Use --target q for networks of several tasks"),
        ("rotation", ["--video", "maps.gif"], "Expected a --video path ending in .mp4"),
        ("rotation", ["--video", "/proc/nope/maps.mp4"], "Cannot write /proc/nope/maps.mp4"),
        ("rotation", ["--device", "cuda:99"], "--device cuda:99 cannot be used"),
    ],
)
def test_what_cannot_be_explained_is_one_line(
    arm: str, words: list[str], text: str, folders: dict[str, Path], refused: Callable[..., str]
) -> None:
    words = [word.replace("PERMUTATION", str(folders["permutation"])) for word in words]
    assert text in refused(str(folders[arm]), *words)


def test_folder_without_a_checkpoint_or_with_several_is_one_line(
    classifier: Path, tmp_path_factory: pytest.TempPathFactory, refused: Callable[..., str]
) -> None:
    empty = tmp_path_factory.mktemp("empty")
    assert "of one run or trial in" in refused(str(empty))
    for name in "ab":
        (empty / name).mkdir()
        (empty / name / "state.pt").write_bytes(b"no archive")
    assert "got 2: " in refused(str(empty))
    assert "cannot be read" in refused(str(empty / "a"))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["GAME", "--data-dir", "data"], "--data-dir needs a trial of mnist.py, got "),
        (["GAME", "--weights", "a.pth"], "--weights needs a probe, a file in heads/, got "),
        (["GAME", "--video-steps", "9"], "--video-steps needs --video, the file to write."),
        (["CLASSIFIER", "--video", "a.mp4"], "--video needs an Atari checkpoint, got "),
        (["CLASSIFIER", "--beside", "a=b"], "--beside needs an Atari checkpoint, got "),
        (["CLASSIFIER", "--epsilon", "1"], "--epsilon needs an Atari checkpoint, got "),
        (["CLASSIFIER", "--faces", "faces"], "--faces needs a probe, a file in heads/, got "),
    ],
)
def test_option_that_does_nothing_for_a_checkpoint_is_refused(
    words: list[str], text: str, folders: dict[str, Path], classifier: Path,
    refused: Callable[..., str],
) -> None:  # fmt: skip
    given = {"GAME": str(folders["rotation"]), "CLASSIFIER": str(classifier)}
    assert text in refused(*(given.get(word, word) for word in words))


@pytest.mark.parametrize(
    "state", [{"settings": {"beta1": 0.5}}, {"settings": {"protocol": "paper-code"}}, {}, [1]]
)
def test_checkpoint_of_another_script_is_one_line(
    state: Any, tmp_path_factory: pytest.TempPathFactory, refused: Callable[..., str]
) -> None:
    folder = tmp_path_factory.mktemp("other")  # of bigan.py, of deepfake.py under both protocols
    torch.save(state, folder / "state.pt")
    (folder / "settings.json").write_text(json.dumps({"settings": {}}))
    assert "state.pt to be of a trial of mnist.py, got that of another script" in refused(
        str(folder)
    )
