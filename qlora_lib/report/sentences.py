"""The sentences that depend on the records: each is chosen by what was measured.

How it works: `all_sentences` fills named slots that the chapters print with `#say("slot")`. A slot
holds paragraphs; a paragraph may open with a bold lead. Every sentence is a template (segments.py),
and a sentence about an arm that was not measured is left out or says so. The conclusions of the
report stand in verdicts.py.
"""

from qlora_lib.report import implementation, phrases, reading
from qlora_lib.report.formats import NOT_MEASURED
from qlora_lib.report.phrases import METHOD, join
from qlora_lib.report.values import Store

Paragraph = tuple[str, str]  # (lead or "", text)

NOTHING = f"The arms that this part compares were {NOT_MEASURED} in this run."


def all_sentences(store: Store) -> dict[str, list[Paragraph]]:
    slots = {
        "abstract": abstract,
        "run": run,
        "model": model,
        "data": data,
        "optimizers": optimizers,
        "rates": rates,
        "path": implementation.path,
        "timed-path": implementation.timed_path,
        "memory": memory,
        "parameters": parameters,
        "flops": flops,
        "mfu": mfu,
        "training": training,
        "perplexity": perplexity,
        "inference": inference,
        "losses": losses,
        "peak": peak,
        "quantization": quantization,
        "deployed": deployed,
    }
    return {name: [("", text) for text in write(store)] or [("", NOTHING)] for name, write in slots.items()}


def abstract(s: Store) -> list[str]:
    first = (
        "QLoRA trains a small adapter on a base model whose weights are held in 4-bit. This report "
        "repeats the comparison of QLoRA with full fine-tuning that Amine Idrissi and Zakaria Choukri "
        "published, adds 16/32-bit LoRA between the two, corrects the formulas and the accounting, "
        "and measures every quantity again on {any.model.name} and {any.data.name} ({hardware})."
    )
    size = "Base and adapter take {qlora.size_bytes.total@mib_unit} in memory where full " \
        "fine-tuning holds {full.size_bytes.total@mib_unit}, {size-gain.qlora.full} the bytes; the " \
        "published {published.12.compression ratio.qlora} counts every parameter at half a byte, against two bytes." \
        if s.has("size-gain.qlora.full") else None  # fmt: skip
    found = [
        phrases.recovery(s),
        phrases.quality_against_full(s),
        phrases.step_time(s, "qlora", "full"),
        phrases.decoding(s, "qlora", "full"),
    ]
    return join(first) + join(size, *found)


def run(s: Store) -> list[str]:
    arms = s.records.values()
    text = [
        "The runs here are of {any.model.name}, with {any.model.parameters_total} parameters, on the text "
        "{any.data.name} and the machine {hardware}. " + _shared(s) + " What a run did not measure is "
        f"printed as “{NOT_MEASURED}”, never as a guess."
    ]
    stopped = [r for r in arms if r.status != "complete"]
    for record in stopped:
        text.append(f"The arm {{{record.arm}.label}} stopped early: {{{record.arm}.status_reason}}. Its "
                    "figures are those up to that point and are left out of comparisons.")  # fmt: skip
    machines = {(r.provenance.device, r.provenance.cpu, r.provenance.threads) for r in arms}
    if len(machines) > 1:
        text.append("The arms did not all run on one machine: times are compared only within a machine, "
                    "and the appendix names each.")  # fmt: skip
    return text


def _shared(s: Store) -> str:
    trained = [r for r in s.records.values() if r.train]
    if len(trained) < 2:
        return "Fewer than two methods were trained, so none can be compared in training."
    if len({(r.seed, r.train.tokens_per_step) for r in trained}) == 1:
        return "The trained arms share the seed, the order of the text and the tokens of a step."
    return "The trained arms differ in seed or in the tokens of a step; where they do, they are not compared."


def rates(s: Store) -> list[str]:
    if s.rates_searched:
        return ["Here each method’s rate was chosen on the validation split before the comparison was run."]
    return ["The rates here are the profile’s own; no search was made for this model and text."]


def optimizers(s: Store) -> list[str]:
    """Whether the arms differ in the optimizer too; then a difference between them contains it."""
    ran = {r.train.optimizer.ran for r in s.records.values() if r.train}
    if len(ran) < 2:
        return ["Every trained arm here ran the same optimizer."] if ran else []
    return ["QLoRA here ran with its own optimizer, as its paper and the study do: what it differs by from LoRA and "
            "full fine-tuning contains the 8-bit optimizer too."]  # fmt: skip


def model(s: Store) -> list[str]:
    source = "The model here is {any.model.name}, which comes from: {any.model.source}."
    note = "About its weights: {any.model.note}" if s.has("any.model.note") else None
    return join(source, note)


def data(s: Store) -> list[str]:
    text = ["The text here is {any.data.name}, which comes from: {any.data.source}."]
    if s.has("any.data.stand_in_for"):
        text.append("It stands in for {any.data.stand_in_for}, so no perplexity here can be set against "
                    "one on that data set.")  # fmt: skip
    if s.has("any.data.attribution"):
        text.append("Attribution: {any.data.attribution}")
    return join(*text)


def memory(s: Store) -> list[str]:
    if not s.has("qlora.size_bytes.total"):
        return []
    parts = (
        "QLoRA’s base holds {qlora.size_bytes.quantized_weights@mib_unit} of 4-bit codes, "
        "{qlora.size_bytes.quantization_state@mib_unit} of quantization state, and "
        "{qlora.size_bytes.unquantized@mib_unit} of weights that are never quantized: embeddings, "
        "norms, the output head. With the adapter that makes {qlora.size_bytes.total@mib_unit}."
    )
    against = None
    if s.has("size-gain.qlora.full"):
        against = (
            "Full fine-tuning holds {full.size_bytes.total@mib_unit}: the ratio is "
            "{size-gain.qlora.full}, not that of the codes alone. At an equal vocabulary, the smaller the "
            "model, the larger the share of its embeddings, and the further the ratio falls below that of the codes."
        )
    reported = None
    if s.has("qlora.size_bytes.footprint_reported"):
        reported = (
            "The usual library call for a model’s footprint reports "
            "{qlora.size_bytes.footprint_reported@mib_unit} here; the count above is of every tensor."
        )
    return join(parts, against, reported)


def parameters(s: Store) -> list[str]:
    if not s.has("qlora.parameters.trainable"):
        return []
    return join(
        "QLoRA trains {qlora.parameters.trainable} parameters, {qlora.trainable-share} of the base: what "
        "rank {qlora.settings.lora.rank} costs on every target module.",
        "LoRA trains as many, since quantization changes how the base is stored and not its shape."
        if s.number("trainable-ratio.qlora.lora") == 1 else None,
    )  # fmt: skip


def flops(s: Store) -> list[str]:
    way = reading.amount(s, "flops-ratio.qlora.full")
    if way is None:
        return []
    same = s.number("flops-ratio.qlora.lora") == 1
    return join(
        "Here a step of full fine-tuning needs {full.flops_per_step@gflop_unit}, one of QLoRA "
        "{qlora.flops_per_step@gflop_unit}, a change of {flops-change.qlora.full}.",
        "LoRA needs exactly what QLoRA needs: storing the base in 4-bit saves no operation, because the "
        "weights are turned back into {qlora.provenance.dtype} before every product." if same else None,
    )


def mfu(s: Store) -> list[str]:
    way = reading.amount(s, "mfu-ratio.qlora.full")
    if way is None:
        return []
    than = {"lower": "a smaller share of", "higher": "a larger share of", "same": "the same share of"}[way]
    return join(
        f"Here QLoRA turns {than} the peak into useful operations than full fine-tuning, {{qlora.mfu}} "
        "against {full.mfu}."
        if way != "same" else "Here both turn the same share of the peak into useful operations, {qlora.mfu}.",
        "Unpacking weights, dropout masks and the optimizer take time that MFU does not count as work.",
        phrases.drift(s),
    )  # fmt: skip


def training(s: Store) -> list[str]:
    checkpointing = None
    if s.has("step-time-change.qlora-checkpointing.qlora"):
        checkpointing = (
            "Gradient checkpointing changes QLoRA’s step by {step-time-change.qlora-checkpointing.qlora} "
            "in time and its tensors’ peak by {peak-tensors-change.qlora-checkpointing.qlora}: the usual "
            "preparation for 4-bit training turns it on unasked, so that its cost is often taken for "
            "quantization’s."
        )
    memory, (peak, _) = None, phrases.training_peak(s)
    if s.has(f"{peak}-change.qlora.full"):
        memory = (
            f"{'The tensors’ peak of a step' if peak == 'peak-tensors' else 'The peak memory of training'} changes by "
            f"{{{peak}-change.qlora.full}} against full fine-tuning"
            + (", that of the whole process, with what its allocator keeps, by {peak-memory-change.qlora.full}"
               if peak == "peak-tensors" else "")
            + ", and optimizer state by {optimizer-state-change.qlora.full}."
        )
    return join(phrases.step_time(s, "qlora", "full"), phrases.step_time(s, "qlora", "lora"), memory) + join(checkpointing)


def perplexity(s: Store) -> list[str]:
    text = [phrases.gain(s, arm) for arm in METHOD]
    return join(*text) + join(phrases.recovery(s), phrases.quality_against_full(s), phrases.quality_against_lora(s))


def inference(s: Store) -> list[str]:
    merged = (
        "An adapter beside its base costs products of its own at every token; merged into unquantized "
        "weights it costs nothing."
        if s.has("decode-ratio.lora.base") and reading.latency(s, "lora", "base") == "higher" else None
    )  # fmt: skip
    return join(
        phrases.decoding(s, "qlora", "full"), phrases.decoding(s, "qlora", "lora"), merged, phrases.idle_difference(s)
    )


def losses(s: Store) -> list[str]:
    text = [
        f"{name[:1].upper() + name[1:]}: {{{arm}.first-eval}} before training, {{{arm}.last-eval}} at the end."
        for arm, name in METHOD.items()
        if s.has(f"{arm}.last-eval")
    ]
    return join("Validation loss, in nats a token.", *text) if text else []


def peak(s: Store) -> list[str]:
    if not s.has("qlora.train.peak_tensor_bytes"):
        return []
    return join(
        "At its fullest a QLoRA step holds {qlora.train.peak_tensor_bytes@mib_unit} of tensors, of which "
        "{qlora.size_bytes.total@mib_unit} are the model and "
        "{qlora.train.optimizer.state_bytes@mib_unit} the optimizer’s state.",
        "A full step holds {full.train.peak_tensor_bytes@mib_unit}, of which "
        "{full.train.optimizer.state_bytes@mib_unit} are optimizer state."
        if s.has("full.train.peak_tensor_bytes") else None,
        "What remains is gradients and activations; activations grow with the tokens of a batch, "
        "whatever the weights are stored in.",
    )  # fmt: skip


def quantization(s: Store) -> list[str]:
    text = [phrases.format_cost(s, arm, name) for arm, name in (
        ("base-int8", "8-bit"), ("base-nf4", "NF4"), ("base-nf4dq", "NF4 with double quantization"),
        ("base-fp4", "FP4"))]  # fmt: skip
    best = reading.best(s, ("base-nf4", "base-fp4"), "perplexity.before")
    order = {
        "base-nf4": "At the same four bits a code NF4 keeps more of the model than FP4 here, as the "
                    "QLoRA paper found.",
        "base-fp4": "At the same four bits a code FP4 keeps more of the model than NF4 here, which is "
                    "not what the QLoRA paper found.",
    }.get(best)  # fmt: skip
    return join(*text) + join(order)


def deployed(s: Store) -> list[str]:
    text = [phrases.quantized_after(s, arm, name) for arm, name in (
        ("full-nf4dq", "full fine-tuning quantized after training"),
        ("lora-nf4dq", "LoRA merged and then quantized"))]  # fmt: skip
    return join(
        "For production the study prefers full fine-tuning or quantization after training, which it did not run."
        if any(text) else None,
        *text,
    )  # fmt: skip
