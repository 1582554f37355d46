import math

import pytest
from cdvft.train.metrics import accuracy, matthews, pearson
from hypothesis import given
from hypothesis import strategies as st

pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)
numbers = st.floats(-100, 100)


@given(pairs)
def test_matthews_is_the_correlation_of_indicator_vectors(rows: list[tuple[int, int]]) -> None:
    """Gorodkin 2004: the summed covariance of the classes' indicators over their summed deviations."""
    n = len(rows)

    def covariance(a: int, b: int) -> float:
        total = 0.0
        for label in range(4):
            x, y = [float(row[a] == label) for row in rows], [float(row[b] == label) for row in rows]
            total += sum(p * q for p, q in zip(x, y, strict=True)) / n - sum(x) * sum(y) / n**2
        return total

    norm = math.sqrt(max(0.0, covariance(0, 0) * covariance(1, 1)))
    expected = covariance(0, 1) / norm if norm > 1e-12 else 0.0
    predicted, true = zip(*rows, strict=True)
    assert matthews(predicted, true) == pytest.approx(expected, abs=1e-9)


def test_binary_matthews_by_its_textbook_formula() -> None:
    predicted, true = [1, 1, 1, 0, 0, 1], [1, 1, 0, 0, 1, 1]
    tp, tn, fp, fn = 3, 1, 1, 1
    assert matthews(predicted, true) == pytest.approx(
        (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    )
    assert matthews([1, 1], [0, 1]) == 0.0
    assert accuracy(predicted, true) == pytest.approx(4 / 6)


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=20), st.floats(0.5, 10), numbers)
def test_pearson_ignores_scale_and_shift(rows: list[tuple[float, float]], scale: float, shift: float) -> None:
    x, y = zip(*rows, strict=True)
    if max(x) - min(x) > 1e-3 and max(y) - min(y) > 1e-3:
        assert pearson(x, [scale * value + shift for value in x]) == pytest.approx(1)
        assert pearson(x, [-value for value in x]) == pytest.approx(-1)
        assert pearson(x, y) == pytest.approx(pearson([scale * value + shift for value in x], y), abs=1e-6)
        assert pearson(x, y) == pytest.approx(pearson(y, x))


def test_pearson_of_a_known_sample_and_of_a_constant() -> None:
    assert pearson([1, 2, 3, 4], [2, 1, 4, 3]) == pytest.approx(0.6)
    assert pearson([1, 1, 1], [1, 2, 3]) == 0.0
