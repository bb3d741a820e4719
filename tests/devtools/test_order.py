"""Which files of tests come first."""

from __future__ import annotations

from pathlib import Path

from tests import order

TESTS = Path(order.__file__).parent


def test_every_name_of_the_order_is_a_file_or_a_folder_of_tests():
    for name in order.LONGEST_FIRST:
        assert (TESTS / name).exists(), name


def test_long_files_come_before_short_ones():
    names = [
        "core/test_losses.py",
        "host/test_merge.py",
        "core/test_evidence_regression.py",
        "host/test_scores.py",
    ]
    ordered = sorted(names, key=lambda name: order.place(TESTS / name))
    assert ordered == [names[2], names[1], names[3], names[0]]
