"""English phrasings of the questions about drawn scenes. See gemma_tpu's checkpoints/demo_model/grammar.py."""

from __future__ import annotations

from checkpoints.demo_model.asking import phrasings

_PIC = "[picture|image|scene|drawing]"

EN = {
    "what": phrasings(
        f"""
        What is in the {_PIC}?
        What's in [the|this] {_PIC}?
        [What|Which] shapes are [there|in the {_PIC}|in this {_PIC}|shown|drawn here]?
        What [do|can] you see[| in the {_PIC}| here| in this {_PIC}]?
        What does [the|this] {_PIC} [show|contain]?
        [Name|List|Identify|Tell me] [all |]the shapes[| in the {_PIC}| in this {_PIC}| you see].
        What is [this|that|shown here|drawn here]?
        [Please tell|Tell] me what is in [the|this] {_PIC}.
        Which objects [are there|do you see|are in the {_PIC}]?
        What [has been|was] drawn[| here]?
        [Please name|Please list|Say] what you see[| in the {_PIC}].
        """,
        f"""
        Can you tell me what this {_PIC} shows?
        What things are in the {_PIC}?
        Name what you can see here.
        """,
    ),
    "count": phrasings(
        f"""
        How many shapes are [there|in the {_PIC}|in this {_PIC}|shown|drawn]?
        How many [objects|things|figures] are [there|in the {_PIC}|in this {_PIC}]?
        [Count|Please count] the shapes[| in the {_PIC}| in this {_PIC}].
        [What is|What's|Tell me|Give me] the [number|total number|count] of shapes[| in the {_PIC}].
        How many shapes [do|can] you [see|count|find]?
        How many shapes does [the|this] {_PIC} [have|show|contain]?
        """,
        f"""
        How many shapes in total are in this {_PIC}?
        Could you count the shapes for me?
        """,
    ),
    "count_kind": phrasings(
        f"""
        How many {{thing}} are [there|in the {_PIC}|in this {_PIC}|shown|drawn]?
        How many {{thing}} [do|can] you [see|count|find]?
        [Count|Please count] the {{thing}}[| in the {_PIC}| in this {_PIC}].
        [What is|Tell me|Give me] the [number|count] of {{thing}}[| in the {_PIC}].
        How many {{thing}} does [the|this] {_PIC} [have|show|contain]?
        How many of the shapes are {{thing}}?
        """,
        f"""
        Could you count the {{thing}} for me?
        How many {{thing}} in total are in this {_PIC}?
        """,
    ),
    "colour": phrasings(
        f"""
        [What|Which] [colour|color] is the {{kind}}[| in the {_PIC}| in this {_PIC}]?
        What is the [colour|color] of the {{kind}}[| in the {_PIC}]?
        [Tell|Please tell] me the [colour|color] of the {{kind}}.
        What [colour|color] does the {{kind}} have?
        The {{kind}}: [what|which] [colour|color] is it?
        Name the [colour|color] of the {{kind}}.
        In [what|which] [colour|color] is the {{kind}} [drawn|painted|filled]?
        """,
        """
        What [colour|color] was the {kind} painted in?
        Do you know the [colour|color] of the {kind}?
        """,
    ),
    "background": phrasings(
        f"""
        [What|Which] [colour|color] is the background[| of the {_PIC}| of this {_PIC}| here]?
        What is the [colour|color] of the background?
        What is the background [colour|color][| of the {_PIC}]?
        [Tell me|Name] the [colour|color] of the background[| of the {_PIC}].
        The background: [what|which] [colour|color] is it?
        What [colour|color] does the background have?
        On [what|which] [colour|color] background are the shapes?
        """,
        """
        Which background [colour|color] do you see?
        What [colour|color] was used for the background?
        """,
    ),
    "which": phrasings(
        f"""
        [Which|What] shape is {{colour}}[| in the {_PIC}]?
        [Which|What] is the {{colour}} shape[| in the {_PIC}]?
        What shape [is|has] the {{colour}} [one|object|thing]?
        [Name|Identify] the {{colour}} shape.
        Which of the shapes is {{colour}}?
        What is {{colour}}[| here| in the {_PIC}]?
        [Tell|Please tell] me which shape is {{colour}}.
        """,
        """
        Which one of them is {colour}?
        The {colour} shape, what is it?
        """,
    ),
    "where": phrasings(
        f"""
        Where is the {{name}}[| in the {_PIC}| in this {_PIC}]?
        Where [can I find|do you see|can you see] the {{name}}[| in the {_PIC}]?
        [In what|In which|What] part of the {_PIC} is the {{name}}[| in]?
        [Tell|Please tell] me where the {{name}} is.
        What is the [position|location|place] of the {{name}}[| in the {_PIC}]?
        Where is the {{name}} [located|placed|drawn]?
        """,
        """
        Where has the {name} been put?
        Can you say where the {name} is?
        """,
    ),
    "at": phrasings(
        f"""
        What is [in|at] the {{place}}[| of the {_PIC}| of this {_PIC}]?
        [What|Which] shape is [in|at] the {{place}}[| of the {_PIC}]?
        What [do|can] you see [in|at] the {{place}}[| of the {_PIC}]?
        Is there anything [in|at] the {{place}}[| of the {_PIC}]?
        [Tell me what|Say what] is [in|at] the {{place}}.
        What does the {{place}} of the {_PIC} [show|contain]?
        """,
        f"""
        Which object can be seen [in|at] the {{place}}?
        What was drawn [in|at] the {{place}} of the {_PIC}?
        """,
    ),
    "extreme": phrasings(
        f"""
        [What|Which] is the {{most}} shape[| in the {_PIC}| in this {_PIC}]?
        [Which|What] shape is the {{most}}[| one| in the {_PIC}]?
        [Name|Identify] the {{most}} shape[| in the {_PIC}].
        [Tell|Please tell] me [which shape is the {{most}}|the {{most}} shape].
        What is the {{most}} [object|thing|one][| in the {_PIC}]?
        """,
        """
        Of all the shapes, which is the {most}?
        Can you name the {most} shape?
        """,
    ),
    "exists": phrasings(
        f"""
        Is there [a|any] {{name}}[| in the {_PIC}| in this {_PIC}| here]?
        [Do|Can] you see a {{name}}[| in the {_PIC}| here]?
        Does [the|this] {_PIC} [show|have|contain] a {{name}}?
        Is a {{name}} in [the|this] {_PIC}?
        Can a {{name}} be seen[| in the {_PIC}]?
        """,
        f"""
        Can you find a {{name}} in this {_PIC}?
        Has a {{name}} been drawn?
        """,
    ),
    "is_colour": phrasings(
        f"""
        Is the {{kind}} {{colour}}[| in the {_PIC}]?
        Is the [colour|color] of the {{kind}} {{colour}}?
        [Is it true|Is it right|Is it correct] that the {{kind}} is {{colour}}?
        Do you see a {{colour}} {{kind}} or is the {{kind}} some other [colour|color]?
        Does the {{kind}} [have the colour|have the color|look] {{colour}}?
        """,
        """
        Would you say that the {kind} is {colour}?
        The {kind} is {colour}, right?
        """,
    ),
    "relation": phrasings(
        f"""
        Is the {{a}} {{side}} the {{b}}[| in the {_PIC}]?
        [Is it true|Is it right|Is it correct] that the {{a}} is {{side}} the {{b}}?
        [Do|Can] you see the {{a}} {{side}} the {{b}}?
        Is the {{a}} [located|placed|drawn] {{side}} the {{b}}?
        """,
        """
        Would you say that the {a} is {side} the {b}?
        The {a} is {side} the {b}, right?
        """,
    ),
    "relative": phrasings(
        """
        Where is the {a} relative to the {b}?
        Where is the {a} compared to the {b}?
        On which side of the {b} is the {a}?
        [What is|Tell me] the position of the {a} relative to the {b}.
        How is the {a} placed relative to the {b}?
        """,
        """
        Seen from the {b}, where is the {a}?
        """,
    ),
    "read": phrasings(
        f"""
        What does it say?
        What does the {_PIC} say?
        What [word|text|number] is [printed|written|shown|there|in the {_PIC}][| here]?
        [Read|Please read] [the text|the word|the number|it|what it says][| in the {_PIC}].
        What is [written|printed] [here|in the {_PIC}|there]?
        Which [word|text|number] [do|can] you [see|read]?
        What [does|is] the [text|word|writing|number][| say]?
        [Tell|Please tell] me what [it says|is written|is printed|the text says].
        What [can|do] you read[| here| in the {_PIC}]?
        [Copy|Write down|Type out] the [text|word|number][| in the {_PIC}].
        """,
        f"""
        Can you read this [text|word] for me?
        Which [word|text] has been printed in the {_PIC}?
        Read out what stands in the {_PIC}.
        """,
    ),
    "text_colour": phrasings(
        """
        [What|Which] [colour|color] is the [text|word|number|writing]?
        What is the [colour|color] of the [text|word|number|writing]?
        In [what|which] [colour|color] is the [text|word|number] [printed|written]?
        [Tell me|Name] the [colour|color] of the [text|word|letters].
        [What|Which] [colour|color] are the letters?
        """,
        """
        What [colour|color] was used for the [text|word]?
        Which [colour|color] does the [text|word] have?
        """,
    ),
    "describe": phrasings(
        f"""
        [Describe|Please describe] [the|this] {_PIC}.
        [Describe|Please describe] [the|this] {_PIC} in [one|a] [sentence|full sentence].
        [Describe|Explain] what [you see|is in the {_PIC}|the {_PIC} shows].
        [Give|Write] [me |]a [description|short description|full description] of [the|this] {_PIC}.
        Can you describe [the|this] {_PIC}[| for me| in detail]?
        [Describe|Please describe] it[| in detail| in a sentence].
        [Describe|Caption] [the|this] {_PIC} [in detail|exactly|for me].
        Tell me about [the|this] {_PIC}.
        """,
        f"""
        Could you give me a description of this {_PIC}?
        Describe everything in the {_PIC}.
        Please write one sentence that describes the {_PIC}.
        """,
    ),
    "json_shapes": phrasings(
        f"""
        [List|Give|Return] the shapes[| in the {_PIC}] as JSON with [the keys|keys] {{a}} and {{b}}.
        [What is in the {_PIC}|Which shapes are there|What do you see]? Answer [as
            |in] JSON with [the keys|keys] {{a}} and {{b}}.
        [Describe|Return|Give] [the|this] {_PIC} as a JSON list with [the keys|keys] {{a}} and {{b}}.
        JSON[|, please]: the shapes[| in the {_PIC}], keys {{a}} and {{b}}.
        """,
        f"""
        Write the shapes in this {_PIC} as JSON using keys {{a}} and {{b}}.
        Answer in JSON with keys {{a}} and {{b}}: what is in the {_PIC}?
        """,
    ),
    "json_count": phrasings(
        f"""
        How many shapes are [there|in the {_PIC}]? Answer [as|in] JSON with [the key|key] {{a}}.
        [Count|Please count] the shapes[| in the {_PIC}] and answer [as|in] JSON with [the key|key] {{a}}.
        [Give|Return] the number of shapes[| in the {_PIC}] as JSON with [the key|key] {{a}}.
        """,
        f"""
        Answer in JSON with key {{a}}: how many shapes does the {_PIC} have?
        """,
    ),
    "short": phrasings(
        """
        Answer [with|in] one word[|.]
        One word[| only], please.
        [Just one word|One-word answer|A single word].
        Reply with [a single word|one word only].
        """,
        """
        Use one word only.
        """,
    ),
    "differ": phrasings(
        """
        What is the difference between the [two |][pictures|images|drawings]?
        What [changed|has changed|is different][| between the two [pictures|images]| in the second [picture|image]]?
        How do the [two |][pictures|images|drawings] differ?
        [Compare|Please compare] the [two |][pictures|images|drawings].
        [Find|Spot|Tell me|Name] the difference[| between the [pictures|images]].
        What differs [between|in] the two [pictures|images]?
        """,
        """
        In what way are the two [pictures|images] different?
        Which difference do you see between them?
        """,
    ),
    "same": phrasings(
        """
        Are the [two |][pictures|images|drawings] [the same|identical|equal]?
        Do [both|the two] [pictures|images] show the same[| thing]?
        Is there [a|any] difference between the [two |][pictures|images]?
        Are [these|those|they] the same [picture|image]?
        """,
        """
        Would you call the two [pictures|images] identical?
        Do these [pictures|images] look the same?
        """,
    ),
    "more": phrasings(
        """
        Which [picture|image|drawing|one] has more shapes[|, the first or the second]?
        In which [picture|image|drawing] are there more shapes?
        Which of the [two |][pictures|images] [shows|has|contains] more shapes?
        Are there more shapes in the first or [in |]the second [picture|image]?
        Where are there more shapes, in the first or the second [picture|image]?
        """,
        """
        Which of them holds the larger number of shapes?
        Does the first or the second [picture|image] have more shapes?
        """,
    ),
    "which_has": phrasings(
        """
        Which [picture|image|drawing] [has|shows|contains] a {name}?
        In which [picture|image|drawing] is [there a|a] {name}?
        Which of the [two |][pictures|images] [has|shows|contains] a {name}?
        Where [is|do you see] a {name}, in the first or the second [picture|image]?
        """,
        """
        Which one of the [pictures|images] has a {name} in it?
        Is a {name} in the first or the second [picture|image]?
        """,
    ),
    "nth": phrasings(
        """
        What is in the {nth} [picture|image]?
        What does the {nth} [picture|image] [show|contain]?
        [Which|What] shapes are in the {nth} [picture|image]?
        What [do|can] you see in the {nth} [picture|image]?
        [Name|List] the shapes in the {nth} [picture|image].
        """,
        """
        Tell me what is in the {nth} [picture|image].
        """,
    ),
    "nth_count": phrasings(
        """
        How many shapes are in the {nth} [picture|image]?
        How many shapes does the {nth} [picture|image] [have|show|contain]?
        [Count|Please count] the shapes in the {nth} [picture|image].
        How many shapes [do|can] you [see|count] in the {nth} [picture|image]?
        """,
        """
        How many shapes in total are in the {nth} [picture|image]?
        """,
    ),
    "follow_colour": phrasings(
        """
        And the {kind}?
        [And what|What|And which] about the {kind}?
        And [what|which] [colour|color] is the {kind}?
        """,
        """
        And how about the {kind}?
        """,
    ),
    "follow_where": phrasings(
        """
        [And where|Where] is it?
        [And where|Where] is that?
        Where [in the picture |]is it[| located]?
        """,
        """
        And where do I find it?
        """,
    ),
    "follow_what_colour": phrasings(
        """
        [And what|What|And which|Which] [colour|color] is it?
        And its [colour|color]?
        What is its [colour|color]?
        """,
        """
        And in which [colour|color]?
        """,
    ),
}
SYSTEMS = (
    "Answer in one sentence.",
    "You are a helpful assistant.",
    "Be brief.",
    "You are a friendly assistant. Answer politely.",
    "Answer truthfully.",
    "You answer questions about pictures.",
    "Keep your answers short.",
    "You are Gemma.",
)
