"""More ways to put the text tasks, to train on; the keys name the tables of tasks_text.py."""

from __future__ import annotations

from checkpoints.demo_model.asking import clauses, nouns

_W = '[{word}|"{word}"]'
_LIST = "[this list|these|the list|the items|these items|the following list|the following]"

MORE_TEXT = {
    "sum": clauses(
        "what {a}{op}{b} [is|gives|makes|equals|comes to|adds up to]", "how much {a}{op}{b} [is|makes|gives]"
    )
    + nouns("{a}{op}{b}", "the [result|value|answer|solution] of {a}{op}{b}", "the [result|answer] [for|to] {a}{op}{b}")
    + """
        [What|How much] [does|would|will|do] {a}{op}{b} [be|make|give|equal|come to|result in|yield|amount to]?
        [Do the sum|Do the math|Do this sum|The sum is|Here is a sum|Exercise|Arithmetic|Calculate this
            |Result of]: {a}{op}{b}[| =|.|?]
        {a}{op}{b} [equals|is|makes|gives|makes how much|is how much|is what|equals what]?
        [What is|What do you get|What comes out|What will I get|What is the answer] [when you compute|if you compute
            |when I calculate|if I calculate|for] {a}{op}{b}?
        [Work out|Figure out|Find|Determine|Evaluate|Calculate|Compute] [the result of |the value of |what is |
            |]{a}{op}{b}[| for me|, please].
        [If I have|Take] {a}{op}{b}, [what is it|how much is that|what do I get]?
        How much [is|makes|do I get for] {a}{op}{b}?
        """,
    "add": clauses("what {a} plus {b} is", "what {a} and {b} make[| together]", "the sum of {a} and {b}")
    + nouns("the sum of {a} and {b}", "the total of {a} and {b}", "{a} plus {b}")
    + """
        [What|How much] [do I get|do you get|is it|comes out|will it be|results] [if|when] [I add|you add|one adds
            |we add] {a} [and|to] {b}?
        [Sum|Sum up|Add up|Add together|Total] {a} and {b}.
        [What|How much] [is|are|do|would] {a} [plus|and|added to] {b}[| together| make| give]?
        [If I add|When you add|Adding] {b} to {a}[| gives|, what do I get|, how much is it]?
        {a} and {b} [together|added|summed up|make][ is what| is how much| makes what|]?
        [Increase|Raise] {a} by {b}.
        """,
    "take": clauses(
        "what {a} minus {b} is",
        "what is left of {a} [after|when] {b} [is|are] taken away",
        "the difference of {a} and {b}",
    )
    + nouns("the difference of {a} and {b}", "the difference between {a} and {b}", "{a} minus {b}", "{a} less {b}")
    + """
        [What|How much] [do I get|do you get|is it|is left|remains|comes out] [if|when] [I subtract|you subtract
            |I take|you take|one takes] {b} from {a}?
        [Subtract|Deduct|Remove|Take away] {b} from {a}.
        [What|How much] [is|are|would be] {a} [minus|less|take away] {b}?
        [If I take|When you take|Taking] {b} [from|away from] {a}[| leaves|, what is left|, how much is it
            |, what do I get]?
        [Decrease|Reduce|Lower] {a} by {b}.
        """,
    "times": clauses("what {a} times {b} is", "the product of {a} and {b}", "what {a} multiplied by {b} is")
    + nouns("the product of {a} and {b}", "{a} times {b}", "{a} multiplied by {b}")
    + """
        [What|How much] [do I get|do you get|is it|comes out] [if|when] [I multiply|you multiply|one multiplies
            |I take] {a} [by|with|times] {b}?
        [Multiply|Take] {a} times {b}.
        Multiply {a} and {b} [together|with each other|for me].
        [What|How much] [is|are|would be|does] {a} [times|multiplied by] {b}[| make| give]?
        [If I multiply|When you multiply|Multiplying] {a} [by|with|and] {b}[| gives|, what do I get|, how much is it]?
        """,
    "story_add": """
        {name} [owns|holds|keeps|starts with|collects|possesses] {a} {thing} and [gets|is given|buys|finds|wins|takes
            |adds|is handed] {b} more. How many {thing} [does {name} have|has {name}|are there|is that
            |does {name} hold|does {name} own|does {name} possess][| now| in total| altogether]?
        {name} [has|owned|had|kept] {a} {thing}[, and|. Then|. Later|. Now] {name} [got|is given|received|won
            |picked up|was given] {b} [more|others|new ones]. How many [{thing} |][are there|does {name} have
            |is that][| now| in all| altogether| in total]?
        [A box|A bag|A shelf|A basket] [holds|has|contains] {a} {thing}. [We put in|Someone adds|I add
            |{name} adds] {b} more. How many {thing} [are there|are in it|does it hold][| now]?
        {name} [owns|has|holds|brings] {a} {thing}, {other} [owns|has|holds
            |brings] {b}. How many {thing} [do they have|are there|is that|do they own] [together|altogether|in total
            |in all]?
        [If|When] {name} has {a} {thing} and [gets|buys|receives] {b} more, how many {thing} [does {name} have
            |are there]?
        """,
    "story_take": """
        {name} [owns|holds|keeps|starts with|collects|possesses] {a} {thing} and [gives away|loses|sells|eats|breaks
            |hands over|drops|uses] {b}[| of them]. How many {thing} [does {name} have|has {name}|are left|remain
            |does {name} still have|does {name} still own|stay with {name}][| now|]?
        {name} [has|owned|had|kept] {a} {thing}[, and|. Then|. Later|. Now] {name} [gave|sold|handed|passed
            |lost] {b} [of them to|to] {other}. How many {thing} [does {name} have|are left|remain|has {name}
            |does {name} still have][| now|]?
        [A box|A bag|A shelf|A basket] [holds|has|contains] {a} {thing}. [We take out|Someone removes|I take
            |{name} takes] {b}. How many {thing} [are left|remain|are in it|does it hold][| now]?
        [If|When] {name} has {a} {thing} and [gives away|loses|sells
            |gives {other}] {b}, how many {thing} [does {name} have left|are left|remain]?
        {name} [owns|has] {a} {thing} and [gives|sells|sends] {other} {b}[| of them]. How many {thing} [are left
            |remain|does {name} have|does {name} still have|has {name} then]?
        """,
    "sort": """
        [Sort|Order|Arrange|Rank|Line up] [{items}|the {things} {items}|all these {things}: {items}
            |: {items}] [{order}|into {order_noun}|in {order_noun}|, {order}].
        [Put|Bring|Write|List|Give me|Show|Set|Place|Return] {items} [in|into] {order_noun}[.|].
        [Put|Bring|Write|List|Give me|Show|Set|Place|Return] [the|these|the following|all the] {things} [in
            |into] {order_noun}[: |, ]{items}[.|]
        [Put|Bring|Write|List|Give me] [the|these] {things} {items} [{order}|sorted {order}|sorted][.|]
        [What|How] [are|do] [these|the] {things} [look|] [{order}|in {order_noun}|sorted {order}|when sorted
            |in the right order]: {items}?
        [What is|Which is|What would be] the [{order_noun}|order|correct order|sorted order
            |sorted list] of [these {things}: |the {things} |]{items}?
        [Make|Write|Create|Give me] a sorted list [of|from|out of] [these {things}: |the {things} |]{items}[| {order}
            |, {order}][.|]
        {items}[. |: |; ][sort|order|arrange|please sort] [them|these|this|it][| {order}].
        [Here are some {things}: |My {things}: |I have these {things}: |Take these {things}: ]{items}. [Sort them
            |Put them in {order_noun}|Order them|Arrange them][| {order}|].
        [Sort|Order] {order}: {items}[.|]
        [In|Into] {order_noun}[, please|]: {items}[.|]
        """,
    "sort_down": """
        [Sort|Order|Arrange|Rank] {items} [in descending order|from largest to smallest|from high to low|descending
            |in decreasing order|downwards].
        [Put|Bring|Write|List|Give me|Show|Set|Place|Return] [the numbers |these numbers: |these: |]{items} [in
            |into] [descending|decreasing] order[.|]
        [Put|Bring|Write|List|Give me|Show] [the|these|the following] numbers [in|into] [descending
            |decreasing] order: {items}[.|]
        [What|How] are [these|the] numbers [from largest to smallest|in descending order|from high to low]: {items}?
        [What is|Which is] the [descending|decreasing] order of [these numbers: |the numbers |]{items}?
        {items}[. |: |; ][sort|order|arrange] [them|these] [from largest to smallest|in descending order
            |from high to low|descending].
        [Here are some numbers: |My numbers: |I have these numbers: |Take these numbers: ]{items}. [Sort them
            |Put them|Order them|Arrange them] [from largest to smallest|in descending order|from high to low].
        [Sort|Order] [in descending order|from largest to smallest|from high to low|descending
            |the largest first]: {items}[.|]
        """,
    "reverse": clauses(
        f"how {_W} is [written|spelt|spelled] [backwards|in reverse]",
        f"what {_W} is [backwards|in reverse|reversed]",
        f"what the word {_W} is [backwards|reversed|in reverse order]",
    )
    + nouns(
        f"the reverse of {_W}",
        f"the word {_W} [backwards|reversed|in reverse]",
        f"{_W} [backwards|reversed|in reverse|the other way round]",
        f"the [reversed|backward] form of {_W}",
    )
    + f"""
        [Turn|Flip|Invert|Mirror] [|the word |the string |the letters of |the text ]{_W}[| around| round| backwards
            | the other way round].
        [Reverse|Invert|Flip] the [order of the letters|letters|letter order|characters] [of|in] [the word |]{_W}[.|]
        [How|What] [do|would] [you|I|one] [write|spell|say] [the word |]{_W} [backwards|in reverse
            |the other way round|from back to front|from the end]?
        [How|What] [is|does] [the word |]{_W} [look |read |spelt |spelled |][backwards|in reverse|reversed
            |from the end|from right to left|the other way round]?
        [Spell|Write|Type|Read|Print|Say|Output|Put] [the word |]{_W} [backwards|in reverse|in reverse order
            |from right to left|from the end|from back to front|the other way round][.|]
        [Backwards|Reversed|In reverse|Backward|Reverse this|Reverse this word|Reverse the following word
            |Backwards, please]: {_W}[.|]
        {_W} [backwards|reversed|in reverse|from the end|the other way round][?|.|, please.|]
        {_W}[. |: ][reverse it|write it backwards|spell it backwards|turn it round|now backwards].
        """,
    "spell": clauses(
        f"how {_W} is [spelt|spelled]",
        f"how to spell {_W}",
        f"which letters [{{word}} has|are in {_W}|the word {_W} has]",
        f"how you spell {_W}",
    )
    + nouns(
        f"the [letters|spelling|characters] of {_W}",
        f"the letters in {_W}",
        f"the spelling of the word {_W}",
        f"the [single|separate] letters of {_W}",
    )
    + f"""
        [Spell|Spell out|Spell it out|Spell this word|Spell letter by letter]: {_W}[.|]
        [Spell|Spell out|Write out|List|Say|Give me|Split] [the word |the letters of |]{_W} [letter by letter
            |one letter at a time|as single letters|into letters][.|]
        [How|In what way] [is|do I|does one|would you|can I|should I] [spell |write |][the word |]{_W} [spelt|spelled
            |letter by letter]?
        [What|Which] letters [are there in|does it take to write|make up|do I need for|form|are in
            |are there in the word] {_W}?
        [What|Which] letters does [the word |]{_W} [have|contain|consist of]?
        """,
    "list_reverse": clauses("what {items} is in reverse order", "the reverse order of {items}")
    + nouns(
        "the reverse of {items}",
        f"the reverse of {_LIST}: {{items}}",
        "{items} in reverse order",
        "the reversed list of {items}",
    )
    + f"""
        [Turn|Flip|Invert|Reverse|Mirror] {_LIST}[| around| round| the other way round]: {{items}}[.|]
        [Reverse|Invert|Flip|Turn|Turn around] the order[| of the list| of these items| of these| of the following
            | of this list]: {{items}}[.|]
        [Write|Give me|Say|Read|Show|Put|List|Output|Return|Bring] {_LIST} [backwards|in reverse order|in reverse
            |from last to first|from the end|the other way round|starting with the last]: {{items}}[.|]
        [Write|Give me|Say|Read|Show|Put|List] {{items}} [backwards|in reverse order|in reverse|from last to first
            |the other way round][.|]
        [In reverse order|Backwards|From last to first|Reversed|In reverse|The other way round][, please
            |]: {{items}}[.|]
        {{items}}[. |: |; ][reverse the order|reverse it|turn it around|now backwards|in reverse order].
        [Here is a list: |My list: |Take this list: |I have this list: ]{{items}}. [Reverse it|Turn it around
            |Turn its order around|Give it back in reverse order|Reverse the order].
        [How|What] [is|does] {_LIST} [look |read |][backwards|in reverse|in reverse order
            |from last to first]: {{items}}?
        """,
    "extreme": clauses(
        "which of {items} is the {most}",
        "which [number|of these] is [the |]{most}: {items}",
        "what the {most} of {items} is",
    )
    + nouns(
        "the {most} [number|one] of {items}",
        "the {most} of [these numbers: |these: |the numbers |]{items}",
        "the {most} number: {items}",
    )
    + """
        [Of|Among|Out of|From|In] [the numbers |these numbers: |these: |]{items}[, |: ][which|what
            |which one] is [the |]{most}[| one| number]?
        [Pick|Find|Choose|Select|Name|Point out|Take] the {most} [number |one |][of|from|among
            |in] [the numbers |these numbers: |]{items}[.|]
        {items}[: |. |; ][which|what|which one|which number] is [the |]{most}[| one| number| of them]?
        [What|Which] [number|one] is [the |]{most} [of|among|in] [the numbers |these: |]{items}?
        [Here are some numbers: |My numbers: |Take these numbers: ]{items}. [Which|What|Which one
            |Which of them] is [the |]{most}?
        """,
    "json": """
        {facts} [Give|Return|Write|Put|Turn|Show|Convert|Make|I need|I want] [me |][this|that|it|the facts
            |the data] [as|in|into|in the form of] [JSON|a JSON object] [with the keys|with keys|using the keys|with
            |under the keys] {keys}.
        {facts} [JSON|As JSON|In JSON], [keys|with keys|with the keys|using the keys|with] {keys}[.|, please.]
        [Give|Return|Write|Put|Turn|Show|Convert|Make] [the following|this|this text|the text|this sentence] [as|in
            |into] [JSON|a JSON object] [with the keys|with keys|using the keys|using keys
            |under the keys] {keys}: {facts}
        [JSON|Make JSON|Build JSON|Output JSON|Write JSON|Extract JSON|Produce a JSON object|Create a JSON object
            |I need JSON] [with the keys|with keys|using the keys|with] {keys} [from|for|of|out of|about
            |from this text]: {facts}
        [Extract|Find|Read|Take|Pull out|Collect] {keys} [from this|from the text|from the sentence] [as|in
            |into] JSON: {facts}
        [Use|Using|With] [the keys|keys] {keys}[, write this as JSON|, make JSON|, turn this into JSON
            | and write JSON]: {facts}
        """,
    "json_list": """
        [Write|Give|Return|Show|Put|Turn|Convert|Make|Format
            |Output] [the words |these words: |these: |me |][{items}] [as
            |into|in|in the form of] [a JSON list|a JSON array|an array in JSON|JSON].
        [Make|Create|Build|Write|Form|Produce|Give me|I need|I want|Return|Output] [a JSON list|a JSON array|JSON
            |an array in JSON] [of|with|out of|containing|that holds|for|from the words|of the words] {items}[.
            |, please.]
        [JSON list|JSON array|As a JSON list|As a JSON array|As JSON|In JSON|To JSON]: {items}[.|]
        {items}[: |. |, ][as JSON|as a JSON list|as a JSON array|make that a JSON list|write them as a JSON array
            |in JSON, please][.|]
        [What|How] [is|does|are] {items} [look |][as a JSON list|as JSON|as a JSON array|written as JSON|in JSON]?
        [Use|Take] [the words |]{items} [and make|to make|for] a JSON [list|array].
        """,
}
