"""Commands that use a model: eval, generate."""

import sys
from pathlib import Path

import click

from qlora_lib.cli.base import FORMATS, cli, json_option, print_json, use_threads


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
    use_threads()
    from qlora_lib.evaluation import evaluate_perplexity

    result = evaluate_perplexity(**{k: v for k, v in options.items() if k != "task"})
    if as_json:
        print_json(result)
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
    use_threads()
    from qlora_lib.generation import stream

    if prompt == "-":
        prompt = sys.stdin.read()
    pieces = []
    for piece in stream(prompt=prompt, **options):
        pieces.append(piece)
        if not as_json:
            click.echo(piece, nl=False)
    if as_json:
        print_json({"model": options["model"], "prompt": prompt, "text": "".join(pieces)})
    else:
        click.echo()
