"""`python -m qlora_lib.validation [--out FILE] [--only tiny|real]`: measure the grid, and say how large the errors are."""

import argparse
import sys
from pathlib import Path

from qlora_lib.errors import QloraError


def main(arguments: list[str] | None = None) -> int:
    from qlora_lib.paths import results_dir

    parser = argparse.ArgumentParser(prog="python -m qlora_lib.validation", description=__doc__)
    out, only = "the record; an unfinished one is gone on with", "tiny random models (a minute), or the real one (longer)"
    parser.add_argument("--out", type=Path, default=results_dir("validation.json"), help=out)
    parser.add_argument("--only", choices=("tiny", "real"), help=only)
    options = parser.parse_args(arguments)
    from qlora_lib.validation.run import run
    from qlora_lib.validation.summary import summarize, to_text

    try:
        record = run(options.out, options.only)
    except QloraError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.exit_code
    print(to_text(summarize(record)))
    print(f"{options.out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
