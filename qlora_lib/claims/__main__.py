"""`python -m qlora_lib.claims [--out FILE] [--check]`: audit every claim and keep what was found for the pages."""

import argparse
import sys
from collections import Counter
from pathlib import Path

from qlora_lib.errors import QloraError


def main(arguments: list[str] | None = None) -> int:
    from qlora_lib.claims.record import committed_audit, make, refuse_stale

    parser = argparse.ArgumentParser(prog="python -m qlora_lib.claims", description=__doc__)
    parser.add_argument("--out", type=Path, default=committed_audit(), help="the record; by default the one that the repository carries")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the record is not what the audit finds now")
    options = parser.parse_args(arguments)
    try:
        if options.check:
            refuse_stale(options.out)
            return 0
        record = make()
        record.write(options.out)
    except QloraError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.exit_code
    for verdict, count in Counter(c.verdict for c in record.claims).items():
        print(f"{count:4} {verdict}")
    print(options.out, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
