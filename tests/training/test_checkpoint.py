"""Checkpoints: exact, written completely or not at all, and refused if they do not fit."""

import os

import pytest
import torch

from sigmoid_attention.training.checkpoint import (
    CURRENT,
    PREVIOUS,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from sigmoid_attention.training.optimizer import decoupled_adamw
from tests.support.training.runs import digest, tiny_config, tiny_model

CONFIG = {"model": {"dim": 32, "betas": (0.9, 0.95)}, "seed": 1}


def stepped(steps=1, **changes):
    model = tiny_model(**changes)
    optimizer = decoupled_adamw(model, tiny_config())
    for _ in range(steps):
        tokens = torch.randint(257, (2, 9))
        optimizer.zero_grad()
        model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
        optimizer.step()
    return model, optimizer


def save(path, model, optimizer, losses=(2.5,)):
    save_checkpoint(path, model, optimizer, losses=losses, config=CONFIG)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_everything_comes_back_to_the_bit(tmp_path, tied):
    model, optimizer = stepped(tie_embeddings=tied)
    save(tmp_path / CURRENT, model, optimizer, losses=[2.5, 0.1])
    expected = torch.rand(5)

    other, fresh = stepped(0, tie_embeddings=tied, seed=8)
    checkpoint = load_checkpoint(tmp_path / CURRENT, expect=CONFIG)
    checkpoint.restore_training(other, fresh)
    assert (checkpoint.step, checkpoint.losses) == (2, [2.5, 0.1])
    assert digest(other) == digest(model)
    assert torch.equal(torch.rand(5), expected), "the random generator goes on where it was"
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        for key, value in optimizer.state[ours].items():
            assert torch.equal(fresh.state[theirs][key], value), key


def test_the_one_before_is_kept_and_found_when_the_last_is_missing(tmp_path):
    model, optimizer = stepped()
    assert latest_checkpoint(tmp_path) is None
    for losses in ([3.0], [3.0, 2.0]):
        save(tmp_path / CURRENT, model, optimizer, losses)
    assert load_checkpoint(tmp_path / PREVIOUS).step == 1
    assert latest_checkpoint(tmp_path) == tmp_path / CURRENT
    (tmp_path / CURRENT).unlink()
    assert latest_checkpoint(tmp_path) == tmp_path / PREVIOUS


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_keeps_the_last_checkpoint(tmp_path):
    model, optimizer = stepped()
    save(tmp_path / CURRENT, model, optimizer)
    before = (tmp_path / CURRENT).read_bytes()
    (tmp_path / f"{CURRENT}.new.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        save(tmp_path / CURRENT, model, optimizer, losses=[3.0, 2.0])
    assert (tmp_path / CURRENT).read_bytes() == before
    assert os.listdir(tmp_path) == [CURRENT]


def damage(content, kind):
    if kind == "truncated":
        return content[: len(content) // 2]
    if kind == "empty":
        return b""
    if kind == "one bit":
        middle = len(content) // 2
        return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    return b"not a checkpoint"


@pytest.mark.parametrize("kind", ["truncated", "empty", "one bit", "other file"])
def test_a_damaged_file_is_one_clear_error(tmp_path, kind):
    path = tmp_path / CURRENT
    save(path, *stepped())
    path.write_bytes(damage(path.read_bytes(), kind))
    with pytest.raises(ValueError, match="is damaged or not a checkpoint") as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)


def test_no_flipped_bit_goes_unnoticed(tmp_path):
    """Header, configuration, shapes and numbers: all of them are under the checksum."""
    path, layer = tmp_path / CURRENT, torch.nn.Linear(3, 1)
    save(path, layer, torch.optim.Adam(layer.parameters()))
    data = path.read_bytes()
    for place in range(0, len(data) * 8, 101):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match="is damaged"):
            load_checkpoint(path)


def test_a_folder_in_its_place_is_named(tmp_path):
    (tmp_path / CURRENT).mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        load_checkpoint(tmp_path / CURRENT)
    assert caught.value.filename == str(tmp_path / CURRENT)


def test_a_change_of_the_text_is_named(tmp_path):
    save_checkpoint(
        tmp_path / CURRENT, *stepped(0), losses=[], config={"data": {"tokens_sha256": "5d"}}
    )
    with pytest.raises(ValueError, match="was trained on another text than this --data"):
        load_checkpoint(tmp_path / CURRENT, expect={"data": {"tokens_sha256": "78"}})


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not a checkpoint of this library"):
        load_checkpoint(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("expect", "named"),
    [
        ({**CONFIG, "seed": 2}, "seed is 1 there and 2 here"),
        ({"model": {"dim": 64, "betas": (0.9, 0.95)}, "seed": 2}, "model.dim is 32 there and 64"),
        ({"model": {"dim": 32, "betas": (0.9, 0.99)}, "seed": 1}, "model.betas"),
        ({"model": CONFIG["model"]}, "seed is 1 there and 'absent' here"),
        ({**CONFIG, "data": 3}, "data is 'absent' there and 3 here"),
    ],
    ids=["value", "first of two", "tuple", "missing here", "missing there"],
)
def test_the_first_field_that_differs_is_named(tmp_path, expect, named):
    save(tmp_path / CURRENT, *stepped(0))
    with pytest.raises(ValueError, match=named):
        load_checkpoint(tmp_path / CURRENT, expect=expect)


def test_a_folder_in_the_place_of_the_previous_one_is_named(tmp_path):
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters())
    save_checkpoint(tmp_path / CURRENT, model, optimizer, losses=[1.0], config={})
    (tmp_path / PREVIOUS).mkdir()
    with pytest.raises(OSError, match=rf"could not write .*{PREVIOUS} \(Is a directory\)"):
        save_checkpoint(tmp_path / CURRENT, model, optimizer, losses=[1.0, 0.5], config={})
    assert load_checkpoint(tmp_path / CURRENT).step == 1


def test_a_pipe_in_its_place_is_named(tmp_path):
    os.mkfifo(tmp_path / "checkpoint.safetensors")
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors is damaged"):
        load_checkpoint(tmp_path / "checkpoint.safetensors")
