"""The command that measures this library against the stock stack: bench."""

import os
import sys
import tempfile
from pathlib import Path

import click

from qlora_lib.cli.base import Number, cli, json_option, print_json, use_threads


@cli.command()
@click.option("--profile", help="Gives the text, the prompt and, without --model, the model.  [default: demo]")
@click.option("--model", help="Registered name, hub id, local folder or .gguf file.")
@click.option("--shapes", help="Sequences x tokens of a training step.  [default: 4x128,4x256]")
@click.option("--repeats", type=click.IntRange(1), help="Timed rounds.  [default: 5]")
@click.option("--new-tokens", type=click.IntRange(2), help="Tokens that are decoded.  [default: 50]")
@click.option("--windows", type=click.IntRange(1), help="Windows of the perplexity.  [default: 4]")
@click.option("--parts", help="Of training, numerics, decode, perplexity, scaling, causes.  [default: all]")
@click.option("--scaling-repeats", type=click.IntRange(1), help="Timed rounds of scaling and causes.  [default: 3]")
@click.option("--gguf", type=click.Path(path_type=Path), help="The same model for llama.cpp.")
@click.option("--allocator", type=click.Choice(["default", "keep"]), help="Whether glibc keeps freed memory.")
@click.option("--quick", is_flag=True, help="One round on a tiny random model: its numbers mean nothing.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="The record.  [default: results/bench.json]")
@click.option("--gpu-check", is_flag=True, help="Random weights on a CUDA GPU, against predictions; no download.")
@click.option("--tiny", is_flag=True, help="With --gpu-check: on any device, at a size whose numbers mean nothing.")
@click.option("--budget", type=Number(0, min_open=True), metavar="SECONDS", help="Of --gpu-check.  [default: 300]")
@json_option
def bench(as_json, allocator, quick, out, gpu_check, tiny, budget, **options) -> None:
    """This library against the stock stack: training, decoding, perplexity, in turns; ratios and the machine's limits.

    \b
    Examples:
      qlora bench
      qlora bench --allocator keep --repeats 9 --out keep.json
      qlora bench --parts training,decode
      qlora bench --quick --json
      qlora bench --gpu-check
    """
    if gpu_check or tiny or budget:
        others = {"allocator": allocator, "quick": quick or None} | options
        return check_gpu(gpu_check, tiny, budget, out, as_json, [name for name, value in others.items() if value is not None])
    if allocator:
        start_again_with(allocator)
    use_threads()
    from qlora_lib.bench.settings import QUICK, BenchSettings, parse_parts, parse_shapes

    given = {key: value for key, value in options.items() if value is not None}
    if "shapes" in given:
        given["shapes"] = parse_shapes(given["shapes"])
    if "parts" in given:
        given["parts"] = parse_parts(given["parts"])
    if "gguf" not in given and given.get("model", "").endswith(".gguf"):
        given["gguf"] = Path(given["model"])
    settings = BenchSettings(**((QUICK if quick else {}) | given))
    from qlora_lib.bench.run import default_out, run_bench
    from qlora_lib.bench.table import to_text

    out = out or default_out(quick)
    try_folder(out)
    record = run_bench(settings)
    record.write(out)
    if as_json:
        print_json(record.to_dict())
    else:
        click.echo(f"{to_text(record)}\n\nrecord: {out}")


def try_folder(out: Path) -> None:
    """A folder that cannot be written to is told before the work."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=out.parent):
        pass


def check_gpu(wanted: bool, tiny: bool, budget: float | None, out: Path | None, as_json: bool, others: list[str]) -> None:
    """`--gpu-check`: measure, write the record, say how to contribute it."""
    from qlora_lib.errors import UsageError

    if not wanted:
        raise UsageError("--tiny and --budget belong to --gpu-check", "Add it: qlora bench --gpu-check --tiny")
    if others:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in others)
        raise UsageError(f"--gpu-check does not take {named}", "It takes --tiny, --budget, --out and --json")
    # One GPU: Trainer would spread a batch over all that it sees.
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    use_threads()
    from qlora_lib.bench import gpu_check
    from qlora_lib.bench.gpu_table import to_text

    out = out or gpu_check.default_out(tiny)
    try_folder(out)
    check = gpu_check.run_gpu_check(tiny, budget or gpu_check.BUDGET)
    check.write(out)
    if as_json:
        print_json(check.to_dict())
    else:
        click.echo(f"{to_text(check)}\n\nrecord: {out}")
        if not check.tiny:
            click.echo(f"to contribute it: copy it to report/records/gpu/{check.file_name}, see the README there")
    if error := gpu_check.failed(check):
        raise error


def start_again_with(allocator: str) -> None:
    """This command in a new environment; returns only where the allocator is already set so.

    glibc reads its settings when a process starts.
    """
    import platform

    from qlora_lib.errors import UsageError
    from qlora_lib.hardware import KEEP_FREED_MEMORY

    if platform.libc_ver()[0] != "glibc":
        raise UsageError("--allocator sets glibc's allocator, and this system has another", "Leave --allocator out")
    others = {key: value for key, value in os.environ.items() if key not in KEEP_FREED_MEMORY}
    wanted = others | (KEEP_FREED_MEMORY if allocator == "keep" else {})
    if wanted == dict(os.environ):
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, "-m", "qlora_lib", *sys.argv[1:]], wanted)
