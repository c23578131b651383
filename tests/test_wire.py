"""What each rank sends in a collective, as lessons and pages state it: a share of the payload X on P ranks."""

from fractions import Fraction

import pytest

from kandinsky_mini.parallel.ledger import Entry

# Ring formulas (Patarasuk and Yuan 2009). Where ranks send different amounts, the mean over the ranks counts.
SHARES = {
    "all_reduce": lambda p: Fraction(2 * (p - 1), p),  # a reduce-scatter and an all-gather
    "all_gather": lambda p: Fraction(p - 1, p),  # P - 1 rounds, with one part in each
    "reduce_scatter": lambda p: Fraction(p - 1, p),
    "all_to_all": lambda p: Fraction(p - 1, p * p),  # a P-th of the own part to each other rank
    "broadcast": lambda p: Fraction(p - 1, p),  # all of it, from each rank but the last
    "scatter": lambda p: Fraction(p - 1, p * p),  # one rank sends each other rank its part
}


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("collective", SHARES)
def test_a_rank_sends_this_share_of_the_payload(collective, ranks):
    payload = 64 * 1024
    assert Entry("", collective, payload, ranks).wire == pytest.approx(float(SHARES[collective](ranks) * payload))
