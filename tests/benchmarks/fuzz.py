"""Mutated files put to every reader of strangers' data: no crash, no hang, no write elsewhere, only clipsan's own errors.

    python -m tests.benchmarks.fuzz                                         # 10,000 inputs, recorded in RESULTS.md
    python -m tests.benchmarks.fuzz --inputs 200 --only tar --first 1000    # some of one format, recorded nowhere

Every input is a whole file with one to six edits, the same for the same seed, format and number; tests/fuzz/targets.py lists the
formats and what is done with each. Readers work in processes of their own with bounded memory. An input fails where the process
dies or does not answer; where an error is none of clipsan's, or does not name the file; where anything is written, started or
connected to outside the folder; where a pair is neither usable nor rejected with a reason; where a copy does not hold what was read;
and where some kilobytes take more than 5 s of a processor or 600 MiB.
"""

import argparse
import sys
import time

from tests.benchmarks.results import record
from tests.fuzz.drive import run, summary
from tests.fuzz.targets import TARGETS

INPUTS = 10_000
COMMAND = "python -m tests.benchmarks.fuzz"


def main() -> int:
    """Run the inputs, print what failed and a line a format; 1 when anything failed."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=INPUTS, help="of all formats together")
    parser.add_argument("--only", choices=list(TARGETS), action="append", help="one format; may be given again")
    parser.add_argument("--first", type=int, default=0, help="number of the first input of each format")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    names = options.only or list(TARGETS)
    share = -(-options.inputs // len(names))
    started, found = time.monotonic(), []
    for one in run(((name, options.first + i) for name in names for i in range(share)), options.seed):
        found.append(one)
        if one.failed:
            sys.stdout.write(f"FAILED {one.target} --first {one.number}: {one.failed}\n")
            sys.stdout.flush()
    rows = summary(found)
    for row in rows:
        sys.stdout.write("  ".join(f"{name} {value}" for name, value in row.items()) + "\n")
    failed = sum(row["failed"] for row in rows)
    sys.stdout.write(f"{len(found):,} inputs, {failed} failed, {time.monotonic() - started:.0f} s\n")
    if options.only is None and not options.first and options.inputs >= INPUTS:
        record("fuzz", ({**row, "seed": options.seed} for row in rows), command=COMMAND)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
