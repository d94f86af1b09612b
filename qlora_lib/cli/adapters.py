"""Commands that use an adapter: generate, merge, export."""

import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import click

from qlora_lib.cli.base import FORMATS, Number, cli, json_option, print_json, use_threads
from qlora_lib.errors import QloraError, UsageError

DTYPES = click.Choice(["auto", "fp32", "fp16", "bf16"])
ADAPTER = click.Path(path_type=Path)


@cli.command()
@click.option("--model", required=True, help="Registered name, hub id, local folder or .gguf file.")
@click.option("--adapter", type=ADAPTER, help="A LoRA adapter's folder.")
@click.option("--compare", metavar="DIR|base", help="Answer also with this adapter, or with the base alone; one base is loaded.")
@click.option("--quantization", type=FORMATS, default="none", show_default=True, help="Load the base so.")
@click.option("--double-quant/--no-double-quant", default=True, show_default=True, help="For nf4 and fp4.")
@click.option("--prompt", help="Text to go on from; `-` reads standard input.")
@click.option("--messages", metavar="FILE", help="Chats to answer, JSON or JSONL of messages; `-` reads standard input.")
@click.option("--interactive", is_flag=True, help="Chat in this terminal: a line is a message; /reset begins anew, /quit ends.")
@click.option("--chat", is_flag=True, help="Wrap the prompt in the model's chat template.")
@click.option("--system", metavar="TEXT", help="System message of the chat; implies --chat.")
@click.option("--max-new-tokens", default=100, show_default=True, type=click.IntRange(1))
@click.option("--temperature", default=0.0, show_default=True, type=Number(0), help="0 is greedy.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**32 - 1))
@click.option("--dtype", type=DTYPES, default="auto", show_default=True)
@json_option
def generate(as_json, prompt, messages, interactive, chat, system, max_new_tokens, temperature, seed, **options) -> None:
    """Stream text from a model, with or without an adapter; chat with it; compare two adapters on one base.

    \b
    Examples:
      qlora generate --model smollm2-135m --prompt "The capital of France"
      qlora generate --model smollm2-135m --chat --prompt "What is a tensor?" --temperature 0.7
      qlora generate --model smollm2-135m --interactive --system "You answer in one sentence."
      qlora generate --model smollm2-135m --messages chats.jsonl --json
      qlora generate --model smollm2-135m --quantization nf4 --adapter my-run/adapter --compare base --prompt "Once"
    """
    if [prompt is not None, messages is not None, interactive].count(True) != 1:
        raise click.UsageError("give one of --prompt, --messages, --interactive")
    if interactive and as_json:
        raise click.UsageError("--interactive has no --json; give --messages")
    if options["compare"] and not (options["adapter"] or options["compare"] != "base"):
        raise click.UsageError("--compare base needs an --adapter to compare with")
    use_threads()
    from qlora_lib.comparing import Speakers
    from qlora_lib.generation import read_chats, with_system

    if interactive:
        prompts = []
    elif messages is not None:
        prompts = [with_system(m, system) for m in read_chats(messages)]
    else:
        text = sys.stdin.read() if prompt == "-" else prompt
        if not text.strip():
            raise UsageError("the prompt is empty", "Give some text with --prompt")
        prompts = [with_system([{"role": "user", "content": text}], system) if chat or system is not None else text]
    speakers = Speakers(**options)
    sampling = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    if interactive:
        _converse(speakers, system, sampling)
        return
    answered = [_answer(speakers, p, sampling, quiet=as_json, heading=len(prompts) > 1) for p in prompts]
    if as_json:
        asked = [{"prompt": text}] if messages is None else [{"messages": p} for p in prompts]
        rows = [a | ({"text": t[0]} if len(t) == 1 else {"texts": t}) for a, t in zip(asked, answered)]
        shown = {"adapters": [s.label for s in speakers.sides]} if options["compare"] else {}
        print_json({"model": options["model"], **shown, **(rows[0] if len(rows) == 1 else {"answers": rows})})


def _answer(speakers, prompt, sampling: dict, quiet: bool = False, heading: bool = False) -> list[str]:
    """What each side says, streamed unless `quiet`: one after the other, or in two columns on a terminal."""
    from qlora_lib.comparing import columns, empty_note

    if heading and not quiet:
        click.echo(f"> {prompt if isinstance(prompt, str) else prompt[-1]['content']}")
    texts: list[str] = []

    def said(side):
        pieces = []
        for piece in speakers.answer(side, prompt, **sampling):
            pieces.append(piece)
            yield piece
        texts.append("".join(pieces))

    width = shutil.get_terminal_size().columns
    if not quiet and len(speakers.sides) == 2 and sys.stdout.isatty() and width >= 60:
        first, second = speakers.sides
        left = "".join(said(first))
        for line in columns(first.label, [second.label], width):
            click.secho(line, bold=True)
        for line in columns(left, said(second), width):
            click.echo(line)
    else:
        for side in speakers.sides:
            if len(speakers.sides) > 1 and not quiet:
                click.secho(f"--- {side.label}", bold=True)
            for piece in said(side):
                if not quiet:
                    click.echo(piece, nl=False)
            if not quiet:
                click.echo()
    for text in texts:
        empty_note(text)
    return texts


def _converse(speakers, system: str | None, sampling: dict) -> None:
    """Chat until the end of input. Each side has its own course of the talk; too long a one is told and begins anew."""
    from qlora_lib.generation import with_system

    talks: list[list] = [[] for _ in speakers.sides]
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if line == "/quit":
            return
        if line == "/reset":
            talks = [[] for _ in speakers.sides]
            continue
        for i, side in enumerate(speakers.sides if line else []):
            asked = [*talks[i], {"role": "user", "content": line}]
            if len(talks) > 1:
                click.secho(f"--- {side.label}", bold=True)
            pieces = []
            try:
                for piece in speakers.answer(side, with_system(asked, system), **sampling):
                    pieces.append(piece)
                    click.echo(piece, nl=False)
            except QloraError as e:
                click.echo(f"error: {e}", err=True)
                if not talks[i]:
                    continue
                click.echo("note: the talk begins anew", err=True)
                talks[i] = []
                continue
            click.echo()
            talks[i] = [*asked, {"role": "assistant", "content": "".join(pieces)}]


@cli.command()
@click.option("--adapter", required=True, type=ADAPTER, help="A LoRA adapter's folder; the record beside it names its base.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the plain checkpoint.")
@click.option("--onto", type=click.Choice(["dequantized", "original"]), help="Default: dequantized where the adapter was trained on a quantized base.")
@click.option("--model", help="The base, where no record names it.")
@click.option("--quantization", type=FORMATS, help="What the base was in training, where no record says it.")
@click.option("--double-quant/--no-double-quant", default=True, show_default=True, help="With --quantization nf4 or fp4.")
@click.option("--dtype", type=DTYPES, default="auto", show_default=True, help="Of the weights; auto: of the base's files. 16 bits round.")
@click.option("--check", metavar="DATA", help="Measure the loss of every way to deploy the adapter on this text, task or file of chats.")
@click.option("--windows", default=16, show_default=True, type=click.IntRange(1), help="Of 256 tokens, or examples, for --check.")
@click.option("--force", is_flag=True, help="Replace the checkpoint in OUT.")
@json_option
def merge(as_json, quantization, double_quant, **options) -> None:
    """Merge an adapter into its base: a plain checkpoint without adapter or quantization.

    An adapter of QLoRA was trained on the dequantized 4-bit weights: merged onto these it keeps its loss; onto the
    original ones, or quantized again, it has another. --check shows each.

    \b
    Examples:
      qlora merge --adapter my-run/adapter --out merged
      qlora merge --adapter my-run/adapter --out merged --onto original --check wikipedia-sample
      qlora merge --adapter theirs --model smollm2-135m --quantization nf4 --out merged
    """
    use_threads()
    from qlora_lib import merging
    from qlora_lib.config import Quantization

    given = Quantization(format=quantization, double_quant=double_quant) if quantization else None
    result = merging.merge(quantization=given, **options)
    if as_json:
        print_json(asdict(result))
        return
    click.echo(f"{result.model} + {result.adapter}, onto {result.onto} weights: {result.out} ({result.bytes / 1e6:.0f} MB, {result.dtype})")
    if result.check:
        click.echo(f"  loss on {result.check_data} ({result.check_protocol})")
        for way in result.check:
            click.echo(f"  {way.loss:.5f}  perplexity {way.perplexity:8.3f}  {way.what}")


@cli.command()
@click.option("--model", required=True, help="Registered name, hub id or local folder, such as what `qlora merge` wrote.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The .gguf file.")
@click.option("--type", "kind", type=click.Choice(["f32", "f16", "q8_0"]), default="f16", show_default=True, help="Of the matrices; vectors stay f32.")
@click.option("--name", help="The model's name in the file; default: that of the model.")
@click.option("--modelfile", is_flag=True, help="Write an Ollama Modelfile beside it, with the model's chat template.")
@click.option("--system", metavar="TEXT", help="System message that its chats begin with; implies --modelfile.")
@click.option("--force", is_flag=True, help="Replace OUT and its Modelfile.")
@json_option
def export(as_json, model, out, kind, name, modelfile, system, force) -> None:
    """Write a model as a GGUF file for llama.cpp, Ollama and LM Studio.

    \b
    Examples:
      qlora export --model smollm2-135m --out smollm2.gguf
      qlora export --model merged --out mine.gguf --type q8_0
      qlora export --model merged --out mine/mine.gguf --modelfile --system "You are our help desk."
    """
    use_threads()
    from qlora_lib.assets import resolve_model
    from qlora_lib.export.gguf_file import export_gguf

    beside = out.parent / "Modelfile" if modelfile or system is not None else None
    if beside and beside.exists() and not force:
        raise UsageError(f"{beside} exists", "Give another folder in --out, or --force to replace it")
    asset = resolve_model(model)
    result = export_gguf(asset.path, out, kind, name or asset.name, force)
    why = _write_modelfile(asset.path, result.path, system) if beside else None
    if as_json:
        print_json({"out": str(result.path), "bytes": result.bytes, "tensors": result.tensors, "type": result.type,
                    "architecture": result.architecture, "pre_tokenizer": result.pre_tokenizer,
                    **({"modelfile": str(beside)} if beside else {})})  # fmt: skip
        return
    click.echo(f"{result.path}: {result.bytes / 1e6:.0f} MB, {result.tensors} tensors in {result.type}, {result.architecture}")
    if beside:
        click.echo(f"{beside}: ollama create NAME -f {beside}" + (f"\n  note: {why}" if why else ""))


def _write_modelfile(model: Path, gguf: Path, system: str | None) -> str | None:
    from qlora_lib.models import load_tokenizer
    from qlora_lib.tasks.modelfile import write_modelfile

    return write_modelfile(gguf, load_tokenizer(model), system)[1]
