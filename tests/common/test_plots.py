import pytest

from common.plots import HEIGHT, MOST_POINTS, TILT, WIDTH, bars, curves


def test_curves_match_ticks() -> None:
    plot = curves([[(1, 0.1), (10, 0.01), (100, 0.001)], [(1, 0.1)]])
    assert plot.curves == ["0.0,0.0 152.0,90.0 304.0,180.0", "0.0,0.0 0.0,0.0"]
    assert plot.x_ticks == [(0, "1"), (WIDTH / 2, "10"), (WIDTH, "100")]
    assert plot.y_ticks == [(HEIGHT, "0.001"), (HEIGHT / 2, "0.01"), (0, "0.1")]
    assert plot.numbers == "1: 0.1 and 0.1; 10: 0.01 and 0.1; 100: 0.001 and 0.1"


def test_curves_with_one_point_and_none() -> None:
    assert curves([[(1, 1)], []]).curves == ["0.0,0.0 0.0,0.0", ""]
    assert [label for _, label in curves([]).x_ticks] == ["1", "10"]
    assert [label for _, label in curves([]).y_ticks] == ["0.1", "1"]


def test_long_curves_are_thinned_but_keep_endpoints() -> None:
    (points,) = curves([[(x, 1 / x) for x in range(1, 10_001)]]).curves
    thinned = points.split()
    assert 100 < len(thinned) <= MOST_POINTS
    assert (thinned[0], thinned[-1]) == ("0.0,0.0", f"{WIDTH:.1f},{HEIGHT:.1f}")


def test_bar_heights_match_shares() -> None:
    plot = bars([[0.5, 0.0], [0.25, 0.125]], ["0", "1"])
    first, second = plot.bars
    assert first == [pytest.approx((15.2, 0, 60.8, 180))]
    assert second == [pytest.approx((76, 90, 60.8, 90)), pytest.approx((228, 135, 60.8, 45))]
    assert plot.x_ticks == [(76, "0"), (228, "1")]
    assert plot.y_ticks == [(180, "0 %"), (90, "25 %"), (0, "50 %")]
    assert plot.numbers == "0: 50 % and 25 %; 1: 0 % and 12.5 %"


def test_zero_bars_are_omitted() -> None:
    assert bars([[0.0], []], ["0"]).bars == [[], []]


def test_missing_bars_are_marked() -> None:
    plot = bars([[0.5, None], [None, 0.0]], ["0", "1"])
    assert plot.bars == [[pytest.approx((0.05 * WIDTH, 0, 0.2 * WIDTH, HEIGHT))], []]
    # Group 2's first bar, then group 1's second.
    assert plot.absent == pytest.approx([0.65 * WIDTH, 0.35 * WIDTH])
    assert plot.numbers == "0: 50 % and –; 1: – and 0 %"


def test_labels_do_not_overlap() -> None:
    def labels(names: list[str]) -> tuple[list[str], int]:
        plot = bars([[1.0] * len(names)], names)
        return [label for _, label in plot.x_ticks], plot.tilt

    orders, counts = [str(n) for n in range(1, 13)], [str(n) for n in range(25)]
    assert labels(orders) == (orders, 0)
    assert labels(counts) == (counts[::2], TILT)
    assert labels(thousands := [f"{n},000" for n in range(1, 18)]) == (thousands[::2], TILT)
    assert labels(["0.5", "1", "1.4", "test: real"]) == (["0.5", "1", "1.4", "test: real"], 0)
    kinds = ["letters", "digits", "white space", "punctuation", "ends of documents"]
    assert labels(kinds) == (kinds, TILT)
    assert bars([[1.0] * 5], kinds).below > 80 > 18 == bars([[1.0] * 3], kinds[:3]).below
