"""Small facts about Gemma 3 and about this toolkit, as questions and answers."""

from __future__ import annotations

import numpy as np

from checkpoints.demo_model.asking import phrasings
from checkpoints.demo_model.dialog import Turn
from checkpoints.demo_model.grammar import choose
from checkpoints.demo_model.more_facts import MORE_FACTS
from checkpoints.demo_model.size_facts import number_of_size, vision_of_size

# Single facts: phrasings to train, held out, the answer.
_FACTS = [
    (
        """
        [Which|What] sizes does Gemma 3 [have|come in]?
        [In which|What] sizes [is|of] Gemma 3 [available|are there]?
        [Name|List|Tell me] the sizes of Gemma 3.
        How [large|big] are the Gemma 3 models?
        [Which|What] Gemma 3 [models|sizes|variants] [exist|are there]?
        """,
        """
        What are the sizes of Gemma 3?
        Can you list the Gemma 3 sizes?
        """,
        "Gemma 3 comes in five sizes: 270M, 1B, 4B, 12B and 27B.",
    ),
    (
        """
        How many soft tokens [is|does] an image [turned into|become|have|take]?
        How many [soft tokens|image tokens|tokens] does [an image|a picture|each image] [use|take|need|become]?
        [To|Into] how many [soft tokens|tokens] is an image [encoded|turned]?
        [What is|Tell me] the number of soft tokens [of|per|for] [an image|a picture|each image].
        How many [soft tokens|tokens] [stand for|represent] [an image|a picture]?
        An image is how many [soft tokens|tokens]?
        """,
        """
        How many soft tokens are there per image?
        How many tokens does one picture cost?
        """,
        "Each image becomes 256 soft tokens.",
    ),
    (
        """
        [What|Which] [image size|image resolution|resolution] does Gemma 3 [use|expect|see|need]?
        To [what|which] [size|resolution] are [images|pictures] [resized|scaled]?
        [How large|What size] are the images [that |]Gemma 3 sees?
        [What is|Tell me] the [image size|image resolution|input resolution] of [Gemma 3|the vision tower].
        """,
        """
        What resolution are images resized to?
        Which image size does the vision tower see?
        """,
        "Images are resized to 896 by 896 pixels.",
    ),
    (
        """
        [What|Which] [vision encoder|vision tower|image encoder] does Gemma 3 use?
        [What is|Tell me about] the vision [tower|encoder] of Gemma 3[|.]
        How does Gemma 3 [see|encode|read] [images|pictures]?
        [What|Which] [network|model] encodes the images [in|for] Gemma 3?
        """,
        """
        Which encoder turns images into tokens in Gemma 3?
        What kind of vision tower does Gemma 3 have?
        """,
        "Gemma 3 sees with a SigLIP vision tower of 27 blocks, the same in 4B, 12B and 27B.",
    ),
    (
        """
        [How large|How big] is the vocabulary[| of Gemma 3]?
        How many [pieces|tokens|entries] [does|are in] the [Gemma 3 |]vocabulary[| have]?
        [What is|Tell me] the vocabulary size[| of Gemma 3].
        How many [pieces|tokens] does the [Gemma 3 |real |]tokenizer [have|know]?
        """,
        """
        What is the size of Gemma 3's vocabulary?
        How many pieces does the tokenizer of Gemma 3 hold?
        """,
        "The vocabulary of Gemma 3 has 262,144 pieces.",
    ),
    (
        """
        Which layers [are global|attend globally|see the whole context]?
        How often is [there |]a [global layer|layer global]?
        [Which|What] layers of Gemma 3 [are global|see everything|have global attention]?
        [How are|What about] local and global layers [mixed|arranged|ordered]?
        """,
        """
        Which of the layers in Gemma 3 are global ones?
        How many layers apart are the global layers?
        """,
        "Every sixth layer is global; the other layers see a sliding window.",
    ),
    (
        """
        [What|Which] sampling settings [are recommended|does Google recommend|should I use][| for Gemma 3]?
        [What are|Tell me] the recommended [sampling settings|sampling parameters|settings for sampling][| for Gemma 3].
        [What|Which] temperature [is recommended|should I use|does Google recommend][| for Gemma 3]?
        [How should I|How do I] sample from Gemma 3?
        """,
        """
        Which sampling parameters are recommended for Gemma 3?
        What temperature and top-k should be used for Gemma 3?
        """,
        "Google recommends temperature 1.0, top-k 64 and top-p 0.95.",
    ),
    (
        """
        [What|Which] [token|piece] ends [a turn|an answer|a reply|a message]?
        How does [a turn|an answer|Gemma 3's answer] end?
        [Which token|What] [stops|finishes] [an answer|the generation|a turn]?
        [When|Where] does the generation [stop|end]?
        """,
        """
        By which token is a turn ended?
        Which token marks the end of an answer?
        """,
        "An answer ends with the token for end of turn, or with eos.",
    ),
    (
        """
        [How many tokens|How much] [should|can] [an answer|the output|a reply] have at most?
        [What is|Tell me] the [recommended output limit|output limit|longest output][| of Gemma 3].
        How long [should|may|can] [an output|an answer|a reply] [be|get][| at most]?
        """,
        """
        What output limit is recommended for Gemma 3?
        How many tokens may an answer have?
        """,
        "The recommended output limit is 8,192 tokens.",
    ),
    (
        """
        [Who|Which company] [made|makes|built|developed|released|trained] Gemma[| 3]?
        [Who is|Who's] behind Gemma[| 3]?
        [Where does|From whom does] Gemma 3 come[| from]?
        """,
        """
        By whom was Gemma 3 developed?
        Which company is Gemma 3 from?
        """,
        "Gemma 3 was made by Google DeepMind.",
    ),
    (
        """
        [What|Which] activation [function |]does [Gemma 3|the MLP] use?
        [What is|Tell me] the activation [function |][in the MLP|of Gemma 3].
        [What|Which] activation is in the MLP[| of Gemma 3]?
        """,
        """
        What activation function do the MLPs have?
        Which activation does the MLP of Gemma 3 apply?
        """,
        "The MLP of Gemma 3 uses gelu with the tanh approximation.",
    ),
    (
        """
        [What|Which] [rope base|RoPE base|rotary base] [does Gemma 3 use|is used|do the layers use]?
        [What are|Tell me] the [rope|RoPE] bases[| of Gemma 3].
        [What is|Tell me] the [rope|RoPE] base [of|in] Gemma 3.
        """,
        """
        Which RoPE bases does Gemma 3 have?
        What base do the rotary embeddings use?
        """,
        "The RoPE base is 10,000 on local layers and 1,000,000 on global layers.",
    ),
    (
        """
        [What is|What's] [gemma_tpu|this toolkit|this project|this library|this package]?
        [Tell me|Explain] [about|what] [gemma_tpu|this toolkit|this project|this library][| is].
        What [does|can] [gemma_tpu|this toolkit|this library] do?
        What is [gemma_tpu|this toolkit|this library] [for|good for|about]?
        [Describe|Introduce] [gemma_tpu|this toolkit|this library].
        """,
        """
        What can I do with [gemma_tpu|this toolkit]?
        Can you explain what gemma_tpu is?
        """,
        "gemma_tpu is a toolkit that runs Gemma 3 on TPUs, GPUs and CPUs with JAX and Flax, for text and images.",
    ),
    (
        """
        How [do|can] I [load|open] a [model|checkpoint]?
        How is a [model|checkpoint] loaded?
        [Show me|Tell me] how to load a [model|checkpoint].
        [What|Which] [function|call|line of code] loads a [model|checkpoint]?
        [What do I|What should I] [write|call] to load a [model|checkpoint]?
        """,
        """
        How would I load a checkpoint in Python?
        Which call do I need to load a model?
        """,
        'Call gemma_tpu.load with a name or a path, for example gemma_tpu.load("gemma3-4b-it").',
    ),
    (
        """
        How [do|can] I [start|run|launch|open] the demo?
        [What|Which] command [starts|runs|launches] the demo?
        [Tell me|Show me] how to [start|run] the demo.
        [What do I|What should I] type to [start|run] the demo?
        """,
        """
        By which command is the demo started?
        How does one start the demo?
        """,
        "Type make demo, or python -m demo, and open http://127.0.0.1:7860.",
    ),
    (
        """
        [What|Which] checkpoint [formats|layouts|files] [can|does] [gemma_tpu|this toolkit|it] [read|load|support]?
        [Which|What] [formats|files] [can I|can it] load?
        [Does it|Can it|Can gemma_tpu] [load|read] [Orbax|Hugging Face|safetensors] [checkpoints|files]?
        [In|From] [what|which] formats [can|are] checkpoints [be loaded|read|loaded]?
        """,
        """
        Which kinds of checkpoints are supported?
        What checkpoint formats can be loaded?
        """,
        "It reads Orbax checkpoints and Hugging Face safetensors directories, local or on gs://.",
    ),
    (
        """
        [Can|How can|How do] I convert [a checkpoint|checkpoints|the weights]?
        [What|Which] command converts [a checkpoint|checkpoints]?
        [Tell me|Show me] how to convert a checkpoint.
        """,
        """
        How does one convert a checkpoint to another format?
        Which command do I use to convert checkpoints?
        """,
        "Use gemma-tpu convert with the source, the target and the format: orbax, orbax-flat or safetensors.",
    ),
    (
        """
        [What|Which] [framework|library] is [gemma_tpu|this toolkit|it] [written in|built on|based on|made with]?
        [Is|Was] [gemma_tpu|this toolkit|it] [written|built] [in JAX|with JAX|with PyTorch|with TensorFlow]?
        [Which|What] [framework|frameworks|libraries] does [gemma_tpu|this toolkit] use?
        """,
        """
        On which framework does gemma_tpu stand?
        What was this toolkit built with?
        """,
        "It is written in Python with JAX and Flax NNX.",
    ),
    (
        """
        [Where|How] [can|do] I get a [real|full|larger|bigger|proper] [model|checkpoint|Gemma 3|Gemma 3 checkpoint]?
        [How|Where] [can|do] I [download|find] [Gemma 3|a real checkpoint|the real weights|a larger checkpoint]?
        [Which|What] command downloads [Gemma 3|a real checkpoint|the weights]?
        """,
        """
        Where are the real Gemma 3 weights found?
        How does one get a real checkpoint?
        """,
        "Type gemma-tpu download gemma3-4b-it; the real weights are on Google's bucket, Kaggle and Hugging Face.",
    ),
]
_FACT_TABLE = [
    (phrasings(train, held_out).plus(more), answer)
    for (train, held_out, answer), more in zip(_FACTS, MORE_FACTS, strict=True)
]

_OPENERS = ("", "", "", "", "", "Please tell me: ", "Quick question: ", "Hi! ", "I have a question. ", "Tell me, ")


def fact_turn(rng: np.random.Generator, held_out: bool) -> Turn:
    """A question about Gemma 3 or the toolkit."""
    kind = rng.random()
    if kind < 0.4:
        question, answer = number_of_size(rng, held_out)
    elif kind < 0.48:
        question, answer = vision_of_size(rng, held_out)
    else:
        table, answer = choose(rng, _FACT_TABLE)
        question = table.pick(rng, held_out)
    return Turn("text facts", _opened(rng, question), answer)


def _opened(rng: np.random.Generator, question: str) -> str:
    opener = choose(rng, _OPENERS)
    if opener.endswith(": ") or opener.endswith(", "):
        question = question[0].lower() + question[1:] if not question.startswith("Gemma") else question
    if not opener and rng.random() < 0.2:
        question = question.lower()
    if rng.random() < 0.15:
        question = question.rstrip("?.")
    return opener + question
