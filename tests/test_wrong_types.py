"""Objects of a wrong type, given to public functions beside the operator and the layers."""

import numpy as np
import pytest
import torch
from torch import nn

from sigmoid_attention.integrations import conversion, moe, timm
from sigmoid_attention.integrations import transformers as hf
from sigmoid_attention.lab.sweep import sweep
from sigmoid_attention.mixtures import FiniteDesign, Mixture, binned
from sigmoid_attention.nn import Attention, Block, GELUFeedForward
from sigmoid_attention.studies.registry import claim_names, claim_study
from sigmoid_attention.theory import regularity, universality
from sigmoid_attention.training.data.batches import TextBatches
from sigmoid_attention.training.environment import resolve_device
from sigmoid_attention.training.recorder import Recorder
from sigmoid_attention.training.tasks import Copying, MultiQueryRecall
from sigmoid_attention.training.trainer import TrainConfig, train
from tests.support.attention.complaints import assert_sentence, complaint

LAYER = Attention(6, num_heads=2, max_seq_len=8)
BLOCKS = [Block(LAYER, GELUFeedForward(6, 8))]
BALL = regularity.Ball(1.0)
X = torch.ones(4, 6)
GRID = universality.Grid(n=2, d=1, cells=1)


def twice(x):
    return 2 * x


# Each function with valid arguments; those of the last column get objects of wrong types.
CALLS = {
    "Ball": (regularity.Ball, {"radius": 2.0, "lower": 1.0}, "radius lower"),
    "Box": (regularity.Box, {"low_C": X[0], "high_C": X[0]}, "low_C high_C"),
    "attention_bound": (
        regularity.attention_bound,
        {"layer": LAYER, "domain": BALL, "tokens": 4, "gain_C": X[0]},
        "layer domain tokens gain_C",
    ),
    "attention_bound_at": (
        regularity.attention_bound_at,
        {"layer": LAYER, "x_NC": X, "gain_C": X[0]},
        "layer x_NC gain_C",
    ),
    "mean_norm_bound": (
        regularity.mean_norm_bound,
        {"layer": LAYER, "mean_square_norm": 1.0, "tokens": 4},
        "layer mean_square_norm tokens",
    ),
    "network_bound": (
        regularity.network_bound,
        {"blocks": BLOCKS, "domain": BALL, "tokens": 4},
        "domain tokens",
    ),
    "network_bound_at": (regularity.network_bound_at, {"blocks": BLOCKS, "x_NC": X}, "x_NC"),
    "jacobian_norm": (regularity.jacobian_norm, {"function": twice, "x": X}, "function x"),
    "largest_gain": (
        regularity.largest_gain,
        {"function": twice, "x": X, "steps": 3, "seconds": 1.0, "seed": 0},
        "function x steps seconds seed",
    ),
    "max_jacobian_norm": (
        regularity.max_jacobian_norm,
        {"function": twice, "x": X, "project": twice, "steps": 0, "step_size": 0.1},
        "function x project steps step_size",
    ),
    "onto_ball": (regularity.onto_ball, {"x": X, "radius": 1.0}, "x radius"),
    "Grid": (
        universality.Grid,
        {"n": 2, "d": 1, "cells": 3, "low": 0.0, "high": 1.0},
        "n d cells low high",
    ),
    "design": (
        universality.design,
        {
            "f": twice,
            "n": 2,
            "d": 1,
            "error": 0.9,
            "p": 2.0,
            "low": 0.0,
            "high": 1.0,
            "max_layers": 99,
            "samples": 9,
        },
        "f n d error p low high max_layers samples",
    ),
    "check_equivariance": (
        universality.check_equivariance,
        {"f": twice, "grid": GRID, "seed": 0},
        "f grid seed",
    ),
    "FiniteDesign": (FiniteDesign, {"inputs_Qd": X.double()}, "inputs_Qd"),
    "binned": (
        binned,
        {"inputs": np.arange(9.0)[:, None], "observations": np.arange(9.0), "bins": 3},
        "inputs observations bins",
    ),
    "TrainConfig": (
        TrainConfig,
        {"steps": 1},
        "steps lr min_lr_ratio warmup_steps weight_decay betas eps clip_norm bf16 seed "
        "checkpoint_every",
    ),
    "Copying": (
        Copying,
        {"seq_len": 6, "batch_size": 1, "vocab_size": 9, "seed": 0},
        "seq_len batch_size vocab_size seed",
    ),
    "MultiQueryRecall": (
        MultiQueryRecall,
        {"seq_len": 15, "batch_size": 1, "pairs": 4, "vocab_size": 33, "seed": 0},
        "seq_len batch_size pairs vocab_size seed",
    ),
    "TextBatches": (
        TextBatches,
        {"tokens": torch.arange(9), "seq_len": 5, "batch_size": 1, "seed": 0},
        "tokens seq_len batch_size seed",
    ),
}
# Functions of which a valid call takes long, or writes a file.
LONG_CALLS = {
    "train": (
        train,
        {"model": nn.Linear(1, 1), "batches": None, "config": TrainConfig(steps=1)},
        "model config",
    ),
    "Recorder": (Recorder, {"path": "nowhere", "every": 1}, "every"),
    "sweep": (sweep, {"studies": [], "out": None}, "workers"),
    "attention_modules": (hf.attention_modules, {"model": None}, "model"),
    "set_bias": (hf.set_bias, {"model": None, "bias": -1.0}, "model"),
    "replace_bias": (hf.replace_bias, {"module": None, "bias": -1.0}, "module"),
    "find_attention_modules": (hf.find_attention_modules, {"model": None}, "model"),
    "convert": (hf.convert, {"model_or_config": None}, "model_or_config"),
    "timm-convert": (timm.convert, {"model": None}, "model"),
    "to_layout": (moe.to_layout, {"state": {}, "layout": "deepseek"}, "state"),
    "from_layout": (moe.from_layout, {"state": {}, "layout": "deepseek"}, "state"),
}
# Arguments that are names; a string is a wrong value there.
NAMES = {
    "Mixture": (Mixture, {"gate": "sigmoid", "expert": "gelu"}, "gate expert score"),
    "Student": (conversion.Student, {"model": None, "form": "", "gain": 1.0}, "form"),
    "to_layout": (moe.to_layout, {"state": {}, "layout": ""}, "layout"),
    "from_layout": (moe.from_layout, {"state": {}, "layout": ""}, "layout"),
    "claim_study": (claim_study, {"name": ""}, "name"),
    "claim_names": (claim_names, {"group": ""}, "group"),
}


def each_argument(calls: dict):
    cases = {
        f"{case}-{name}": (function, arguments, name)
        for case, (function, arguments, names) in calls.items()
        for name in names.split()
    }
    return pytest.mark.parametrize("function, arguments, name", cases.values(), ids=cases.keys())


@pytest.mark.parametrize("function, arguments, names", CALLS.values(), ids=CALLS.keys())
def test_the_valid_arguments_are_accepted(function, arguments, names):
    function(**arguments)


@each_argument(CALLS | LONG_CALLS)
@pytest.mark.parametrize("wrong", [object(), "word", [object()]], ids=["object", "str", "list"])
def test_a_wrong_type_is_named(function, arguments, name, wrong):
    assert_sentence(complaint(TypeError, function, arguments | {name: wrong}), name, ("must be",))


@each_argument(NAMES)
@pytest.mark.parametrize("wrong", [object(), ["word"]], ids=["object", "list"])
def test_an_argument_that_is_no_name_is_a_wrong_type(function, arguments, name, wrong):
    assert_sentence(complaint(TypeError, function, arguments | {name: wrong}), name, ("must be",))


@each_argument(NAMES)
def test_an_unknown_name_is_a_wrong_value(function, arguments, name):
    message = complaint(ValueError, function, arguments | {name: "word"})
    assert_sentence(message, name, ("must be", "'word'"))


def test_a_device_is_given_by_its_name():
    assert_sentence(complaint(TypeError, resolve_device, {"name": 0}), "device", ("got 0",))
