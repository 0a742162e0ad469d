from common.plots import HEIGHT, MOST_POINTS, WIDTH, bars, curves


def test_curves_lie_where_the_ticks_say() -> None:
    plot = curves([[(1, 0.1), (10, 0.01), (100, 0.001)], [(1, 0.1)]])
    assert plot.curves == ["0.0,0.0 320.0,110.0 640.0,220.0", "0.0,0.0 0.0,0.0"]
    assert plot.x_ticks == [(0, "1"), (WIDTH / 2, "10"), (WIDTH, "100")]
    assert plot.y_ticks == [(HEIGHT, "0.001"), (HEIGHT / 2, "0.01"), (0, "0.1")]


def test_curves_of_one_point_and_of_none() -> None:
    assert curves([[(1, 1)], []]).curves == ["0.0,0.0 0.0,0.0", ""]
    assert [label for _, label in curves([]).x_ticks] == ["1", "10"]
    assert [label for _, label in curves([]).y_ticks] == ["0.1", "1"]


def test_long_curves_are_thinned_between_their_ends() -> None:
    (points,) = curves([[(x, 1 / x) for x in range(1, 10_001)]]).curves
    found = points.split()
    assert 100 < len(found) <= MOST_POINTS
    assert (found[0], found[-1]) == ("0.0,0.0", f"{WIDTH:.1f},{HEIGHT:.1f}")


def test_bars_are_as_high_as_their_shares() -> None:
    plot = bars([[0.5, 0.0], [0.25, 0.125]], ["0", "1"])
    assert plot.bars == [[(32, 0, 128, 220)], [(160, 110, 128, 110), (480, 165, 128, 55)]]
    assert plot.x_ticks == [(160, "0"), (480, "1")]
    assert plot.y_ticks == [(220, "0 %"), (110, "25 %"), (0, "50 %")]


def test_bars_of_nothing() -> None:
    assert bars([[0.0], []], ["0"]).bars == [[], []]


def test_a_bar_that_is_not_known_is_not_one_of_nothing() -> None:
    plot = bars([[0.5, None], [None, 0.0]], ["0", "1"])
    assert plot.bars == [[(32, 0, 128, 220)], []]
    assert plot.absent == [416, 224]  # the second group's first bar, the first group's second


def test_labels_do_not_run_into_each_other() -> None:
    assert [label for _, label in bars([[1.0] * 25], [str(n) for n in range(25)]).x_ticks] == [
        *map(str, range(0, 25, 3))
    ]
