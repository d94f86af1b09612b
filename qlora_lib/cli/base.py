"""What every command shares: the group, common options, JSON and threads."""

import json
import math
import os

import click

from qlora_lib.errors import UsageError, nearest
from qlora_lib.processes import launched

FORMATS = click.Choice(["none", "int8", "nf4", "fp4"])


class Number(click.FloatRange):
    """A finite number: no range of click's refuses nan."""

    def convert(self, value, param, ctx):
        number = super().convert(value, param, ctx)
        return number if math.isfinite(number) else self.fail(f"{value!r} is no finite number.", param, ctx)


class Group(click.Group):
    """Suggests the nearest command for a misspelt one."""

    def resolve_command(self, ctx, args):
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            ctx.fail(f"no command '{args[0]}'. {nearest(args[0], self.commands)}")


profile_option = click.option("--profile", default="demo", show_default=True, help="A profile's name or a YAML file.")
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
set_option = click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Override a profile key, e.g. train.max_steps=5."
)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="qlora_lib", prog_name="qlora")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Understand, measure and use QLoRA.

    \b
    Examples:
      qlora doctor                        what this machine can do
      qlora plan --model tinyllama-1.1b --method full --gpu T4      what it would take
      qlora report --profile demo         the whole comparison, ending in a PDF
      qlora train --profile demo --method qlora --out my-run
      qlora eval --model smollm2-135m --task perplexity --data my.txt
      qlora generate --model smollm2-135m --quantization nf4 --adapter my-run/adapter --prompt "Paris is"
    """
    launch, command = launched(), click.get_current_context().invoked_subcommand
    if launch and command != "train":
        raise UsageError(
            f"qlora {command} runs in one process, and a launcher has started {launch.world}",
            "Start it without the launcher; studies train with several by runtime.processes=N, a launcher may start qlora train",
        )


def print_json(value) -> None:
    click.echo(json.dumps(value, indent=1, allow_nan=False))  # ASCII: any terminal can take it


def use_threads() -> None:
    """Thread counts must be in the environment before the numeric libraries load."""
    from qlora_lib.hardware import quiet_logs, threads_environment

    quiet_logs()
    for key, value in threads_environment(None, False).items():
        os.environ.setdefault(key, value)
