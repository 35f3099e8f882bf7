"""Configurations: presets, overrides, origins, exact round trips, and errors that help."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

import mmprod
from mmprod.config.keys import flatten
from mmprod.config.load import (
    configs_dir,
    example_names,
    json_schema,
    load_config,
    preset_names,
    resolve_with_origin,
    to_toml,
)
from mmprod.config.schema import CodecConfig, Config
from mmprod.errors import ConfigError, EnvironmentMissing


def write(folder: Path, text: str) -> str:
    path = folder / "job.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def failure(name: str, *overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_config(name, overrides)
    assert caught.value.hint
    return caught.value


def test_presets_are_known_by_name() -> None:
    assert preset_names() == ["tiny", "small", "base", "large", "cluster", "article", "photographs"]


@pytest.mark.parametrize("name", preset_names())
def test_preset_names_itself_and_round_trips(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    assert config.name == name
    assert load_config(write(tmp_path, to_toml(config))) == config


@pytest.mark.parametrize("name", example_names())
def test_an_example_names_itself_and_round_trips(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    assert config.name == f"quantizer-{config.codec.quantizer}" == name.replace("s/", "-")
    assert load_config(write(tmp_path, to_toml(config))) == config


def test_every_quantizer_has_an_example() -> None:
    kinds = CodecConfig.model_fields["quantizer"].annotation
    assert example_names() == sorted(f"quantizers/{kind}" for kind in get_args(kinds))


def test_article_preset_is_the_setting_of_the_article() -> None:
    config = load_config("article")
    assert (config.codec.codebook_size, config.codec.code_dim) == (1024, 64)
    assert (config.data.image_size, config.codec_train.batch) == (64, 64)
    assert config.codec_train.lr == 1e-3


def test_defaults_alone_make_a_configuration(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "")) == Config()


@pytest.mark.parametrize(
    "text",
    ['a "b" \\c', "tab\tline\nend", "\x00\x1f\x7f", "黑色短发，戴眼镜", "\u2028 é 🙂", "# no"],
)
def test_any_text_round_trips(text: str, tmp_path: Path) -> None:
    data = load_config("tiny").data.model_copy(update={"path": text})
    config = load_config("tiny").model_copy(update={"data": data})
    assert load_config(write(tmp_path, to_toml(config))).data.path == text


def test_any_float_round_trips(tmp_path: Path) -> None:
    for value in (1e-300, 0.1 + 0.2, 1e22, 5e-324, 3.0):
        config = load_config("tiny", [f"codec_train.lr={value!r}"])
        assert load_config(write(tmp_path, to_toml(config))).codec_train.lr == value


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("codec_train.steps=7", "codec_train.steps", 7),
        (" codec_train.lr = 1e-5 ", "codec_train.lr", 1e-5),
        ("codec.multipliers=[1, 2]", "codec.multipliers", (1, 2)),
        ("data.languages=['en', 'zh']", "data.languages", ("en", "zh")),
        ("codec.attention=true", "codec.attention", True),
        ("codec.loss=natural", "codec.loss", "natural"),
        ("data.path=/some/where with blanks", "data.path", "/some/where with blanks"),
        ("name=123", "name", "123"),
        ("name='quoted'", "name", "quoted"),
        ("data.path=", "data.path", ""),
    ],
)
def test_override(override: str, key: str, value: object) -> None:
    config = load_config("tiny", [override])
    assert dict(flatten(config))[key] == value


def test_later_override_wins() -> None:
    assert load_config("tiny", ["data.seed=1", "data.seed=2"]).data.seed == 2


def test_origins_say_default_line_or_override(tmp_path: Path) -> None:
    path = write(tmp_path, "name = 'x'\n\n[data]\n# seed = 9\ncount = 50\nseed = 3\n")
    origins = {o.key: (o.value, o.origin) for o in resolve_with_origin(path, ["data.seed=4"])}
    assert origins["data.count"] == (50, f"{path}:5")
    assert origins["data.seed"] == (4, "override")
    assert origins["data.image_size"] == (64, "default")
    assert origins["name"] == ("x", f"{path}:1")
    assert list(origins) == [key for key, _ in flatten(Config())]


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (
            "[codec]\ncodebok_size = 8\n",
            ":2: unknown key 'codec.codebok_size'",
            "codec.codebook_size",
        ),
        ("[codc]\nchannels = 2\n", ":1: unknown key 'codc'", "codec"),
        ("\nbatch = 3\n", ":2: unknown key 'batch'", "codec_train.batch or fusion_train.batch"),
        ("[codec]\nlr = 1.0\n", ":2: unknown key 'codec.lr'", "codec_train.lr"),
        ("[data.deeper]\nx = 1\n", "unknown key 'data.deeper'", "known here: source, path"),
        ("codec = 3\n", ":1: 'codec' is a section", "[codec]"),
    ],
)
def test_unknown_key_names_line_and_nearest(
    text: str, message: str, hint: str, tmp_path: Path
) -> None:
    error = failure(write(tmp_path, text))
    assert message in error.message
    assert hint in error.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[codec]\nchannels = '2'\n", ":2: codec.channels: input should be a valid integer"),
        ("[codec]\nchannels = 2.0\n", ":2: codec.channels: input should be a valid integer"),
        ("[codec]\nchannels = true\n", ":2: codec.channels: input should be a valid integer"),
        ("[codec]\nattention = 1\n", ":2: codec.attention: input should be a valid boolean"),
        ("[codec]\nmultipliers = [1, 'a']\n", ":2: codec.multipliers[1]: input should be"),
        ("[codec]\nchannels = 0\n", ":2: codec.channels: input should be greater than 0, not 0"),
        ("name = 3\n", ":1: name: input should be a valid string, not 3"),
        ("[codec_train]\nbetas = [0.9]\n", ":2: codec_train.betas"),
    ],
)
def test_wrong_value_names_line_key_and_value(text: str, message: str, tmp_path: Path) -> None:
    assert message in failure(write(tmp_path, text)).message


def test_every_wrong_value_is_listed(tmp_path: Path) -> None:
    error = failure(write(tmp_path, "[codec]\nchannels = '2'\nblocks = 'x'\n"))
    assert len(error.message.splitlines()) == 2


def test_toml_mistake_names_the_line(tmp_path: Path) -> None:
    assert "at line 2" in failure(write(tmp_path, "name = 'x'\ncodec = = 1\n")).message


def test_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in failure(str(path)).message


@pytest.mark.parametrize(
    ("name", "hint"), [("tinny", "did you mean tiny?"), ("", "tiny, small"), ("a/b.toml", "tiny")]
)
def test_unknown_configuration(name: str, hint: str) -> None:
    assert hint in failure(name).hint


@pytest.mark.parametrize(
    ("override", "message", "hint"),
    [
        ("codec.pach=2", "unknown key 'codec.pach'", "codec.patch"),
        ("steps=2", "unknown key 'steps'", "codec_train.steps"),
        ("codec_train.steps", "not of the form key=value", "-o"),
        ("=3", "not of the form key=value", "-o"),
        ("codec=3", "'codec' is a section", "patch"),
        ("codec_train.steps=many", "override: codec_train.steps: input should be", "schema"),
        ("codec.loss=fsq", "override: codec.loss: input should be", "schema"),
    ],
)
def test_wrong_override(override: str, message: str, hint: str) -> None:
    error = failure("tiny", override)
    assert message in error.message
    assert hint in error.hint


def test_sizes_that_do_not_fit_blame_the_overrides_too() -> None:
    error = failure("tiny", "data.image_size=60")
    assert "tiny.toml with overrides" in error.message
    assert "data.image_size 60 is not a multiple" in error.message


def test_steps_that_cannot_be_counted_in_32_bits_are_refused() -> None:
    sizes = ("data.text_length=1600", "sampler.text_steps=1400")
    assert "below 2^31" in failure("tiny", *sizes).message
    load_config("tiny", ["data.text_length=1600", "sampler.text_steps=1000"])


def test_schema_lists_every_key_and_forbids_others() -> None:
    schema = json_schema()
    listed = set()
    for name, field in schema["properties"].items():
        reference = field.get("$ref", "").rpartition("/")[2]
        section = schema["$defs"].get(reference)
        listed |= {f"{name}.{key}" for key in section["properties"]} if section else {name}
        assert section is None or section["additionalProperties"] is False
    assert listed == {key for key, _ in flatten(Config())}
    assert schema["additionalProperties"] is False


def test_presets_are_found_inside_an_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "mmprod"
    (package / "configs").mkdir(parents=True)
    (package / "configs" / "tiny.toml").write_text("name = 'tiny'\n", encoding="utf-8")
    monkeypatch.setattr(mmprod, "__file__", str(package / "__init__.py"))
    assert configs_dir() == package / "configs"
    assert preset_names() == ["tiny"]


def test_installation_without_presets_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mmprod, "__file__", str(tmp_path / "mmprod" / "__init__.py"))
    with pytest.raises(EnvironmentMissing, match="configurations are missing"):
        configs_dir()


@pytest.mark.parametrize("name", ["../../x", "", ".hidden", "a/b", "-x", "a\n", "a b"])
def test_a_name_that_is_no_plain_file_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"name: .* only letters, digits"):
        load_config("tiny", [f"name={json.dumps(name)}"])
    assert load_config("tiny", ["name=a-B.2_x"]).name == "a-B.2_x"
