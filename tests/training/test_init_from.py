"""Which tensors of foreign weights a stage starts from: parameters that fit, buffers with care."""

from __future__ import annotations

import json
import logging
import re

import pytest
import torch
from safetensors.torch import save_file

from mmprod.checkpoint import layout
from mmprod.errors import ConfigError, IntegrityError
from mmprod.manifest import sha256_file
from mmprod.models.fusion import build_fusion
from mmprod.training.codec_task import CodecTask
from mmprod.training.init_from import record, start_from
from mmprod.training.transfer import read_transfer
from tests.models.kinds import KINDS, small
from tests.training.tiny import ALONE, MadeUp, codec_task, fusion_task, tiny_config, with_codec


def state(task):
    return {name: tensor.clone() for name, tensor in task.core(task.model).state_dict().items()}


def foreign(task):
    """Other values in every tensor, as if trained on something else."""
    return {name: tensor + 1 for name, tensor in state(task).items()}


def write(tmp_path, tensors, of=None):
    """A file of weights; `of`: the task whose codebook it holds."""
    path = tmp_path / "start.safetensors"
    about = {"codebook": json.dumps(of.codebook)} if of is not None else None
    save_file(tensors, path, metadata=about)
    return path


def quantized(kind, **changes):
    """The tiny codec task with a quantizer of `tests.models.kinds`."""
    settings = small(kind, **changes).model_dump(include={"quantizer", *KINDS[kind], *changes})
    sizes = {"codebook_size": 32, "code_dim": 4} | settings
    return codec_task(with_codec(tiny_config(), **sizes))


def test_a_fusion_model_keeps_the_code_vectors_of_its_own_codec(tmp_path):
    task = fusion_task(tiny_config())
    before, given = state(task), foreign(task)
    given["image.features"] = 1.01 * before["image.features"]  # its codec, trained further
    start_from(task, write(tmp_path, given))
    after = state(task)
    assert before["image.features"].any()
    assert torch.equal(after["image.features"], before["image.features"])
    parameters = {name for name, _ in task.core(task.model).named_parameters()}
    assert all(torch.equal(after[name], given[name]) for name in parameters)


def fresh_parameters(transfer):
    """Why each is not loaded; not the buffers, which are this run's own."""
    buffers = ("image.features", "text.features")
    return {
        v.name: v.reason for v in transfer.tensors if v.verdict == "fresh" and v.name not in buffers
    }


def test_ids_of_another_codec_are_not_taken(tmp_path):
    """Names and shapes fit, but the codes are numbered otherwise."""
    task = fusion_task(tiny_config())
    given = foreign(task)
    given["image.features"] = state(task)["image.features"].roll(1, 0)
    transfer = start_from(task, write(tmp_path, given))
    reasons = fresh_parameters(transfer)
    assert reasons.keys() == {n for n in given if n.startswith(("image.embed.", "image.head_bias"))}
    assert set(reasons.values()) == {"of another codec"}
    with pytest.raises(ConfigError, match=r"image_encoder cannot be frozen.*of another codec"):
        start_from(task, write(tmp_path, given), ("image_encoder",))


def test_ids_of_another_tokenizer_are_not_taken(tmp_path):
    task = fusion_task(tiny_config())
    given = foreign(task)
    given["image.features"] = state(task)["image.features"]
    folder = tmp_path / "run" / "fusion"
    folder.mkdir(parents=True)
    tokenizer = tmp_path / "run" / layout.TOKENIZER
    tokenizer.write_text("{}", encoding="utf-8")
    save_file(given, folder / layout.WEIGHTS)
    path = folder / layout.WEIGHTS
    same = start_from(task, path, tokenizer=sha256_file(tokenizer))
    assert fresh_parameters(same) == {}
    transfer = start_from(task, path, tokenizer="0" * 64)
    reasons = fresh_parameters(transfer)
    assert reasons.keys() == {n for n in given if n.startswith(("text.embed.", "text.head_bias"))}
    assert set(reasons.values()) == {"of another tokenizer"}
    with pytest.raises(ConfigError, match=r"text_encoder cannot be frozen.*of another tokenizer"):
        start_from(task, path, ("text_encoder",), "0" * 64)


def test_a_codec_takes_the_whole_codebook_state(tmp_path):
    task = codec_task(tiny_config())
    given = foreign(task)
    start_from(task, write(tmp_path, given, task))
    assert all(torch.equal(tensor, given[name]) for name, tensor in state(task).items())


PAIRS = [
    ("spherical", {}, "euclid", {}, "quantizer spherical, here euclid"),
    ("euclid", {}, "spherical", {}, "quantizer euclid, here spherical"),
    ("euclid", {"codebook_size": 64}, "product-euclid", {}, "quantizer euclid, here product"),
    ("product", {}, "product-euclid", {}, "book spherical, here euclid"),
    ("residual", {"books": 2}, "product-euclid", {}, "quantizer residual, here product"),
    ("residual", {"books": 4, "codebook_size": 16}, "residual", {"books": 2}, "codebook_size 16"),
    ("fsq", {"levels": (5, 4, 3)}, "fsq", {}, r"levels \[5, 4, 3\], here \[4, 3, 5\]"),
    ("lfq", {}, "fsq", {"levels": (2,) * 5, "codebook_size": 32, "code_dim": 5}, "quantizer lfq"),
]


@pytest.mark.parametrize(("theirs", "their", "ours", "our", "reason"), PAIRS)
def test_a_codebook_that_means_something_else_is_not_taken(
    tmp_path, theirs, their, ours, our, reason
):
    """Though names and shapes may all fit; freezing it is refused then."""
    other, task = quantized(theirs, **their), quantized(ours, **our)
    path = write(tmp_path, foreign(other), other)
    with pytest.raises(ConfigError, match=f"quantizer cannot be frozen.*{reason}"):
        start_from(task, path, ("quantizer",))
    before = state(task)
    transfer = start_from(task, path)
    after = state(task)
    fresh = {v.name: v.reason for v in transfer.tensors if v.verdict == "fresh"}
    assert fresh.keys() >= {name for name in before if name.startswith("quantizer.")}
    assert any(re.search(reason, why) for why in fresh.values())
    assert all(torch.equal(after[name], before[name]) for name in fresh)


def test_a_file_that_does_not_tell_its_codebook_gives_none(tmp_path):
    task = codec_task(tiny_config())
    transfer = start_from(task, write(tmp_path, foreign(task)))
    reasons = {v.part: v.reason for v in transfer.tensors}
    assert reasons["quantizer"] == "of a codebook whose kind the file does not tell"
    assert reasons["encoder"] == reasons["decoder"] == ""


def test_the_map_of_simvq_alone_is_no_fit(tmp_path):
    wide = with_codec(tiny_config(), quantizer="simvq", channels=16)
    other = codec_task(wide)
    with pytest.raises(ConfigError, match="no tensor"):
        start_from(quantized("simvq"), write(tmp_path, foreign(other), other))


def test_a_codec_takes_no_part_of_a_codebook_of_another_size(tmp_path):
    """Else the counters would say that the fresh codes were initialised from data."""
    task = codec_task(tiny_config())
    before, given = state(task), foreign(task)
    buffers = {name for name, _ in task.model.named_buffers()}
    for name in buffers:
        if given[name].ndim:
            given[name] = torch.cat([given[name]] * 2)
    transfer = start_from(task, write(tmp_path, given, task))
    after = state(task)
    assert any(given[name].ndim == 0 for name in buffers)
    assert all(torch.equal(after[name], before[name]) for name in buffers)
    assert all(torch.equal(after[name], given[name]) for name in after.keys() - buffers)
    reasons = {v.name: v.reason for v in transfer.tensors}
    assert reasons["quantizer.rate"] == "shape [64] in the file, [32] here"
    assert reasons["quantizer.updates"] == "the codebook is taken whole or not at all"
    assert {v.part for v in transfer.tensors if v.verdict == "loaded"} == {"encoder", "decoder"}


def test_pictures_of_another_size_take_all_of_a_codec_and_most_of_a_fusion_model(tmp_path):
    little, large = tiny_config(), tiny_config()
    large = large.model_copy(update={"data": large.data.model_copy(update={"image_size": 32})})
    codec = CodecTask(large, MadeUp(8, 32), MadeUp(8, 32), ALONE.device)
    other = codec_task(little)
    assert start_from(codec, write(tmp_path, foreign(other), other)).count("fresh") == 0
    dims = [config.dims(270) for config in (little, large)]
    few, many = (build_fusion(little.fusion, d) for d in dims)
    given = {name: tensor.clone() for name, tensor in few.state_dict().items()}
    transfer = start_from(Bare("fusion", many), write(tmp_path, given))
    fresh = {v.name: v.reason for v in transfer.tensors if v.verdict == "fresh"}
    assert fresh.pop("image.place") == "shape [16, 16] in the file, [64, 16] here"
    assert fresh.keys() == {"image.features", "text.features"}
    assert set(fresh.values()) == {"comes from this run's own inputs"}


class Bare:
    """A task of which only the model matters."""

    learns_buffers = False

    def __init__(self, name, model):
        self.name, self.model = name, model

    def core(self, model):
        return model


def test_a_model_of_another_width_is_refused_though_some_biases_fit(tmp_path):
    wide = tiny_config()
    wide = wide.model_copy(update={"codec": wide.codec.model_copy(update={"channels": 16})})
    given = state(codec_task(wide))
    own = state(codec_task(tiny_config()))
    assert any(own[name].shape == given[name].shape for name in own)
    with pytest.raises(ConfigError, match=r"no tensor .*shape \[16, .* in the file, \[8, "):
        start_from(codec_task(tiny_config()), write(tmp_path, given))


def test_every_tensor_has_a_verdict_in_the_record_and_the_log(tmp_path, caplog):
    task = codec_task(tiny_config())
    given = foreign(task) | {"head.weight": torch.zeros(3, 4)}
    lost = given.pop("decoder.layers.0.bias")
    path = write(tmp_path, given, task)
    caplog.set_level(logging.DEBUG)
    transfer = start_from(task, path)
    record(transfer, tmp_path / "codec")
    again = read_transfer(tmp_path / "codec")
    assert again == transfer
    assert (again.source, again.sha256) == (str(path), sha256_file(path))
    by_name = {v.name: v for v in again.tensors}
    assert by_name.keys() == state(task).keys() | {"head.weight"}
    assert by_name["head.weight"].verdict == "unused"
    assert by_name["decoder.layers.0.bias"].reason == "not in the file"
    assert sum(row.values for row in again.rows() if row.verdict == "fresh") == lost.numel()
    assert "1 stay fresh" in caplog.text
    assert "fresh: 1 of decoder (not in the file): decoder.layers.0.bias" in caplog.text
    assert read_transfer(tmp_path) is None


def test_half_precision_is_taken_and_integers_are_not(tmp_path):
    task = codec_task(tiny_config())
    given = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in foreign(task).items()
    }
    given["decoder.layers.0.bias"] = given["decoder.layers.0.bias"].to(torch.int32)
    transfer = start_from(task, write(tmp_path, given, task))
    (fresh,) = (v for v in transfer.tensors if v.verdict == "fresh")
    assert fresh.reason == "torch.int32 in the file, torch.float32 here"
    name = "encoder.layers.0.weight"
    assert torch.equal(state(task)[name], given[name].float())


def test_weights_with_a_nan_are_refused(tmp_path):
    given = foreign(codec_task(tiny_config()))
    given["encoder.layers.0.weight"][0, 0, 0, 0] = torch.nan
    with pytest.raises(IntegrityError, match=r"encoder\.layers\.0\.weight .* NaN"):
        start_from(codec_task(tiny_config()), write(tmp_path, given))


def test_a_frozen_part_must_be_given_whole(tmp_path):
    task = codec_task(tiny_config())
    before, given = state(task), foreign(task)
    given.pop("encoder.layers.0.bias")
    path = write(tmp_path, given, task)
    with pytest.raises(ConfigError, match=r"encoder cannot be frozen.* encoder\.layers\.0\.bias"):
        start_from(task, path, ("encoder", "quantizer"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(task).items())
    start_from(task, path, ("decoder", "quantizer"))


def test_a_file_that_is_no_weights_is_an_integrity_error(tmp_path):
    path = tmp_path / "start.safetensors"
    path.write_bytes(b"garbage")
    with pytest.raises(IntegrityError, match="cannot be read"):
        start_from(codec_task(tiny_config()), path)


def test_weights_of_another_model_are_refused(tmp_path):
    given = {"quantizer.updates": torch.zeros((), dtype=torch.int64), "other": torch.zeros(3)}
    with pytest.raises(ConfigError, match="no tensor"):
        start_from(codec_task(tiny_config()), write(tmp_path, given))
