"""`sigmoid-attention routing`: compares sigmoid with softmax routing, as a table and a verdict."""

from rich.table import Table

from sigmoid_attention.cli.output import print_json
from sigmoid_attention.cli.study_options import RoutingOptions
from sigmoid_attention.lab.markers import split_at_markers
from sigmoid_attention.studies.routing.findings import findings, verdict
from sigmoid_attention.studies.routing.page import BEGIN, END, FIGURE, HEADINGS, cells, publish
from sigmoid_attention.studies.routing.run import run
from sigmoid_attention.studies.routing.setting import RoutingSetting
from sigmoid_attention.training.files import refuse_other_kinds
from sigmoid_attention.training.terminal import tell, terminal

WIDTH_OF_A_FILE = 160


def routing(options: RoutingOptions) -> None:
    """Run or continue the study, and print and publish its findings."""
    if options.docs:
        # Checked before the training, not after it.
        split_at_markers(options.docs, BEGIN, END)
        refuse_other_kinds(options.docs.parent, files=(FIGURE,))
    setting = RoutingSetting(data=options.data, seeds=options.seeds, steps=options.steps)
    store = run(setting, options.out, resume=options.resume, console=terminal(errors=True))
    results = findings(store.rows())
    docs = publish(store.rows(), options.docs) if options.docs else None
    if options.json:
        print_json({"findings": results, "verdict": verdict(results), "docs": docs})
        return
    console = terminal()
    if not console.is_terminal:
        console.width = WIDTH_OF_A_FILE
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in HEADINGS:
        table.add_column(heading)
    for finding in results:
        table.add_row(*cells(finding))
    console.print(table)
    console.print(verdict(results))
    if docs:
        tell(f"docs: {docs}")
