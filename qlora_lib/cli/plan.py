"""The command that says what a training will take, before it is run: plan."""

import sys

import click

from qlora_lib.cli.base import FORMATS, Number, cli, json_option, print_json

METHODS = click.Choice(["full", "lora", "qlora"])
DTYPES = click.Choice(["fp32", "fp16", "bf16"])
OPTIMIZERS = click.Choice(["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"])


@cli.command()
@click.option("--model", help="Known name, hub id, local folder, config.json or .gguf file; no download.")
@click.option("--method", type=METHODS, help="[default: qlora]")
@click.option("--profile", help="In place of --model: every arm of a profile.")
@click.option("--seq-len", type=click.IntRange(1), help="Tokens of a sequence.  [default: 512]")
@click.option("--batch-size", type=click.IntRange(1), help="Sequences of a micro-batch.  [default: 4]")
@click.option("--accumulation", type=click.IntRange(1), help="Micro-batches of a step.  [default: 1]")
@click.option("--rank", type=click.IntRange(1), help="Of the adapters.  [default: 16]")
@click.option("--targets", help="all-linear, or modules with commas: q_proj,v_proj.  [default: all-linear]")
@click.option("--quantization", type=FORMATS, help="Of the base.  [default: nf4 for qlora]")
@click.option("--double-quant/--no-double-quant", default=None, help="For nf4 and fp4.  [default: yes]")
@click.option("--optimizer", type=OPTIMIZERS, help="[default: adamw]")
@click.option("--dtype", type=DTYPES, help="Of the products.  [default: each card's own]")
@click.option("--weight-dtype", type=DTYPES, help="Of base weights that are not quantized.  [default: as this library trains]")
@click.option("--checkpointing/--no-checkpointing", default=None, help="Compute activations again.  [default: no]")
@click.option("--attention", type=click.Choice(["sdpa", "eager"]), help="[default: sdpa]")
@click.option("--fast/--no-fast", default=None, help="Forwards and loss of qlora_lib.fast, as this library trains.  [default: no: transformers, PEFT and bitsandbytes alone]")
@click.option("--gpu", "gpus", multiple=True, metavar="NAME", help="A card, such as T4 or \"RTX 4090\", or cpu; may be given again.  [default: all]")
@click.option("--steps", type=click.IntRange(1), help="Optimizer steps of the run.")
@click.option("--tokens", type=click.IntRange(1), help="Tokens of the data, in place of --steps.")
@click.option("--epochs", type=Number(0, min_open=True), help="Times over --tokens.")
@click.option("--price", type=Number(0, min_open=True), metavar="PER_HOUR", help="Of a card, in any currency.")
@click.option("--calibrate", is_flag=True, help="Measure this machine's CPU first, for about a minute; later plans use it.")
@json_option
def plan(as_json, model, method, profile, gpus, steps, tokens, epochs, price, calibrate, **options) -> None:
    """Memory by component, FLOPs, time and price of a training, and the cards that it fits; downloads and runs nothing.

    \b
    Examples:
      qlora plan --model tinyllama-1.1b --method full --gpu T4
      qlora plan --model llama3.1-8b --method qlora --seq-len 2048 --batch-size 1 --checkpointing
      qlora plan --model qwen2.5-7b --method lora --gpu 3090 --gpu A100 --tokens 3000000 --epochs 2 --price 1.10
      qlora plan --profile t4-tinyllama-wikitext2
      qlora plan --calibrate
      qlora plan --model smollm2-135m --method qlora --gpu cpu --seq-len 128 --json
    """
    settings = {name: value for name, value in options.items() if value is not None}
    if profile and (model or method or settings):
        named = [name for name, value in {"model": model, "method": method, **settings}.items() if value]
        raise click.UsageError(f"--profile has its own --{(named or ['double-quant'])[0].replace('_', '-')}")
    if not (model or profile or calibrate):
        raise click.UsageError("name a --model or a --profile")
    from qlora_lib.cost.planner import Run

    run = Run(steps, tokens, epochs, price)
    if calibrate:
        _calibrate(alone=not (model or profile), as_json=as_json)
    if profile:
        _show_profile(profile, gpus, run, as_json)
    elif model:
        _show_plan(model, method or "qlora", gpus, run, settings, as_json)


def _show_plan(model: str, method: str, gpus, run, settings: dict, as_json: bool) -> None:
    from qlora_lib.cost.plan_table import to_text
    from qlora_lib.cost.planner import plan as predict

    if "targets" in settings and settings["targets"] != "all-linear":
        settings["targets"] = tuple(filter(None, (name.strip() for name in settings["targets"].split(","))))
    found = predict(model, method, gpus=gpus, run=run, **settings)
    if as_json:
        print_json(found)
    else:
        click.echo(to_text(found, blocks=_has_blocks()))


def _show_profile(name: str, gpus, run, as_json: bool) -> None:
    from qlora_lib.config import load_profile
    from qlora_lib.profile_plans import plan_profile, to_text

    found = plan_profile(load_profile(name), gpus, run)
    if as_json:
        print_json(found)
    else:
        click.echo(to_text(found))


def _calibrate(alone: bool, as_json: bool) -> None:
    from dataclasses import asdict

    from qlora_lib.cli.base import use_threads

    use_threads()
    from qlora_lib.calibration import calibrate, described
    from qlora_lib.cost.calibrated import calibration_file

    found = calibrate()
    if as_json and alone:
        print_json({"calibration": asdict(found), "file": str(calibration_file())})
    else:
        for line in (*described(found), f"kept in {calibration_file()}; later plans for this machine use it"):
            click.echo(line, err=not alone)


def _has_blocks() -> bool:
    """Whether standard output can show block characters."""
    try:
        "█▏".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
