"""`sigmoid-attention regularity`: certified Lipschitz bounds for the layers of a trained model."""

from rich.console import Console
from rich.table import Table

from sigmoid_attention.cli.model_options import RegularityOptions
from sigmoid_attention.cli.output import print_json
from sigmoid_attention.studies.theory.certificate import Certificate, certify, save
from sigmoid_attention.theory.regularity import Ball
from sigmoid_attention.training.files import refuse_other_kinds
from sigmoid_attention.training.model_folder import encode_prompt, load_trained
from sigmoid_attention.training.terminal import tell, terminal

HEADINGS = ("branch", "|x| here", "bound in ball", "bound here", "measured", "tightness")


def regularity(options: RegularityOptions) -> None:
    """Print a line per residual branch, and write the certificate and its figure."""
    if options.tokens < 1:
        raise ValueError(f"tokens must be 1 or more, got {options.tokens}")
    if not options.seconds >= 0:
        raise ValueError(f"seconds must be 0 or more, got {options.seconds}")
    ball = Ball(options.radius, options.lower)
    refuse_other_kinds(options.out, files=("certificate.json", "certificate.svg"))
    model, tokenizer = load_trained(options.folder)
    tokens = encode_prompt(tokenizer, options.text)
    # A text that is too short is repeated.
    tokens = tokens.repeat(1, -(-options.tokens // tokens.shape[1]))[:, : options.tokens]
    certificate = certify(model, tokens, ball, seconds=options.seconds)
    data, figure = save(certificate, options.out)
    if options.json:
        products = {"product_within": certificate.within, "product_at": certificate.at}
        print_json({**vars(certificate), **products, "certificate": data, "figure": figure})
        return
    show(certificate, terminal())
    tell(f"certificate: {data}\nfigure: {figure}")


def show(certificate: Certificate, console: Console) -> None:
    """Print the certificate as a table, and the bounds of the whole network."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "branch" else "right")
    for branch in certificate.branches:
        table.add_row(
            branch.at.name,
            f"{branch.at.least:.3g} to {branch.at.most:.3g}",
            f"{branch.within.jacobian:.3g}",
            f"{branch.at.jacobian:.3g}",
            _measured(branch.measured, branch.settled),
            f"{branch.tightness:.2g}",
        )
    console.print(table)
    console.print(
        f"whole: at most {certificate.within:.3g} for {certificate.tokens} tokens with "
        f"|x| <= {certificate.ball.radius:g}, at most {certificate.at:.3g} at the text; "
        f"measured there {_measured(certificate.measured, certificate.settled)}",
        soft_wrap=True,
    )


def _measured(value: float, settled: bool) -> str:
    return f"{value:.3g}" if settled else f"{value:.3g} or more"
