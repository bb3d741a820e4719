"""Damaged and hostile files in the merge command; `python -m benchmarks.fuzz_merge` tries ten thousand."""

import pytest

from devtools.hostile_files import MUTATIONS
from devtools.hostile_merge import check


@pytest.mark.parametrize("mutation", range(len(MUTATIONS)), ids=[m.__name__ for m in MUTATIONS])
def test_a_mutated_file_is_refused_in_words_or_merged_correctly(tmp_path, mutation):
    for turn in range(20):
        folder = tmp_path / str(turn)
        folder.mkdir()
        assert check(mutation + turn * len(MUTATIONS), folder) in ("merged", "refused")
