"""`sigmoid-attention diagnose`: what is wrong with the attention of a trained model."""

from rich.console import Console
from rich.table import Table

from sigmoid_attention.cli.model_options import DiagnoseOptions
from sigmoid_attention.cli.output import print_json
from sigmoid_attention.diagnosis import Diagnosis
from sigmoid_attention.diagnosis import diagnose as examine
from sigmoid_attention.diagnosis.folders import MOST_TOKENS, open_folder
from sigmoid_attention.training.data.corpus import load_corpus
from sigmoid_attention.training.terminal import tell, terminal


def diagnose(options: DiagnoseOptions) -> None:
    """Print each finding, and a line of figures for each attention layer."""
    for name in ("sequences", "tokens"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")
    opened = open_folder(options.folder)
    corpus = load_corpus(options.data)
    length = options.tokens or min(opened.trained_length or MOST_TOKENS, MOST_TOKENS)
    batches = [opened.tokens(corpus, options.sequences, length)]
    longer = []
    if opened.extends and length == opened.trained_length:
        longer = [opened.tokens(corpus, max(1, options.sequences // 2), 2 * length)]
    diagnosis = examine(opened.model, batches, longer=longer, records=opened.records)
    if options.json:
        print_json(_numbers(diagnosis))
        return
    show(diagnosis, terminal())
    for finding in diagnosis.findings:
        tell(f"\n{finding.fault}: {finding.where}\n  {finding.said}\n  {finding.change}")
    tell(f"\n{_summary(diagnosis, bool(longer), opened.records is not None)}")


def show(diagnosis: Diagnosis, console: Console) -> None:
    """Print the figures of each layer, over its heads."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    headings = ("layer", "mass of a row", "largest weight", "above 0.99", "most common key")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "layer" else "right")
    for each in diagnosis.evidence:
        table.add_row(
            each.name,
            f"{each.mass_H.min():.2g} to {each.mass_H.max():.2g}",
            f"{each.largest_H.max():.2f}",
            f"{each.saturated_H.max():.1%}",
            f"{each.common_H.max():.2f}",
        )
    console.print(table)


def _summary(diagnosis: Diagnosis, longer: bool, records: bool) -> str:
    count = len(diagnosis.findings)
    left_out = [
        *([] if longer else ["texts longer than those of training"]),
        *([] if records else ["the course of the training (train --record keeps it)"]),
    ]
    looked = f" Not examined: {'; '.join(left_out)}." if left_out else ""
    if count:
        return f"{count} finding{'s' * (count > 1)}.{looked}"
    return f"Nothing is wrong with what was examined.{looked}"


def _numbers(diagnosis: Diagnosis) -> dict:
    return {
        "findings": [vars(finding) for finding in diagnosis.findings],
        "layers": [
            {
                name: value.tolist() if hasattr(value, "tolist") else value
                for name, value in vars(each).items()
            }
            for each in diagnosis.evidence
        ],
    }
