"""How good predictions are: plain formulas over plain lists."""

import math
from collections import Counter
from collections.abc import Sequence

__all__ = ["accuracy", "matthews", "pearson"]


def accuracy(predicted: Sequence[int], true: Sequence[int]) -> float:
    """The share of equal entries."""
    return sum(p == t for p, t in zip(predicted, true, strict=True)) / len(true)


def matthews(predicted: Sequence[int], true: Sequence[int]) -> float:
    """Matthews' correlation for any number of classes (Gorodkin's R_K); 0 where one side has a single class."""
    n = len(true)
    correct = sum(p == t for p, t in zip(predicted, true, strict=True))
    p_counts, t_counts = Counter(predicted), Counter(true)
    both = sum(count * t_counts[label] for label, count in p_counts.items())
    spread_p = n * n - sum(count * count for count in p_counts.values())
    spread_t = n * n - sum(count * count for count in t_counts.values())
    return (correct * n - both) / math.sqrt(spread_p * spread_t) if spread_p and spread_t else 0.0


def pearson(predicted: Sequence[float], true: Sequence[float]) -> float:
    """Pearson's correlation; 0 where one side is constant."""
    n = len(true)
    mean_p, mean_t = math.fsum(predicted) / n, math.fsum(true) / n
    dp, dt = [p - mean_p for p in predicted], [t - mean_t for t in true]
    norm = math.sqrt(math.fsum(d * d for d in dp) * math.fsum(d * d for d in dt))
    return math.fsum(a * b for a, b in zip(dp, dt, strict=True)) / norm if norm else 0.0
