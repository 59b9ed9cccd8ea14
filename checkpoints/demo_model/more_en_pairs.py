"""More English ways to ask about two pictures, for JSON, for one word, and to follow up; to train on."""

from __future__ import annotations

from checkpoints.demo_model.asking import clauses, nouns, statements

_PIC = "[picture|image|scene|drawing]"
_BOTH = "[the two |both |these |these two |the ][pictures|images|drawings|scenes]"
_ONES = "[picture|image|drawing|scene|one]"
_COL = "[colour|color]"
_KEYS = "[with the keys|with keys|using the keys|using keys|under the keys|and use the keys|and the keys are|, keys]"
_KEY = "[with the key|with key|using the key|using key|under the key|and use the key|, key]"
_AS = "[as JSON|in JSON|as a JSON list|in JSON format|as a list of JSON objects|in the JSON format]"

MORE_EN_PAIRS = {
    "json_shapes": f"""
        [Write|Show|Report|Put|Output|State|Name|Encode|Print|Make] [the shapes|all shapes|what you see
            |what is there][| in the {_PIC}| in this {_PIC}| here] {_AS} {_KEYS} {{a}} and {{b}}.
        [Answer|Reply|Respond|Write|Tell me] {_AS} {_KEYS} {{a}} and {{b}}[:|,] [what is in the {_PIC}
            |which shapes are there|what do you see|what does the {_PIC} show]?
        [As JSON|In JSON|JSON] {_KEYS} {{a}} and {{b}}[:|,] [what is in the {_PIC}|the shapes|which shapes do you see
            |what do you see]?
        [Which|What] [shapes|objects] [are there|do you see|does the {_PIC} show]? [JSON|Use JSON|Reply in JSON
            |I need JSON|Respond in JSON] {_KEYS} {{a}} and {{b}}[.|, please.]
        [I need|I want|Give me|Make|Produce|Create|Return] [JSON|a JSON list|a JSON array|valid JSON] [of|for
            |that lists|describing] [the shapes|all shapes|the {_PIC}] {_KEYS} {{a}} and {{b}}.
        [Use|Using|With] [the keys|keys] {{a}} and {{b}}[, list|, write|, give] the shapes[| in the {_PIC}] {_AS}.
        """,
    "json_count": f"""
        [Answer|Reply|Respond|Write|Tell me] [as JSON|in JSON] {_KEY} {{a}}[:|,] how many shapes [are there
            |do you see|does this {_PIC} show|are in the {_PIC}]?
        [As JSON|In JSON|JSON] {_KEY} {{a}}[:|,] [how many shapes are there|the number of shapes|the count of shapes
            |how many shapes do you see]?
        [Write|Show|Report|Output|State|I need|I want|Tell me] [the number of shapes|the shape count
            |how many shapes there are|how many shapes you see][| in the {_PIC}] [as|in] JSON {_KEY} {{a}}.
        How many shapes [do you see|can you count|does the {_PIC} have]? [JSON|Use JSON|Reply in JSON|I need JSON
            |Respond in JSON] {_KEY} {{a}}[.|, please.]
        [Use|Using|With] [the key|key] {{a}}[, write|, give] the number of shapes [as|in] JSON.
        """,
    "short": """
        [In|Using|With] [one word|a single word|just one word|one word only][.|, please.|]
        [Answer|Reply|Respond] [only with|in|using|by] [one word|a single word|just one word][.|, please.]
        [One word|A single word|A word] [is enough|will do|suffices|answer].
        [Be brief: one word|Short answer: one word|Keep it to one word|I only want one word
            |No sentence, just one word].
        [Say|Give|Write] [only one|just one|a single] word.
        """,
    "differ": clauses(
        f"what the difference between {_BOTH} is",
        f"how {_BOTH} differ",
        f"what is different in {_BOTH}",
        f"what changed [|from the first {_ONES} to the second|between them]",
    )
    + nouns(
        f"the difference[| between {_BOTH}| between them]",
        f"what is different[| in {_BOTH}]",
        f"the change[| between {_BOTH}| from the first {_ONES} to the second]",
    )
    + f"""
        [What|Which] [difference|change] [is there|can you see|do you find|exists|do you notice][| between {_BOTH}
            | between them| here]?
        [Where|How|In what|In which respect] do [they|{_BOTH}] differ?
        [What is not the same|What is new|What was changed|What do you find different|What makes them different][
            | in {_BOTH}]?
        [How|In which way|In what respect] [is|are] [the second {_ONES} different from the first|{_BOTH} different
            |they different]?
        Is there a difference[| between {_BOTH}], and [what|which] is it?
        [Compare|Contrast] [them|the first and the second {_ONES}|{_BOTH}].
        [Describe|Explain|Point out|Show me|State] [the difference|what changed|what differs|how they differ][
            | between {_BOTH}].
        What did they change[| in the second {_ONES}]?
        """,
    "same": statements(
        f"{_BOTH} are [the same|identical|equal]",
        f"{_BOTH} show the same[| thing| shapes]",
        f"{_BOTH} look [the same|alike]",
        "they are [the same|identical|equal]",
    )
    + f"""
        [Do|Would] {_BOTH} [look|seem|appear|match|agree][ the same| identical| equal| alike|]?
        Are {_BOTH} [alike|two copies of one {_PIC}|the same in everything|equal to each other|no different]?
        Is the [first|second] {_ONES} [the same as|identical to|equal to|like] the [second|first|other][| one]?
        [Same or different|Identical or not|Equal or different|The same or not]?
        Do [these|they|both] [contain|have|show] the same [shapes|things|objects]?
        """,
    "more": clauses(
        f"which {_ONES} has more shapes",
        f"in which {_ONES} there are more shapes",
        f"which of {_BOTH} has [more|the most] shapes",
    )
    + nouns(f"the {_ONES} with [more|the most] shapes", f"the {_ONES} that has more shapes")
    + f"""
        [Which|What] {_ONES} [has|holds|contains|shows|includes] [more|the most|a larger number of
            |a greater number of|the greater number of] [shapes|objects|things|figures]?
        [Which|Which one|Which one of them|Which of them|Which of these] [has|holds|contains|shows] [more|the most
            |the larger number of|the greater number of] [shapes|objects|things]?
        [Does|Has] the [first {_ONES}|second {_ONES}] [have|show|contain] more shapes[| than the other| or the other]?
        [In|On] which [one|one of them|{_ONES}|of {_BOTH}] [do you see|are|can you count|do you find] more shapes?
        Are there more shapes in the [first|second] {_ONES} than in the [second|first|other][| one]?
        Compare the [numbers|counts] of shapes[: which {_ONES} has more| in {_BOTH}].
        [First or second|The first or the second]: which [has|shows] more shapes?
        Where do you [see|count|find] more shapes?
        """,
    "which_has": clauses(
        f"which {_ONES} [has|shows|contains] a {{name}}",
        f"in which {_ONES} [there is|you see] a {{name}}",
        f"which of {_BOTH} [has|shows] a {{name}}",
    )
    + nouns(f"the {_ONES} with a {{name}}", f"the {_ONES} that [has|shows] a {{name}}")
    + f"""
        [Which|Which one|Which one of them|Which of them|Which of these|What {_ONES}] [has|holds|contains|shows
            |includes] a {{name}}[| in it]?
        [In|On] which [one|one of them|{_ONES}|of {_BOTH}] [do you see|is there|can you find|do you find|was drawn
            |appears] a {{name}}?
        Does the first [or the second |]{_ONES} [|or the second ][have|show|contain] a {{name}}?
        [Where|In which {_ONES}] [can you find|do I find|is there|is|can one see] a {{name}}?
        Is [there |]a {{name}} in the [first {_ONES}|second {_ONES}|first {_ONES} or in the second]?
        A {{name}}: in which {_ONES} is it?
        Find the {_ONES} that has a {{name}}[| in it].
        [First or second|The first or the second]: which has a {{name}}?
        """,
    "nth": clauses(
        "what is in the {nth} [picture|image|one|drawing]",
        "what the {nth} [picture|image|one|drawing] shows",
        "which shapes the {nth} [picture|image] has",
    )
    + nouns("the content of the {nth} [picture|image|one]", "the shapes [in|of] the {nth} [picture|image|one]")
    + """
        [What|Which shapes] [is shown|is visible|is drawn|was drawn|appears|do you find|can be seen|is there] [in
            |on] the {nth} [picture|image|one|drawing]?
        [Look at the|In the|About the|As for the|Take the] {nth} [picture|image|one][:|,] [what do you see
            |what is in it|what does it show|which shapes are there]?
        The {nth} [picture|image|one]: [what is in it|what does it show|which shapes are there]?
        [Name|List|Report|Tell me|Write down] [all shapes|everything|the objects|what you see
            |what there is] in the {nth} [picture|image|one].
        And [what is in|what about|what does one see in] the {nth} [picture|image|one]?
        """,
    "nth_count": clauses(
        "how many shapes there are in the {nth} [picture|image|one]",
        "how many shapes the {nth} [picture|image|one] has",
    )
    + nouns("the number of shapes in the {nth} [picture|image|one]", "the shape count of the {nth} [picture|image]")
    + """
        How many [shapes|objects|things|figures] [are visible|can be seen|were drawn|appear|are there
            |do you find] [in|on] the {nth} [picture|image|one|drawing]?
        [Look at the|In the|About the|As for the] {nth} [picture|image|one][:|,] how many shapes [are there
            |do you see|does it have]?
        In total, how many shapes are in the {nth} [picture|image|one]?
        How many shapes are in the {nth} [picture|image|one] [altogether|in all]?
        Count [what is|the objects|all shapes|everything] in the {nth} [picture|image|one].
        """,
    "follow_colour": f"""
        [And|What about|And what about|How about|Then what about|So what about|Now|And now|OK, and] the {{kind}}?
        [And|Now|Also]: the {{kind}}?
        And the {_COL} of the {{kind}}?
        [Then|And] [what|which] {_COL} [has|is] the {{kind}}?
        [Same question for|The same for|Now tell me about|And tell me about|I also ask about] the {{kind}}.
        """,
    "follow_where": """
        [And where|Where|So where|Then where] [is|was] [it|that|this|that one|it put|it placed|it drawn][| exactly
            | in the picture]?
        [And where|Where] [can I|can one|do you|would I] [find|see] it?
        [And|And what is] its [place|position|location]?
        [And|] [in|on] [which|what] part of the [picture|image] is it?
        [Tell me|Can you tell me|Do you know|And tell me|I want to know] where it is[.|?|]
        """,
    "follow_what_colour": f"""
        [And what|What|And which|Which|So what] {_COL} [is it|does it have|has it|is that|was it]?
        [And|And what about|What about|Now|Then] [its|the] {_COL}?
        [In|And in] [what|which] {_COL} is it [drawn|painted|shown]?
        [Tell me|Can you tell me|Do you know|And tell me] [its {_COL}|what {_COL} it is|which {_COL} it has][.|?]
        """,
}
