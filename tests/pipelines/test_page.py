"""The page of a recipe's results: what it says, what it escapes, what it refuses, and that it is always the same."""

import copy
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from featurecache.errors import UsageError
from pipelines.recipes.page import write_page
from pipelines.recipes.page.drawing import spread_out
from pipelines.recipes.page.losses import read_losses
from pipelines.recipes.page.read_results import read_results
from pipelines.recipes.page.spread import Spread
from pipelines.recipes.page.words import elapsed, number, percent

ROOT = Path(__file__).parents[2]
MINUS, NONE = "\N{MINUS SIGN}", "\N{EN DASH}"
EVIL = "<script>alert(1)</script>\"'& $\\frac{1}{2}$ {{ 7 * 7 }} \u202e\x1b[2J\ud800 \u65e5 #a0b009"


def arm(name, accuracy, stages, **more):
    seeds = list(range(len(accuracy)))
    runs = [[f"runs/{stage}-{name if stage == 'distil' else 'all'}-{seed}" for stage in stages] for seed in seeds]
    updates = [{"stage": stage, "updates": 1500} for stage in stages]
    measured = {"accuracy": accuracy, "agreement": [0.7] * len(seeds), "kl": [0.25] * len(seeds)}
    return {
        "arm": name,
        "student": "bert:2x64",
        "parameters": 1_234_567,
        "stages": updates,
        "seeds": seeds,
        **measured,
        "runs": runs,
    } | more


def case(settings=None, teacher=0.64):
    arms = [arm("PD", [0.61, 0.62, 0.60], ["pretrain", "distil"]), arm("basic", [0.56, 0.58, 0.54], ["distil"])]
    return {
        "settings": settings or {},
        "teacher": {"name": "all-minilm-l6-v2", "accuracy": teacher, "rows": 1000},
        "arms": arms,
        "differences": [{"arm": "PD", "against": "basic", "values": [0.05, 0.04, 0.06]}],
    }


def results(*cases):
    return {
        "version": 1,
        "recipe": "pretrained-distillation",
        "about": "Pre-training helps distillation.",
        "paper": "Turc et al. 2019, arXiv 1908.08962",
        "scale": "tiny",
        "command": "featurecache run pretrained-distillation --out here",
        "settings": {"run": {"student": "bert:2x64", "labels": None}, "distil": {"learning_rate": 0.00012345}},
        "split": "test",
        "cases": list(cases) or [case()],
        "cost": [
            {"stage": "extract", "runs": 1, "seconds": 60, "updates": None, "paid": "once"},
            {"stage": "distil", "runs": 6, "seconds": 900.0, "updates": 9000, "paid": "each student"},
        ],
        "student": "student",
        "kept": {"arm": "PD", "seed": 0},
    }


def put(folder, value, losses=None):
    """Results in a folder, with two validations of every run: 1.0 and 0.5, and a tenth more for each seed."""
    (folder / "results.json").write_text(json.dumps(value))
    for one in (one for each in value["cases"] for one in each["arms"]):
        for seed, folders in enumerate(one["runs"]):
            for run in folders:
                lines = [{"step": step, "validation": {"loss": 500 / step + seed / 10}} for step in (500, 1000)]
                (folder / run).mkdir(parents=True, exist_ok=True)
                (folder / run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


class Seen(HTMLParser):
    """The words of a page, and its tags with their attributes."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts, self.hidden = [], [], False
        self.feed(page)
        self.text = re.sub(" ([,.:;])", r"\1", " ".join(" ".join(self.texts).split()))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.hidden = tag == "style" or (self.hidden and tag != "body")

    def handle_data(self, data):
        if not self.hidden:
            self.texts.append(data)

    def handle_endtag(self, tag):
        self.hidden = False


def seen(folder):
    return Seen(write_page(folder).read_text(encoding="utf-8"))


def test_the_numbers_are_there(tmp_path):
    path = write_page(put(tmp_path, results()))
    assert path == tmp_path / "results.html" and not list(tmp_path.glob("*.partial"))
    text = seen(tmp_path).text
    assert "teacher all-minilm-l6-v2 64.0" in text
    # 0.56, 0.58, 0.54: mean 0.56, sample deviation 0.02
    assert "basic bert:2x64 56.0 ± 2.0 56.0 58.0 54.0 70.0 ± 0.0 0.250 ± 0.000 distil 1,500 1.2 M" in text
    assert "pretrain 1,500, distil 1,500" in text
    assert "over seeds 0, 1, 2, on 1,000 rows of test." in text
    assert "featurecache run pretrained-distillation --out here" in text
    assert "student PD, seed 0" in text
    assert "run.labels none" in text and "distil.learning_rate 0.00012345" in text


def test_differences_are_told_plainly(tmp_path):
    value = results()
    value["cases"][0]["differences"] += [
        {"arm": "basic", "against": "PD", "values": [-0.01, 0, 0.03, None]},
        {"arm": "basic", "against": "none", "values": [None]},
    ]
    text = seen(put(tmp_path, value)).text
    # half the interval of 4, 5, 6 is 4.303 / sqrt(3) = 2.484
    assert "PD basic +5.0 ± 1.0 +5.0 +4.0 +6.0 3 of 3 +2.5 to +7.5" in text
    # -1, 0, 3: mean 2/3, deviation sqrt(13/3) = 2.08, half the interval 4.303 * 2.08 / sqrt(3) = 5.17
    told = f"basic PD +0.7 ± 2.1 (3 of 4 seeds) {MINUS}1.0 0.0 +3.0 {NONE} 1 of 3 (1 equal) {MINUS}4.5 to +5.8"
    assert told in text
    assert f"basic none missing {NONE} 0 of 0 {NONE}" in text
    assert "speaks of other seeds, not of other rows" in text


def density(t, degrees):
    """Of Student's t."""
    scale = math.gamma((degrees + 1) / 2) / (math.sqrt(degrees * math.pi) * math.gamma(degrees / 2))
    return scale * (1 + t * t / degrees) ** (-(degrees + 1) / 2)


@pytest.mark.parametrize("count", range(3, 32))
def test_intervals_hold_95_percent_of_students_t(count):
    values = tuple(float(at) for at in range(count))
    spread = Spread.of(values)
    low, high = spread.interval
    t = (high - low) / 2 / (spread.deviation / math.sqrt(count))
    width = t / 500
    inside = 2 * width * sum(density((at + 0.5) * width, count - 1) for at in range(500))
    assert inside == pytest.approx(0.95, abs=1e-4)


def test_intervals_want_three_seeds_and_are_never_too_narrow():
    assert Spread.of([1.0, None, 2.0]).interval is None
    assert Spread.of([]).mean is None and Spread.of([1.0]).deviation is None
    many = Spread.of([0.0, 1.0] * 500)
    assert many.interval[1] - many.mean > 1.9600 * many.deviation / math.sqrt(1000)


def test_costs_are_shared_out(tmp_path):
    text = seen(put(tmp_path, results())).text
    # six runs end an arm's chain: three seeds of two arms
    assert "Paid once, for the teacher and its cache: 60 s, which is 10 s for each of 6 students." in text
    assert "Paid for students: 15.0 min, which is 2.5 min for each." in text
    assert "distil for each student 6 9,000 15.0 min 2.5 min" in text


def test_losses_are_means_between_the_lowest_and_the_highest(tmp_path):
    put(tmp_path, results())
    extra = {"step": 1500, "validation": {"loss": 0.1}}
    with (tmp_path / "runs/distil-PD-0/metrics.jsonl").open("a") as file:  # only one seed was validated there
        file.write(json.dumps(extra) + "\n")
    pretrain, distil = read_losses(tmp_path, read_results(tmp_path).cases[0])
    assert [curve.arms for curve in distil.curves] == [("PD",), ("basic",)]
    curve = distil.curves[0]
    assert curve.steps == (500, 1000) and curve.seeds == 3
    assert curve.mean == pytest.approx((1.1, 0.6))
    assert curve.low == pytest.approx((1.0, 0.5)) and curve.high == pytest.approx((1.2, 0.7))
    assert pretrain.stage == "pretrain" and not pretrain.missing


def test_runs_that_arms_share_are_one_curve(tmp_path):
    value = results()
    value["cases"][0]["arms"].append(arm("PF", [0.5, 0.5, 0.5], ["pretrain"]))
    pretrain, _ = read_losses(put(tmp_path, value), read_results(tmp_path).cases[0])
    assert [curve.arms for curve in pretrain.curves] == [("PD", "PF")]
    assert "PD, PF 0.6" in seen(tmp_path).text


def test_what_is_missing_is_said(tmp_path):
    value = results()
    value["student"] = value["kept"] = None
    first, second = value["cases"][0]["arms"]
    first["accuracy"][1] = None
    second |= {"agreement": None, "kl": [None] * 3, "parameters": None, "accuracy": [None] * 3}
    value["cases"][0]["teacher"]["accuracy"] = None
    put(tmp_path, value)
    second["runs"][2] = None
    (tmp_path / "results.json").write_text(json.dumps(value))
    (tmp_path / "runs/distil-PD-0/metrics.jsonl").unlink()
    (tmp_path / "runs/distil-PD-1/metrics.jsonl").write_text("[1, 2]\n")
    for seed in range(3):
        (tmp_path / f"runs/pretrain-all-{seed}/metrics.jsonl").write_text('{"step": 10, "loss": 1.0}\n')
    text = seen(tmp_path).text
    assert "teacher all-minilm-l6-v2 unknown" in text
    assert "60.5 ± 0.7 (2 of 3 seeds)" in text
    assert f"basic bert:2x64 missing {NONE} {NONE} {NONE} missing missing distil 1,500 missing" in text
    assert "No validation was recorded." in text
    assert "Missing: PD with seed 0; PD with seed 1; basic with seed 2." in text


def evil(value, *, names=False):
    """With markup in every text, and in the names of settings, but for where runs are."""
    if isinstance(value, dict):
        return {
            name + EVIL if names else name: item if name == "runs" else evil(item, names=names or name == "settings")
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [evil(item, names=names) for item in value]
    return value + EVIL if isinstance(value, str) else value


def test_nothing_from_the_results_acts(tmp_path):
    page = seen(put(tmp_path, evil(results(case({"run.labels": "few"}), case({"run.labels": "many"})))))
    assert "script" not in {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert "<script>alert(1)</script>" in page.text and "{{ 7 * 7 }}" in page.text and "$\\frac{1}{2}$" in page.text
    assert not set((tmp_path / "results.html").read_text(encoding="utf-8")) & set("\u202e\x1b")


def test_the_page_needs_nothing_else(tmp_path):
    page = write_page(put(tmp_path, results(case({"run.labels": 1}), case({"run.labels": 2})))).read_text()
    found = Seen(page)
    addresses = [value for _, attributes in found.tags for name, value in attributes.items() if name in ("href", "src")]
    assert addresses == ["https://arxiv.org/abs/1908.08962"]  # to follow, not to load
    assert not re.search(r"@import|url\((?!#)", page)
    links = [attributes["xlink:href"] for tag, attributes in found.tags if tag == "use"]
    assert links and all(link.startswith("#") for link in links)
    assert "<metadata>" not in page and "<image" not in page and "#a0" not in page


def test_letters_of_figures_are_letters_and_their_ids_their_own(tmp_path):
    page = write_page(put(tmp_path, results())).read_text()
    figures = re.findall("<svg.*?</svg>", page, re.DOTALL)
    assert len(figures) == 4
    assert all("<text" in figure for figure in figures) and ">PD</text>" in figures[0]
    ids = [set(re.findall(r'id="([^"]+)"', figure)) for figure in figures]
    assert len(set.union(*ids)) == sum(map(len, ids))


def test_the_same_results_make_the_same_bytes(tmp_path):
    first = write_page(put(tmp_path, results())).read_bytes()
    assert write_page(tmp_path).read_bytes() == first


def ticks(figure):
    """Where along the axis the labels of a figure stand."""
    texts = re.findall(r'<text [^>]*?x="([0-9.]+)"[^>]*>([^<]+)</text>', figure)
    return {text: float(x) for x, text in texts}


@pytest.mark.parametrize(("values", "step"), [((100, 1000, 10000), 1.0), ((100, 200, 400), 2.0)])
def test_a_setting_over_more_than_a_decade_is_logarithmic(tmp_path, values, step):
    put(tmp_path, results(*(case({"run.labels": value}) for value in values)))
    figure = re.search("<svg.*?</svg>", write_page(tmp_path).read_text(), re.DOTALL)[0]
    at = ticks(figure)
    low, middle, high = (at[f"{value:,}"] for value in values)
    assert (high - middle) / (middle - low) == pytest.approx(step, rel=1e-3)


def test_cases_stand_beside_each_other(tmp_path):
    put(tmp_path, results(case({"run.labels": 100}, teacher=0.5), case({"run.labels": 1500})))
    text = seen(tmp_path).text
    assert "run.labels PD basic teacher 100 61.0 ± 1.0 56.0 ± 2.0 50.0 1,500 61.0 ± 1.0 56.0 ± 2.0 64.0" in text
    assert "Points better than basic." in text and "run.labels = 1,500" in text
    several = results(case({"run.labels": 1, "run.updates": 5}), case({"run.labels": 2, "run.updates": 5}))
    assert "run.labels = 1, run.updates = 5 61.0" in seen(put(tmp_path, several)).text


@pytest.mark.parametrize("run", ["../outside", "/etc", "runs/../../outside", "runs/link", "runs\\a", "runs/\0", "."])
def test_runs_outside_are_refused(tmp_path, run):
    folder = tmp_path / "out"
    folder.mkdir()
    value = put(folder, results()) and results()
    (folder / "runs/link").symlink_to(tmp_path)
    value["cases"][0]["arms"][0]["runs"][0][0] = run
    (folder / "results.json").write_text(json.dumps(value))
    with pytest.raises(UsageError) as caught:
        write_page(folder)
    assert caught.value.hint == "keep the runs of a recipe inside its --out"
    assert not (folder / "results.html").exists()


def test_metrics_that_are_a_link_are_refused(tmp_path):
    put(tmp_path, results())
    file = tmp_path / "runs/distil-PD-0/metrics.jsonl"
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="is a link"):
        write_page(tmp_path)


def changed(place, value):
    """The results with another value at a dotted place."""
    found = copy.deepcopy(results())
    *parents, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    at = found
    for part in parents:
        at = at[part]
    at[last] = value
    return json.dumps(found)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is not JSON"),
        ("[]", "it is no JSON object"),
        (changed("version", 2), "version is 2"),
        (changed("recipe", None), "recipe is missing"),
        (changed("cases.0.teacher", []), r"cases\[0\].teacher is no JSON object"),
        (changed("cases.0.arms.1.accuracy", [0.1]), r"cases\[0\].arms\[1\].accuracy is of length 1, not 3"),
        (changed("cases.0.arms.1.accuracy.2", 1.5), "accuracy is 1.5, which is no part of the whole"),
        (changed("cases.0.arms.1.kl.2", float("nan")), "is not JSON"),
        (changed("cases.0.arms.0.seeds.0", True), "seeds is 'True', which is no int"),
        (changed("cases.0.arms.0.runs.0", ["runs/a"]), "runs is of length 1, not 2"),
        (changed("cases.0.differences.0.arm", "PX"), "differences are of arms that there are not: PX"),
        (changed("cost.0.seconds", 1e300).replace("1e+300", "1e400"), "seconds is beyond all numbers"),
    ],
)
def test_other_results_are_refused(tmp_path, text, told):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UsageError, match=told) as caught:
        write_page(tmp_path)
    assert "fc run" in caught.value.hint


def test_no_results_are_refused(tmp_path):
    with pytest.raises(UsageError, match="has no results.json"):
        write_page(tmp_path)


def test_labels_are_moved_apart_in_order():
    assert spread_out([0.1, 0.9, 0.5], 0.2) == [0.1, 0.9, 0.5]
    assert spread_out([0.95, 0.94, 0.1], 0.2) == pytest.approx([1.0, 0.8, 0.1])
    assert spread_out([], 0.2) == []


def test_numbers_in_words():
    assert [elapsed(seconds) for seconds in (0.42, 42.0, 204.0, 7500.0)] == ["0.4 s", "42 s", "3.4 min", "2 h 05 min"]
    assert [percent(part) for part in (0.6149, 1.0, -0.013, -0.0001)] == ["61.5", "100.0", f"{MINUS}1.3", "0.0"]
    assert [percent(part, sign=True) for part in (0.05, 0.0001)] == ["+5.0", "0.0"]
    assert [number(value) for value in (0.04123, 3.0, 1234.7, 12_345_678.0)] == ["0.0412", "3", "1,235", "12.3 M"]


def test_drawing_is_imported_only_when_a_page_is_written():
    code = "import sys, featurecache, pipelines.cli, pipelines.recipes.page; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
    assert not {"matplotlib", "jinja2", "torch"} & set(loaded)
