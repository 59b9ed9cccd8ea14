"""How answers about scenes are worded, in English and in Chinese."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from checkpoints.demo_model.asking import Phrasings
from checkpoints.demo_model.more_en import MORE_EN
from checkpoints.demo_model.more_en_pairs import MORE_EN_PAIRS
from checkpoints.demo_model.more_zh import MORE_ZH
from checkpoints.demo_model.phrasings_en import EN, SYSTEMS
from checkpoints.demo_model.phrasings_zh import SYSTEMS_ZH, ZH
from checkpoints.demo_model.scenes import Shape

_PLURALS = {"cross": "crosses"}
_SHAPES_ZH = dict(
    circle="圆形",
    square="正方形",
    triangle="三角形",
    star="五角星",
    hexagon="六边形",
    heart="心形",
    cross="十字形",
    diamond="菱形",
    ring="圆环",
)
_COLOURS_ZH = {
    "red": "红色",
    "orange": "橙色",
    "yellow": "黄色",
    "green": "绿色",
    "blue": "蓝色",
    "purple": "紫色",
    "pink": "粉色",
    "brown": "棕色",
    "black": "黑色",
    "white": "白色",
    "gray": "灰色",
    "light blue": "浅蓝色",
    "light green": "浅绿色",
    "light yellow": "浅黄色",
    "light pink": "浅粉色",
}
_PLACES = {
    ("top", "left"): "at the top left",
    ("top", "middle"): "at the top",
    ("top", "right"): "at the top right",
    ("middle", "left"): "on the left",
    ("middle", "middle"): "in the middle",
    ("middle", "right"): "on the right",
    ("bottom", "left"): "at the bottom left",
    ("bottom", "middle"): "at the bottom",
    ("bottom", "right"): "at the bottom right",
}
_PLACES_ZH = {
    ("top", "left"): "左上角",
    ("top", "middle"): "上方",
    ("top", "right"): "右上角",
    ("middle", "left"): "左侧",
    ("middle", "middle"): "中间",
    ("middle", "right"): "右侧",
    ("bottom", "left"): "左下角",
    ("bottom", "middle"): "下方",
    ("bottom", "right"): "右下角",
}
# Places that a question may name: corners and the middle, which no other reading of "left" or "top" contains.
ASKED = {
    ("top", "left"): ("top left", "top left corner", "upper left corner"),
    ("top", "right"): ("top right", "top right corner", "upper right corner"),
    ("middle", "middle"): ("middle", "center", "centre"),
    ("bottom", "left"): ("bottom left", "bottom left corner", "lower left corner"),
    ("bottom", "right"): ("bottom right", "bottom right corner", "lower right corner"),
}
_SIDES = {"left": "left of", "right": "right of", "above": "above", "below": "below"}
_SIDES_ZH = {"left": "左边", "right": "右边", "above": "上面", "below": "下面"}
_MOST = ("largest", "biggest", "smallest", "leftmost", "rightmost", "topmost", "lowest")
_MOST_ZH = ("最大", "最大", "最小", "最左边", "最右边", "最上面", "最下面")
_ORDINALS = ("first", "second")
_NUMBERS = ("zero", "one", "two", "three", "four", "five")


@dataclasses.dataclass(frozen=True)
class Wording:
    """One language. `answers` are templates by name; the slots are filled with words of the language."""

    chinese: bool
    phrasings: Mapping[str, Phrasings]
    systems: Sequence[str]
    answers: Mapping[str, str]

    def kind(self, kind: str, plural: bool = False) -> str:
        if self.chinese:
            return _SHAPES_ZH[kind]
        return _PLURALS.get(kind, kind + "s") if plural else kind

    def colour(self, colour: str) -> str:
        return _COLOURS_ZH[colour] if self.chinese else colour

    def name(self, shape: Shape, plural: bool = False) -> str:
        """ "red circle", "红色的圆形"."""
        return f"{self.colour(shape.colour)}{'的' if self.chinese else ' '}{self.kind(shape.kind, plural)}"

    def of_colour(self, colour: str) -> str:
        """ "red shape", "红色的图形"."""
        return self.colour(colour) + ("的图形" if self.chinese else " shape")

    def one(self, shape: Shape) -> str:
        """ "a red circle", "一个红色的圆形"."""
        name = self.name(shape)
        return "一个" + name if self.chinese else ("an " if name[0] in "aeiou" else "a ") + name

    def all_of(self, parts: Sequence[str]) -> str:
        """ "a, b and c"."""
        comma, last = ("、", "和") if self.chinese else (", ", " and ")
        return comma.join(parts[:-1]) + last + parts[-1] if len(parts) > 1 else parts[0]

    def listing(self, shapes: Sequence[Shape]) -> str:
        return self.all_of([self.one(shape) for shape in shapes])

    def place(self, cell: tuple[str, str]) -> str:
        return (_PLACES_ZH if self.chinese else _PLACES)[cell]

    def asked_places(self, cell: tuple[str, str]) -> tuple[str, ...]:
        return (_PLACES_ZH[cell],) if self.chinese else ASKED[cell]

    def side(self, side: str) -> str:
        return (_SIDES_ZH if self.chinese else _SIDES)[side]

    def most(self, index: int) -> str:
        return (_MOST_ZH if self.chinese else _MOST)[index]

    def number(self, count: int) -> str:
        """A small count in words, as it stands before a noun."""
        return "零一两三四五"[count] if self.chinese else _NUMBERS[count]

    def ordinal(self, index: int) -> str:
        return "一二"[index] if self.chinese else _ORDINALS[index]

    def say(self, answer: str, **slots: object) -> str:
        """The answer template, filled, with a capital letter at its start."""
        text = self.answers[answer].format(**slots)
        return text[0].upper() + text[1:]


_PAIRS = ("differ", "same", "more", "which_has", "nth", "nth_count", "short", "json_shapes", "json_count")


def _extended(base: Mapping[str, Phrasings], more: Mapping[str, str]) -> dict[str, Phrasings]:
    if unknown := more.keys() - base.keys():
        raise ValueError(f"phrasings for unknown tasks: {sorted(unknown)}")
    picture = {task for task in base if task not in _PAIRS and not task.startswith("follow")}
    return {
        task: phrasing.plus(more.get(task, ""), task in picture, task != "short") for task, phrasing in base.items()
    }


ENGLISH = Wording(
    False,
    _extended(EN, MORE_EN | MORE_EN_PAIRS),
    SYSTEMS,
    {
        "what": "{shapes}.",
        "count_one": "There is {number} {thing}.",
        "count": "There are {number} {thing}.",
        "count_none": "There are no {thing}.",
        "colour": "The {kind} is {colour}.",
        "background": "The background is {colour}.",
        "which": "The {kind} is {colour}.",
        "where": "The {name} is {place}.",
        "at": "There is {shapes} {place}.",
        "at_nothing": "There is nothing {place}.",
        "extreme": "The {most} shape is the {name}.",
        "exists_yes": "Yes, there is a {name} {place}.",
        "exists_no": "No, there is no {name}.",
        "exists_thing": "No, there is only {shapes}.",
        "is_yes": "Yes, the {kind} is {colour}.",
        "is_no": "No, the {kind} is {colour}.",
        "relation_yes": "Yes, the {a} is {side} the {b}.",
        "relation_no": "No, the {a} is {side} the {b}.",
        "relative": "The {a} is {side} the {b}.",
        "read": 'It says "{text}".',
        "text_colour": "The text is {colour}.",
        "describe": "The picture shows {number} {things} on a {background} background: {parts}.",
        "describe_text": 'The picture shows the text "{text}" in {colour} on a {background} background.',
        "describe_part": "{one} {place}",
        "same_yes": "Yes, both pictures show the same: {shapes}.",
        "same_no": "No, {difference}.",
        "differ_colour": "the {kind} is {first} in the first picture and {second} in the second",
        "differ_kind": "the first picture has {first} where the second has {second}",
        "differ_gone": "only the first picture has {first}",
        "differ_new": "only the second picture has {second}",
        "differ_place": "the {name} is {first} in the first picture and {second} in the second",
        "more": "The {nth} picture has more shapes: {more} instead of {fewer}.",
        "more_same": "Both pictures have {number} {things}.",
        "which_has": "The {nth} picture has {one}.",
        "which_both": "Both pictures have {one}.",
        "which_none": "Neither picture has {one}.",
        "no_picture": "There is no picture here. Please add one.",
    },
)
CHINESE = Wording(
    True,
    _extended(ZH, MORE_ZH),
    SYSTEMS_ZH,
    {
        "what": "{shapes}。",
        "count_one": "有{number}个{thing}。",
        "count": "有{number}个{thing}。",
        "count_none": "没有{thing}。",
        "colour": "{kind}是{colour}的。",
        "background": "背景是{colour}的。",
        "which": "{kind}是{colour}的。",
        "where": "{name}在{place}。",
        "at": "{place}有{shapes}。",
        "at_nothing": "{place}什么都没有。",
        "extreme": "{most}的图形是{name}。",
        "exists_yes": "有，{place}有一个{name}。",
        "exists_no": "没有{name}。",
        "exists_thing": "没有，只有{shapes}。",
        "is_yes": "是的，{kind}是{colour}的。",
        "is_no": "不是，{kind}是{colour}的。",
        "relation_yes": "是的，{a}在{b}的{side}。",
        "relation_no": "不是，{a}在{b}的{side}。",
        "relative": "{a}在{b}的{side}。",
        "read": "写的是“{text}”。",
        "text_colour": "文字是{colour}的。",
        "describe": "图中{background}的背景上有{number}个图形：{parts}。",
        "describe_text": "图中{background}的背景上写着{colour}的“{text}”。",
        "describe_part": "{place}有{one}",
        "same_yes": "一样，两张图都有{shapes}。",
        "same_no": "不一样，{difference}。",
        "differ_colour": "{kind}在第一张图里是{first}的，在第二张图里是{second}的",
        "differ_kind": "第一张图里的{first}在第二张图里变成了{second}",
        "differ_gone": "只有第一张图有{first}",
        "differ_new": "只有第二张图有{second}",
        "differ_place": "{name}在第一张图的{first}，在第二张图的{second}",
        "more": "第{nth}张图的图形更多：{more}个对{fewer}个。",
        "more_same": "两张图都有{number}个图形。",
        "which_has": "第{nth}张图有{one}。",
        "which_both": "两张图都有{one}。",
        "which_none": "两张图都没有{name}。",
        "no_picture": "这里没有图片，请先添加一张图片。",
    },
)
LANGUAGES = (ENGLISH, CHINESE)
