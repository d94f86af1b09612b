"""Commands that train: train, search, sweep."""

import sys
from pathlib import Path

import click

from qlora_lib.cli.base import cli, json_option, print_json, profile_option, set_option
from qlora_lib.errors import QloraError

METHODS = click.Choice(["full", "lora", "qlora"])


@cli.command()
@profile_option
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
      qlora train --profile demo --method qlora --set runtime.processes=2 --out mine
      torchrun --nproc-per-node 2 -m qlora_lib train --profile demo --method qlora --out mine
    """
    from qlora_lib import launched, processes
    from qlora_lib.config import load_profile, parse_overrides
    from qlora_lib.study import ArmFailed, run_arm
    from qlora_lib.task_data import check_data

    if bool(method) == bool(arm_name):
        raise click.UsageError("give either --method or --arm")
    p = load_profile(profile)
    arm = p.arm(arm_name) if arm_name else p.arm_of_method(method)
    overrides = launched.as_launched(p, arm, parse_overrides(assignments))
    data = p.settings(arm, overrides).data
    check_data(data.name, data.text_column)  # a bad file is told before a model is fetched
    try:
        result = (launched.run_arm if processes.launched() else run_arm)(p, arm, out, overrides, force)
    except ArmFailed as e:
        if e.told:
            sys.exit(e.exit_code)
        raise
    r = result.record
    if as_json:
        print_json(r.document())
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
    for name, m in (r.task.metrics if r.task else {}).items():
        values = " -> ".join(f"{x:.1f}" for x in (m.before, m.after) if x is not None)
        click.echo(f"  {name.replace('_', ' ')} {values} {'% ' if m.unit == '%' else ''}({m.n or r.task.n} examples)")
    for why, count in r.data.left_out.items():
        click.echo(f"  left out: {count} ({why})")
    if (out / "adapter").is_dir():
        base = r.setting("quantization.format") or "none"
        click.echo(
            f"  try it: qlora generate --model {r.setting('model.name') or r.model.name} --quantization {base} "
            f'--adapter {out / "adapter"} --prompt "..."'
        )


@cli.command()
@profile_option
@set_option
@json_option
def search(profile, assignments, as_json) -> None:
    """Try the profile's learning rates and write the record that its arms are chosen by.

    \b
    Example: qlora search --profile demo      (an hour; its record is in the repository)
    """
    from qlora_lib.config import load_profile, parse_overrides
    from qlora_lib.search import run_search

    outcome = run_search(load_profile(profile), parse_overrides(assignments))
    if as_json:
        print_json(outcome)
        return
    for method, best in outcome["best"].items():
        click.echo(f"{method}: {best:g}" if best is not None else f"{method}: no rate finished")


@cli.command()
@profile_option
@click.option("--only", multiple=True, metavar="PATTERN", help="Arms whose names match, e.g. 'qlora-rate-*'; may be given again.")
@click.option("--force", is_flag=True, help="Run arms again whose records are there.")
@json_option
def sweep(profile, only, force, as_json) -> None:
    """Run a profile's arms and make no pages of them: for hours of sweeps, stopped and gone on with at will.

    \b
    Examples:
      qlora sweep --profile demo-long
      qlora sweep --profile demo-long --only 'rank-*' --only 'alpha-*'
    """
    from qlora_lib.config import load_profile
    from qlora_lib.study import run_profile

    p = load_profile(profile)
    results = run_profile(p, only=p.arms_like(list(only)) if only else None, force=force)
    if as_json:
        print_json({"arms": [r.record.document() for r in results]})
    else:
        click.echo(f"{sum(not r.cached for r in results)} arms run, {sum(r.cached for r in results)} taken from the cache")
