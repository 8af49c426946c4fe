"""Which figures a study has, what is drawn in them, and what stands beside the paper."""

import dataclasses
from xml.etree import ElementTree

import numpy as np
import pytest
from test_report_runs import LRS, figure1, plan_of, run

from batchramp import store
from batchramp.plan import Plan
from batchramp.report.cells import studies
from batchramp.report.curves import METRICS, draw, mean_curve, styles
from batchramp.report.figures import figures, threshold_figures
from batchramp.report.page import render
from batchramp.report.published import GRID, PUBLISHED, beside
from batchramp.schedules import Constant, Cosine, Exponential, StepDecay

PANELS = ("constant", "cosine")


def shown(records):
    (study,) = studies(records)
    return list(figures(study))


def named(records):
    return {figure.title.partition(".")[0]: figure for figure in shown(records)}


def words(figure):
    """What each drawing says to who cannot see it."""
    return [ElementTree.fromstring(d.svg).get("aria-label", "") for d in figure.drawings]


def test_the_main_runs_have_the_numbers_of_the_paper():
    records = figure1(2, PANELS)
    found = named(records)
    assert list(found)[:3] == ["Figure 1", "Figure 2", "Train loss, beside figure 2"]
    assert {"Figure 3", "Figure 6", "Figure 7"} < set(found)
    assert [name for name, _ in found["Figure 3"].legend] == ["constant", "cosine"]
    assert {d.axis for d in found["Figure 6"].drawings} == {""}
    vit = [dataclasses.replace(r, experiment="figure10") for r in records]
    assert {"Figure 10", "Figure 11", "Figure 12"} < set(named(vit))
    assert "Figure 6" not in named(vit)
    own = [dataclasses.replace(r, experiment="") for r in records]
    assert not any(figure.title.startswith("Figure") for figure in shown(own))


def test_wherever_a_norm_is_drawn_so_is_the_train_loss():
    for experiment in ("figure1", "figure4", "figure5", "a11", "figure10", "baselines", "decide"):
        records = [dataclasses.replace(r, experiment=experiment) for r in figure1(1, PANELS)]
        texts = [text for figure in shown(records) for text in words(figure)]
        for start in ("Running minimum", "Train loss by epochs"):
            assert any(text.startswith(start) for text in texts), experiment
    assert any("loss" in figure.title for figure in shown(list(grid())))


def test_lr_schedules_are_lines_where_panels_are_what_differs():
    panels = ("constant", "inverse-sqrt", "inverse-sqrt, constant beta")
    records = [
        run("increasing", panel, s, experiment="figure4", norm=0.02 * (1 + i),
            plan=dataclasses.replace(plan_of("increasing", panel), gamma=1.0, beta=0.9))
        for i, panel in enumerate(panels) for s in (0, 1)
    ]  # fmt: skip
    figure = named(records)["Figure 4"]
    assert [name for name, _ in figure.legend] == list(panels)
    lines = ElementTree.fromstring(figure.drawings[0].svg).iter("path")
    titles = [line[0].text for line in lines if line.get("class") == "m"]
    assert sorted(t.rpartition(":")[0] for t in titles if t) == sorted(panels)


def test_the_start_of_the_loss_is_a_level():
    records = [dataclasses.replace(r, experiment="figure5") for r in figure1(2, PANELS)]
    first = shown(records)[0]
    assert first.title == "Figure 5. Train loss, cnn"
    assert all("before the first step: 2.30" in d.svg for d in first.drawings)
    cells = studies(records)[0].panel("constant")
    (level,) = draw(cells, METRICS[2], "epochs", styles([c.line for c in cells]), start=True).levels
    assert level.y == pytest.approx(2.3)


@pytest.mark.parametrize(
    ("best", "said"),
    [
        (75.0, "at least 70 %, at the end of an epoch, the paper’s threshold"),
        (60.0, "at least 59 %, at the end of an epoch (the paper’s 70 % is reached by 0 of 4"),
    ],
)
def test_dots_stand_where_a_threshold_is_first_passed(best, said):
    ends = {"increasing": (0.02, best), "small": (0.05, best)}
    records = figure1(3, PANELS, tuple(ends), ends, jump=False, noise=0.001)
    figure = named(records)["Figure 6"]
    assert said in figure.note
    cells = studies(records)[0].panel("constant")
    style = styles([c.line for c in cells])
    aim = 70.0 if best > 70 else 59.0
    plot = draw(cells, METRICS[0], "samples", style, threshold=aim)
    assert len(plot.dots) == 2
    for cell, dot in zip(cells, plot.dots, strict=True):
        x, mean, _, _ = mean_curve(cell, METRICS[0], "samples")
        first = min(np.flatnonzero(mean >= aim))
        assert (dot.x, dot.y) == (x[first], mean[first])
        assert mean[first - 1] < aim
        assert dot.words in words(figure)[0]


def test_a_threshold_that_most_pass_at_once_tells_nothing():
    """The paper's is then replaced by the hardest that is passed later."""
    records = figure1(1, PANELS, epochs=24)
    early = [
        dataclasses.replace(r, rows=[{**x, "test_accuracy": 80 + 0.5 * x["epoch"]} for x in r.rows])
        for r in records
    ]
    note = named(early)["Figure 6"].note
    # 80 + 0.5 · 23 at the end.
    assert "at least 91 %, at the end of an epoch (the paper’s 70 % is reached by 12 of 12" in note
    assert "12 of them in the first tenth of the run" in note
    flat = [
        dataclasses.replace(r, rows=[{**x, "test_accuracy": 80.0} for x in r.rows]) for r in records
    ]
    figure = named(flat)["Figure 6"]
    assert "No round threshold tells these runs apart" in figure.note
    assert "<circle" not in figure.drawings[0].svg


# --------------------------------------------------------------------------------- the A.10 grid


def grid(task="digits", epochs=10, seeds=1, lost=False):
    size = Exponential(32, factor=2, every=max(epochs // 5, 1))
    for lr in GRID:
        for i, beta in enumerate((0.3, 0.5, 0.9)):
            for j, gamma in enumerate((0.2, 0.4, 0.7)):
                plan = Plan(epochs=epochs, batch_size=size, lr=Cosine(lr),
                            beta=StepDecay(beta, factor=0.5, every=5), gamma=gamma)  # fmt: skip
                for seed in range(seeds):
                    here = lost and (lr, i, j) == (0.5, 2, 2)
                    yield run(
                        f"lr {lr} beta {beta} gamma {gamma}", "cosine", seed, plan=plan,
                        experiment="figure8", task=task, model="resnet18", norm=0.003 / lr, noise=0,
                        accuracy=70 + i + 0.1 * j, status="collapsed" if here else "finished",
                    )  # fmt: skip


def cells_of(drawing):
    """Colour, number and words of a heat map's cells."""
    root = ElementTree.fromstring(drawing.svg)
    return [(g[0].get("fill"), g[1].text, g[2].text) for g in root.iter("g")]


def test_the_grid_is_four_heat_maps_a_quantity_on_one_scale_of_colours():
    records = list(grid(lost=True))
    found = {figure.title: figure for figure in shown(records)}
    best = found["Figure 8. Test accuracy, best over epochs"]
    assert "Best over epochs on test, as the paper does" in best.note
    assert [d.panel for d in best.drawings] == ["lr 0.05", "lr 0.1", "lr 0.25", "lr 0.5"]
    norms = [cells_of(d) for d in found["Figure 9. Minimum of the full-gradient norm"].drawings]
    assert all(len(cells) == 9 for cells in norms)
    first = records[0].rows[-1]["min_full_gradient_norm"]
    assert norms[0][0][1] == f"{first:.4f}"
    # The same number has the same colour in every map, and lost runs have neither.
    colours = {}
    for fill, number, said in (cell for cells in norms for cell in cells):
        assert colours.setdefault(number, fill) == fill or number == "–"
        assert (number == "–") == ("collapsed" in said)
    assert len(set(colours.values())) == len(colours) == 5
    assert norms[3][8][1] == "–"
    assert list(threshold_figures(studies(records)[0])) == []


def test_best_over_epochs_is_of_each_run():
    records = list(grid(seeds=2))
    rows = [*records[0].rows]
    rows[3] = {**rows[3], "test_accuracy": 97.0}
    records[0] = dataclasses.replace(records[0], rows=rows)
    found = {figure.title: figure for figure in shown(records)}
    best = cells_of(found["Figure 8. Test accuracy, best over epochs"].drawings[0])[0]
    other = max(row["test_accuracy"] for row in records[1].rows)
    assert best[1] == f"{(97 + other) / 2:.1f} %"
    last = found["Test accuracy of the last epoch, beside figure 8"]
    assert "97" not in cells_of(last.drawings[0])[0][2]


def test_what_is_no_grid_is_drawn_as_lines():
    records = [dataclasses.replace(r, experiment="figure8") for r in figure1(1, PANELS)]
    assert shown(records)[0].title == "Test accuracy"


# ---------------------------------------------------------------------------- beside the paper


def paper_scale(norm=0.012, task="cifar100", **others):
    """The paper's setting in a few rows of its 300."""
    for label, ends in (("increasing", (norm, 73.0)), ("large", (0.5, 58.0))):
        for panel in LRS:
            size = Exponential(8, factor=2, every=30) if label == "increasing" else Constant(4096)
            plan = Plan(epochs=300, batch_size=size, lr=plan_of(label, panel).lr)
            for seed in (0, 1):
                record = run(label, panel, seed, plan=plan, norm=ends[0], accuracy=ends[1],
                             task=task, model="resnet18", noise=0, **others)  # fmt: skip
                yield dataclasses.replace(record, rows=record.rows[-1:])


def test_values_stand_beside_the_papers_at_its_scale_alone():
    (study,) = studies(paper_scale())
    table = beside(study)
    assert table is not None
    assert table.title == "Beside the paper"
    rows = {(row[0], row[1]): row[2:] for row in table.rows}
    assert rows["1", "constant, increasing (8 → 4096)"] == (
        "test accuracy, last epoch", "73 ± 0.5 %", "73.0 %", "within the error of reading",
    )  # fmt: skip
    assert rows["1", "inverse-sqrt, large (b = 4096)"][-1] == "+4.0 points"
    assert rows["1", "cosine, large (b = 4096)"][-1] == "−7.0 points"
    assert rows["3", "constant, increasing (8 → 4096)"][-1] == "within the error of reading"
    assert rows["3", "inverse-sqrt, increasing (8 → 4096)"][-1] == "0.300 times"
    assert not any("small" in name for _, name in rows)


def test_a_policy_with_other_batch_sizes_or_lost_runs_is_not_compared():
    records = list(paper_scale())
    other = Plan(epochs=300, batch_size=1024, lr=0.1)
    changed = [dataclasses.replace(r, plan=other) if r.label == "large" else r for r in records]
    table = beside(studies(changed)[0])
    assert table is not None
    assert not any("large" in row[1] for row in table.rows)
    records[0] = dataclasses.replace(records[0], status="collapsed")
    table = beside(studies(records)[0])
    assert table is not None
    last = [row[-1] for row in table.rows if row[1] == "constant, increasing (8 → 4096)"]
    assert set(last) == {"not compared: 1 of 2 collapsed"}


@pytest.mark.parametrize("change", ["task", "model", "epochs"])
def test_at_another_scale_no_number_of_the_paper_is_shown(change):
    records = list(paper_scale())
    plan = Plan(epochs=30, batch_size=8, lr=0.1)
    replaced = {"task": {"task": "digits"}, "model": {"model": "cnn"}, "epochs": {"plan": plan}}
    records = [dataclasses.replace(r, **replaced[change]) for r in records]
    table = beside(studies(records)[0])
    assert table is not None
    assert "Not comparable in size: another setting than the paper’s" in table.note
    assert not any(char.isdigit() for row in table.rows for cell in row[2:4] for char in cell)
    rows = {(row[0], row[1]): row[2:] for row in table.rows}
    assert rows["1", "test accuracy, constant"] == (
        "increasing › large", "increasing › large", "1 of 1",
    )  # fmt: skip
    by_lr = rows["3", "minimum norm, increasing batch, by lr"]
    assert by_lr[0] == "constant › cosine › polynomial › inverse-sqrt"
    assert "not comparable in size" in render(records).lower()


def test_the_order_follows_the_rows():
    swapped = [
        dataclasses.replace(r, label={"increasing": "large", "large": "increasing"}[r.label])
        for r in paper_scale(task="digits")
    ]
    table = beside(studies(swapped)[0])
    assert table is not None
    row = next(row for row in table.rows if row[:2] == ("1", "test accuracy, constant"))
    assert row[2:] == ("increasing › large", "large › increasing", "0 of 1")


def test_the_grid_beside_the_paper():
    records = [dataclasses.replace(r, rows=r.rows[-1:]) for r in grid("cifar100", epochs=150)]
    other = [
        dataclasses.replace(r, plan=dataclasses.replace(r.plan, batch_size=32)) for r in records
    ]
    assert beside(studies(other)[0]) is None
    assert beside(studies(records[:-1])[0]) != beside(studies(records)[0])
    table = beside(studies(records)[0])
    assert table is not None
    assert [row[0] for row in table.rows] == ["8", "9"] * 4
    first = table.rows[0]
    assert first[1:4] == (
        "lr 0.05, nine cells", "test accuracy, best over epochs", "73.0 % [72.8, 73.2]",
    )  # fmt: skip
    assert first[5].endswith("of 9 in the paper’s range")


def test_what_the_paper_shows_is_whole():
    assert all(len(cells) == 9 and low < high for cells, (low, high) in GRID.values())
    for experiment, readings in PUBLISHED.items():
        keys = [(r.figure, r.panel, r.label, r.column) for r in readings]
        assert len(set(keys)) == len(keys), experiment
        assert all(0 < r.ends[0] <= r.low <= r.high <= r.ends[1] for r in readings)
    assert beside(studies(figure1(1, PANELS))[0]) is not None
    assert beside(studies([run(experiment="own")])[0]) is None


def odd(rng):
    """A few runs with numbers that are missing, zero, or at the ends of floats."""
    experiment = rng.choice(["figure1", "figure4", "figure5", "figure8", "figure10", "a11", "own"])
    for seed in range(rng.integers(1, 5)):
        status = rng.choice(["finished", "finished", "running", "diverged", "collapsed"])
        record = run(
            str(rng.choice(["increasing", "small", "lr 0.1"])), str(rng.choice(["constant", ""])),
            seed, status=str(status), epochs=int(rng.choice([1, 4])), experiment=str(experiment),
            initial=bool(rng.integers(2)),
        )  # fmt: skip
        columns = [c for c in store.COLUMNS if c not in ("epoch", "steps", "samples", "at_chance")]
        rows = [{**row, rng.choice(columns): rng.choice([None, 0.0, 1e300, 1e-300])}
                for row in record.rows[: rng.integers(0, 5)]]  # fmt: skip
        gone = rng.choice(columns)
        yield dataclasses.replace(record, rows=[{**row, gone: None} for row in rows])


@pytest.mark.parametrize("seed", range(20))
def test_odd_numbers_make_a_page(seed):
    rng = np.random.default_rng(seed)
    (study, *_) = studies(odd(rng))
    for figure in (*figures(study), *threshold_figures(study)):
        for drawing in figure.drawings:
            numbers = [e.get(k, "") for e in ElementTree.fromstring(drawing.svg).iter()
                       for k in ("d", "x", "y", "cx", "cy", "data-axes")]  # fmt: skip
            assert not any(word in text for text in numbers for word in ("nan", "inf"))
    assert render(study.records)
