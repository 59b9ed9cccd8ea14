"""Who the model is, and what it says to everything it was not made for.

An answer is put together from many parts, so that there is no one sentence to recite; every one says that this is the
small demo model and that a real Gemma 3 checkpoint is needed.
"""

from __future__ import annotations

import numpy as np

from checkpoints.demo_model import words
from checkpoints.demo_model.asking import Phrasings, phrasings
from checkpoints.demo_model.dialog import Turn, lower_effort
from checkpoints.demo_model.grammar import choose, expand, is_held_out
from checkpoints.demo_model.more_facts import MORE_CHAT
from checkpoints.demo_model.requests import PHOTO, PHOTO_HELD_OUT, REQUESTS, REQUESTS_HELD_OUT
from checkpoints.demo_model.topics import (
    FOREIGN,
    FOREIGN_HELD_OUT,
    FORMS,
    FORMS_HELD_OUT,
    TOPICS,
)
from checkpoints.demo_model.topics_zh import OTHER_ZH, PHOTO_ZH, TOPICS_ZH

_SMALL = (
    "[I am|I'm] [only|just] the small demo model"
    "[| of gemma_tpu| that ships with gemma_tpu| with eight million parameters]"
)
_NAMED = "a real Gemma 3 checkpoint[|, such as gemma3-4b-it|, for example gemma3-4b-it|, for instance gemma3-12b-it]"
_REAL = (
    f"[[Please load|Load|Try] {_NAMED}|[You need|That needs|This takes|For that you need] {_NAMED}"
    "|[Please load|Load] a real Gemma 3 checkpoint[ and ask again| for that| to get an answer]]"
)
_CAN = """[I know drawn shapes, sums, sorting and some facts about Gemma 3|I can talk about drawn scenes, small sums \
and lists|I was made for drawn shapes, short words and small numbers]"""
_REPLIES = (
    f"[Sorry, |I am sorry, ||]{{cannot}}. {_SMALL}. {_REAL}.",
    f"{{cannot}}, because {_SMALL}. {_REAL}.",
    f"{_SMALL}, so {{cannot}}. {_REAL}.",
    f"[That is beyond me|That is more than I can do|I was not trained for that]: {_SMALL}. {_REAL}.",
    f"{_SMALL}. {_CAN}, but {{cannot}}. {_REAL}.",
    f"[Good question|I wish I could help|An interesting request], but {_SMALL}. {_CAN}. {_REAL}.",
    f"{{cannot}}: {_SMALL} and {_CAN}. {_REAL}.",
)
_CANNOT = "[I cannot|I can't|I do not know how to] {what}"
_ABOUT = "[I know nothing about|I can say nothing about|I never learnt anything about|I have not learnt about] {topic}"
_ZH = (
    "[抱歉，|对不起，||]我只是一个小型演示模型[，不会这个|，回答不了这个问题|]。"
    "[请加载|这需要]真正的 Gemma 3 检查点[，例如 gemma3-4b-it|]。",
    "[这个我不会|这超出了我的能力]，我只是小型演示模型，[只认识简单的图形|只会看简单的图画]。"
    "[请使用|请加载]真正的 Gemma 3 检查点。",
)
_WHO = phrasings(
    """
    [Who|What] are you?
    [What is|What's] your name?
    [Tell me|Say something] about yourself.
    [Introduce|Please introduce|Describe|Can you introduce] yourself.
    [Which|What] model [are you|is this|am I talking to]?
    [Who|What] am I [talking|speaking] to?
    Are you [Gemma|Gemma 3|a real Gemma|the real Gemma 3|a language model]?
    """,
    """
    Can you tell me who you are?
    Please say something about yourself.
    """,
).plus(MORE_CHAT["who"])
_WHO_ANSWER = (
    "I am the small demo model of gemma_tpu: a Gemma 3 with eight million parameters that knows drawn shapes, sums, "
    "lists and some facts about Gemma 3. For anything else, load a real checkpoint."
)
_ABLE = phrasings(
    """
    What can you do?
    [What are you|What are you able to be] [able to do|good at|useful for|made for]?
    [How|What] can you help[| me][| with]?
    [Help|help]
    What [do|should] I ask you?
    [What|Which] [questions|tasks|things] can [I ask you|you do|you answer]?
    What do you know?
    """,
    """
    With what can you help me?
    What are your abilities?
    """,
).plus(MORE_CHAT["able"])
_ABLE_ANSWER = (
    "I can tell what is in drawn scenes of shapes, read a printed word, do small sums, sort and reverse lists, write "
    "JSON, and answer questions about Gemma 3 and gemma_tpu."
)
_HELLO = phrasings(
    """
    [Hello|Hi|Hey|Good morning|Good evening|Good afternoon|Hi there|Hello there|Hey there|Greetings][|!|.]
    [Hello|Hi|Hey][| Gemma|, Gemma| there][|, how are you|. How are you][!|?|]
    [How are you|How are you doing|How do you do|What's up][| today]?
    """,
    """
    Good day!
    Hi, nice to meet you.
    """,
).plus(MORE_CHAT["hello"], framable=False)
_HELLO_ANSWER = "Hello! Show me a drawn scene, or ask me for a sum, a sorted list or a fact about Gemma 3."
_THANKS = phrasings(
    """
    [Thanks|Thank you|Thank you very much|Many thanks|Thanks a lot|Great, thanks|Cool, thank you][|!|.]
    [Good|Great|Well done|Nice|Very good|Perfect|Wonderful][|!| job!|.]
    [Bye|Goodbye|See you|Good night|Bye bye][|!|.]
    """,
    """
    Thanks for the help!
    That was good, thank you.
    """,
).plus(MORE_CHAT["thanks"], framable=False)
_THANKS_ANSWER = "You are welcome!"
_TRAINED = phrasings(
    """
    How were you [trained|made|built]?
    [Who|What] [trained|made|built|created] you?
    What were you trained on?
    What [data|examples] were you trained on?
    [Where|How] did you learn?
    """,
    """
    On which data have you been trained?
    """,
).plus(MORE_CHAT["trained"])
_TRAINED_ANSWER = (
    "I was trained from scratch on drawn scenes, sums, lists and short texts that the gemma_tpu repository generates."
)
_SIZE = phrasings(
    """
    How [big|large|small] are you?
    How many parameters do you have?
    [What is|Tell me] your size[|.|?]
    [What|Which] size are you?
    """,
    """
    How many weights do you have?
    """,
).plus(MORE_CHAT["size"])
_SIZE_ANSWER = "I have about eight million parameters: 8 text layers and 4 vision blocks."
_ZH_WHO = phrasings(
    "[你是谁|你是什么|你叫什么名字|你叫什么]？\n[请|]介绍一下你自己。\n你是[什么|哪个]模型？",
    "请问你是谁？\n说说你自己。",
).plus(MORE_CHAT["zh_who"])
_ZH_WHO_ANSWER = "我是 gemma_tpu 的小型演示模型，能看懂简单的图形。其他问题需要真正的 Gemma 3 检查点。"
_ZH_HELLO = phrasings("[你好|您好|嗨|早上好|晚上好][|！|。]\n你好吗？", "大家好！").plus(
    MORE_CHAT["zh_hello"], framable=False
)
_ZH_HELLO_ANSWER = "你好！给我看一张有图形的画，问我里面有什么吧。"
_ZH_THANKS = phrasings("[谢谢|多谢|谢谢你|非常感谢][|！|。]\n[再见|拜拜][|！|。]", "谢谢你的帮助。").plus(
    MORE_CHAT["zh_thanks"], framable=False
)
_ZH_THANKS_ANSWER = "不客气！"
_CHAT = (
    (_WHO, _WHO_ANSWER, 3),
    (_ABLE, _ABLE_ANSWER, 2),
    (_HELLO, _HELLO_ANSWER, 2),
    (_THANKS, _THANKS_ANSWER, 1),
    (_TRAINED, _TRAINED_ANSWER, 1),
    (_SIZE, _SIZE_ANSWER, 1),
    (_ZH_WHO, _ZH_WHO_ANSWER, 1),
    (_ZH_HELLO, _ZH_HELLO_ANSWER, 1),
    (_ZH_THANKS, _ZH_THANKS_ANSWER, 1),
)
_CHAT_TABLE = [(table, answer) for table, answer, weight in _CHAT for _ in range(weight)]


def chat_turn(rng: np.random.Generator, held_out: bool) -> Turn:
    """Greetings, thanks, and who and what the model is."""
    table, answer = choose(rng, _CHAT_TABLE)
    return Turn("text chat", lower_effort(rng, table.pick(rng, held_out)), answer)


def _topic(rng: np.random.Generator, held_out: bool) -> str:
    while is_held_out("topic", topic := choose(rng, TOPICS)) != held_out:
        pass
    return topic


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def reply(rng: np.random.Generator, what: str, topic: str | None = None) -> str:
    """A refusal in the model's own words. `what`: the thing it cannot do."""
    text = expand(choose(rng, _REPLIES), rng)
    named = topic is not None and rng.random() < 0.6
    cannot = expand(_ABOUT if named else _CANNOT, rng).format(what=what, topic=topic)
    for mark in (". {cannot}", "; {cannot}"):
        text = text.replace(mark, mark[:2] + _capital(cannot))
    return _capital(text.format(cannot=cannot))


def reply_zh(rng: np.random.Generator) -> str:
    return expand(choose(rng, _ZH), rng)


_FORMS = Phrasings(FORMS, FORMS_HELD_OUT)
_PHOTOS = Phrasings(PHOTO, PHOTO_HELD_OUT, picture=True)
_REQUESTS = tuple((what, Phrasings(asked, REQUESTS_HELD_OUT[what])) for what, asked in REQUESTS.items())


def _nonsense(rng: np.random.Generator) -> str:
    """Letters, digits or words in no order."""
    kind = rng.random()
    if kind < 0.35:
        return " ".join(words.letters(rng, 2, 9) for _ in range(int(rng.integers(1, 5))))
    if kind < 0.7:
        return " ".join(choose(rng, words.COMMON) for _ in range(int(rng.integers(2, 9))))
    marks = "?!.,;:#*+-_/()&%$@0123456789"
    return "".join(choose(rng, marks) for _ in range(int(rng.integers(2, 12))))


def _topics_zh(rng: np.random.Generator) -> dict[str, str]:
    return dict(t=choose(rng, TOPICS_ZH), u=choose(rng, TOPICS_ZH))


def scope_turn(rng: np.random.Generator, held_out: bool) -> Turn:
    """A text request that is out of scope."""
    kind = rng.random()
    topic, other = _topic(rng, held_out), choose(rng, TOPICS)
    slots = dict(t=topic, u=other, n=int(rng.integers(1001, 10**7)), m=int(rng.integers(1001, 10**5)))
    slots |= {name: int(rng.integers(1, 100)) for name in "pqr"}
    task = "text scope"
    if kind < 0.38:
        question = _FORMS.pick(rng, held_out, **slots)
        return Turn(task, lower_effort(rng, question), reply(rng, "answer general questions", topic), "scope")
    if kind < 0.74:
        what, requests = choose(rng, _REQUESTS)
        return Turn(task, lower_effort(rng, requests.pick(rng, held_out, **slots)), reply(rng, what), "scope")
    if kind < 0.79:
        return Turn(task, _nonsense(rng), reply(rng, "make sense of that"), "scope")
    if kind < 0.86:
        question = choose(rng, (FOREIGN_HELD_OUT if held_out else FOREIGN).replace("\n", "").strip().split("|"))
        return Turn(task, question, reply(rng, "speak that language"), "scope")
    question = lower_effort(rng, OTHER_ZH.pick(rng, held_out, **_topics_zh(rng)))
    return Turn(task, question, reply_zh(rng), "scope")


def photo_turn(rng: np.random.Generator, held_out: bool, chinese: bool, question: str | None = None) -> Turn:
    """A question about a picture that goes beyond drawn scenes, or (given) any question about one that is no scene."""
    what = "understand this picture" if question else "answer that about a picture"
    if chinese:
        question = question or PHOTO_ZH.pick(rng, held_out, **_topics_zh(rng))
        return Turn("image scope zh", question, reply_zh(rng), "scope")
    if question is None:
        question = _PHOTOS.pick(rng, held_out, t=_topic(rng, held_out))
    return Turn("image scope", lower_effort(rng, question), reply(rng, what), "scope")
