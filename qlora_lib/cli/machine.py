"""Commands about this machine and what lies on it: doctor, profiles, fetch."""

import click

from qlora_lib.cli.base import cli, json_option, print_json, profile_option


@cli.command()
@profile_option
@click.option("--deep", is_flag=True, help="Also compare the content of what is kept, not its size alone.")
@json_option
def doctor(profile: str, deep: bool, as_json: bool) -> None:
    """What this machine can do, and what would go wrong here: each line with ! is advice.

    Device and dtype, memory against the profile's needs, disks and folders, damaged or interrupted downloads,
    checkpoints and records, versions, bitsandbytes, threads, network settings. Nothing is fetched or changed.
    docs/TROUBLESHOOTING.md explains the messages of what does go wrong.

    \b
    Examples:
      qlora doctor
      qlora doctor --profile t4-tinyllama-wikitext2 --deep
    """
    from qlora_lib.doctor import examine

    found = examine(profile, deep)
    if as_json:
        print_json(found.to_dict())
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
        print_json({"profiles": rows})
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
        known = {spec.name for spec in (*assets.registered_models(), *assets.registered_data())}
        wanted += [name for name in p.assets() if name in known or name == p.model.name]
    if not wanted:
        known = [spec.name for spec in (*assets.registered_models(), *assets.registered_data())]
        raise click.UsageError(f"name a profile or an asset ({', '.join(known)})")
    found = assets.fetch(wanted, progress=True)
    rows = [{"name": a.name, "source": a.source, "revision": a.revision, "license": a.license} for a in found]
    if as_json:
        print_json({"assets": rows})
    for row in [] if as_json else rows:
        click.echo(f"{row['name']}: ready ({row['source']}; {row['license']})")
