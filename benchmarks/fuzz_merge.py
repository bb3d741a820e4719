"""Damaged and hostile LoRA files against `python -m dco_core`: a clear error or a correct result.

    python -m benchmarks.fuzz_merge [--files 10000] [--first 0]

What is tried and what is allowed: devtools/hostile_merge.py, which the tests use for twenty files of each mutation.
"""

from __future__ import annotations

import argparse
import collections
import tempfile
from pathlib import Path

from devtools.hostile_files import MUTATIONS
from devtools.hostile_merge import check


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=10000)
    parser.add_argument("--first", type=int, default=0)
    values = parser.parse_args()
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    failed = 0
    for number in range(values.first, values.first + values.files):
        name = MUTATIONS[number % len(MUTATIONS)].__name__
        with tempfile.TemporaryDirectory() as folder:
            try:
                counts[name, check(number, Path(folder))] += 1
            except Exception as error:
                failed += 1
                print(f"file {number} ({name}): {type(error).__name__}: {error}", flush=True)
    for name in (m.__name__ for m in MUTATIONS):
        print(f"{name:22} merged {counts[name, 'merged']:5}  refused {counts[name, 'refused']:5}")
    print(f"{values.files} files, {failed} failures")
    raise SystemExit(failed > 0)


if __name__ == "__main__":
    main()
