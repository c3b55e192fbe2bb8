import datetime
import decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctxrec.data import item_rows, parsing, time_columns
from ctxrec.data.prepared import encode_categories

US = 1_000_000


def decoded(column):
    coded = parsing.encode(column)
    values = [*coded.values.to_pylist(), None]
    return [values[c] for c in coded.codes]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([17850.0, 1.5, float("nan"), None, 2.0]), ["17850", "1.5", None, None, "2"]),
        (pa.array([7, None, -3]), ["7", None, "-3"]),
        (pa.array([0.1, 2.0, None], pa.float32()), ["0.1", "2", None]),
        (pa.array(["007", "", "  ", None, "a b"]), ["007", None, None, None, "a b"]),
        (pa.array(["x", None, "y", "x"], pa.large_string()), ["x", None, "y", "x"]),
        (pa.array(["x", None, "y", "x"]).dictionary_encode(), ["x", None, "y", "x"]),
        (pa.array([5, 6, 5, None]).dictionary_encode(), ["5", "6", "5", None]),
        (pa.array([0.0, -0.0]), ["0", "0"]),
        (pa.array([b"ab", b"\xff"]), ["ab", "\\xff"]),
        (pa.array([b"ab", b"\xff\x00", None], pa.binary(2)), ["ab", "\\xff\x00", None]),
        (pa.array([0.1, 2052.0, 65504.0, None], pa.float16()), ["0.1", "2052", "65504", None]),
        (pa.array([True, None]), ["true", None]),
        (pa.array([None, None]), [None, None]),
        (pa.array(["🎉 café", "日本"]), ["🎉 café", "日本"]),
        (pa.array([], pa.string()), []),
    ],
)
def test_ids_of_any_type_become_strings(column, expected):
    assert decoded(column) == expected
    assert parsing.to_text(column).to_pylist() == expected


def test_chunks_with_different_dictionaries_are_one_coding():
    column = pa.chunked_array([pa.array(["a", "b"]).dictionary_encode(), pa.array(["b", "c"]).dictionary_encode()])
    assert decoded(column) == ["a", "b", "b", "c"]


def test_categories_of_few_values_a_file_may_have_many_in_all():
    """pandas writes a category of up to 128 values with codes of 8 bits."""
    parts = [pa.array([f"{p}{n}" for n in range(100)]).dictionary_encode() for p in "ab"]
    small = [pa.DictionaryArray.from_arrays(p.indices.cast(pa.int8()), p.dictionary) for p in parts]
    assert decoded(pa.chunked_array(small)) == [f"{p}{n}" for p in "ab" for n in range(100)]


@pytest.mark.parametrize(
    "values", [[1, 2**60], [1.0, 0.1, 1e300, 2.0**60, -0.0], [True, False], ["a", " ", "007"], [None, float("nan")]]
)
def test_one_value_reads_as_a_column_of_it_does(values):
    for value in values:
        assert parsing.value_text(value) == parsing.to_text(pa.array([value])).to_pylist()[0], value


@given(
    st.floats() | st.floats(1e9, 1e17) | st.floats(-1e-2, 1e-2) | st.sampled_from([1e10 + 0.5, 1e-5, 1e-4, 1e20]),
    st.sampled_from([np.float64, np.float32, np.float16]),
)
def test_a_float_reads_as_a_column_of_it_does(number, kind):
    """Arrow writes 0.00001 for 1e-05 and 1.00000000005e+10 for 10000000000.5; a request must find what `prepare` made."""
    with np.errstate(over="ignore"):
        value = kind(number)
    assert parsing.value_text(value) == parsing.to_text(pa.array([value])).to_pylist()[0]
    if kind is np.float64:
        assert parsing.value_text(number) == parsing.value_text(value)
        if np.isfinite(number) and not number.is_integer():
            assert parsing.value_text(number) == str(number), "as Python writes it into files"


def test_take_keeps_only_the_values_that_occur():
    part = parsing.encode(pa.array(["a", "b", None, "c"])).take(np.array([3, 2, 1]))
    assert part.values.to_pylist() == ["b", "c"]
    assert part.codes.tolist() == [1, -1, 0]
    assert part.to_arrow().to_pylist() == ["c", None, "b"]


def test_numbers_that_are_none_become_missing_and_are_marked():
    numbers, bad = parsing.to_numbers(pa.array([1.5, float("nan"), float("inf"), None]))
    assert numbers[0] == 1.5 and np.isnan(numbers[1:]).all()
    assert bad.tolist() == [False, True, True, False]
    numbers, bad = parsing.to_numbers(pa.array(["2", " -1e3 ", "+4.5", "n/a", "", None, "nan"]))
    assert numbers[:3].tolist() == [2, -1000, 4.5] and np.isnan(numbers[3:]).all()
    assert bad.tolist() == [False, False, False, True, False, False, True]


def test_truth_values_are_the_same_numbers_in_texts():
    texts = parsing.to_numbers(pa.array(["True", "false", "TRUE", None, "truth"]))
    assert texts[0][:3].tolist() == [1, 0, 1] and texts[1].tolist() == [False, False, False, False, True]
    assert parsing.to_numbers(pa.array([True, False]))[0].tolist() == [1, 0]


def test_numbers_of_items_keep_all_their_digits():
    wide = parsing.to_numbers(pa.array(["19.99", "16777217", "1e39"]), np.float64)[0]
    assert wide[:2].tolist() == [19.99, 16777217.0] and np.isnan(wide[2]), "the model has no float32 for 1e39"
    narrow = parsing.to_numbers(pa.array([19.99, 0.1], pa.float32()), np.float64)[0]
    assert narrow.tolist() == [19.99, 0.1], "and not 19.989999771118164"
    half = parsing.to_numbers(pa.array([19.98, 0.1, 65504.0], pa.float16()), np.float64)[0]
    assert half.tolist() == [19.98, 0.1, 65504.0], "and not 0.0999755859375"


@given(st.lists(st.decimals(-(10**9), 10**9, places=6), max_size=20))
def test_decimals_are_the_nearest_floats(numbers):
    """As requests and CSV files have them. Arrow's own cast makes 6111780.0200000005 of 6111780.02."""
    found = parsing.to_numbers(pa.array(numbers, pa.decimal128(20, 6)), np.float64)[0]
    assert found.tolist() == [float(number) for number in numbers]


@pytest.mark.parametrize(
    ("values", "unit"),
    [
        ([0, 5, 10], "s"),
        ([1.6e9], "s"),
        ([1_600_000_000_000, 1_600_000_000_001, 7], "ms"),
        ([1_600_000_000_000_000], "us"),
        ([1_600_000_000_000_000_000], "ns"),
        ([20240131, 20240201], "yyyymmdd"),
        (["2020-01-01", "2020-01-02", "81"], "iso8601"),
        (["1600000000000"], "ms"),
        (["2020-01-01", "2020-01-02"], "iso8601"),
        ([datetime.datetime(2020, 1, 1)], "timestamp"),
        ([], "s"),
    ],
)
def test_the_unit_of_times_is_detected(values, unit):
    assert time_columns.detect_times([pa.array(values)]).unit == unit


def test_one_unit_for_all_files():
    assert time_columns.detect_times([pa.array([3]), pa.array([1_600_000_000_000] * 3)]) == time_columns.TimeForm("ms")
    assert time_columns.detect_times([pa.array([3, 4])]) == time_columns.TimeForm("s", small=True)


@pytest.mark.parametrize("as_text", [False, True])
def test_each_number_is_read_by_its_own_size(as_text):
    numbers = [DAY_US // US, DAY_US // 1000, DAY_US, DAY_US * 1000, 81]
    column = pa.array([str(n) for n in numbers] if as_text else numbers)
    for unit in ("ms", "us", "ns", "iso8601", "timestamp"):
        times, status = time_columns.to_times(column, unit)
        assert times.tolist() == [DAY_US] * 4 + [0] and status.tolist() == [time_columns.TIME_OK] * 4 + [
            time_columns.TIME_MISFIT
        ]
    assert time_columns.to_times(column, "s")[0].tolist() == [DAY_US] * 4 + [81 * US]
    assert time_columns.to_times(column, "s", small=False)[1].tolist()[4] == time_columns.TIME_MISFIT


def test_whole_numbers_may_be_dates():
    column = pa.array([20200101, 20201301, DAY_US // US, None])
    ok, missing, misfit = time_columns.TIME_OK, time_columns.TIME_MISSING, time_columns.TIME_MISFIT
    times, status = time_columns.to_times(column, "yyyymmdd", small=False)
    assert status.tolist() == [ok, misfit, ok, missing]
    assert times.tolist() == [1_577_836_800 * US, 0, DAY_US, 0]
    assert time_columns.to_times(column.cast(pa.string()), "yyyymmdd", small=False)[0].tolist() == times.tolist()


DAY = datetime.datetime(2020, 1, 1, 2, 3, 4, tzinfo=datetime.UTC)
DAY_US = int(DAY.timestamp()) * US


@pytest.mark.parametrize(
    ("column", "unit"),
    [
        (pa.array([DAY_US // US]), "s"),
        (pa.array([DAY_US / US]), "s"),
        (pa.array([DAY_US // 1000]), "ms"),
        (pa.array([DAY_US]), "us"),
        (pa.array([str(DAY_US // US)]), "s"),
        (pa.array([f" {DAY_US / US:.1f}"]), "s"),
        (pa.array(["2020-01-01T02:03:04Z"]), "iso8601"),
        (pa.array(["2020-01-01 02:03:04"]), "iso8601"),
        (pa.array(["2020-01-01T04:03:04+02:00"]), "iso8601"),
        (pa.array(["2020-01-01T02:03:04.000"]).dictionary_encode(), "iso8601"),
        (pa.array([DAY.replace(tzinfo=None)], pa.timestamp("ns")), "timestamp"),
        (pa.array([DAY], pa.timestamp("ms", tz="America/New_York")), "timestamp"),
    ],
)
def test_times_of_any_form_are_the_same_moment(column, unit):
    times, status = time_columns.to_times(column, unit)
    assert times.tolist() == [DAY_US] and status.tolist() == [time_columns.TIME_OK]


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2020-01-01t02:03:04z", "2020-01-01T02:03:04"),
        ("2020-01-01t04:03:04.5+02:00", "2020-01-01T02:03:04.5"),
        ("2020-01-01 02:03:04 GMT", "2020-01-01T02:03:04"),
        ("2020-01-01T02:03:04utc", "2020-01-01T02:03:04"),
        (" 2020-01-01T02:03:04,25Z ", "2020-01-01T02:03:04.25"),
        ("2020-12-31T24:00", "2021-01-01T00:00:00"),
        ("2020-12-31 24:00:00", "2021-01-01T00:00:00"),
        ("20201231T240000Z", "2021-01-01T00:00:00"),
        ("2020-02-28t24:00:00.000z", "2020-02-29T00:00:00"),
        ("2020-02-29T24:00:00+02:00", "2020-02-29T22:00:00"),
        ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00"),
        ("2016-12-31T15:59:60.5-08:00", "2017-01-01T00:00:00.5"),
    ],
)
def test_times_of_iso_8601_and_rfc_3339(text, moment):
    wanted = datetime.datetime.fromisoformat(moment).replace(tzinfo=datetime.UTC).timestamp() * US
    for column in (pa.array([text]), pa.array([text], pa.large_string()), pa.array([text]).dictionary_encode()):
        times, status = time_columns.to_times(column, "iso8601")
        assert status.tolist() == [time_columns.TIME_OK] and times.tolist() == [wanted]


@pytest.mark.parametrize(
    "text", ["2020-01-01T24:01", "2020-01-01T24:00:01", "2020-01-01T25:00", "2020-01-01T12:30:60", "24:00", "GMT", "z",
             "2020-01-01T02:03:04 CET", "2020-13-01T24:00"]
)  # fmt: skip
def test_times_of_neither_standard_are_unparsable(text):
    assert time_columns.to_times(pa.array([text]), "iso8601")[1].tolist() == [time_columns.TIME_UNPARSABLE]


def test_times_that_are_none_say_why():
    ok, missing, unparsable, out = range(4)
    column = pa.array(["2020-01-01", None, " ", "soon", "2020-13-01", "-5", "99999999999999999", "1e30", "1/2/2020"])
    assert time_columns.to_times(column, "s")[1].tolist() == [
        ok, missing, missing, unparsable, unparsable, out, out, out, unparsable
    ]  # fmt: skip
    column = pa.array([0.0, -1.0, float("nan"), float("inf"), 7_258_118_400.0, None])
    assert time_columns.to_times(column, "s")[1].tolist() == [ok, out, missing, out, out, missing]
    assert time_columns.to_times(pa.array([True]), "s")[1].tolist() == [unparsable]
    assert time_columns.to_times(pa.array([2**63 - 1, -(2**63)]), "s")[1].tolist() == [out, out]
    assert time_columns.to_times(pa.array([2**64 - 1], pa.uint64()), "s")[1].tolist() == [out]
    assert time_columns.to_times(pa.array(["now", "today", "NaT"]), "s")[1].tolist() == [unparsable] * 3


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_a_timestamp_that_no_microseconds_hold_is_out_of_range(unit):
    """The lowest number stands for a missing time in NumPy; it must not come round to 1970, nor another one to 2023."""
    late = [2**63 - 1, 18448444073709, 18448444073709551][: {"s": 3, "ms": 3}.get(unit, 1)]
    for value in (-(2**63), *late):
        stamp = pa.array([value, None], pa.timestamp(unit))
        assert time_columns.to_times(stamp, "timestamp")[1].tolist() == [
            time_columns.TIME_OUT_OF_RANGE,
            time_columns.TIME_MISSING,
        ]


def test_a_time_in_nanoseconds_is_the_same_in_a_text_and_in_a_number():
    exact = 1_700_000_000_123_456_789
    for column in (pa.array([exact]), pa.array([str(exact)]), pa.array([exact], pa.timestamp("ns"))):
        assert time_columns.to_times(column, "ns")[0].tolist() == [exact // 1000]


def test_lists_of_one_length_are_lists():
    column = pa.array([["a", "b"], None, ["c", None]], pa.list_(pa.string(), 2))
    assert item_rows.value_lists(column).to_pylist() == [["a", "b"], [], ["c"]]
    assert item_rows.joined_text(pa.chunked_array([column])).to_pylist() == ["a, b", None, "c"]
    assert item_rows.value_lists(pa.chunked_array([column.slice(1)])).to_pylist() == [[], ["c"]]


@pytest.mark.parametrize(
    ("spelled", "normal"),
    [
        (["True", "TRUE", "true", True], "true"),
        (["1.0", "1", "1.", 1, 1.0, decimal.Decimal("1.00")], "1"),
        (["-0.0", 0.0, "0"], "0"),
        (["2.50", "2.5", 2.5, decimal.Decimal("2.50")], "2.5"),
        (["10.0", 10, decimal.Decimal("10")], "10"),
        (["007"], "007"),
        (["1.2.0"], "1.2.0"),
        (["00.50"], "00.50"),
        (["Truely"], "Truely"),
        ([1e16, "1e+16", "10000000000000000.0", "1.0E16", 10**16, decimal.Decimal(10**16)], "10000000000000000"),
        ([2.0**63, "9.223372036854776e+18", np.uint64(2**63)], str(2**63)),
        (["-1.5e+17", -1.5e17, "-1.5E17"], "-150000000000000000"),
        (["1e+06", "1000000.0", "1.0E6", 1e6], "1000000"),
        ([1e20, "1e+20", "1.0E20"], "1e+20"),
        ([1e-5, "1e-05", "1.0E-5", "0.00001", "0.0000100", decimal.Decimal("0.00001")], "1e-05"),
        ([0.0001, "1e-04", "0.0001"], "0.0001"),
        (["1e5"], "1e5"),
        (["01e+5"], "01e+5"),
        (["1e+999"], "1e+999"),
        (["", " ", None], None),
    ],
)
def test_a_category_has_one_form_in_all_sources(spelled, normal):
    for value in spelled:
        assert parsing.category_text(value) == normal, repr(value)
        column = pa.array([value])
        assert parsing.normal_categories(column).to_pylist() == [normal], repr(value)
        assert item_rows.value_lists(column).to_pylist() == [[] if normal is None else [normal]]
        coded = parsing.encode(column, normal=True)
        assert [*coded.values.to_pylist(), None][coded.codes[0]] == normal


def test_categories_are_found_in_vocabularies_of_another_form():
    values = pa.array(["True", "1.0", "x", None, "2"])
    assert encode_categories(values, ["true", "1", "2.0"]).to_pylist() == [2, 3, 1, 0, 4]


def test_a_long_duration_is_its_seconds():
    days = pa.array([200 * 86_400, 1_704_072_395, None], pa.duration("s"))
    numbers, odd = parsing.to_numbers(days, np.float64)
    assert numbers[:2].tolist() == [17_280_000.0, 1_704_072_395.0] and np.isnan(numbers[2]) and not odd.any()
