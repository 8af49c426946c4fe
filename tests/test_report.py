import csv
import dataclasses
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest
from test_report_runs import ENDS, figure1, run, write_runs

from batchramp import report, store
from batchramp.plan import Plan
from batchramp.report.cells import studies
from batchramp.report.claims import judge
from batchramp.report.curves import AXES, METRICS, draw, styles
from batchramp.report.drawing import svg
from batchramp.report.page import render
from batchramp.schedules import Linear

SMALL = {"seeds": 2, "panels": ("cosine",), "labels": ("increasing", "small")}


class Page(HTMLParser):
    """What a reader sees: texts outside style, tables, and whether every tag is closed."""

    VOID = ("meta", "input", "img", "line", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts, self.bold, self.links = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src")]
        if tag not in self.VOID:
            self.open.append((tag, dict(attrs)))

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open and self.open[-1][0] not in ("style", "script"):
            self.texts.append(data)
            if self.open[-1][1].get("class") == "best":
                self.bold.append(data)

    @property
    def text(self):
        """With plain spaces."""
        return " ".join(" ".join(self.texts).replace("\u00a0", " ").split())


def headline(records):
    text = Page(render(records)).text
    return text[: text.index("Means [least, greatest]")]


def nulled(record, *words):
    """The record without the columns that have one of the words in their name."""
    rows = [{k: None if any(w in k for w in words) else v for k, v in r.items()}
            for r in record.rows]  # fmt: skip
    kept = {k: v for k, v in record.initial.items() if not any(w in k for w in words)}
    return dataclasses.replace(record, rows=rows, initial=kept)


# ------------------------------------------------------------------------------------ the file


def test_writes_one_page_that_loads_nothing(tmp_path):
    write_runs(tmp_path, figure1(**SMALL))
    path = report.write(tmp_path)
    text = path.read_text()
    assert path == tmp_path / "report.html"
    assert not re.findall(r"https?:|<link|<img|@import|url\(|fetch|import\(", text)
    assert re.findall(r"<script.*", text) == ["<script>"]
    assert re.findall(r'src="', text) == []
    assert list(tmp_path.glob(".*")) == []
    assert report.write(tmp_path).read_text() == text  # it does not read itself, nor the clock


def test_writes_elsewhere_and_replaces_whole(tmp_path, monkeypatch):
    write_runs(tmp_path / "runs", [run(rows=2, epochs=2)])
    out = tmp_path / "page.html"
    out.write_text("old")

    def refuse(*_):
        assert out.read_text() == "old"
        raise OSError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(OSError, match="no space"):
            report.write(tmp_path / "runs", out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["page.html", "runs"]
    assert report.write(str(tmp_path / "runs"), str(out)) == out
    assert out.read_text().startswith("<!doctype html>")


def test_refusals_are_one_line(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        report.write(tmp_path / "none")
    with pytest.raises(ValueError, match="no run"):
        report.write(tmp_path)
    write_runs(tmp_path, [run(rows=2, epochs=2)])
    for out in (tmp_path, tmp_path / "none" / "page.html"):
        with pytest.raises(ValueError, match=r"^out must be"):
            report.write(tmp_path, out)
    (tmp_path / "000" / "run.json").write_text("{")
    with pytest.raises(ValueError, match="damaged") as caught:
        report.write(tmp_path)
    assert "\n" not in str(caught.value)


def test_needs_no_torch():
    code = "import batchramp.report, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_five_hundred_runs_are_below_five_megabytes():
    records = figure1(2, ("cosine",), epochs=40)  # 6 lines of what may be 6 · 4 · 7 panels
    assert len(render(records).encode()) < 5e6 / 28


def files_of(folder):
    """What the page in ``folder`` links outside itself, as paths."""
    links = Page((folder / "report.html").read_text()).links
    return [folder / unquote(link) for link in links if not link.startswith("#")]


def test_every_run_is_linked_from_where_the_page_lies(tmp_path):
    names = ["50 % & more", "a:b#c?d", "é"]
    for name in names:
        write_runs(tmp_path / "runs" / name, [run("small", name, rows=2, epochs=2)])
    write_runs(tmp_path / "runs" / "empty", [run("small", "none", rows=0, status="failed")])
    report.write(tmp_path / "runs")
    found = files_of(tmp_path / "runs")
    assert all(path.is_file() for path in found)
    for name in names:
        for file in ("run.json", "epochs.jsonl"):
            assert tmp_path / "runs" / name / "000" / file in found
    assert len(found) == 2 * len(names) + 2
    (tmp_path / "pages").mkdir()
    report.write(tmp_path / "runs", tmp_path / "pages" / "report.html")
    assert all(path.is_file() for path in files_of(tmp_path / "pages"))
    assert render(store.read_all(tmp_path / "runs")).count("run.json") == 0


def test_the_table_has_every_run_and_epoch(tmp_path):
    records = [
        run('a,"b"\n', "cosine", 0),
        run("small", seed=1, status="diverged"),
        run("late", seed=2, initial=False, rows=1),
        run("none", seed=3, rows=0, status="failed"),
    ]
    write_runs(tmp_path / "runs", records)
    path = report.write_csv(tmp_path / "runs", tmp_path / "all.csv")
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    read = store.read_all(tmp_path / "runs")
    assert len(lines) == sum(1 + len(record.rows) for record in read) == 4 + 12 + 12 + 1
    for record in read:
        own = [line for line in lines if int(line["seed"]) == record.seed]
        for name in ("panel", "label", "experiment", "task", "model", "optimizer", "status"):
            assert {line[name] for line in own} == {getattr(record, name)}
        assert {line["folder"] for line in own} == {record.folder.name}
        assert [int(line["epoch"]) for line in own] == [-1, *(r["epoch"] for r in record.rows)]
        for key, value in record.initial.items():
            assert (float(own[0][key]) if own[0][key] else None) == value
        for line, row in zip(own[1:], record.rows, strict=True):
            for column in store.COLUMNS:
                value = row[column]
                assert line[column] == ("" if value is None else str(value)), column
                if isinstance(value, float):
                    assert float(line[column]) == value
    report.write(tmp_path / "runs")
    assert (tmp_path / "runs" / "runs.csv").read_bytes() == path.read_bytes()
    with pytest.raises(ValueError, match=r"^path must be"):
        report.write_csv(tmp_path / "runs", tmp_path)


def test_what_comes_from_files_is_text():
    evil = "<script>alert('x')</script>"
    records = [
        run(evil, f"<img src=x onerror=1>{n}", 0, experiment=evil, task="<b>", model="\"><i>",
            status=status, error="<iframe src=//x>", environment={"machine": {"<u>": evil}})
        for n, status in enumerate(("finished", "failed"))
    ]  # fmt: skip
    seen = Page(render(records))
    assert not {"img", "iframe", "b", "i", "u"} & set(seen.tags)
    assert seen.tags.count("script") == 1
    assert seen.text.count(evil) > 4
    assert "<img src=x onerror=1>0" in seen.text
    assert "<iframe src=//x>" in seen.text


# ---------------------------------------------------------------------------------- what it says


def test_the_headline_follows_the_rows():
    swapped = {**ENDS, "increasing": ENDS["small"], "small": ENDS["increasing"]}
    labels = ("increasing", "small", "large")
    now, then = (headline(figure1(2, ("cosine",), labels, e)) for e in (ENDS, swapped))
    assert re.search(
        r"Highest test accuracy: increasing \(8 → 64\) with 7[23]\.\d % in 564 steps", now
    )
    assert re.search(r"Lowest minimum norm: increasing .* next small", now)
    assert re.search(
        r"Highest test accuracy: small \(b = 8\) with 7[23]\.\d % in 1,200 steps", then
    )
    assert re.search(r"Lowest minimum norm: small .* next increasing", then)


def test_the_twin_is_compared_in_the_headline():
    text = headline(figure1(2, ("cosine",), ("increasing", "lr-decay-twin")))
    assert re.search(
        r"Compared with lr-decay-twin \(b = 8\), increasing .* 47 % of its steps", text
    )


def test_a_collapsed_policy_never_wins():
    records = [run("increasing", "cosine", s, status="collapsed") for s in (0, 1)]
    records += figure1(2, ("cosine",), ("small", "large"))
    assert "increasing" not in headline(records).replace("increasing (8 → 64) ended", "")
    seen = Page(render(records))
    assert "0.0003" not in " ".join(seen.bold)
    assert any(b.startswith(("0.05", "0.04")) for b in seen.bold)
    assert "2 of 2 collapsed (ended at test accuracy 10.0 %, norm 0.000300" in seen.text


def test_one_collapsed_seed_keeps_the_rest_and_never_wins():
    records = figure1(3, ("cosine",), ("increasing", "small", "large"))
    records[0] = run("increasing", "cosine", 0, status="collapsed")
    seen = Page(render(records))
    text = seen.text
    assert "increasing" not in headline(records)
    assert len(seen.bold) >= 3
    assert not any(b.startswith("0.020") or b.startswith("0.019") for b in seen.bold)
    assert "0.020" in text or "0.019" in text
    assert "1 of 3 collapsed" in text
    assert "the numbers are those of the 2 that finished" in text
    assert "2 of 3" in text


def test_a_finished_run_at_chance_is_no_result():
    records = figure1(2, ("cosine",), ("increasing", "small", "large"))
    for i in (0, 1):
        rows = [*records[i].rows[:-1], {**records[i].rows[-1], "at_chance": True}]
        records[i] = dataclasses.replace(records[i], rows=rows)
    assert "increasing" not in headline(records)
    assert "2 of 2 at chance at the end" in Page(render(records)).text


def test_half_written_folders_are_listed_with_their_state(tmp_path):
    records = [
        run("increasing", "cosine", 0, status="running", rows=0),
        run("increasing", "cosine", 1, status="running", rows=5),
        run("small", "cosine", 0, status="failed", rows=1),
        run("small", "cosine", 1, status="diverged"),
        run("large", "cosine", 0, status="collapsed"),
    ]
    write_runs(tmp_path, records)
    text = Page(report.write(tmp_path).read_text()).text
    assert "No policy has finished without a collapsed or diverged run." in text
    for said in ("running 0 of 12 epochs", "running 5 of 12 epochs", "failed 1 of 12 epochs",
                 "out of memory", "diverged 12 of 12", "collapsed 12 of 12"):  # fmt: skip
        assert said in text


@pytest.mark.parametrize("status", ["running", "failed"])
def test_a_folder_without_any_row_makes_a_page(status):
    text = Page(render([run(status=status, rows=0)])).text
    assert "No run has an epoch to draw yet." in text
    assert f"{status} 0 of 12 epochs" in text


def test_a_task_without_accuracy_has_no_such_figure():
    records = [nulled(r, "accuracy", "test", "validation") for r in figure1(**SMALL)]
    text = Page(render(records)).text
    assert "Running minimum of the full-gradient norm" in text
    assert "test accuracy" not in text.lower().split("the paper’s claims")[0].split("numbers")[0]
    assert "Samples to a validation accuracy" not in text


def test_a_single_run_without_a_label():
    plan = Plan(steps=900, batch_size=Linear(8, 1), lr=None)
    record = run("", "", 3, experiment="", plan=Plan(epochs=12, batch_size=8))
    text = Page(render([record])).text
    assert "Test accuracy: b = 8 with" in text
    assert "No two policies were run that a claim compares." in text
    assert (
        "–" in Page(render([dataclasses.replace(record, plan=plan)])).text or plan.unit == "steps"
    )


def test_plans_that_differ_under_one_label_are_told_apart():
    records = [run("mine", "", s, plan=Plan(epochs=12, batch_size=8, lr=lr))
               for lr in (0.1, 0.5) for s in (0, 1)]  # fmt: skip
    text = Page(render(records)).text
    assert "mine, lr 0.1 (b = 8)" in text
    assert "mine, lr 0.5 (b = 8)" in text
    assert len(studies(records)[0].cells) == 2


def test_a_seed_that_occurs_twice_counts_once():
    first = run("mine", "", 0, accuracy=70.0)
    again = dataclasses.replace(run("mine", "", 0, accuracy=90.0), folder=first.folder / "again")
    text = Page(render([first, again])).text
    assert "Left out, because an earlier folder has the same plan" in text
    assert "90." not in text


def test_labels_in_natural_order():
    records = [run(f"constant {b}", plan=Plan(epochs=12, batch_size=b)) for b in (16, 8, 128)]
    records.append(run("increasing"))
    names = [cell.label for cell in studies(records)[0].cells]
    assert names == ["increasing", "constant 8", "constant 16", "constant 128"]


def test_the_page_says_under_what_conditions():
    text = Page(render(figure1(3))).text
    for said in ("clean training set, network in eval mode", "initial weights and the permutations",
                 "test set is read at the last epoch", "3: 0, 1 and 2", "threads 2",
                 "A collapsed run is no better than a constant answer", "geometric means",
                 "system Linux, cpus 2", "python 3.11.7", "12 epochs"):  # fmt: skip
        assert said in text


def test_how_verdicts_are_formed_is_told_in_full_once():
    text = Page(render(figure1(8))).text
    assert text.count("a decision takes a paired t-test") == 2  # in short at the head of the page
    assert text.count("number of seeds must be fixed beforehand") == 1


def test_several_experiments_have_their_places_in_one_page():
    names = ("figure10", "a11", "figure4", "figure1", "own", "figure8")
    records = [
        dataclasses.replace(r, experiment=name) for name in names for r in figure1(2, ("cosine",))
    ]
    text = render(records)
    seen = Page(text)
    places = [link for link in seen.links if link.startswith("#study")]
    assert places == [f"#study-{i}" for i in range(1, 7)]
    order = re.findall(r'<section id="(study-\d)">\n<h2>(\w+),', text)
    assert [name for _, name in order] == [
        "figure1",
        "figure4",
        "figure8",
        "a11",
        "figure10",
        "own",
    ]
    assert text.count("A line is the mean over the seeds that finished") == 1
    for number in (1, 2, 3, 4, 8, 10):
        assert f"#claim-{number}" in seen.links
        assert text.count(f'id="claim-{number}"') == 1
    # Many comparisons are folded; none is lost.
    many = len(judge(records).claims[2].sentences)
    assert f"{many - 1} more sentences" in text
    assert text.count("cosine, test accuracy:") >= 12


def test_every_axis_has_its_tab_and_its_figures():
    text = render(figure1(**SMALL))
    for axis in AXES:
        assert f'id="by-{axis}"' in text
        drawn = [m for m in METRICS if m.column not in store.CONSTANTS]  # not measured here
        assert text.count(f'<figure class="curve {axis}">') == len(drawn) == 3
        assert f"#by-{axis}:checked ~ .sections .curve:not(.{axis})" in text
    assert text.count(" checked>") == 1


# --------------------------------------------------------------------------------------- figures


def plot(cells, metric=METRICS[1], axis="epochs"):
    return draw(cells, metric, axis, styles([c.line for c in cells]))


def test_a_line_is_the_mean_and_its_band_the_range():
    records = figure1(3, ("cosine",), ("small",), noise=0.1)
    records.append(run("small", "cosine", 3, status="collapsed"))  # enters neither
    drawn = plot(studies(records)[0].cells)
    norms = np.array([[2.0] + [r["min_full_gradient_norm"] for r in x.rows] for x in records[:3]])
    line, lost = drawn.lines
    np.testing.assert_allclose(line.y, norms.mean(axis=0))
    np.testing.assert_allclose(line.x, range(13))
    np.testing.assert_allclose(line.low, norms.min(axis=0))
    np.testing.assert_allclose(line.high, norms.max(axis=0))
    assert drawn.y.log
    assert (lost.name, lost.lost) == ("small (b = 8), seed 3, collapsed", True)
    assert min(lost.y) >= norms.min() / 2  # at the edge, so that the others stay legible


@pytest.mark.parametrize("axis", ["steps", "samples", "seconds"])
def test_axes_are_those_of_the_rows(axis):
    record = run("small", "cosine")
    (line,) = plot(studies([record])[0].cells, METRICS[0], axis).lines
    assert list(line.x) == [0.0, *(row[axis] for row in record.rows)]


def test_marks_stand_where_the_batch_grows():
    marks = plot(studies(figure1(**SMALL))[0].cells).marks
    assert sorted(mark.x for mark in marks) == [3, 6, 9]
    colour = styles(["increasing", "small"])["increasing"].colour
    assert {mark.colour for mark in marks} == {colour}


def test_a_plan_in_steps_has_no_marks():
    plan = Plan(steps=564, batch_size=Linear(8, 1))
    cells = studies([dataclasses.replace(run("increasing", "cosine"), plan=plan)])[0].cells
    assert plot(cells).marks == ()


def test_a_label_looks_the_same_everywhere_and_unlike_the_others():
    many = [*ENDS, *(f"mine {i}" for i in range(7))]
    chosen = styles(many)
    assert len({(s.colour, s.dash) for s in chosen.values()}) == len(many)
    for label in ENDS:
        assert styles([label])[label] == chosen[label]
    strangers = styles([f"x{i}" for i in range(35)])
    assert len({(s.colour, s.dash) for s in strangers.values()}) == 35


def test_a_drawing_is_the_same_each_time_and_what_it_says_of_a_file_is_text():
    cells = studies([run("$\\bad{<b>", "cosine")])[0].cells
    first, second = (svg(plot(cells, METRICS[0])) for _ in "ab")
    assert first == second
    assert "bad{&lt;b&gt;" in first
    assert "<b>" not in first


@pytest.mark.parametrize(
    ("norm", "labels"), [(0.002, ["0.005", "0.01", "0.1"]), (2e-5, ["1e-4", "0.001", "0.1"])]
)
def test_small_numbers_at_an_axis_are_whole(norm, labels):
    text = svg(plot(studies([run("small", "cosine", norm=norm)])[0].cells))
    assert set(labels) <= set(re.findall(r"<text[^>]*>([^<]*)</text>", text))


def test_a_hostile_folder_of_runs_makes_a_page_that_runs_nothing_of_it(tmp_path):
    """Names, labels and errors as a stranger's archive may have them, through the files on disk."""
    evil = '"><script>alert(1)</script><img src=x onerror=alert(1)><!--'
    folder = tmp_path / "runs" / "javascript:alert(1)" / "' onclick='alert(1)"
    identity = {
        "label": evil, "panel": f"{evil}p", "experiment": evil, "note": f"{{{{ 7 * 7 }}}}{evil}",
        "task": evil, "model": "</style><script>alert(2)</script>", "optimizer": evil,
        "plan": Plan(epochs=2, batch_size=8, lr=0.1).to_dict(), "seed": 0, "options": {},
    }  # fmt: skip
    for number, status in enumerate(("finished", "failed", "running")):
        at = folder / str(number)
        store.create(at, {**identity, "seed": number}, {"train_loss": 2.0})
        for row in run(rows=2, epochs=2).rows:
            store.append_row(at, row)
        store.finish(at, status, evil if status == "failed" else None)
    text = report.write(tmp_path / "runs").read_text(encoding="utf-8")
    seen = Page(text)
    assert "img" not in seen.tags
    assert seen.tags.count("script") == 1
    assert all(not link.lower().startswith("javascript:") for link in seen.links)
    assert all(":" not in link for link in seen.links)
    assert not re.findall(r"https?:|<link|<img|@import|url\(|fetch|import\(", text)
    names = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: names.extend(name for name, _ in attrs)
    parser.feed(text)
    assert "class" in names
    assert not [name for name in names if name.startswith("on")]
    assert evil in seen.text
    assert "{{ 7 * 7 }}" in seen.text
