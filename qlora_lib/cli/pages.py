"""Commands that make pages: run, report, course."""

from dataclasses import asdict
from pathlib import Path

import click

from qlora_lib.cli.base import cli, json_option, print_json, profile_option


@cli.command()
@profile_option
@click.option("--only", help="Notebook numbers, comma-separated, e.g. 05,06.")
@click.option("--solutions", is_flag=True, help="Also the solutions of each lesson.")
@click.option("--force", is_flag=True, help="Execute notebooks again even if nothing changed.")
@json_option
def run(profile, only, solutions, force, as_json) -> None:
    """Execute the notebooks headlessly through papermill; arms that they need are run first.

    \b
    Examples:
      qlora run --profile demo
      qlora run --profile smoke --only 05,06
    """
    from qlora_lib.config import load_profile
    from qlora_lib.notebooks import run_notebooks

    numbers = [n.strip() for n in only.split(",")] if only else None
    executed = run_notebooks(load_profile(profile), only=numbers, force=force, solutions=solutions)
    rows = [{"notebook": e.name, "output": str(e.output), "html": str(e.html), "cached": e.cached, "seconds": e.seconds} for e in executed]
    if as_json:
        print_json({"notebooks": rows})
    for row in [] if as_json else rows:
        click.echo(f"{row['notebook']}: {row['html']}")


@cli.command()
@profile_option
@click.option("--force", is_flag=True, help="Run every arm and notebook again.")
@click.option("--no-notebooks", is_flag=True, help="Leave the notebooks out: arms, figures and PDF only.")
@click.option("--committed", is_flag=True, help="Draw the pages from the records in the repository; train nothing.")
@json_option
def report(profile, force, no_notebooks, committed, as_json) -> None:
    """Run what is missing, then figures, PDF and HTML; ends with where the time went.

    \b
    Examples:
      qlora report --profile demo
      qlora report --profile demo --committed     the pages alone, in seconds
    """
    from qlora_lib.config import load_profile
    from qlora_lib.pipeline import make_report

    outcome = make_report(load_profile(profile), force=force, notebooks=not no_notebooks, committed=committed)
    if as_json:
        print_json(outcome.to_dict())
        return
    click.echo(f"report: {outcome.pdf}")


@cli.command()
@click.option("--student", type=click.Path(path_type=Path), help="Write a copy without solutions into this new folder.")
@json_option
def course(student, as_json) -> None:
    """The lessons; with --student a copy of them to hand out, without the solutions.

    \b
    Examples:
      qlora course
      qlora course --student handout
    """
    from qlora_lib.course.student import lessons, write_student_copy

    rows = [asdict(lesson) for lesson in lessons()]
    written = [str(path) for path in write_student_copy(student)] if student else []
    if as_json:
        print_json({"lessons": rows, "written": written})
        return
    for row in [] if student else rows:
        exercises = f"{row['exercises']} exercises" if row["exercises"] else "open questions"
        click.echo(f"{row['number']}  {row['title']}  ({exercises}; notebooks/{row['name']}.ipynb)")
    if student:
        click.echo(f"{len(written)} files in {student}, no solutions among them")
