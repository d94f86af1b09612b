"""The command that measures a model: eval."""

from pathlib import Path

import click

from qlora_lib.cli.base import FORMATS, cli, json_option, print_json, use_threads
from qlora_lib.errors import UsageError

TASKS = ("perplexity", "responses", "sst2", "squad", "winrate")
DATA = {
    "perplexity": "wikipedia-sample",
    "responses": "wikipedia-instructions",
    "sst2": "film-reviews",
    "squad": "wikipedia-questions",
    "winrate": "wikipedia-alpaca",
}
OF_TASKS = ("examples", "answer_tokens")
OF_TEXT = ("text_column", "stride", "windows")
OF_WINRATE = ("baseline", "judge", "judge_set", "annotations", "out")


@cli.command("eval")
@click.option("--model", help="Registered name, hub id, local folder or .gguf file.")
@click.option("--adapter", type=click.Path(path_type=Path), help="A LoRA adapter's folder.")
@click.option("--quantization", type=FORMATS, default="none", show_default=True, help="Load the base so.")
@click.option("--double-quant/--no-double-quant", default=True, show_default=True, help="For nf4 and fp4.")
@click.option("--task", type=click.Choice(TASKS), default="perplexity", show_default=True, help="responses: perplexity of an instruction set's answers.")
@click.option("--data", help=f"Registered name (its test split), or a file or folder.  [default: {', '.join(f'{t}: {d}' for t, d in DATA.items())}]")
@click.option("--text-column", help="perplexity: of JSONL, CSV, TSV and Parquet.  [default: text]")
@click.option("--context", type=click.IntRange(2, 131072), help="Tokens in a window, or in a prompt with its answer.  [default: 512; winrate: 2048]")
@click.option("--stride", type=click.IntRange(1), help="perplexity: tokens between windows.  [default: the context, disjoint windows]")
@click.option("--windows", type=click.IntRange(1), help="perplexity: score only the first so many windows.")
@click.option("--examples", type=click.IntRange(1), help="The other tasks: only the first so many examples.")
@click.option("--answer-tokens", type=click.IntRange(1), help="squad, winrate: the longest answer.  [default: 48; winrate: 256]")
@click.option("--baseline", metavar="base|reference|FILE", help="winrate: whose answers to beat.  [default: base with --adapter, else reference]")
@click.option("--judge", type=click.Choice(["reference-overlap", "endpoint", "local"]), help="winrate: who compares.  [default: reference-overlap, no judge of quality]")
@click.option("--judge-set", multiple=True, metavar="KEY=VALUE", help="winrate: the judge's settings, e.g. model=..., base_url=..., key_variable=...")
@click.option("--annotations", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="winrate: of comparisons made elsewhere, in AlpacaEval's format.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="winrate: folder for answers and annotations; run again, it goes on there.")
@click.option("--batch-size", default=1, show_default=True, type=click.IntRange(1))
@click.option("--dtype", type=click.Choice(["auto", "fp32", "fp16", "bf16"]), default="auto", show_default=True)
@json_option
def evaluate(as_json, task, data, **options) -> None:
    """One evaluation of a model, with its protocol and a 95 % interval.

    \b
    Examples:
      qlora eval --model smollm2-135m --data my.txt
      qlora eval --model smollm2-135m --quantization nf4 --adapter my-run/adapter --json
      qlora eval --model smollm2-135m --task sst2 --examples 200
      qlora eval --model smollm2-135m --task squad --data dev-v1.1.json
      qlora eval --model smollm2-135m --quantization nf4 --adapter my-run/adapter --task winrate --examples 50 --out my-eval
      qlora eval --model my-merged --task winrate --data alpaca-eval --judge endpoint --judge-set model=gpt-4-1106-preview
      qlora eval --task winrate --annotations annotations.json
    """
    given = {name: value for name, value in options.items() if value not in (None, ())}
    foreign = [*(OF_TASKS if task == "perplexity" else OF_TEXT), *(() if task == "winrate" else OF_WINRATE)]
    if wrong := [name for name in foreign if name in given]:
        raise UsageError(f"--{wrong[0].replace('_', '-')} is not for --task {task}", "See: qlora eval --help")
    if "model" not in given and "annotations" not in given:
        raise click.UsageError("Missing option '--model'.")
    use_threads()
    from qlora_lib import evaluation

    data = DATA[task] if data is None else data
    if task == "perplexity":
        result = evaluation.evaluate_perplexity(data=data, **given)
    elif task == "winrate":
        result = _win_rate(data, given)
    else:
        result = evaluation.evaluate_task(task=task, data=data, **given)
    if as_json:
        print_json(result)
    else:
        _show(result)


def _win_rate(data: str, given: dict) -> dict:
    from qlora_lib.config import parse_settings
    from qlora_lib.judges import JudgeSettings, evaluate_annotations

    if "annotations" in given:
        if others := [name for name in ("model", "adapter", *OF_WINRATE) if name in given and name != "annotations"]:
            raise UsageError(f"--annotations are judged already; --{others[0].replace('_', '-')} changes nothing", "Leave one of them out")
        return evaluate_annotations(given["annotations"])
    from qlora_lib.versus import evaluate_win_rate

    chosen = {"kind": given.pop("judge")} if "judge" in given else {}
    judge = parse_settings(JudgeSettings, given.pop("judge_set", ()), chosen, "--judge-set")
    del given["batch_size"]
    return evaluate_win_rate(data=data, judge=judge, **given)


def _show(result: dict) -> None:
    unit = "tokens" if "tokens_scored" in result else "examples"
    name = "win_rate" if result["task"] == "winrate" else result["task"]
    intervals = result.get("confidence_intervals") or {name: result["confidence_interval"]}
    for name, spread in intervals.items():
        shown = f" (95 % interval {spread[0]:.3f} to {spread[1]:.3f})" if spread else " (no interval: nothing varies)"
        click.echo(f"{name.replace('_', ' ')} {result[name]:.3f}{shown}")
    if result.get("length_controlled_win_rate") is not None:
        click.echo(f"length-controlled win rate {result['length_controlled_win_rate']:.3f}")
    for warning in result.get("length_controlled", {}).get("warnings", []):
        click.echo(f"  note: {warning}")
    if result.get("cost_usd") is not None:
        click.echo(f"cost ${result['cost_usd']:.4f}")
    if (bias := result.get("position_bias")) and bias["advantage"] is not None:
        click.echo(f"  the answer seen first wins {bias['advantage']:.1f} points more often: 0 without a bias")
    for why, count in result.get("missing", {}).items():
        click.echo(f"  no verdict: {count} ({why})")
    click.echo(f"  {result['n']} {unit} scored; {result['protocol']}")
    if result.get("prompts_cut"):
        click.echo(f"  {result['prompts_cut']} prompts were longer than the context and cut at their beginning")
    for why, count in result.get("left_out", {}).items():
        click.echo(f"  left out: {count} ({why})")
    stand_in = f", a stand-in for {result['stand_in_for']}" if result.get("stand_in_for") else ""
    dtype = f" ({result['dtype']})" if "dtype" in result else ""
    against = f" against {result['baseline']}" if "baseline" in result else ""
    click.echo(f"  {result['model']}{dtype}{against}, {result['data']}{stand_in}")
