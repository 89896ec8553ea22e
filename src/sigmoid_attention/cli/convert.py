"""`sigmoid-attention convert`: a pretrained softmax model becomes a sigmoid model, in a folder."""

from dataclasses import asdict, fields

from sigmoid_attention.cli.arguments import Convert
from sigmoid_attention.studies.environment import resolve_device
from sigmoid_attention.studies.store import refuse_occupied
from sigmoid_attention.training.data.corpus import load_corpus


def convert(asked: Convert) -> None:
    """Convert, or go on with it, and say how near the result is to its parent."""
    device = resolve_device(asked.device)
    refuse_occupied(asked.out, asked.resume)
    # Whatever cannot be read or written is said before a model is loaded.
    corpus = load_corpus(asked.data)
    try:
        from sigmoid_attention.studies.conversion.parents import load_parent
        from sigmoid_attention.studies.conversion.run import MODEL, Run, begin
        from sigmoid_attention.studies.conversion.setting import Setting
    except ImportError as error:
        raise ValueError(
            "convert needs transformers: pip install 'sigmoid-attention[lab,transformers]'"
        ) from error
    setting = Setting(**{field.name: getattr(asked, field.name) for field in fields(Setting)})
    begin(asked.out, {"model": asked.model, "data": asked.data, **asdict(setting)})
    _quiet()
    run = Run(
        load_parent(asked.model),
        corpus,
        setting,
        asked.out,
        device,
        heldout_sequences=asked.heldout_sequences,
        lengths=asked.needles,
        evaluate_every=asked.evaluate_every,
    )
    curve = run.go()
    parent, final = curve.at("parent").found, curve.at("final").found
    for name, value in final.items():
        print(f"{name}: {value:.4f} (parent {parent[name]:.4f})")
    print(f"converted model: {asked.out / MODEL}")


def _quiet() -> None:
    """One progress bar is enough, and it is ours."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
