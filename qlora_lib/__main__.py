"""`python -m qlora_lib` is the `qlora` command."""

from qlora_lib.cli import main

main()
