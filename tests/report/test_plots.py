"""Pictures of runs: which runs form a series, what is drawn of them, and what their files look like."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.figure import Figure
from matplotlib.image import imread
from places import ROOT

from a2tgpo_trl.cli import main
from a2tgpo_trl.report.looks import COLOURS, look, plain
from a2tgpo_trl.report.plots import by_turn, plot_bars, plot_curves, plot_turns, with_turns
from a2tgpo_trl.report.seeds import over_seeds, weighted
from a2tgpo_trl.report.series import Run, Series, area, common_name, evaluated, mean_curve, read_series, smooth


def write(
    folder: Path,
    *,
    settings: dict | None = None,
    shift: float = 0.0,
    steps: int = 8,
    every: int | None = None,
    scores: bool = True,
    gains: bool = True,
) -> Path:
    """Write a finished run as training leaves it, whose numbers follow the step, shifted."""
    folder.mkdir(parents=True)
    history: list[dict] = []
    for step in range(1, steps + 1):
        entry = {"step": step, "epoch": 0.1, "loss": 0.1, "reward": 1.0, "rewards/exact_match/mean": step / 10 + shift}
        if gains:
            entry |= {"gain/mean": step + shift, "gain/turn_1/mean": step + shift, "clip_scale/turn_1": 1.0}
            entry |= {"gain/turn_2/mean": -step + shift, "turns/survivors_turn_2": float(step)}
            entry |= {"value/after": -1.0, "value/after_turn_1": -2.0}
        history.append(entry)
        if every is not None and step % every == 0:
            history.append({"step": step, "eval_rewards/exact_match/mean": step / 10 + shift})
    history.append({"step": steps, "train_loss": 0.1})
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    if settings is not None:
        recipe = {"credit": "a2tgpo", "output_dir": str(folder), **settings}
        (folder / "whole_recipe.yaml").write_text(yaml.safe_dump(recipe))
    if scores:
        (folder / "evaluation").mkdir()
        for when, mean in (("before", 0.1 + shift), ("after", 0.8 + shift)):
            score = {"mean": mean, "low": mean - 0.05, "high": mean + 0.05, "number": 90}
            (folder / "evaluation" / f"{when}.json").write_text(json.dumps({"everything": {"exact_match": score}}))
    return folder


def seeds(folder: Path, name: str, shifts: list[float], **more) -> list[Path]:
    credit = {"credit": name}
    return [
        write(folder / f"{name}-{seed}", settings={**credit, "seed": seed}, shift=shift, **more)
        for seed, shift in enumerate(shifts)
    ]


def test_non_finite_evaluations_are_left_out():
    means = (0.5, None, float("inf"), float("nan"))
    history = [{"step": step, "eval_rewards/f1/mean": mean} for step, mean in enumerate(means)]
    assert list(evaluated(history)) == [(0, "held_out/f1", 0.5)]


@pytest.fixture
def drawn(monkeypatch):
    """The figures that would be saved."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kwargs: figures.append(self))
    return figures


def legends(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes if axes.get_legend() for text in axes.get_legend().get_texts()]


# ---- which runs are one series


def test_runs_that_differ_by_their_seed_alone_are_one_series(tmp_path):
    runs = [*seeds(tmp_path, "grpo", [0.0, 0.1]), *seeds(tmp_path, "gtpo", [0.0, 0.1, 0.2])]
    runs.append(write(tmp_path / "faster", settings={"credit": "grpo", "seed": 2, "learning_rate": 1e-3}))
    runs.append(write(tmp_path / "script"))
    found = read_series([runs[0], runs[2], runs[1], *runs[3:]])
    assert [(one.label, len(one.runs)) for one in found] == [
        *(("grpo (2 seeds)", 2), ("gtpo (3 seeds)", 3), ("faster", 1), ("script", 1))
    ]


def test_runs_with_the_same_seed_form_no_series(tmp_path):
    # 42 is the seed of a recipe that names none.
    same = [write(tmp_path / "one", settings={"seed": 42}), write(tmp_path / "two", settings={})]
    assert [one.label for one in read_series(same)] == ["one", "two"]


def test_runs_of_the_same_name_are_labelled_by_folder_and_duplicates_refused(tmp_path):
    runs = [write(tmp_path / cell / "run", settings={"credit": cell}) for cell in ("grpo", "gtpo")]
    assert [one.name for one in read_series(runs)] == [str(run) for run in runs]
    with pytest.raises(ValueError, match="named twice"):
        read_series([runs[0], runs[0]])


def test_series_of_the_same_name_are_labelled_by_their_first_run(tmp_path):
    runs = [
        write(tmp_path / f"run-{number}", settings={"credit": credit, "seed": number})
        for number, credit in enumerate(["grpo", "grpo", "gtpo", "gtpo"])
    ]
    assert [one.label for one in read_series(runs)] == ["run-0 (2 seeds)", "run-2 (2 seeds)"]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["grpo-0", "grpo-1"], "grpo"),
        (["run-10", "run-12"], "run"),
        (["igpo_seed3", "igpo_seed4"], "igpo"),
        (["reseed-1", "reseed-2"], "reseed"),
        (["qwen3-1", "qwen3-2"], "qwen3"),
        (["a", "b"], "a"),
        (["outputs/main/igpo/own/0/run", "outputs/main/igpo/own/1/run"], "outputs/main/igpo/own"),
        (["only"], "only"),
    ],
)
def test_a_series_is_named_by_what_its_runs_have_in_common(names, found):
    assert common_name(names) == found


# ---- numbers


def test_the_area_is_the_mean_height_between_evaluations():
    # 10 steps at 0.3 and 10 at 0.6 on average.
    assert area([(0, 0.2), (10, 0.4), (20, 0.8)]) == pytest.approx(0.45)
    # Uneven steps: (5 x 1 + 15 x 0) / 20
    assert area([(0, 1.0), (5, 1.0), (5, 0.0), (20, 0.0)]) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="at least two evaluations"):
        area([(0, 0.2)])


def test_interval_over_seeds_uses_students_t():
    # Mean 2, deviation 1, t of two degrees of freedom 4.303: half-width 4.303 / sqrt(3) = 2.484
    assert str(over_seeds([1, 2, 3])) == "2.000 (-0.484 to 4.484)" and str(over_seeds([0.5])) == "0.500"


def test_weighted_interval_worked_out_by_hand():
    found = weighted([1, 2, 3], [1, 1, 2])
    assert (found.mean, found.low, found.high) == pytest.approx((2.25, -0.3435, 4.8435), abs=1e-3)
    alike, plain_mean = weighted([1, 2, 4], [3, 3, 3]), over_seeds([1, 2, 4])
    assert (alike.mean, alike.low, alike.high) == pytest.approx((plain_mean.mean, plain_mean.low, plain_mean.high))
    assert (weighted([5], [2]).low, weighted([5], [2]).high) == (5, 5)


def test_mean_curve_uses_only_steps_of_all_seeds():
    ((step, found),) = mean_curve([[(0, 0.2), (10, 0.4)], [(0, 0.4)]])
    # Mean 0.3, deviation 0.1414; t of one degree of freedom 12.706: 12.706 x 0.1414 / sqrt(2) = 1.2706
    assert (step, found.number) == (0, 2) and found.mean == pytest.approx(0.3)
    assert found.high - found.mean == pytest.approx(1.2706, abs=1e-3)
    assert smooth([(1, 0.0), (2, 1.0), (3, 2.0)], 2) == [(1, 0.0), (2, 0.5), (3, 1.5)]


def test_metric_names_map_to_names_by_turn_and_back():
    assert by_turn("gain/mean")[0] == "gain/turn_{}/mean"
    assert "clip_scale/turn_{}" in by_turn("clip_scale/mean") and "value/after_turn_{}" in by_turn("value/after")
    names = [
        "gain/turn_1/mean",
        "clip_scale/turn_2",
        "value/after_turn_1",
        "turn_ratio/mean",
        "useful/auc/gains_turn_3",
    ]
    found = with_turns(Series("x", [Run({name: [(1, 0.0)] for name in names})]))
    assert found == {"gain/mean", "clip_scale/mean", "value/after", "useful/auc/gains"}
    for name in found:
        assert any(pattern.format(number) in names for pattern in by_turn(name) for number in (1, 2, 3))


# ---- curves


def test_a_curve_over_seeds_is_their_mean_with_students_interval(tmp_path, drawn):
    series = read_series(seeds(tmp_path, "grpo", [0.0, 0.1], every=2) + seeds(tmp_path, "gtpo", [0.0, 0.1], every=2))
    assert plot_curves(series, tmp_path / "x.png", ["held_out/exact_match"]) == []
    (axes,) = drawn[0].axes
    grpo, gtpo = axes.lines
    # Before and after come from their own questions: 0.1 and 0.8 at the end, and a half of 0.1 over two seeds.
    assert grpo.get_xdata().tolist() == [0, 2, 4, 6, 8]
    assert grpo.get_ydata() == pytest.approx([0.15, 0.25, 0.45, 0.65, 0.85])
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    # Deviation 0.0707: 12.706 x 0.0707 / sqrt(2) = 0.6353
    assert (band.min(), band.max()) == pytest.approx((0.15 - 0.6353, 0.85 + 0.6353), abs=1e-3)
    assert legends(drawn[0]) == ["grpo (2 seeds)", "gtpo (2 seeds)"]
    assert grpo.get_linestyle() != gtpo.get_linestyle() and grpo.get_marker() != gtpo.get_marker()
    assert axes.get_title() == "exact match, held out" and axes.get_ylim() == (0, 1)


def test_held_out_scores_get_a_panel_with_several_seeds_only(tmp_path, drawn):
    several, alone = seeds(tmp_path, "grpo", [0.0, 0.1]), write(tmp_path / "alone")
    plot_curves(read_series([*several, alone]), tmp_path / "x.png")
    plot_curves(read_series([alone]), tmp_path / "x.png")
    titles = [[axes.get_title() for axes in figure.axes] for figure in drawn]
    assert titles == [
        ["exact match, held out", "exact match, training", "gain per turn"],
        ["exact match", "gain per turn"],
    ]
    assert legends(drawn[1]) == ["alone, training", "alone, held out (intervals over questions)"]
    # Its interval is over questions: 0.05 below and above.
    low_and_high = [path.vertices[:, 1].tolist() for path in drawn[1].axes[0].collections[0].get_paths()]
    assert low_and_high == [pytest.approx([0.05, 0.15]), pytest.approx([0.75, 0.85])]


def test_training_curves_are_averaged_before_the_mean_over_seeds(tmp_path, drawn):
    plot_curves(read_series(seeds(tmp_path, "grpo", [0.0, 2.0])), tmp_path / "x.png", ["gain/mean"])
    (line,) = drawn[0].axes[0].lines
    # 1, (1 + 2) / 2, ... (4 + 5 + 6 + 7 + 8) / 5, and 1 more over both seeds
    assert line.get_ydata() == pytest.approx([2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0])


def test_missing_metric_is_reported_only_if_it_was_named(tmp_path, drawn, capsys):
    with_gains, without = write(tmp_path / "a2tgpo"), write(tmp_path / "grpo", gains=False)
    words = ["plot", str(with_gains), str(without), "-o", str(tmp_path / "x.png")]
    assert main([*words, "--metric", "gain/mean"]) == 0
    assert capsys.readouterr().err == "grpo has no gain/mean.\n"
    assert main(words) == 0
    assert capsys.readouterr().err == ""


def test_series_with_runs_lacking_a_metric_is_left_out_with_a_message(tmp_path, drawn):
    runs = seeds(tmp_path, "grpo", [0.0, 0.1], every=4) + seeds(tmp_path, "gtpo", [0.0], every=4)
    runs += [write(tmp_path / "gtpo-9", settings={"credit": "gtpo", "seed": 9}, scores=False)]
    said = ["Some runs of gtpo have no held_out/exact_match, so it is left out."]
    assert plot_curves(read_series(runs), tmp_path / "x.png") == said
    assert plot_bars(read_series(runs), tmp_path / "x.png", ["gain/mean", "held_out/exact_match"]) == said
    assert legends(drawn[0]) == ["grpo (2 seeds)", "gtpo (2 seeds)"]  # the latter in training
    first, second = (axes.patches for axes in drawn[1].axes[::2])
    assert len(first) == 2 and len(second) == 1 and first[0].get_facecolor() == second[0].get_facecolor()


def test_runs_whose_steps_never_meet_have_no_mean_in_common(tmp_path):
    one, other = Run({"x": [(1, 0.0)]}), Run({"x": [(2, 0.0)]})
    with pytest.raises(ValueError, match="No run has the metric 'x'"):
        plot_curves([Series("odd", [one, other])], tmp_path / "x.png", ["x"])


def test_bars_keep_their_colours_and_negative_values_are_drawn(tmp_path, drawn):
    runs = [write(tmp_path / "grpo", gains=False), write(tmp_path / "gtpo", shift=-20.0)]
    assert plot_bars(read_series(runs), tmp_path / "x.png", ["gain/mean", "rewards/exact_match/mean"]) == [
        "grpo has no gain/mean."
    ]
    gains, rewards = (axes.patches for axes in drawn[0].axes[::2])
    assert gains[0].get_facecolor() == rewards[1].get_facecolor() != rewards[0].get_facecolor()
    assert gains[0].get_width() < 0


# ---- by turn


def test_gains_by_turn_are_those_of_the_first_and_the_last_quarter_of_steps(tmp_path, drawn):
    plot_turns(read_series(seeds(tmp_path, "grpo", [0.0, 0.1])), tmp_path / "x.png")
    early, late = (axes.lines[0].get_ydata() for axes in drawn[0].axes)
    # Turn 1 of steps 1 and 2: 1.5, and 0.05 over seeds. Turn 2 is weighted by its survivors: -(1 x 1 + 2 x 2) / 3.
    assert early == pytest.approx([1.55, -5 / 3 + 0.05])
    # Steps 7 and 8: 7.5, -(49 + 64) / 15
    assert late == pytest.approx([7.55, -113 / 15 + 0.05])
    assert [axes.get_title() for axes in drawn[0].axes] == [
        *("gain per turn, first quarter of steps", "gain per turn, last quarter of steps")
    ]
    assert legends(drawn[0]) == ["grpo (2 seeds)"]


def test_single_run_by_turn_has_intervals_over_steps_and_says_so(tmp_path, drawn):
    plot_turns(read_series([write(tmp_path / "alone")]), tmp_path / "x.png", ["gain/mean", "value/after"])
    assert legends(drawn[0]) == ["alone (intervals over steps)"]
    below, above = drawn[0].axes[0].collections[0].get_paths()[0].vertices[:, 1]
    # Steps 1 and 2: mean 1.5, deviation 0.7071: 12.706 x 0.7071 / sqrt(2) = 6.353
    assert (below, above) == pytest.approx((1.5 - 6.353, 1.5 + 6.353), abs=1e-3)
    assert len(drawn[0].axes) == 4


# ---- bars


def test_bars_show_area_and_last_score_over_seeds(tmp_path, drawn):
    runs = seeds(tmp_path, "grpo", [0.0, 0.1], every=4) + seeds(tmp_path, "gtpo", [0.1, 0.2], every=4)
    assert plot_bars(read_series(runs), tmp_path / "x.png") == []
    area, end = drawn[0].axes
    # 0.1 at step 0, 0.4 at 4, 0.8 at 8: (0.25 + 0.6) / 2 = 0.425, and half of 0.1 over seeds
    assert [bar.get_width() for bar in area.patches] == pytest.approx([0.475, 0.575])
    assert [bar.get_width() for bar in end.patches] == pytest.approx([0.85, 0.95])
    assert [text.get_text() for text in area.get_yticklabels()] == ["grpo (2 seeds)", "gtpo (2 seeds)"]
    assert len({bar.get_hatch() for bar in area.patches}) == 2 and len(area.collections) == 2  # with whiskers
    assert [text.get_text().strip() for text in end.texts] == ["0.850", "0.950"]


def test_bars_say_what_makes_areas_hard_to_compare(tmp_path):
    runs = [write(tmp_path / "short", steps=4), write(tmp_path / "long", steps=8)]
    told = " ".join(plot_bars(read_series(runs), tmp_path / "x.png"))
    assert "of only two scores" in told and "end at different steps: 4, 8" in told


def test_bars_without_held_out_scores_need_a_named_metric(tmp_path, drawn):
    series = read_series([write(tmp_path / "run", scores=False)])
    with pytest.raises(ValueError, match="--metric reward"):
        plot_bars(series, tmp_path / "x.png")
    plot_bars(series, tmp_path / "x.png", ["gain/mean"])
    # The last five steps, 4 to 8
    assert drawn[0].axes[1].patches[0].get_width() == pytest.approx(6.0)


# ---- of a study


def test_a_studys_results_are_drawn_as_its_report_has_them(tmp_path, drawn, capsys):
    results = ROOT / "recipes" / "study" / "main.parquet"
    for kind in plots_by_kind():
        assert main(["plot", str(results), "--kind", kind, "-o", str(tmp_path / f"{kind}.svg")]) == 0
    curves, turns, bars = drawn
    report = (ROOT / "recipes" / "study" / "main.md").read_text()
    for cell, bar in zip(bars.axes[0].get_yticklabels(), bars.axes[0].patches, strict=True):
        name, seeds_there = re.fullmatch(r"(\w+) \((\d+) seeds\)", cell.get_text()).groups()
        assert f"| {name} | {seeds_there} | {bar.get_width():.3f} (" in report
    assert legends(curves) == [cell.get_text() for cell in bars.axes[0].get_yticklabels()]
    assert "grpo has no gain/mean by turn." in capsys.readouterr().err and len(turns.axes) == 2


def plots_by_kind() -> tuple[str, ...]:
    return ("curves", "turns", "bars")


def test_results_without_their_study_are_an_error(tmp_path, capsys):
    (tmp_path / "lost.parquet").write_bytes((ROOT / "recipes" / "study" / "quickstart.parquet").read_bytes())
    assert main(["plot", str(tmp_path / "lost.parquet")]) == 2
    assert "must be beside its file (lost.yaml)" in capsys.readouterr().err


def test_study_results_of_several_settings_are_an_error(tmp_path, capsys):
    study, table = (ROOT / "recipes" / "study" / f"quickstart.{suffix}" for suffix in ("yaml", "parquet"))
    (tmp_path / study.name).write_text(study.read_text().replace("../quickstart.yaml", "quickstart"))
    table = pd.read_parquet(table)
    table.loc[table["seed"] == table["seed"].max(), "identity"] = "another"
    table.to_parquet(tmp_path / "quickstart.parquet", index=False)
    assert main(["plot", str(tmp_path / "quickstart.parquet"), "-o", str(tmp_path / "x.png")]) == 2
    assert "have different settings or versions" in capsys.readouterr().err


# ---- files


@pytest.mark.parametrize("kind", plots_by_kind())
def test_an_svg_is_the_same_each_time_and_its_texts_are_text(kind, tmp_path):
    runs = list(map(str, seeds(tmp_path, "gr$po_", [0.0, 0.1]) + [write(tmp_path / "_own")]))
    files = [tmp_path / f"{number}.svg" for number in range(2)]
    for file in files:
        assert main(["plot", *runs, "--kind", kind, "-o", str(file)]) == 0
    first, second = (file.read_bytes() for file in files)
    assert first == second and b"<dc:date>" not in first
    texts = [" ".join(element.itertext()).strip() for element in ElementTree.fromstring(first).iter()]
    assert "gr$po (2 seeds)" in texts and any(text.startswith("_own") for text in texts)


def test_a_picture_keeps_its_series_apart_in_grey():
    # Neighbours differ in luminance, and all eight differ in more than colour.
    grey = [np.dot([int(colour[i : i + 2], 16) for i in (1, 3, 5)], [0.299, 0.587, 0.114]) for colour in COLOURS]
    assert all(abs(one - other) > 15 for one, other in zip(grey, grey[1:4], strict=False))
    for number in range(8):
        for other in range(number):
            assert look(number).dashes != look(other).dashes and look(number).marker != look(other).marker
            assert look(number).hatch != look(other).hatch
    assert len({look(number) for number in range(32)}) == 32
    assert plain("a$b") == r"a\$b" and plain("_x") == " _x"


def test_each_kind_of_plot_has_its_default_file_name(tmp_path, monkeypatch, capsys):
    run = write(tmp_path / "run", every=2)
    monkeypatch.chdir(tmp_path)
    for kind in plots_by_kind():
        assert main(["plot", str(run), "--kind", kind]) == 0
    names = capsys.readouterr().out.split()
    assert names == ["learning_curves.png", "turns.png", "bars.png"]
    for name in names:
        height, width, *_ = imread(tmp_path / name).shape
        assert width > height > 100


# ---- what cannot be drawn


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-o", "x.pdf"], "pictures are written as .png or .svg; this name has '.pdf'"),
        (["-o", "x"], "this name has no suffix"),
        (["--metric", "gain/men"], "Did you mean 'gain/mean'? There are: gain/mean"),
        (
            ["--kind", "turns", "--metric", "reward"],
            "No run has reward by turn. There are: clip_scale/mean, gain/mean",
        ),
        (["--kind", "bars", "--metric", "held_out/f1"], "There are: held_out/exact_match"),
    ],
)
def test_invalid_plot_options_are_an_error(words, said, tmp_path, monkeypatch, capsys):
    run = write(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert main(["plot", str(run), *words]) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.glob("*.*"))


def test_folders_that_are_no_finished_run_say_what_to_name(tmp_path, capsys):
    write(tmp_path / "half" / "checkpoint-9")
    write(tmp_path / "half" / "checkpoint-10")
    write(tmp_path / "many" / "grpo-0")
    (tmp_path / "none").mkdir()
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": 1, "train_loss": 0.1}]}))
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "trainer_state.json").write_text("{")
    for name, said in (
        ("half", f"name its last checkpoint: {tmp_path / 'half' / 'checkpoint-10'}"),
        ("many", f"It contains runs: name them ({tmp_path / 'many' / 'grpo-0'} ...)"),
        ("none", "Name the output_dir of a run that finished"),
        ("gone", "There is no such folder"),
        ("empty", "holds no logged step"),
        ("broken", "is not the log of a run"),
    ):
        assert main(["plot", str(tmp_path / name), "-o", str(tmp_path / "x.png")]) == 2
        assert said in capsys.readouterr().err
