"""What the numbers say: advantages, costs, limits, and which method to use when, read from the records.

How it works: like sentences.py, but the text argues. A point is made only where the records make it;
the opposite result puts the point on the other list. `choices` gives the rows of the choice table.
"""

from qlora_lib.report import reading
from qlora_lib.report.phrases import METHOD, idle_difference, training_peak
from qlora_lib.report.sentences import Paragraph
from qlora_lib.report.speed_cases import turned_round
from qlora_lib.report.values import Store

TRAINED = ("full", "lora", "qlora")
SMALL = ("qlora", "full-nf4dq", "lora-nf4dq")  # deployed in about four bits a weight
LONG = {
    **METHOD,
    "base": "the untrained base",
    "base-nf4dq": "the untrained base in NF4",
    "full-nf4dq": "full fine-tuning, then NF4",
    "lora-nf4dq": "LoRA merged, then NF4",
}


def all_verdicts(store: Store) -> dict[str, list[Paragraph]]:
    gives, takes = _points(store)
    nothing = [("", "Nothing of this was measured in this run.")]
    return {
        "advantages": gives or nothing,
        "costs": takes or nothing,
        "limits": limits(store),
        "agreement": agreement(store) or nothing,
        "speed-of-study": study_speed(store),
        "choosing": [("", text) for text in _choosing(store)] or nothing,
    }


def _points(s: Store) -> tuple[list[Paragraph], list[Paragraph]]:
    """(what QLoRA gives, what it takes) against full fine-tuning; ties stand in neither list."""
    gives: list[Paragraph] = []
    takes: list[Paragraph] = []

    def put(way, good, lead, text):
        if way in ("higher", "lower"):
            (gives if way == good else takes).append((lead, text))

    put(reading.amount(s, "size-ratio.qlora.full"), "lower", "Bytes of the model.",
        "{qlora.size_bytes.total@mib_unit} against {full.size_bytes.total@mib_unit}: "
        "{size-change.qlora.full}.")  # fmt: skip
    peak, field = training_peak(s)
    put(reading.amount(s, f"{peak}-ratio.qlora.full"), "lower", "Memory of training.",
        f"A peak of {{qlora.{field}@mib_unit}} against {{full.{field}@mib_unit}}: "
        f"{{{peak}-change.qlora.full}}.")  # fmt: skip
    put(reading.amount(s, "optimizer-state-ratio.qlora.full"), "lower", "Optimizer state.",
        "{qlora.train.optimizer.state_bytes@mib_unit} against "
        "{full.train.optimizer.state_bytes@mib_unit}.")  # fmt: skip
    put(reading.amount(s, "flops-ratio.qlora.full"), "lower", "Operations of a step.",
        "{flops-change.qlora.full}: the frozen base needs no gradients of its weights."
        + (" LoRA saves as much." if s.number("flops-ratio.qlora.lora") == 1 else ""))  # fmt: skip
    put(reading.step_time(s, "qlora", "full"), "lower", "Time of a training step.",
        "{qlora.train.seconds_per_step@seconds_unit} against {full.train.seconds_per_step@seconds_unit}: "
        "{step-time-change.qlora.full}.")  # fmt: skip
    put(reading.latency(s, "qlora", "full"), "lower", "Time of generation.",
        "{qlora.generation.tokens_per_second} against {full.generation.tokens_per_second} tokens per "
        "second: {decode-change.qlora.full}.")  # fmt: skip
    put(reading.perplexity(s, "qlora", "full"), "lower", "Quality.",
        "Perplexity {qlora.perplexity.after} against {full.perplexity.after}: "
        "{perplexity-change.qlora.full}, interval {perplexity-interval.qlora.full}.")  # fmt: skip
    return gives, takes


def agreement(s: Store) -> list[Paragraph]:
    """Each finding of the study about QLoRA against full fine-tuning, and what this run says of it."""
    findings = [
        ("Model size.", "study-memory-06", "lower", "{published.12.model size.improvement}",
         reading.amount(s, "size-ratio.qlora.full"), "{size-change.qlora.full}"),
        ("Operations of a step.", "study-flops-04", "lower", "{published.12.flops per step.improvement}",
         reading.amount(s, "flops-ratio.qlora.full"), "{flops-change.qlora.full}"),
        ("Utilization.", "study-mfu-05", "lower", "{published.12.mfu.qlora} against {published.12.mfu.standard}",
         reading.amount(s, "mfu-ratio.qlora.full"), "{qlora.mfu} against {full.mfu}"),
        ("Time of a training step.", "study-time-03", "higher",
         "{published.9.time per step.qlora} against {published.9.time per step.standard} s",
         reading.step_time(s, "qlora", "full"), "{step-time-change.qlora.full}"),
        ("Time of generation.", "study-decode-02", "higher",
         "{published.12.inference time.qlora} against {published.12.inference time.standard} s",
         reading.latency(s, "qlora", "full"), "{latency-change.qlora.full}"),
        ("Perplexity.", "study-quality-01", "higher", "{published.10.change.qlora}",
         reading.perplexity(s, "qlora", "full"), "{perplexity-change.qlora.full}"),
    ]  # fmt: skip
    text = []
    for lead, id, stated, printed, found, here in findings:
        outcome = {
            None: "this run did not measure it.",
            "same": f"in this run no difference is shown ({here}).",
            stated: f"so it is in this run ({here}).",
        }.get(found, f"in this run it is {found} ({here}).")
        text.append((lead, f"The study finds it {stated} with QLoRA ({printed}, claim {{#{id}}}); {outcome}"))
    return text


def study_speed(s: Store) -> list[Paragraph]:
    """What the study says of speed, beside what this run found."""
    names = {"higher": "slower", "lower": "faster", "same": "not shown to differ"}
    found = [
        f"{what} QLoRA is {names[way]} ({figure})"
        for what, way, figure in (
            ("in a training step", reading.step_time(s, "qlora", "full"), "{step-time-change.qlora.full} in time"),
            ("in generation", reading.latency(s, "qlora", "full"), "{decode-ratio.qlora.full} the speed"),
        )
        if way
    ]
    here = f" In this run {' and '.join(found)}." if found else ""
    both = (
        " The same comparison goes one way with the stock stack and the other with this library ({@sec-speed}), so it is a "
        "finding about an implementation and not about 4-bit weights." if turned_round(s) else ""
    )  # fmt: skip
    return [("", f"It says that QLoRA is slower in training and in generation (claims {{#study-time-03}} and {{#study-decode-02}}).{here}{both}")]


def limits(s: Store) -> list[Paragraph]:
    devices = {r.provenance.device for r in s.records.values()}
    cpus = {r.provenance.cpu for r in s.records.values()} | {"cpu"}
    text: list[Paragraph] = []
    if devices <= cpus:
        text.append((
            "A CPU, not a GPU.",
            "Every figure measured here comes from one machine: {hardware}. Ratios of time on a CPU do "
            "not carry over to a GPU, where products, memory and the kernels for 4-bit weights are others. "
            "The profiles for GPUs are written and tested, and were not run on a GPU for this "
            "report.",
        ))  # fmt: skip
    else:
        text.append(("One machine.", "Every figure measured here comes from {hardware}."))
    if s.has("any.model.note"):
        text.append(("These weights.", "{any.model.note}"))
    if s.has("any.model.parameters_total"):
        text.append((
            "A small model.",
            "{any.model.name} has {any.model.parameters_total} parameters. Embeddings weigh more in a "
            "small model than in a large one, so compression is understated; and a small model suffers "
            "more from four bits, so the loss of quality is overstated.",
        ))  # fmt: skip
    if s.has("any-protocol"):
        text.append((
            "One seed, one text.",
            "The intervals say how far the evaluation windows agree, and take them as independent. They say "
            "nothing of another seed, another text, or a longer training.",
        ))  # fmt: skip
    trained = next((a for a in TRAINED if s.has(f"{a}.train.steps")), None)
    if trained:
        text.append((
            "A short training.",
            f"{{{trained}.train.steps}} steps of {{{trained}.train.tokens_per_step}} tokens. With longer "
            "training the order of the methods may change.",
        ))  # fmt: skip
    text.append((
        "Perplexity is not usefulness.",
        "It says how well the model predicts held-out text of one kind, and nothing of following "
        "instructions or answering well.",
    ))  # fmt: skip
    return text


def choices(s: Store) -> list[tuple[str, str, str]]:
    """(what matters most, what to use, why): the rows of the choice table, made from the records."""
    rows = []

    def add(aim, field, least, why, arms=TRAINED):
        arm = reading.best(s, arms, field, least)
        if arm:
            rows.append((aim, f"={_capital(LONG[arm])}", "=" + _capital(why.format(arm=arm))))

    peak = training_peak(s)[1]
    add("Memory while training", peak, True,
        f"peak of {{{{{{arm}}.{peak}@mib_unit}}}}{' of tensors' if 'tensor' in peak else ''}, the lowest at equal "
        "checkpointing")  # fmt: skip
    rows += _fastest(s)
    rows += _quality(s, "Quality, whatever it costs", TRAINED)
    rows += _quality(s, "Quality in about four bits a weight", SMALL)
    if idle_difference(s) and reading.best(s, TRAINED, "generation.tokens_per_second", False) == "full":
        rows.append((
            "Speed of generation", "=Unquantized weights",
            "={full.generation.tokens_per_second} tokens per second in one process and "
            "{base.generation.tokens_per_second} in another at the same work, {qlora.generation.tokens_per_second} with QLoRA"
            if s.has("qlora.generation.tokens_per_second") else
            "={full.generation.tokens_per_second} tokens per second, the most of the methods run",
        ))  # fmt: skip
    else:
        add("Speed of generation", "generation.tokens_per_second", False,
            "{{{arm}.generation.tokens_per_second}} tokens per second, the most of the methods run")  # fmt: skip
    add("Many tasks over one base", "size_bytes.adapter", True,
        "an adapter of {{{arm}.size_bytes.adapter@mib_unit}} a task, on one base of "
        "{{{arm}.size_bytes.base@mib_unit}}", arms=_smallest_base(s))  # fmt: skip
    return rows or [("Any of these", "=not measured", "=This run holds no two methods to choose from")]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _smallest_base(s: Store) -> tuple[str, ...]:
    """Adapters are alike; put first the method whose base is the smaller one."""
    both = [a for a in ("lora", "qlora") if s.has(f"{a}.size_bytes.adapter")]
    return tuple(sorted(both, key=lambda a: s.number(f"{a}.size_bytes.base")))


def _fastest(s: Store) -> list[tuple[str, str, str]]:
    arm = reading.best(s, TRAINED, "train.seconds_per_step")
    if arm is None:
        return []
    same = [a for a in TRAINED if a != arm and _same_time(s, a, arm)]
    why = f"={{{arm}.train.tokens_per_second}} tokens per second, the most of the methods run"
    if same:
        why += f"; no difference from {' and '.join(LONG[a] for a in same)} is shown"
    return [("Time while training", f"={_capital(LONG[arm])}", why)]


def _same_time(s: Store, one: str, other: str) -> bool:
    pair = (one, other) if f"step-time-ratio.{one}.{other}" in s.values else (other, one)
    return reading.step_time(s, *pair) == "same"


def _quality(s: Store, aim: str, arms) -> list[tuple[str, str, str]]:
    found = reading.best_perplexity(s, arms)
    if found is None:
        return []
    arm, tied = found
    why = f"=Perplexity {{{s.deployed(arm)}}} in {{{arm}.size_bytes.total@mib_unit}}, the lowest of these"
    if tied:
        why += f"; no difference from {' and '.join(LONG[a] for a in tied)} is shown"
    return [(aim, f"={_capital(LONG[arm])}", why)]


def _choosing(s: Store) -> list[str]:
    """Two or three paragraphs that turn the lists into advice."""
    text = []
    against_lora, (peak, _) = reading.perplexity(s, "qlora", "lora"), training_peak(s)
    if against_lora and s.has(f"{peak}-change.qlora.lora"):
        quality = {
            "higher": "costs perplexity ({perplexity-change.qlora.lora})",
            "lower": "costs no perplexity; it lowers it ({perplexity-change.qlora.lora})",
            "same": "costs no perplexity that these windows can show",
        }[against_lora]
        text.append(
            "Start from the memory that you have. If the base fits in 16/32-bit with room for activations, "
            "LoRA is the method to compare with, not full fine-tuning: it shares QLoRA’s small optimizer "
            f"state and its operations. Going from LoRA to QLoRA {quality}, and changes the peak of memory "
            f"by {{{peak}-change.qlora.lora}} and the time of a step by {{step-time-change.qlora.lora}}. "
            + ("QLoRA is the faster of the two here, so memory is not its only reason."
               if reading.step_time(s, "qlora", "lora") == "lower"
               else "Take QLoRA when that memory decides whether the training runs at all.")
        )  # fmt: skip
    after = reading.perplexity(s, "qlora", "full-nf4dq")
    if after:
        advice = {
            "lower": "train on the 4-bit base: quantizing after a full fine-tuning gives away more than "
                     "QLoRA does ({perplexity-change.qlora.full-nf4dq} for QLoRA)",
            "higher": "train in full precision and quantize after, if the training fits: QLoRA ends higher "
                      "({perplexity-change.qlora.full-nf4dq})",
            "same": "the two ways are not shown to differ ({perplexity-change.qlora.full-nf4dq}), so the "
                    "cheaper training decides",
        }[after]  # fmt: skip
        text.append(f"If the model must be deployed in about four bits a weight, {advice}.")
    generation = reading.latency(s, "qlora", "base")
    if generation == "lower":
        text.append(
            "If generation must be fast on hardware like this, keep the weights in 4-bit with the adapter beside them: they run "
            "at {decode-ratio.qlora.base} of the untrained base’s speed, since fewer bytes are read for every token. Merging "
            "the adapter into 16/32-bit weights would give that up."
        )
    if generation == "higher":
        text.append(
            "If generation must be fast on hardware like this, do not deploy the 4-bit base with its "
            "adapter beside it: it runs at {decode-ratio.qlora.base} of the untrained base’s speed. Merge "
            "the adapter into the dequantized base, the one it was trained against. Merged into the original "
            "weights it is a different model."
        )
    return text
