"""The `qlora` command: one thin door to each wing.

How it works: a command checks its arguments, calls the library and prints. With `--json` one JSON
document goes to standard output; progress and logs always go to standard error. Exit 0 done, 1 the
work failed, 2 bad usage or bad settings. Heavy imports stay inside the commands, so that
`qlora --help` answers at once.
"""

import errno
import os
import signal
import sys
import traceback
from pathlib import Path

import click

from qlora_lib.cli import machine, plan, audit, training, use, adapters, own, pages, bench  # noqa: F401, I001  each adds its commands, in this order
from qlora_lib.cli.base import cli
from qlora_lib.errors import QloraError, no_room, one_line, out_of_memory
from qlora_lib.processes import speaks

DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


def main() -> None:
    """Entry point: errors as one line and an exit code, a traceback only with `--debug`, anywhere."""
    args = [a for a in sys.argv[1:] if a != "--debug"]
    debug = len(args) < len(sys.argv) - 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a running arm is ended with it
    if debug:
        os.environ["QLORA_DEBUG"] = "1"  # arms run in processes of their own
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a terminal may lack a letter of the text
    try:
        code = cli(args or ["--help"], standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except QloraError as e:
        _fail(str(e), e.exit_code, debug)
    except click.ClickException as e:
        context = getattr(e, "ctx", None)
        where = f" (see: {context.command_path} --help)" if context else ""
        _fail(f"{e.format_message()}{where}", e.exit_code, debug)
    except click.exceptions.Exit as e:
        sys.exit(e.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted; what was finished is kept", 130, debug)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as e:
        _fail(_unforeseen(e), 1, debug)


def _unforeseen(e: Exception) -> str:
    """One line for what the library did not turn into an error of its own."""
    if out_of_memory(e):
        return "out of memory. Use a smaller batch, context or model, or --quantization nf4"
    if full := no_room(e, Path.cwd()):
        return str(full)
    if isinstance(e, OSError) and e.filename and e.errno in DENIED:
        return f"cannot read or write {e.filename}: {e.strerror}. Give this user the right to, or work in a checkout of your own"
    if isinstance(e, OSError):
        return f"{e.strerror or e}{f' ({e.filename})' if e.filename else ''}"
    return f"{type(e).__name__}: {e!s:.300}. This was not foreseen: `qlora --debug ...` shows where it comes from"


def _fail(line: str, code: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    if speaks():
        click.echo(f"error: {one_line(line)}", err=True)
    sys.exit(code)
