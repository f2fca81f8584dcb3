"""What a comparison shows: labels that keep apart, a page of its own, events that read back."""

import functools
import http.server
import json
import re
import shutil
import subprocess
import threading
from html.parser import HTMLParser
from itertools import combinations

import numpy as np
import pytest
from handmade import line, results_of, run, written
from matplotlib.text import Annotation, Text
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from cl.comparison import compared
from cl.comparison.figures import drawn_arms, pictures
from cl.comparison.files import write
from cl.comparison.labels import COLOURS, INK, PAPER, near, place, spread, styles

OKABE_ITO = {
    *("#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"),
}


def world(root, n_arms, n_seeds=5, gap=()):
    """Arms with scores of their own; those in `gap` were evaluated within experiences."""
    rng = np.random.default_rng(0)
    for k in range(n_arms):
        name = "naive" if k == 0 else f"method_{k}"
        kept, new = rng.uniform(0.1, 0.9), rng.uniform(0.7, 0.95)
        for seed in range(n_seeds):
            first, a, b = np.clip([new, kept, new] + rng.normal(0, 0.02, 3), 0.05, 1).tolist()
            made = results_of(first, a, b, strategy=name, seed=seed)
            made["cost"] |= {"train_seconds": 2.0 + k, "stored_bytes": 1000 * k}
            lines = None
            if name in gap:
                made["metrics"]["eval_every"] = 10
                lines = [
                    line("experience", 0, 20, [first, None], [first, None]),
                    line("periodic", 1, 30, [a / 2, b], [a / 2, b]),
                    line("experience", 1, 40, [a, b], [a, b]),
                ]
            written(root / "made" / name / f"seed{seed}", made, {"train.lr": 0.1}, lines)
    return root


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A comparison of three arms, with everything that it writes."""
    root = world(tmp_path_factory.mktemp("runs"), 3, gap=("naive", "method_1"))
    out = tmp_path_factory.mktemp("out")
    found = compared([root])
    write(found, out)
    return found, out


# -- labels ----------------------------------------------------------------------------------------


def apart(boxes):
    return all(
        a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        for a, b in combinations(boxes, 2)
    )


@pytest.mark.parametrize("n", [1, 2, 5, 12])
def test_names_at_line_ends_keep_their_distance_and_order(n):
    wanted = np.random.default_rng(n).uniform(100, 120, n)
    found = spread(wanted, 14, 0, 300)
    gaps = np.diff(sorted(found))
    assert (gaps >= 14 - 1e-9).all() and min(found) >= 0 and max(found) <= 300
    assert list(np.argsort(found)) == list(np.argsort(wanted))


def test_names_stay_where_they_want_to_be_if_there_is_room():
    assert spread([10.0, 200.0, 90.0], 14, 0, 300) == pytest.approx([10, 200, 90])
    assert spread([50.0, 50.0], 10, 0, 300) == pytest.approx([45, 55])
    assert spread([0.0, 0.0, 0.0], 10, 0, 300) == pytest.approx([0, 10, 20])
    assert spread([5.0] * 4, 100, 0, 30) == pytest.approx([0, 10, 20, 30]), "closer, but inside"


@pytest.mark.parametrize("spread_of", [0.0, 3.0, 60.0])
def test_labels_of_points_lie_neither_on_each_other_nor_outside(spread_of):
    rng = np.random.default_rng(0)
    points = [300, 200] + rng.normal(0, spread_of, (12, 2))
    sizes = [(rng.uniform(30, 110), 14) for _ in points]
    corners = place(points, sizes, (0, 0, 640, 420))
    boxes = [(x, y, x + w, y + h) for (x, y), (w, h) in zip(corners, sizes)]
    assert apart(boxes)
    assert all(x >= 0 and y >= 0 and r <= 640 and t <= 420 for x, y, r, t in boxes)


def test_points_that_can_not_be_told_apart_are_named_together():
    points = np.array([[0, 0], [100, 0], [3, 4], [3, 9], [103, -1], [200, 0]])
    assert near(points, 6) == [[3, 2, 0], [1, 4], [5]]
    assert near(points, 1) == [[0], [1], [2], [3], [4], [5]]


def test_a_line_to_a_point_crosses_no_other_label():
    points = [(300, 200), (340, 200), (380, 200), (420, 200)]
    sizes = [(60, 14)] * 4
    corners = place(points, sizes, (0, 0, 640, 420))
    for k, (point, (x, y)) in enumerate(zip(points, corners)):
        along = np.linspace(point, np.clip(point, (x, y), (x + 60, y + 14)), 50)
        for other, (a, b) in enumerate(corners):
            on = ((along > (a, b)) & (along < (a + 60, b + 14))).all(1).any()
            assert other == k or not on


def test_a_lone_label_is_beside_its_point():
    ((x, y),) = place([(100, 100)], [(50, 12)], (0, 0, 400, 300))
    nearest = np.clip(100, x, x + 50), np.clip(100, y, y + 12)
    assert 5 < np.hypot(nearest[0] - 100, nearest[1] - 100) < 20


def test_colours_are_okabe_and_itos_and_arms_differ_in_look():
    assert set(COLOURS) <= OKABE_ITO
    look = styles([f"arm{k}" for k in range(12)], "arm3")
    assert len({(s.colour, s.line, s.marker) for s in look.values()}) == 12
    assert look["arm3"].colour == INK


# -- figures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 12])
def test_names_in_pictures_lie_on_no_other_and_inside(n, tmp_path):
    world(tmp_path, n, gap=("naive", "method_1"))
    (table,) = compared([tmp_path]).tables
    made = pictures(table)
    assert [p.name for p in made] == ["curves", "plane", "gap", "cost", "matrices"]
    for picture in made:
        picture.figure.canvas.draw()
        texts = picture.figure.findobj(Annotation)
        boxes = [Text.get_window_extent(t).extents for t in texts]  # without its line
        assert apart(boxes), picture.name
        right, top = picture.figure.get_size_inches() * picture.figure.dpi
        assert all(b[0] >= 0 and b[1] >= 0 and b[2] <= right and b[3] <= top for b in boxes)
        names = {name for t in texts for name in t.get_text().split("\n")}
        if picture.name in ("curves", "plane", "cost"):
            assert names == {arm.label for arm in table.arms}
        for axes in picture.figure.axes:
            assert axes.get_xlabel() or axes.get_ylabel() or picture.name == "matrices"


def test_axes_have_units_and_captions_say_over_how_many_seeds(tmp_path):
    (table,) = compared([world(tmp_path, 2)]).tables
    by_name = {p.name: p for p in pictures(table)}
    assert by_name["cost"].figure.axes[0].get_xlabel() == "training [s]"
    assert by_name["cost"].figure.axes[-1].get_xlabel() == "stored [B]"
    assert "95 % intervals over 5 seeds" in by_name["curves"].caption


def test_of_many_arms_the_best_and_the_baseline_are_drawn(tmp_path):
    (table,) = compared([world(tmp_path, 20, 2)]).tables
    arms = drawn_arms(table)
    assert len(arms) == 12 and table.baseline in arms and arms[0] is table.arms[0]
    assert "12 of 20 arms" in pictures(table)[0].caption


def test_of_many_streams_the_largest_are_drawn_and_that_is_said(tmp_path):
    for k in range(5):
        for seed in range(1 + (k > 0)):
            of = {"stream_hash": f"data{k}{seed}", "stream": f"stream{k}"}
            run(tmp_path / f"{k}", "naive", seed, (0.9, 0.5, 0.8), **of)
    found = compared([tmp_path])
    assert any(line.startswith("pictures are drawn of the 4 streams") for line in found.lines)
    write(found, tmp_path / "out")
    drawn = {p.name.partition("-")[0] for p in (tmp_path / "out" / "figures").iterdir()}
    assert drawn == {f"stream{k}" for k in range(1, 5)}


@pytest.mark.parametrize(
    "scores,over",
    [
        ((0.5, 0.5, 0.5), {}),
        ((0.9, -3.5, 2.5), {"domain": "rl", "score": "normalized_return"}),
    ],
)
def test_a_single_run_and_scores_beyond_1_are_drawn(scores, over, tmp_path):
    run(tmp_path, "naive", 0, scores, **over)
    found = compared([tmp_path])
    write(found, tmp_path / "out")
    assert (tmp_path / "out" / "figures" / "made-plane.png").is_file()


def test_undefined_scores_leave_gaps_not_zeros(tmp_path):
    for seed in range(2):
        made = results_of(0.9, 0.5, 0.8, strategy="late", seed=seed)
        made["R"] = made["V"] = [[None, None], [0.5, 0.8]]
        made["metrics"] |= {"plasticity": [None, 0.8], "stability": [None, None]}
        written(tmp_path / "made" / "late" / f"seed{seed}", made)
    (table,) = compared([tmp_path]).tables
    curves = next(p for p in pictures(table) if p.name == "curves")
    (line_of,) = curves.figure.axes[0].lines[:1]
    np.testing.assert_array_equal(line_of.get_ydata(), [np.nan, 0.8])
    assert "plane" not in {p.name for p in pictures(table)}, "no point to draw"


# -- the page --------------------------------------------------------------------------------------


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links, self.counts = [], [], [], {}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "action", "data"):
                self.links.append(value)
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_holds_everything_it_shows(shown):
    _, out = shown
    text = (out / "index.html").read_text()
    page = Page(text)
    assert page.open == [] and len(page.ids) == len(set(page.ids))
    assert page.counts["svg"] == 5 and page.counts["table"] == 2
    for link in page.links:
        assert link.startswith(("#", "data:")), link
        assert not link.startswith("#") or link[1:] in page.ids
    outside = re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    assert "://" not in outside and "@import" not in outside
    assert INK not in text.partition("</style>")[2] and PAPER not in text.partition("</style>")[2]
    assert "prefers-color-scheme:dark" in text


def test_pictures_are_files_too(shown):
    _, out = shown
    names = {p.name for p in (out / "figures").iterdir()}
    kinds = ("cost", "curves", "gap", "matrices", "plane")
    assert names == {f"made-{kind}.{end}" for kind in kinds for end in ("png", "svg")}
    for path in (out / "figures").glob("*.png"):
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 5000


def test_events_read_back_through_tensorboards_own_reader(shown):
    found, out = shown
    (table,) = found.tables
    arm = next(arm for arm in table.arms if arm.label == "method_1")
    events = EventAccumulator(str(out / "tensorboard" / "made" / "method_1"))
    events.Reload()
    curve = [results["metrics"]["plasticity"] for results in arm.results]
    got = events.Scalars("made/plasticity")
    assert [s.step for s in got] == [0, 1]
    assert [s.value for s in got] == pytest.approx(np.mean(curve, axis=0), rel=1e-6)
    low = [s.value for s in events.Scalars("made/plasticity_low")]
    assert all(a < b.value for a, b in zip(low, got))
    assert [s.step for s in events.Scalars("made/stability")] == [1], "nothing is past at first"


def test_the_layout_overlays_every_arm_with_its_band(shown):
    _, out = shown
    events = EventAccumulator(
        str(out / "tensorboard" / "comparison"), size_guidance={"images": 0, "tensors": 0}
    )
    events.Reload()
    assert len(events.Tags()["images"]) == 5
    (config,) = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(config.tensor_proto.string_val[0])
    (category,) = layout.category
    tags = {s.value: (s.lower, s.upper) for c in category.chart for s in c.margin.series}
    assert tags["made/stability"] == ("made/stability_low", "made/stability_high")
    for arm in ("naive", "method_1", "method_2"):
        own = EventAccumulator(str(out / "tensorboard" / "made" / arm))
        own.Reload()
        assert set(own.Tags()["scalars"]) == {t for k, v in tags.items() for t in (k, *v)}


class _Handler(http.server.SimpleHTTPRequestHandler):
    asked: list = []

    def log_message(self, *arguments):
        self.asked.append(self.path)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_opens_in_chromium_without_errors_or_requests(shown, width, tmp_path):
    _, out = shown
    _Handler.asked = []
    handler = functools.partial(_Handler, directory=str(out))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        picture = tmp_path / "page.png"
        done = subprocess.run(
            [
                *("chromium", "--headless=new", "--no-sandbox", "--disable-gpu"),
                *("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--v=0"),
                *("--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}"),
                *(f"--window-size={width},2000", f"--screenshot={picture}"),
                f"http://127.0.0.1:{server.server_address[1]}/index.html",
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
        server.shutdown()
    assert picture.is_file(), done.stderr
    assert "CONSOLE" not in done.stderr, done.stderr
    assert _Handler.asked == ["/index.html"]


def test_the_data_of_a_comparison_is_kept_beside_it(shown):
    found, out = shown
    assert json.loads((out / "compare.json").read_text()) == found.data()
