"""The `qlora` command: one thin door to each wing.

How it works: a command checks its arguments, calls the library and prints. With `--json` one JSON
document goes to standard output; progress and logs always go to standard error. Exit 0 done, 1 the
work failed, 2 bad usage or bad settings. Heavy imports stay inside the commands, so that
`qlora --help` answers at once.
"""

import json
import os
import signal
import sys
import traceback
from pathlib import Path

import click

from qlora_lib.errors import QloraError, nearest, one_line

METHODS = click.Choice(["full", "lora", "qlora"])
FORMATS = click.Choice(["none", "int8", "nf4", "fp4"])


class _Group(click.Group):
    """Suggests the nearest command for a misspelt one."""

    def resolve_command(self, ctx, args):
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            ctx.fail(f"no command '{args[0]}'. {nearest(args[0], self.commands)}")


json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
set_option = click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Override a profile key, e.g. train.max_steps=5."
)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="qlora_lib", prog_name="qlora")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Understand, measure and use QLoRA.

    \b
    Examples:
      qlora doctor                        what this machine can do
      qlora report --profile demo         the whole comparison, ending in a PDF
      qlora train --profile demo --method qlora --out my-run
      qlora eval --model smollm2-135m --task perplexity --data my.txt
      qlora generate --model smollm2-135m --quantization nf4 --adapter my-run/adapter --prompt "Paris is"
    """


@cli.command()
@json_option
def doctor(as_json: bool) -> None:
    """Device, dtype and why, what bitsandbytes can do here, memory, disk, cache, versions.

    \b
    Example: qlora doctor
    """
    from qlora_lib.doctor import examine

    found = examine()
    if as_json:
        _print_json(found.to_dict())
    else:
        click.echo(found.to_text())


@cli.command()
@json_option
def profiles(as_json: bool) -> None:
    """The profiles, what each needs, and whether it fits here.

    \b
    Example: qlora profiles
    """
    from qlora_lib.config import load_profile, profile_names
    from qlora_lib.doctor import fits_here

    rows = []
    for name in profile_names():
        p = load_profile(name)
        fits, why = fits_here(p)
        rows.append(
            {
                "name": name,
                "title": p.title,
                "about": p.about,
                "hardware": p.hardware,
                "needs": p.needs.model_dump(),
                "model": p.model.name,
                "data": p.data.name,
                "arms": [a.name for a in p.arms if a.runs],
                "declared_only": {a.name: a.why for a in p.arms if not a.runs},
                "fits_here": fits,
                "why": why,
            }
        )
    if as_json:
        _print_json({"profiles": rows})
        return
    for row in rows:
        click.echo(f"{row['name']}\n  {row['about']}")
        click.echo(f"  for {row['hardware']}; a download of {row['needs']['download_mb']:g} MB")
        click.echo(f"  here: {'fits' if row['fits_here'] else 'does not fit'} ({row['why']})")
        click.echo(f"  arms: {', '.join(row['arms'])}\n")


@cli.command()
@click.option("--profile", help="Bring everything that this profile needs.")
@click.argument("names", nargs=-1)
@json_option
def fetch(profile: str | None, names: tuple[str, ...], as_json: bool) -> None:
    """Bring and verify models and data sets; does nothing for what is here already.

    \b
    Examples:
      qlora fetch --profile demo
      qlora fetch smollm2-135m wikipedia-sample
    """
    from qlora_lib import assets

    wanted = list(names)
    if profile:
        from qlora_lib.config import load_profile

        p = load_profile(profile)
        registered = [spec.name for spec in assets.registered_data()]
        wanted += [p.model.name, *(name for name in [p.data.name] if name in registered)]
    if not wanted:
        known = [spec.name for spec in (*assets.registered_models(), *assets.registered_data())]
        raise click.UsageError(f"name a profile or an asset ({', '.join(known)})")
    found = assets.fetch(wanted, progress=True)
    rows = [{"name": a.name, "source": a.source, "revision": a.revision, "license": a.license} for a in found]
    if as_json:
        _print_json({"assets": rows})
    for row in [] if as_json else rows:
        click.echo(f"{row['name']}: ready ({row['source']}; {row['license']})")


@cli.command()
@click.option("--profile", default="demo", show_default=True, help="A profile's name or a YAML file.")
@click.option("--method", type=METHODS, help="The profile's first arm of this method.")
@click.option("--arm", "arm_name", help="An arm by name, in place of --method.")
@set_option
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder of the run.")
@click.option("--force", is_flag=True, help="Run again even if the folder holds this run's record.")
@json_option
def train(profile, method, arm_name, assignments, out, force, as_json) -> None:
    """Train one arm; resumes from its folder; writes OUT/record.json.

    \b
    Examples:
      qlora train --profile demo --method qlora --out my-run
      qlora train --profile demo --method lora --set data.name=my.txt --set train.max_steps=50 --out mine
    """
    from qlora_lib.config import load_profile, parse_overrides
    from qlora_lib.study import ArmFailed, run_arm
    from qlora_lib.texts import check_source

    if bool(method) == bool(arm_name):
        raise click.UsageError("give either --method or --arm")
    p = load_profile(profile)
    arm = p.arm(arm_name) if arm_name else p.arm_of_method(method)
    overrides = parse_overrides(assignments)
    data = p.settings(arm, overrides).data
    check_source(data.name, data.text_column)  # a bad file is told before a model is fetched
    try:
        result = run_arm(p, arm, out, overrides, force)
    except ArmFailed as e:
        if e.told:
            sys.exit(e.exit_code)
        raise
    r = result.record
    if as_json:
        _print_json(r.model_dump(by_alias=True, mode="json"))
    else:
        _show_run(result, out)
    if r.status == "stopped":
        raise QloraError(f"the run stopped early: {r.status_reason}", "Try a lower train.learning_rate or train.precision=fp32")


def _show_run(result, out: Path) -> None:
    r = result.record
    click.echo(f"{r.label}: {'taken from ' if result.cached else 'written to '}{out / 'record.json'}")
    if r.train and r.train.loss:
        click.echo(f"  {r.train.steps} steps of {r.train.tokens_per_step} tokens, {r.train.tokens_per_second:.1f} tokens/s")
        click.echo(f"  loss {r.train.loss[0]:.3f} -> {r.train.loss[-1]:.3f}")
    if r.perplexity and r.perplexity.after is not None:
        click.echo(f"  perplexity {r.perplexity.before:.2f} -> {r.perplexity.after:.2f} ({r.perplexity.protocol})")
    elif r.perplexity:
        click.echo(f"  perplexity {r.perplexity.before:.2f} ({r.perplexity.protocol})")
    if (out / "adapter").is_dir():
        base = r.settings["quantization"]["format"]
        click.echo(
            f"  try it: qlora generate --model {r.settings['model']['name']} --quantization {base} "
            f'--adapter {out / "adapter"} --prompt "..."'
        )


@cli.command("eval")
@click.option("--model", required=True, help="Registered name, hub id, local folder or .gguf file.")
@click.option("--adapter", type=click.Path(path_type=Path), help="A LoRA adapter's folder.")
@click.option("--quantization", type=FORMATS, default="none", show_default=True, help="Load the base so.")
@click.option("--double-quant/--no-double-quant", default=True, show_default=True, help="For nf4 and fp4.")
@click.option("--task", type=click.Choice(["perplexity"]), default="perplexity", show_default=True)
@click.option("--data", default="wikipedia-sample", show_default=True, help="Registered name (its test split), or a file or folder.")
@click.option("--text-column", default="text", show_default=True, help="Of JSONL, CSV, TSV and Parquet.")
@click.option("--context", default=512, show_default=True, type=click.IntRange(2), help="Tokens in a window.")
@click.option("--stride", type=click.IntRange(1), help="Tokens between windows; default: the context, disjoint windows.")
@click.option("--windows", type=click.IntRange(1), help="Score only the first so many windows.")
@click.option("--batch-size", default=1, show_default=True, type=click.IntRange(1))
@click.option("--dtype", type=click.Choice(["auto", "fp32", "fp16", "bf16"]), default="auto", show_default=True)
@json_option
def evaluate(as_json, **options) -> None:
    """One evaluation of a model, with its protocol.

    \b
    Examples:
      qlora eval --model smollm2-135m --data my.txt
      qlora eval --model smollm2-135m --quantization nf4 --adapter my-run/adapter --json
    """
    _use_threads()
    from qlora_lib.evaluation import evaluate_perplexity

    result = evaluate_perplexity(**{k: v for k, v in options.items() if k != "task"})
    if as_json:
        _print_json(result)
        return
    spread = result["confidence_interval"]
    shown = f" (95 % interval over windows {spread[0]:.3f} to {spread[1]:.3f})" if spread else " (one window: no interval)"
    click.echo(f"perplexity {result['perplexity']:.3f}{shown}")
    click.echo(f"  {result['n']} tokens scored; {result['protocol']}")
    click.echo(f"  {result['model']} ({result['dtype']}), {result['data']}")


@cli.command()
@click.option("--model", required=True, help="Registered name, hub id, local folder or .gguf file.")
@click.option("--adapter", type=click.Path(path_type=Path), help="A LoRA adapter's folder.")
@click.option("--quantization", type=FORMATS, default="none", show_default=True, help="Load the base so.")
@click.option("--double-quant/--no-double-quant", default=True, show_default=True, help="For nf4 and fp4.")
@click.option("--prompt", required=True, help="Text to go on from; `-` reads standard input.")
@click.option("--chat", is_flag=True, help="Wrap the prompt in the model's chat template.")
@click.option("--max-new-tokens", default=100, show_default=True, type=click.IntRange(1))
@click.option("--temperature", default=0.0, show_default=True, type=click.FloatRange(0), help="0 is greedy.")
@click.option("--seed", default=0, show_default=True, type=int)
@click.option("--dtype", type=click.Choice(["auto", "fp32", "fp16", "bf16"]), default="auto", show_default=True)
@json_option
def generate(as_json, prompt, **options) -> None:
    """Stream text from a model, with or without an adapter.

    \b
    Examples:
      qlora generate --model smollm2-135m --prompt "The capital of France"
      qlora generate --model smollm2-135m --chat --prompt "What is a tensor?" --temperature 0.7
    """
    _use_threads()
    from qlora_lib.generation import stream

    if prompt == "-":
        prompt = sys.stdin.read()
    pieces = []
    for piece in stream(prompt=prompt, **options):
        pieces.append(piece)
        if not as_json:
            click.echo(piece, nl=False)
    if as_json:
        _print_json({"model": options["model"], "prompt": prompt, "text": "".join(pieces)})
    else:
        click.echo()


@cli.command()
@click.option("--profile", default="demo", show_default=True, help="A profile's name or a YAML file.")
@set_option
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def search(profile, assignments, as_json) -> None:
    """Try the profile's learning rates and write the record that its arms are chosen by.

    \b
    Example: qlora search --profile demo      (an hour; its record is in the repository)
    """
    from qlora_lib.config import load_profile, parse_overrides
    from qlora_lib.search import run_search

    outcome = run_search(load_profile(profile), parse_overrides(assignments))
    if as_json:
        _print_json(outcome)
        return
    for method, best in outcome["best"].items():
        click.echo(f"{method}: {best:g}" if best is not None else f"{method}: no rate finished")


@cli.command()
@click.option("--profile", default="demo", show_default=True, help="A profile's name or a YAML file.")
@click.option("--only", help="Notebook numbers, comma-separated, e.g. 05,06.")
@click.option("--force", is_flag=True, help="Execute notebooks again even if nothing changed.")
@json_option
def run(profile, only, force, as_json) -> None:
    """Execute the notebooks headlessly through papermill; arms that they need are run first.

    \b
    Examples:
      qlora run --profile demo
      qlora run --profile smoke --only 05,06
    """
    from qlora_lib.config import load_profile
    from qlora_lib.notebooks import run_notebooks

    numbers = [n.strip() for n in only.split(",")] if only else None
    executed = run_notebooks(load_profile(profile), only=numbers, force=force)
    rows = [{"notebook": e.name, "output": str(e.output), "html": str(e.html), "cached": e.cached, "seconds": e.seconds} for e in executed]
    if as_json:
        _print_json({"notebooks": rows})
    for row in [] if as_json else rows:
        click.echo(f"{row['notebook']}: {row['html']}")


@cli.command()
@click.option("--profile", default="demo", show_default=True, help="A profile's name or a YAML file.")
@click.option("--force", is_flag=True, help="Run every arm and notebook again.")
@click.option("--no-notebooks", is_flag=True, help="Leave the notebooks out: arms, figures and PDF only.")
@click.option("--committed", is_flag=True, help="Draw the pages from the records in the repository; train nothing.")
@json_option
def report(profile, force, no_notebooks, committed, as_json) -> None:
    """Run what is missing, then figures, PDF and HTML.

    \b
    Examples:
      qlora report --profile demo
      qlora report --profile demo --committed     the pages alone, in seconds
    """
    from qlora_lib.config import load_profile
    from qlora_lib.pipeline import make_report

    outcome = make_report(load_profile(profile), force=force, notebooks=not no_notebooks, committed=committed)
    if as_json:
        _print_json(outcome.to_dict())
        return
    for stage, seconds in outcome.stage_seconds.items():
        click.echo(f"{stage:<12} {seconds:7.1f} s")
    click.echo(f"report: {outcome.pdf}")


# --- running --------------------------------------------------------------------------------------


def _print_json(value) -> None:
    click.echo(json.dumps(value, indent=1, allow_nan=False))  # ASCII: any terminal can take it


def _use_threads() -> None:
    """Thread counts must be in the environment before the numeric libraries load."""
    from qlora_lib.hardware import quiet_logs, threads_environment

    quiet_logs()
    for key, value in threads_environment(None, False).items():
        os.environ.setdefault(key, value)


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
    except MemoryError:
        _fail("out of memory. Use a smaller batch, context or model", 1, debug)
    except OSError as e:
        _fail(f"{e.strerror or e}{f' ({e.filename})' if e.filename else ''}", 1, debug)
    except Exception as e:  # nothing foreseen: still one line
        _fail(f"{type(e).__name__}: {e!s:.300}. This was not foreseen: `qlora --debug ...` shows where it comes from", 1, debug)


def _fail(line: str, code: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    click.echo(f"error: {one_line(line)}", err=True)
    sys.exit(code)
