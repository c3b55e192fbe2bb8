"""Evidence that a share has changed, which may be looked at after every observation.

A test with a fixed number of observations has more false alarms the more often one looks. The evidence here is an
e-process: without a change, the chance that it ever exceeds 1 / a is at most a, however often one looks and however long
one goes on (Ville, 1939). It is the ratio of universal inference (Wasserman, Ramdas and Balakrishnan, "Universal
inference", 2020, section 8): above, the mixture of Krichevsky and Trofimov (1981) of each of the two sequences, whose shares
may be any; below, the greatest likelihood that both can have where nothing has changed.

Observations are independent, and each sequence has one share.
"""

from __future__ import annotations

from scipy.special import betaln, xlogy


def log_evidence_of_rise(count: float, number: float, count_before: float, number_before: float) -> float:
    """Logarithm of the evidence that a share is above that of another sequence.

    Args:
        count, number: how many of how many observations have it; 0 <= count <= number.
        count_before, number_before: the same of the sequence to compare with. It may be finished, or go on too.

    Returns:
        Nats. Evidence above log(1 / a) comes in at most a share a of all cases without a rise, at any time.

    >>> round(log_evidence_of_rise(3, 3, 0, 1000), 2)  # three of three fail, none of 1,000 before
    15.24
    >>> log_evidence_of_rise(0, 0, 0, 1000) <= 0 and log_evidence_of_rise(1, 1000, 3, 1000) <= 0
    True
    """
    mixtures = _mixture(count, number) + _mixture(count_before, number_before)
    if count * number_before <= count_before * number:  # no rise: both may have the shares that they show
        return mixtures - _greatest(count, number) - _greatest(count_before, number_before)
    return mixtures - _greatest(count + count_before, number + number_before)


def log_evidence_above(count: float, number: float, share: float) -> float:
    """Logarithm of the evidence that a share is above a known one.

    Args:
        count, number: how many of how many observations have it; 0 <= count <= number.
        share: above 0 and below 1.

    Returns:
        Nats, as of `log_evidence_of_rise`.

    >>> round(log_evidence_above(2, 2, 0.01), 2)
    8.23
    """
    if count <= share * number:
        return _mixture(count, number) - _greatest(count, number)
    return _mixture(count, number) - float(xlogy(count, share) + xlogy(number - count, 1 - share))


def _mixture(count: float, number: float) -> float:
    """Log-likelihood of a sequence whose share is drawn from Beta(1/2, 1/2), the prior of Krichevsky and Trofimov."""
    return float(betaln(count + 0.5, number - count + 0.5) - betaln(0.5, 0.5))


def _greatest(count: float, number: float) -> float:
    """Log-likelihood of a sequence at the share that it shows."""
    if not number:
        return 0.0
    return float(xlogy(count, count / number) + xlogy(number - count, 1 - count / number))
