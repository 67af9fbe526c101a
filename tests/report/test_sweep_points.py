"""Means, spreads and intervals of a point, against numbers worked out by hand."""

import pytest

from fllm.report.sweep.facts import analyse
from fllm.report.sweep.points import Key, number_text, t_interval
from tests.report.sweep_example import TAUS, grid, hand_made, make_sweep


def test_t_interval_of_three_and_two_values() -> None:
    low, high = t_interval([0.70, 0.72, 0.74]) or (0, 0)
    assert (low, high) == pytest.approx((0.72 - 4.302653 * 0.02 / 3**0.5, 0.72 + 4.302653 * 0.02 / 3**0.5), abs=1e-7)
    low, high = t_interval([0.49, 0.51]) or (0, 0)
    assert high - 0.5 == pytest.approx(12.706205 * 0.0141421356 / 2**0.5, abs=1e-6)
    assert low == pytest.approx(1.0 - high)


def test_t_interval_stays_a_share_and_needs_two_values() -> None:
    assert t_interval([0.70, 0.80]) == pytest.approx((0.75 - 0.635310, 1.0), abs=1e-6)
    assert t_interval([0.7]) is None
    assert t_interval([]) is None
    assert t_interval([0.7, 0.7, 0.7]) == pytest.approx((0.7, 0.7))


def test_statistics_over_dies_of_one_seed() -> None:
    point = analyse(hand_made("readout.bits", [5], [[70, 72, 74]], ideal=75)).points[0]
    assert point.accuracy == pytest.approx(0.72)
    assert point.accuracy_std == pytest.approx(0.02)
    assert point.accuracy_interval == pytest.approx(t_interval([0.70, 0.72, 0.74]))
    assert point.ideal == pytest.approx(0.75)
    assert point.drop == pytest.approx(0.03)


def test_several_seeds_count_by_their_means() -> None:
    """Dies of one seed share adapter and cases: four rows of two seeds are two units, not four."""
    sweep = make_sweep(grid(readout__bits=[5]), dies=2, seeds=(0, 1))
    for row, accuracy in zip(sweep["rows"], (0.70, 0.72, 0.80, 0.86), strict=True):
        row |= {"accuracy": accuracy, "accuracy_ideal": 0.9 if row["seed"] else 0.8}
    point = analyse(sweep).points[0]
    assert point.accuracy == pytest.approx(0.77)
    assert point.accuracy_interval == pytest.approx(t_interval([0.71, 0.83]))
    assert point.accuracy_std == pytest.approx(((2 * 0.01**2 + 2 * 0.03**2) / 2) ** 0.5)
    assert point.drop == pytest.approx(0.08)


def test_a_seed_that_failed_leaves_the_other() -> None:
    sweep = make_sweep(grid(readout__bits=[5]), dies=2, seeds=(0, 1))
    blank = dict.fromkeys(sweep["rows"][0]) | {"point": 0, "seed": 1, "status": "failed", "reason": "no memory"}
    sweep["rows"] = [row for row in sweep["rows"] if row["seed"] == 0] + [blank]
    point = analyse(sweep).points[0]
    assert point.failures == ((1, "no memory"),)
    assert point.accuracy == pytest.approx(sum(row["accuracy"] for row in sweep["rows"][:2]) / 2)
    assert point.accuracy_interval == pytest.approx(t_interval([row["accuracy"] for row in sweep["rows"][:2]]))


def test_a_point_without_rows_knows_nothing() -> None:
    point = analyse(make_sweep(grid(readout__bits=[5, 6]), finished=0)).points[1]
    assert point.accuracy is point.drop is point.energy is point.latency is point.accuracy_interval is None
    assert point.energy_interval is point.accuracy_std is None


def test_values_are_those_of_the_design() -> None:
    keys = analyse(make_sweep(grid(retention__tau=["1 ms", "0.2 ms"], readout__bits=[7, 8]))).keys
    assert keys[0].values == (0.0002, 0.001)
    assert keys[0].base == 0.005, "of the base device, which is no point of the design"
    assert [keys[0].text(value) for value in (0.0002, 0.005, 0.00087)] == ["0.2\xa0ms", "5\xa0ms", "870\xa0µs"]
    assert keys[1].values == (7, 8)
    assert keys[1].whole and not keys[0].whole


@pytest.mark.parametrize(
    ("values", "logarithmic"),
    [
        ((0.0002, 0.001, 0.05), True),
        ((1.0, 2.0, 7.9), False),
        ((1.0, 2.0, 8.0), True),
        ((0.0, 0.1, 100.0), False),
        ((1, 2, 3, 4, 5, 6, 7, 8), False),
        ((16, 64, 256), True),
        ((-1.0, 100.0), False),
        ((3.0,), False),
    ],
)
def test_scale_of_a_key(values: tuple[float, ...], logarithmic: bool) -> None:
    key = Key("key", None, "key", True, values, {}, None)
    assert key.logarithmic is logarithmic
    for value in values:
        assert key.value_at(key.place(value)) == pytest.approx(value)


def test_words_are_no_numbers() -> None:
    key = analyse(make_sweep(grid(device_model=["ideal", "gaincell_28nm"]))).keys[0]
    assert not key.numeric and not key.logarithmic and not key.whole
    assert key.values == ("ideal", "gaincell_28nm")
    assert key.place("gaincell_28nm") == 1.0


def test_a_key_that_may_be_none_is_read_as_words() -> None:
    sweep = make_sweep(grid(readout__bits=[4, 5]))
    sweep["points"][1] |= {"settings": {"readout.bits": "none"}, "values": {"readout.bits": None}}
    key = analyse(sweep).keys[0]
    assert not key.numeric
    assert key.values == ("4", "None")


@pytest.mark.parametrize(
    ("base", "nearest"), [(0.0002, 0.0002), (0.0019, 0.001), (0.0026, 0.005), (1.0, 0.05), (None, 0.001), (-1.0, 0.001)]
)
def test_the_nearest_value_is_nearest_on_the_axis(base: float | None, nearest: float) -> None:
    key = analyse(make_sweep(grid(retention__tau=TAUS))).keys[0]
    assert key.nearest(base) == nearest


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (4.29, None, "4.29"),
        (5.0, None, "5"),
        (0.05, None, "0.05"),
        (0.0043, "s", "4.30 ms"),
        (2e-12, "m**2", "2.00e-12 m**2"),
        (1e9, "1/s", "1.00e+09 1/s"),
    ],
)
def test_numbers_carry_their_unit(value: float, unit: str | None, text: str) -> None:
    assert number_text(value, unit).replace("\xa0", " ") == text


def test_the_base_device_is_published_only_as_it_is_shipped() -> None:
    sweep = make_sweep(grid(readout__bits=[5]))
    assert analyse(sweep).base_name == "as published"
    assert analyse(sweep | {"device": sweep["device"] | {"as_shipped": False}}).base_name == "base device"
    assert analyse(sweep | {"device": {}}).base_name == "base device"


def test_the_base_device_is_the_point_that_is_marked_so() -> None:
    """A key may state the base device by its path where the points name it."""
    sweep = make_sweep(grid(device_model=["ideal", "gaincell_28nm"]))
    sweep["keys"][0] |= {"base": "configs/gaincell_28nm.yaml", "base_si": "configs/gaincell_28nm.yaml"}
    assert analyse(sweep).keys[0].base == "gaincell_28nm"
