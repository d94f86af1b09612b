"""The command about a user's own data: check."""

from pathlib import Path

import click

from qlora_lib.cli.base import Number, cli, json_option, print_json, use_threads
from qlora_lib.errors import QloraError


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--model", help="Count tokens as this model's chat template and tokenizer make them.")
@click.option("--max-length", type=click.IntRange(8), help="Tokens; longer conversations are left out. Needs --model.")
@click.option("--batch-size", default=16, show_default=True, type=click.IntRange(1), help="Conversations an optimizer step.")
@click.option("--tolerate", default=5.0, show_default=True, type=Number(0, 100), help="Per cent of bad rows that are no failure.")
@click.option("--rows", "named", default=5, show_default=True, type=click.IntRange(0, 1000), help="Rows to name for each kind of problem.")
@json_option
def check(file, model, max_length, batch_size, tolerate, named, as_json) -> None:
    """Judge a file of your own conversations, row by row, before training on it.

    One JSON object a line: {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}.
    A system message may come first; then user and assistant take turns, and the assistant has the last word. ShareGPT's
    conversations, prompt and completion, and instruction, input and output are converted. Exits 0 if the file can be
    trained on, 1 if more rows than --tolerate are bad or nothing is left to validate or test on.

    \b
    Examples:
      qlora check my-chats.jsonl
      qlora check my-chats.jsonl --model smollm2-135m --max-length 512
      qlora check my-chats.jsonl --json --rows 100
    """
    if max_length and not model:
        raise click.UsageError("--max-length counts tokens: say whose with --model")
    tokenizer = _tokenizer(model) if model else None
    from dataclasses import asdict

    from qlora_lib.tasks.own_report import check

    report = check(file, tokenizer, max_length, batch_size, tolerate / 100, named)
    if as_json:
        print_json(asdict(report) | {"usable": report.unusable is None, "model": model})
    else:
        _print(report)
    if report.unusable:
        raise QloraError(report.unusable, "Mend the rows named above" if report.bad_share > tolerate / 100 else "Give more conversations")


def _tokenizer(model: str):
    use_threads()
    from qlora_lib.assets import resolve_model
    from qlora_lib.models import load_tokenizer

    return load_tokenizer(resolve_model(model).path)


def _print(r) -> None:
    from qlora_lib.tasks.own import shown

    click.echo(f"{shown(r.file)}: {r.conversations} conversations in {r.rows} rows, {r.turns} turns, {r.characters} characters")
    for left_out, title in ((True, "left out"), (False, "kept, but look")):
        kinds = [k for k in r.kinds if k.left_out == left_out]
        if kinds:
            click.echo(f"  {title}:")
        for kind in kinds:
            rows = [f"{f['row']} ({f['detail']})" if f["detail"] else str(f["row"]) for f in kind.first if f["row"]]
            more = ", ..." if rows and kind.count > len(kind.first) else ""
            click.echo(f"  {kind.count:7}  {kind.what}" + (f": row {', '.join(rows)}{more}" if rows else ""))
    what = "tokens" if r.tokens else "characters"
    if r.response_share is not None:
        click.echo(f"  learned (the assistant's words): {r.response_share:.0%} of the {what}")
    if r.tokens:
        click.echo(f"  {r.tokens} tokens; the longest conversation, row {r.longest_row}, has {r.longest_tokens}")
    if r.longer_than_max is not None:
        click.echo(f"  longer than {r.max_length} tokens, left out of training: {r.longer_than_max}")
    click.echo(f"  train {r.splits['train']}, validation {r.splits['validation']}, test {r.splits['test']}")
    click.echo(f"  an epoch is {r.steps_per_epoch} whole step{'s' * (r.steps_per_epoch != 1)} of {r.batch_size} conversations")
