"""The two errors that a user may see: the work failed (exit 1), or it was asked for wrongly (exit 2).

Each carries one line that says what is wrong and what was expected, and a hint with the next step.
"""

from difflib import get_close_matches


class QloraError(Exception):
    """The work failed; the command line prints the message and exits 1."""

    exit_code = 1

    def __init__(self, message: str, hint: str = ""):
        self.message, self.hint = one_line(message), one_line(hint)
        super().__init__(f"{self.message}. {self.hint}" if hint else self.message)


class UsageError(QloraError):
    """Bad usage or bad settings; the command line prints the message and exits 2."""

    exit_code = 2


def one_line(text: str) -> str:
    """The text without line ends, safe for a terminal: what does not print stands as its code."""
    line = " ".join(str(text).split())
    return line if line.isprintable() else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def nearest(name: str, valid) -> str:
    """The hint that follows an unknown name: the closest valid one, else all of them."""
    valid = [str(v) for v in valid]
    close = get_close_matches(str(name), valid, n=1, cutoff=0.5)
    if close:
        return f"Did you mean '{close[0]}'?"
    return f"Choose from: {', '.join(valid)}"
