"""`sigmoid-attention convert`: converts a pretrained softmax model to a sigmoid model."""

import sys
from dataclasses import asdict
from importlib.util import find_spec

from sigmoid_attention.cli.model_options import ConvertOptions
from sigmoid_attention.cli.output import print_json
from sigmoid_attention.lab.store import SETTING
from sigmoid_attention.training.checkpoint import CURRENT, FRESH, PREVIOUS
from sigmoid_attention.training.data.corpus import load_corpus
from sigmoid_attention.training.environment import resolve_device
from sigmoid_attention.training.files import refuse_occupied, refuse_other_kinds
from sigmoid_attention.training.terminal import tell


def convert(options: ConvertOptions) -> None:
    """Run or continue a conversion, and print how close the result is to its parent."""
    device = resolve_device(options.device)
    refuse_occupied(options.out, options.resume)
    # Bad input is refused before a model is loaded and before anything is written, so that the
    # folder stays empty for the next try.
    corpus = load_corpus(options.data)
    try:
        from sigmoid_attention.studies.conversion.curve import NAME
        from sigmoid_attention.studies.conversion.parents import load_parent
        from sigmoid_attention.studies.conversion.run import MODEL, Conversion, begin
    except (ImportError, RuntimeError) as error:
        raise ValueError(_missing(error)) from error
    setting = options.setting
    setting.check()
    _quiet()
    files = (NAME, SETTING, CURRENT, PREVIOUS, FRESH)
    refuse_other_kinds(options.out, files=files, folders=(MODEL, f"{MODEL}.new"))
    run = Conversion(
        load_parent(options.model),
        corpus,
        setting,
        options.out,
        device,
        heldout_sequences=options.heldout_sequences,
        lengths=options.needles,
        evaluate_every=options.evaluate_every,
    )
    begin(options.out, {"model": options.model, "data": options.data, **asdict(setting)})
    print(corpus.notice(), file=sys.stderr)
    curve = run.run()
    parent, final = curve.at("parent").found, curve.at("final").found
    model = options.out / MODEL
    if options.json:
        print_json({"final": final, "parent": parent, "model": model})
        return
    for name, value in final.items():
        print(f"{name}: {value:.4f} (parent {parent[name]:.4f})")
    tell(f"converted model: {model}")
    tell(
        "load it: from sigmoid_attention.integrations.transformers import register; register(); "
        f"then transformers' from_pretrained({str(model)!r})"
    )


def _missing(error: BaseException) -> str:
    """The package to install, or the reason why an installed one cannot be imported."""
    if find_spec("transformers") is None or find_spec("scipy") is None:
        return "convert needs transformers: pip install '.[lab,transformers]' in a clone"
    while error.__cause__ is not None:
        error = error.__cause__
    return (
        f"convert needs transformers, which is installed but does not import here: {error} "
        f"(sigmoid-attention doctor says what to type)"
    )


def _quiet() -> None:
    """Disable the progress bars and messages of other libraries."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
