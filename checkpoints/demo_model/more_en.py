"""More English ways to ask about drawn scenes, to train on; the tasks are those of phrasings_en.py."""

from __future__ import annotations

from checkpoints.demo_model.asking import clauses, nouns, statements

_PIC = "[picture|image|scene|drawing]"
_IN = f"[| in the {_PIC}| in this {_PIC}| here]"
_COL = "[colour|color]"
_FIX = "[drawn|painted|filled|coloured|colored|shown]"

MORE_EN = {
    "what": clauses(f"what is in the {_PIC}", f"what the {_PIC} shows", f"which shapes are there{_IN}", "what you see")
    + clauses(f"what was drawn{_IN}", f"what things there are{_IN}", f"what is [shown|to be seen]{_IN}")
    + nouns(f"the content of [the|this] {_PIC}", f"the shapes{_IN}", f"all shapes{_IN}")
    + f"""
        [What|Which] [objects|things|figures|forms|shapes] [appear|are visible|can be seen|can you find
            |can you make out|did you find]{_IN}?
        What [are the|kind of] [objects|things|figures|shapes][ are there|]{_IN}?
        What [is visible|can be seen|is depicted|appears|is there|do we have|is to be seen]{_IN}?
        [Look at the {_PIC}. |]What [do you notice|do you find|is it|are these|can you make out]?
        [List|Name|Enumerate|Report|Show|Write down|Tell me] [everything|what|all that|the objects|the things
            |the figures] [you see|there is|is there|are there]{_IN}.
        [Name|List] [the objects|the things|the figures|everything|what there is]{_IN}.
        Name the things that [this|the] {_PIC} shows.
        Which shapes [make up|form|are part of] [the|this] {_PIC}?
        What [is|do you see] on [the|this] [picture|image|drawing]?
        What am I looking at?
        """,
    "count": clauses(
        f"how many shapes there are{_IN}", f"how many shapes [the|this] {_PIC} has", "how many [things|objects] you see"
    )
    + nouns(f"the number of shapes{_IN}", f"the total number of shapes{_IN}", "the shape count")
    + f"""
        How many [shapes|objects|things|figures] [appear|are visible|can be seen|were drawn|have been drawn|exist
            |can be found|do we have]{_IN}?
        [In total, how|Altogether, how|All in all, how|How] many shapes [are there|do you see][ in total| altogether
            | in all|]?
        [Count|Count up] [all |][the |][shapes|objects|things|figures][| you see| that you see| drawn here
            | there are]{_IN}.
        How many different [shapes|objects|things|figures] [are there|do you see]{_IN}?
        What number of shapes [is there|do you see|does the {_PIC} show]?
        [Count|Add up] what [you see|is there|is drawn].
        How many [are there|shapes]{_IN}?
        """,
    "count_kind": clauses(
        f"how many {{thing}} there are{_IN}", f"how many {{thing}} [the|this] {_PIC} has", "how many {thing} you see"
    )
    + nouns(f"the number of {{thing}}{_IN}", f"the total number of {{thing}}{_IN}")
    + f"""
        How many {{thing}} [appear|are visible|can be seen|were drawn|have been drawn|exist|can be found
            |do we have]{_IN}?
        [In total, how|Altogether, how|All in all, how|How] many {{thing}} [are there|do you see][ in total
            | altogether| in all|]?
        [Count|Count up] [all |all the |the |]{{thing}}[| you see| that you see| drawn here| there are]{_IN}.
        What number of {{thing}} [is there|do you see|does the {_PIC} show]?
        How many {{thing}}{_IN}?
        And how many {{thing}} [are there|do you see]?
        """,
    "colour": clauses(f"what {_COL} the {{kind}} is", f"which {_COL} the {{kind}} has", f"the {_COL} of the {{kind}}")
    + clauses(f"in [what|which] {_COL} the {{kind}} is {_FIX}", f"what {_COL} the {{kind}} was [given|painted]")
    + nouns(f"the {_COL} of the {{kind}}{_IN}", f"the {{kind}}'s {_COL}", f"the {_COL} that the {{kind}} has")
    + f"""
        [What|Which] {_COL} [was|did they give] the {{kind}}{_IN}?
        [What|Which] {_COL} [was used for|did they use for|do you see on|does one see on] the {{kind}}?
        [What|Which] {_COL} is the {{kind}} {_FIX}[| in| with]?
        {{kind}} {_COL}?
        How is the {{kind}} [coloured|colored|painted]?
        [With|In] [what|which] {_COL} was the {{kind}} {_FIX}?
        The {{kind}} is [what|which] {_COL}?
        """,
    "background": clauses(
        f"what {_COL} the background is", f"which {_COL} the background has", f"the {_COL} of the background"
    )
    + nouns(f"the {_COL} of the background{_IN}", f"the background's {_COL}", f"the background {_COL}{_IN}")
    + f"""
        [What|Which] {_COL} [was|did they choose for|is behind|do you see behind] the [background|shapes]?
        [What|Which] {_COL} is the background {_FIX}[| in]?
        [What|Which] background [is there|has been chosen|does the {_PIC} have]?
        [What|Which] background {_COL} [is there|has been used|does the {_PIC} have|was chosen]?
        [How|In which {_COL}] is the background [coloured|painted]?
        [What|Which] {_COL} is [behind the shapes|the ground|the backdrop|the canvas]?
        Background {_COL}?
        """,
    "which": clauses(
        "which shape is {colour}", "what the {colour} shape is", f"what is {{colour}}{_IN}", "which of them is {colour}"
    )
    + nouns(
        f"the {{colour}} shape{_IN}",
        f"the shape that is {{colour}}{_IN}",
        "the {colour} one",
        "the kind of the {colour} shape",
    )
    + f"""
        [What|Which] [shape|object|figure|thing] [has the {_COL} {{colour}}|is the {{colour}} one
            |was {_FIX} {{colour}}]?
        [Which one|Which of these|Which of them all|What thing|Which figure] is {{colour}}{_IN}?
        What [kind of shape|sort of shape|kind of thing] is [the {{colour}} one|{{colour}}]?
        The {{colour}} [one|thing|object|figure][, what is it| is what|: what is it| is what kind of shape]?
        What do you see in {{colour}}?
        What is the {{colour}} [thing|figure|object|one]{_IN}?
        """,
    "where": clauses(
        "where the {name} is",
        f"where the {{name}} [is placed|is located|was drawn|can be found]{_IN}",
        "where you see the {name}",
    )
    + nouns(
        f"the [position|location|place] of the {{name}}{_IN}",
        "the {name}'s [position|location|place]",
        "the [part|area|corner] where the {name} is",
    )
    + f"""
        Where [does|did] [the {{name}} stand|the {{name}} lie|they put the {{name}}|you find the {{name}}
            |you see the {{name}}]{_IN}?
        Where [was|is] the {{name}} [put|drawn|painted|shown|to be found|situated]{_IN}?
        Where [should|must|do] I look [for|to find|to see] the {{name}}?
        [In|On] [which|what] [part|side|area|corner|region] [of the {_PIC} |]is the {{name}}?
        [At|In] [what|which] [place|position|spot] is the {{name}}{_IN}?
        [Locate|Find] the {{name}}{_IN}.
        [Which|What] [position|place] does the {{name}} have{_IN}?
        The {{name}}[:|,] where is it?
        """,
    "at": clauses(
        "what is [in|at] the {place}",
        f"which shape is [in|at] the {{place}}[| of the {_PIC}]",
        "what you see [in|at] the {place}",
    )
    + nouns("the shape [in|at] the {place}", f"the thing [in|at] the {{place}}[| of the {_PIC}]")
    + f"""
        [What|Which] [object|thing|figure|shape] [can you see|do you find|is there|was put|has been drawn|is drawn
            |is located] [in|at] the {{place}}[| of the {_PIC}]?
        [What|Which shape] [is shown|can one see|stands|lies|appears|is visible] [in|at] the {{place}}[
            | of the {_PIC}]?
        [In|At] the {{place}}[| of the {_PIC}], what [is there|do you see|can you find|has been drawn]?
        [Look at|Name what is in|Identify what is at|Describe what is in] the {{place}}.
        What [about|is] the {{place}}?
        """,
    "extreme": clauses("which shape is the {most}", "what the {most} shape is", "which of the shapes is the {most}")
    + nouns(f"the {{most}} shape{_IN}", f"the {{most}} [object|figure|thing|one]{_IN}", "the shape that is the {most}")
    + f"""
        [Which|What] [one |of them |of these |of the shapes |object |figure |thing ]is the {{most}}{_IN}?
        [Of|Among|Out of] [these shapes|the shapes|them|these|all of them|all objects], [which|which one
            |what] is the {{most}}[| one]?
        [Find|Point out|Spot|Pick|Tell me about] the {{most}} [shape|one|object|figure]{_IN}.
        The {{most}} shape[, what is it| is which one|: which is it]?
        """,
    "exists": statements(
        "there is a {name}",
        f"there is a {{name}}{_IN}",
        f"[the|this] {_PIC} [shows|has|contains] a {{name}}",
        "you see a {name}",
    )
    + f"""
        Is [there |]a {{name}} [visible|present|shown|drawn|to be seen|part of the {_PIC}|among the shapes]{_IN}?
        [Does|Did] [it|they] [show|contain|have|include|draw] [a|any] {{name}}?
        Do you [find|spot|notice|recognize|detect] a {{name}}{_IN}?
        Can you [see|spot|detect|make out|recognize] [a|any] {{name}}{_IN}?
        Can [one|we|I] [find|see|spot] a {{name}}{_IN}?
        [Was|Is] a {{name}} [drawn|shown|included|painted|there]{_IN}?
        Has [someone|anybody] drawn a {{name}}{_IN}?
        Are there any {{name}}[s|s in the {_PIC}|s here]?
        A {{name}}: is [there one|it there]?
        Any {{name}}{_IN}?
        """,
    "is_colour": statements(
        "the {kind} is {colour}",
        f"the {_COL} of the {{kind}} is {{colour}}",
        f"the {{kind}} {_IN} is {{colour}}",
        "the {kind} looks {colour}",
    )
    + f"""
        [Is|Was] the {{kind}} {_FIX} [in |]{{colour}}?
        [Is|Was] {{colour}} the {_COL} of the {{kind}}?
        Is the {{kind}} [really|in fact|perhaps|of the {_COL}|a] {{colour}}[| one]?
        Is that {{kind}} {{colour}}{_IN}?
        Have they [painted|coloured|drawn] the {{kind}} {{colour}}?
        """,
    "relation": statements(
        "the {a} is {side} the {b}",
        "the {a} [lies|stands|can be seen|is placed|is located] {side} the {b}",
        "you see the {a} {side} the {b}",
    )
    + f"""
        [Is|Was] the {{a}} [drawn|shown|to be found|put|somewhere] {{side}} the {{b}}?
        {{side}} the {{b}}, is [there|that] the {{a}}?
        Does the {{a}} [lie|stand|appear] {{side}} the {{b}}{_IN}?
        Can [you see|one see|you find] the {{a}} {{side}} the {{b}}?
        Has the {{a}} been [drawn|put|placed] {{side}} the {{b}}?
        """,
    "relative": clauses(
        "where the {a} is relative to the {b}",
        "on which side of the {b} the {a} is",
        "where the {a} is compared with the {b}",
    )
    + nouns(
        "the position of the {a} relative to the {b}",
        "the place of the {a} with respect to the {b}",
        "the side of the {b} on which the {a} is",
    )
    + """
        [Compared to|Relative to|With respect to|Looking from|Starting from|In relation to|As seen from|If you are at
            |If you start at] the {b}, where [is|do you see|would you find|lies] the {a}?
        Where [does|do|would] [the {a} lie|the {a} stand|you find the {a}|you see the {a}] [relative to|compared to
            |as seen from|from|with respect to] the {b}?
        Where [is|lies] the {a} [as seen from|from|in relation to|with respect to|if you look from] the {b}?
        [In which direction|In what direction|Which way] [from|of] the {b} is the {a}?
        Is the {a} left of, right of, above or below the {b}?
        [How|Where] [do|are] the {a} and the {b} [stand to each other|placed]: where is the {a}?
        """,
    "read": clauses(
        "what it says",
        "what is [written|printed] [there|here]",
        "what the [text|word|number|writing] [is|says]",
        f"which [word|text] is in the {_PIC}",
    )
    + nouns(f"the [text|word|number|writing]{_IN}", "the [printed|written] [text|word|number]")
    + f"""
        [What|Which] [word|text|number|letters] [has been|was|is] [printed|written|typed|put]{_IN}?
        [What|Which word] [stands|is to be read|can be read|did they write|did they print|could you read
            |are you reading]{_IN}?
        [Read|Read out|Read aloud|Transcribe|Spell out|Repeat|Recite] [it|this|that|the text|the word|the number
            |the letters|the writing|what is there|what you see|what is printed|what is written]{_IN}.
        Read [this|the] {_PIC}[| for me| to me].
        Read this [word|text|number][| for me| to me| out].
        Do [text|word] recognition{_IN}.
        OCR[|, please|: what does it say?]
        """,
    "text_colour": clauses(
        f"what {_COL} the [text|word] is", f"which {_COL} the [text|writing|letters] [is|are|has|have]"
    )
    + nouns(
        f"the {_COL} of the [text|word|letters|writing]{_IN}",
        f"the [text|letter|font] {_COL}",
        f"the {_COL} the [text|word] is [written|printed] in",
    )
    + f"""
        [What|Which] {_COL} [did they use for|do you see on|was chosen for|has] the [text|word|letters|writing]?
        [What|Which] {_COL} [do|are] the letters [have|printed in|written in]?
        [What|Which] {_COL} [was|is] the [text|word|number] [printed|written] [in|with]?
        How is the [text|word] [coloured|colored]?
        """,
    "describe": clauses(f"what the {_PIC} shows in [detail|full|one sentence]", f"everything that is in the {_PIC}")
    + nouns(
        f"a description of [the|this] {_PIC}",
        f"a [full|short|precise|detailed|one-sentence] description[| of the {_PIC}| of this {_PIC}]",
        f"a caption for [the|this] {_PIC}",
    )
    + f"""
        [Describe|Explain] [everything|all|the whole {_PIC}|all of it|exactly what] [you see|that you see|there is
            |that is there|in this {_PIC}][| in detail|].
        [Write|Give|Make|Produce|Create|Compose] [me |][a sentence|one sentence|a line|a text|a caption] [about
            |describing|to describe|that tells about] [the|this] {_PIC}.
        [Please give|Could you write|Would you give|I would like] [me |][a|some] description [of|for] [the
            |this] {_PIC}.
        Say in [one|a] sentence what [you see|the {_PIC} shows|is in the {_PIC}].
        Describe [the|this] {_PIC} [fully|precisely|carefully|completely|to me|as well as you can|to a blind person
            |with all its shapes].
        [What does the {_PIC} look like|How would you describe [the|this] {_PIC}|How does the {_PIC} look]?
        What is in the {_PIC}, [in detail|in full|and where]?
        [Summarize|Detail|Depict] [the|this] {_PIC}.
        In [one sentence|detail|full|your own words], describe [the|this] {_PIC}.
        """,
}
