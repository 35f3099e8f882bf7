"""The closed vocabulary of avatar attributes, and the captions that state them.

Every avatar is described by eight attributes. A caption names each of them, so it is true by
construction, and `parse_caption` reads it back: that makes agreement between text and picture
measurable without a pretrained judge. Two rules keep it honest. What cannot be seen has the value
`HIDDEN` and is neither captioned nor scored (hair under a hat, the hair colour of a bald head).
Some pairs of values never occur together outside the split `test_combo`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from mmprod.errors import ConfigError

HIDDEN = "hidden"

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "hair_color": ("black", "brown", "blond", "red", "gray", "pink"),
    "hair": ("short", "long", "curly", "bun", "bald"),
    "hat": ("none", "hat", "beanie", "turban"),
    "glasses": ("none", "glasses", "sunglasses"),
    "beard": ("none", "beard", "moustache"),
    "expression": ("smiling", "serious", "sad"),
    "clothes_color": ("red", "blue", "green", "black", "orange", "purple"),
    "background": ("white", "blue", "green", "yellow", "pink", "gray"),
}
"""Attribute -> its visible values. `hair_color` and `hair` may also be `HIDDEN`."""

SCORED = ("hair_color", "glasses", "hat", "beard")
"""The attributes of the headline figure."""

HELD_OUT_PAIRS: tuple[tuple[tuple[str, str], tuple[str, str]], ...] = (
    (("hair_color", "red"), ("glasses", "sunglasses")),
    (("hair_color", "pink"), ("beard", "beard")),
    (("hat", "turban"), ("glasses", "glasses")),
    (("hat", "hat"), ("beard", "moustache")),
)
"""Pairs of values that occur together only in the split `test_combo`."""

LANGUAGES = ("en", "zh")
VARIANTS = 4
"""Number of caption templates in each language."""

_CHANCES: dict[str, tuple[float, ...]] = {
    "hat": (0.65, 0.12, 0.12, 0.11),
    "glasses": (0.50, 0.25, 0.25),
    "beard": (0.60, 0.20, 0.20),
    "hair": (0.225, 0.225, 0.225, 0.225, 0.10),
}

# {hair} is the hair phrase, or the hat's when there is one; {extras} the phrases of glasses and
# beard, each with its comma in front.
_TEMPLATES: dict[str, tuple[str, ...]] = {
    "en": (
        "a {expression} face with {hair}{extras}, {clothes_color} clothes, {background} background",
        "{hair}{extras}, {expression} person in {clothes_color} clothes, {background} background",
        "{background} background, {expression} person, {hair}{extras}, {clothes_color} clothes",
        "portrait, {expression}, {hair}{extras}, {clothes_color} clothes, {background} background",
    ),
    "zh": (
        "{expression}的脸，{hair}{extras}，{clothes_color}上衣，{background}背景",
        "{hair}{extras}，{expression}的人，{clothes_color}衣服，{background}背景",
        "{background}背景，{expression}的人，{hair}{extras}，{clothes_color}衣服",
        "头像，{expression}，{hair}{extras}，{clothes_color}上衣，{background}背景",
    ),
}
_COMMA = {"en": ", ", "zh": "，"}

_CHINESE_COLORS = {
    "black": "黑色",
    "brown": "棕色",
    "blond": "金色",
    "red": "红色",
    "gray": "灰色",
    "pink": "粉色",
    "blue": "蓝色",
    "green": "绿色",
    "orange": "橙色",
    "purple": "紫色",
    "white": "白色",
    "yellow": "黄色",
}
_WORDS: dict[str, dict[str, dict[str, str]]] = {
    "en": {
        "hair": {
            "short": "short {} hair",
            "long": "long {} hair",
            "curly": "curly {} hair",
            "bun": "{} hair in a bun",
            "bald": "a bald head",
        },
        "hat": {"hat": "a hat", "beanie": "a beanie", "turban": "a turban"},
        "glasses": {"glasses": "glasses", "sunglasses": "sunglasses"},
        "beard": {"beard": "a beard", "moustache": "a moustache"},
        "expression": {value: value for value in ATTRIBUTES["expression"]},
        "color": {value: value for value in _CHINESE_COLORS},
    },
    "zh": {
        "hair": {
            "short": "{}短发",
            "long": "{}长发",
            "curly": "{}卷发",
            "bun": "{}盘发",
            "bald": "光头",
        },
        "hat": {"hat": "礼帽", "beanie": "毛线帽", "turban": "头巾"},
        "glasses": {"glasses": "眼镜", "sunglasses": "墨镜"},
        "beard": {"beard": "络腮胡", "moustache": "八字胡"},
        "expression": {"smiling": "微笑", "serious": "严肃", "sad": "悲伤"},
        "color": _CHINESE_COLORS,
    },
}


def sample_attributes(rng: np.random.Generator) -> dict[str, str]:
    """Draw the attributes of one avatar. No pair of `HELD_OUT_PAIRS` ever occurs."""
    while True:
        attributes = _draw(rng)
        if not is_held_out(attributes):
            return attributes


def sample_held_out(rng: np.random.Generator) -> dict[str, str]:
    """Draw the attributes of one avatar that shows at least one pair of `HELD_OUT_PAIRS`."""
    while True:
        attributes = _draw(rng)
        first, second = HELD_OUT_PAIRS[int(rng.integers(len(HELD_OUT_PAIRS)))]
        attributes.update([first, second])
        attributes = _hide(attributes)
        if is_held_out(attributes):
            return attributes


def is_held_out(attributes: Mapping[str, str]) -> bool:
    """True when a pair of `HELD_OUT_PAIRS` occurs."""
    return any(all(attributes[name] == value for name, value in pair) for pair in HELD_OUT_PAIRS)


def check_attributes(attributes: Mapping[str, str]) -> None:
    """Refuse unknown or missing names and values, and hidden values where they are visible.

    Raises ConfigError.
    """
    if set(attributes) != set(ATTRIBUTES):
        raise ConfigError(
            f"attributes must be exactly {sorted(ATTRIBUTES)}, got {sorted(attributes)}",
            hint="start from the attributes of a sample of the data set",
        )
    for name, value in attributes.items():
        if value != HIDDEN and value not in ATTRIBUTES[name]:
            raise ConfigError(
                f"{name} cannot be {value!r}",
                hint=f"{name} is one of: {', '.join(ATTRIBUTES[name])}",
            )
    hidden = {name for name, value in attributes.items() if value == HIDDEN}
    if hidden != _unseen(attributes):
        raise ConfigError(
            f"hair under a hat and a bald head's hair colour hide, only they: {dict(attributes)}",
            hint=f"give them the value {HIDDEN!r}, and every other attribute a visible one",
        )


def caption(attributes: Mapping[str, str], language: str, variant: int) -> str:
    """State every visible attribute in one short sentence; "none" is said by silence.

    Parameters: `language` one of `LANGUAGES`, `variant` in [0, VARIANTS). Raises ConfigError for
    anything else.
    """
    if language not in _WORDS or not 0 <= variant < VARIANTS:
        raise ConfigError(
            f"there is no caption template {variant} in language {language!r}",
            hint=f"languages: {', '.join(LANGUAGES)}; variants 0 to {VARIANTS - 1}",
        )
    check_attributes(attributes)
    words = _WORDS[language]
    extras = [
        words[name][attributes[name]] for name in ("glasses", "beard") if attributes[name] != "none"
    ]
    if attributes["hat"] != "none":
        hair = words["hat"][attributes["hat"]]
    else:
        hair = words["hair"][attributes["hair"]].format(
            words["color"].get(attributes["hair_color"], "")
        )
    return _TEMPLATES[language][variant].format(
        hair=hair,
        extras="".join(_COMMA[language] + extra for extra in extras),
        expression=words["expression"][attributes["expression"]],
        clothes_color=words["color"][attributes["clothes_color"]],
        background=words["color"][attributes["background"]],
    )


def parse_caption(text: str) -> dict[str, str]:
    """Read the attributes back from a caption in English or Chinese, also from an imperfect,
    generated one.

    Glasses, hat and beard that are not mentioned are "none". Another attribute that is not
    mentioned, or is mentioned with a word outside the vocabulary, is absent from the result (so it
    counts as wrong when it is scored).
    """
    language = "zh" if re.search("[\u4e00-\u9fff]", text) else "en"
    words = _WORDS[language]
    edge = r"\b" if language == "en" else ""

    def find(name: str, values: Sequence[str]) -> str | None:
        for value in values:
            if re.search(edge + re.escape(words[name][value].removeprefix("a ")) + edge, text):
                return value
        return None

    found: dict[str, str | None] = {
        name: find(name, ATTRIBUTES[name][1:]) or "none" for name in ("hat", "glasses", "beard")
    }
    found["expression"] = find("expression", ATTRIBUTES["expression"])
    color = "(" + "|".join(words["color"].values()) + ")"
    names = {word: value for value, word in words["color"].items()}
    patterns = {
        "en": {
            "clothes_color": rf"\b{color} (?:shirt|clothes)\b",
            "background": rf"\b{color} background\b",
        },
        "zh": {"clothes_color": f"{color}(?:上衣|衣服)", "background": f"{color}背景"},
    }[language]
    for name, pattern in patterns.items():
        match = re.search(pattern, text)
        found[name] = names[match[1]] if match else None
    if found["hat"] != "none":
        found["hair"] = found["hair_color"] = HIDDEN
    else:
        for style, phrase in words["hair"].items():
            match = re.search(edge + phrase.removeprefix("a ").replace("{}", color) + edge, text)
            if match:
                found["hair"] = style
                found["hair_color"] = names[match[1]] if match.groups() else HIDDEN
                break
    return {
        name: value
        for name in ATTRIBUTES
        if (value := found.get(name)) is not None and _known(name, value)
    }


def _known(name: str, value: str) -> bool:
    return value in ATTRIBUTES[name] or (value == HIDDEN and name in ("hair", "hair_color"))


def _draw(rng: np.random.Generator) -> dict[str, str]:
    drawn = {
        name: values[int(rng.choice(len(values), p=_CHANCES.get(name)))]
        for name, values in ATTRIBUTES.items()
    }
    return _hide(drawn)


def _hide(attributes: Mapping[str, str]) -> dict[str, str]:
    """The same attributes, with those that a picture cannot show set to `HIDDEN`."""
    return dict(attributes) | dict.fromkeys(_unseen(attributes), HIDDEN)


def _unseen(attributes: Mapping[str, str]) -> set[str]:
    if attributes["hat"] != "none":
        return {"hair", "hair_color"}
    return {"hair_color"} if attributes["hair"] == "bald" else set()
