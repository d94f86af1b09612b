"""For each mistake: what it would look like, how it is noticed and prevented, and what this library does of it."""

from dataclasses import dataclass

from qlora_lib.notebooks.shown import Shown, as_table


@dataclass(frozen=True)
class Advice:
    would: str  # what the run would show, for a reader who suspects it wrongly
    told_by: str  # what gave it away, for a reader who is right
    notice: str
    prevent: str
    library: str  # what of it this library does by itself


ADVICE: dict[str, Advice] = {
    "pad = eos": Advice(
        would="then each example would be scored on one token less than its answer has, the end token would"
        " have lost its probability, and the answers would run on past their last field. Count the "
        "scored tokens.",
        told_by="The padding token equals the end token, so the stock collator, which takes padding out of "
        "the labels, took the end token out too: one token too few is scored. Whatever the run "
        "measures looks healthy, and the model never learns to stop.",
        notice="Count the labels of one batch that are not -100, and decode them: the end token has to be among them.",
        prevent="Give padding a token of its own, or take padding out of the labels by the attention mask.",
        library="It trains on windows without padding, so no label can be lost.",
    ),
    "loss on the prompt": Advice(
        would="then far more tokens would be scored than the answer has, and the first training loss would "
        "not be the healthy one's, since it would be that of other tokens. Count the scored tokens.",
        told_by="All tokens of an example are scored, so the curves are those of another quantity, which "
        "begins and ends elsewhere and cannot be compared with the loss of answers. The answers "
        "themselves get a part of the gradient only.",
        notice="Count the scored tokens against the answer's; compare the first loss with that of the answers alone.",
        prevent="Set the labels of the prompt to -100, and decode what is left once.",
        library="Nothing: it trains on plain text, in which every token is to be learned.",
    ),
    "no chat template": Advice(
        would="then the run's own validation would be as good as the healthy one's while the same people "
        "cost far more in the chat template. Compare the two validation losses.",
        told_by="Training and its validation agree with each other, both without the template; the model is "
        "used with it. In the template, the same people cost far more.",
        notice="Print one training example as text, special tokens shown, beside one prompt as it is served.",
        prevent="Render both with the same call of apply_chat_template; validate on prompts as they are served.",
        library="`qlora generate --chat` uses the model's own template, and refuses where there is none.",
    ),
    "merged onto the wrong base": Advice(
        would="then training and its validation would be the healthy run's own, and what changed in the "
        "deployed weights would point elsewhere than the trained update does: a cosine below one. "
        "Look at the last lines of the sheet.",
        told_by="The training is the healthy one to the last digit, and the deployed weights changed in "
        "another direction than was trained. The adapter was merged into the 4-bit weights, and the "
        "sum rounded to 4 bits again: changes smaller than half a step of the codebook vanish.",
        notice="Measure the loss once more after the merge, on the files that are handed over.",
        prevent="Merge into the dequantized weights that the adapter was trained on, and keep the sum in 16 "
        "or 32 bits.",
        library="`qlora eval` and `qlora generate` warn when an adapter is laid on a base of another format "
        "than it was trained on.",
    ),
    "alpha/r wrong": Advice(
        would="then training would be the healthy run's own, and the deployed update would have the "
        "direction of the trained one, cosine one, but another size. Look at the last lines of the "
        "sheet.",
        told_by="The training is the healthy one, and the deployed update has its direction but not its size:"
        " the adapter was loaded under another alpha than it was trained with. Nothing else can "
        "stretch all weights alike.",
        notice="Measure the loss once more as deployed; compare alpha and r in the adapter's configuration "
        "with the training's.",
        prevent="Never copy the matrices without their configuration; let one file hold both.",
        library="Adapters are saved and loaded in PEFT's format, with alpha and rank beside the matrices.",
    ),
    "leaked split": Advice(
        would="then validation would look better than the healthy run's, and people that nobody looked at "
        "would cost far more than the validation set. Compare these two losses.",
        told_by="The validation people were trained on: their card numbers, which nobody can guess, are half "
        "known. People that nobody looked at cost far more. The better of two validation curves may "
        "be the ill one.",
        notice="Keep a set aside that nothing was ever chosen or trained on; look for equal rows across the splits.",
        prevent="Remove duplicates first, then split by what must not recur (the person, the document), not by row.",
        library="Its own data sets are split by article, and an article that occurs twice stays in one split.",
    ),
    "fp16 overflow": Advice(
        would="then validation would be no number, and the logged training loss would be too good to be "
        "true. It is a matter of whether the losses are finite.",
        told_by="Validation is no number. The trained weights and their optimizer states were in fp16, where "
        "Adam's epsilon of 1e-8 is zero and small squares of gradients are too: nothing divided by "
        "nothing. Trainer replaces such losses in its log by default, so the logged one is a perfect "
        "zero.",
        notice="A loss of exactly zero is a fault. Set logging_nan_inf_filter=False, and look at the gradient norm.",
        prevent="Keep trained weights and optimizer states in 32 bits; use bf16, or fp16 by autocast with a "
        "gradient scaler.",
        library="Trained weights stay in fp32, the filter is off, and a run stops at the first loss that is "
        "not finite.",
    ),
    "learning rate ten times off": Advice(
        would="then the trained update would be several times smaller or larger than the healthy one after "
        "the same steps, and the training curve another from the first steps on. Compare the sizes of"
        " the trained updates.",
        told_by="The curve falls all the way and is not done; the trained update is a fraction of the healthy"
        " one. The rate was ten times too small, as when an adapter is given a rate that suits full "
        "fine-tuning.",
        notice="Look whether the curve still falls at the end; compare the size of the update with that of a"
        " run that worked.",
        prevent="Try three rates a factor of three apart for a few steps; start adapters at ten times the "
        "rate of full fine-tuning.",
        library="A profile can name rates for each method; its search compares them on the validation split.",
    ),
}


def checklist() -> Shown:
    """One row a mistake: notice, prevent, and what the library does by itself."""
    rows = [[fault, a.notice, a.prevent, a.library] for fault, a in ADVICE.items()]
    head = ["Mistake", "How to notice it", "How to prevent it", "What this library does by itself"]
    return as_table(head, rows, numbers=False)
