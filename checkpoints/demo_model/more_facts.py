"""More ways to ask for facts about Gemma 3 and the toolkit, and about the model itself, to train on."""

from __future__ import annotations

from checkpoints.demo_model.asking import clauses, nouns

# In the order of facts._FACTS.
MORE_FACTS = (
    clauses("which sizes [of Gemma 3 there are|Gemma 3 has|Gemma 3 comes in]", "how big the Gemma 3 models are")
    + nouns(
        "the [sizes|model sizes|available sizes] of Gemma 3",
        "the [names|list] of the Gemma 3 [sizes|models]",
        "the Gemma 3 [sizes|models|family]",
    )
    + """
        [Which|What|How many] [Gemma 3 sizes|Gemma 3 models|variants of Gemma 3|models of Gemma 3
            |sizes of Gemma 3] [are there|exist|can I choose|were released|do you know|can I load]?
        How many sizes [are there|does Gemma 3 have|of Gemma 3 exist]?
        List [all |the ][Gemma 3 |]models[| of Gemma 3].
        """,
    clauses(
        "how many [soft |]tokens an image [is|takes|becomes|costs]",
        "how many soft tokens [there are|one needs] [for|per|in] an image",
    )
    + nouns(
        "the number of [soft |image |]tokens [per|of|for|in] [image|an image|a picture|each picture]",
        "the length of an image in tokens",
    )
    + """
        How many [soft |image |][tokens] [are|come|go] [in|with|into|for|from] [an image|a picture|each image
            |one image]?
        [What|How much] does [an image|a picture|one image] cost[| in tokens]?
        [An image|A picture|One image] [costs|takes|is|becomes|makes] how many tokens?
        How long is an image in [soft |]tokens?
        How many [soft |]tokens [per|for each|for one|for every] [image|picture]?
        """,
    clauses(
        "[what|which] [resolution|image size] [Gemma 3|the vision tower|the encoder] [uses|needs|sees|expects]",
        "to [what|which] size images are [resized|scaled]",
    )
    + nouns(
        "the [image size|resolution|image resolution|input size] of [Gemma 3|the vision tower|the vision encoder]",
        "the size [to which images are resized|of the images that Gemma 3 sees]",
    )
    + """
        [What|Which] [size|resolution] do [images|pictures] have [in|for|inside] [Gemma 3|the model|the vision tower]?
        [How|In which size|At what resolution] are [images|pictures] [resized|scaled|processed|encoded|seen][
            | for Gemma 3| by Gemma 3]?
        How many pixels [does an image have|does the vision tower see|are images resized to]?
        [What|Which] [size|resolution] [must|should|do] [an image|images|pictures] have?
        [What|Which] size are [images|pictures] [scaled|resized|brought] to?
        """,
    clauses("[what|which] vision [tower|encoder] Gemma 3 [has|uses]", "how Gemma 3 sees [images|pictures]")
    + nouns(
        "the vision [tower|encoder][| of Gemma 3| in Gemma 3]",
        "the image encoder[| of Gemma 3]",
        "the [kind|name|type] of vision [tower|encoder][| in Gemma 3]",
    )
    + """
        [What|Which] [encoder|network|tower|model] [encodes|reads|sees|processes|turns|looks at] [images
            |pictures] [for|in] Gemma 3?
        [What|Which] [kind of|sort of|] vision [tower|encoder] [is in|is part of|is there in|does] Gemma 3[| have
            | use]?
        With [what|which] [encoder|network|tower] does Gemma 3 [see|read images|look at pictures]?
        How are [images|pictures] [encoded|turned into tokens|read] [in|by] Gemma 3?
        """,
    clauses(
        "how [large|big] the vocabulary [of Gemma 3 |]is",
        "how many [pieces|tokens|entries] [the|Gemma 3's] vocabulary has",
    )
    + nouns(
        "the [size|length] of the vocabulary[| of Gemma 3]",
        "the vocabulary size[| of Gemma 3]",
        "the number of [pieces|tokens] in the [vocabulary|tokenizer][| of Gemma 3]",
    )
    + """
        How many [pieces|tokens|words|entries] [are there|are|does one find] in the [vocabulary|tokenizer][
            | of Gemma 3]?
        How many [pieces|tokens|words|entries] does [Gemma 3's|the Gemma 3|the] [tokenizer|vocabulary] [have|know
            |hold|contain]?
        How [large|big] is [Gemma 3's|the Gemma 3|its] vocabulary?
        """,
    clauses(
        "which layers are global",
        "how often there is a global layer",
        "how local and global layers are [mixed|ordered]",
    )
    + nouns(
        "the [order|pattern|ratio] of [local and global|global and local] layers",
        "the global layers[| of Gemma 3]",
        "the attention pattern[| of Gemma 3]",
    )
    + """
        [Which|What] [of the |][layers] [are|use|have] [global|global attention|full attention|the global ones][
            | in Gemma 3]?
        [How many|Which] of the layers [are global|attend to everything|are global ones]?
        [How often|Where|When|After how many layers] [does a global layer come|is there a global layer
            |are there global layers|comes a global layer]?
        How far apart are [the |]global layers?
        How are [the |]layers [arranged|ordered|mixed][| in Gemma 3]?
        """,
    clauses(
        "[what|which] [sampling settings|temperature|sampling parameters] [Google recommends|one should use|are best]"
        "[| for Gemma 3]",
        "how to sample from Gemma 3",
    )
    + nouns(
        "the [recommended|best|right] [sampling settings|temperature|sampling parameters|top-k and top-p]"
        "[| for Gemma 3]"
    )
    + """
        [What|Which] [temperature|top-k|top-p|settings|parameters] [should|do|must|would] [I|one|you] [use|set|take
            |choose|recommend][| for Gemma 3| with Gemma 3| for sampling]?
        [What|Which] [top-k|top-p|temperature|sampling] is [recommended|best|good|right] [for|with] Gemma 3?
        [How|With which settings] [should|can|does] [I|one] [sample|set the temperature|choose top-k and top-p]?
        """,
    clauses("[what|which token] ends [a turn|an answer|a reply]", "how [an answer|a turn] ends")
    + nouns(
        "the [token|piece] [that ends|at the end of] [a turn|an answer|a reply]",
        "the end token",
        "the stop token[| of Gemma 3]",
    )
    + """
        [What|Which token|Which piece|What token] [marks|is at|stands at|signals|shows|comes at] the end of [a turn
            |an answer|a reply|a message]?
        [With|By|Through] [what|which] [token|piece] [does|is] [an answer|a turn|a reply] [end|ended|finish|closed]?
        [When|Where|How] does [Gemma 3|the model|an answer|a turn] [stop|end|finish]?
        """,
    clauses(
        "how [long|many tokens] [an answer|a reply|the output] [may be|can be|should be|may have]", "the output limit"
    )
    + nouns(
        "the [recommended |]output limit[| of Gemma 3]",
        "the [maximal|maximum|longest|largest] [output|answer][| of Gemma 3]",
        "the limit [of|for] [the output|an answer]",
    )
    + """
        How many tokens [should|can|does|will] [an answer|a reply|the output] [have|get|be|take][| at most
            | at the most]?
        [What|Which] [limit|output length|output limit] [is recommended|should I use|is there|is set][
            | for the output| for answers| for Gemma 3]?
        How [long|large] [can|may|should|is] [the longest|an|the] [answer|output] [|be]?
        """,
    clauses(
        "who [made|built|developed|trained] Gemma 3",
        "which company [made|built|developed] Gemma 3",
        "where Gemma 3 comes from",
    )
    + nouns("the [maker|company|developer|team|lab] [of|behind] Gemma 3")
    + """
        [By|From] [whom|which company|which lab] [is|was] Gemma[| 3] [made|built|trained|released|created]?
        [Who|Which company|Which lab|Which team] [created|develops|owns|published|invented|is behind|wrote
            |produced] Gemma[| 3]?
        [Is|Was] Gemma 3 [made by Google|from Google|a Google model]?
        Whose model is Gemma[| 3]?
        """,
    clauses("[what|which] activation [function |][the MLP|Gemma 3] uses", "[what|which] activation is in the MLP")
    + nouns("the activation[| function] [of|in] [the MLP|the MLPs|Gemma 3|the feed-forward layers]")
    + """
        [What|Which] [activation|activation function|nonlinearity] [do the MLPs|does the MLP
            |do the feed-forward layers|does Gemma 3] [use|have|apply|take]?
        [What|Which] [activation|activation function|nonlinearity] is [used|applied|there] [in|by] [the MLP|Gemma 3
            |the feed-forward layers]?
        Does [Gemma 3|the MLP] use [gelu|relu|silu]?
        """,
    clauses("[what|which] [rope|RoPE|rotary] base [is used|Gemma 3 uses|the layers use]", "the [rope|RoPE] bases")
    + nouns(
        "the [rope|RoPE|rotary] [base|bases|theta|frequency][| of Gemma 3| in Gemma 3]",
        "the base of [the rotary embeddings|rope|RoPE]",
    )
    + """
        [What|Which] [rope|RoPE|rotary] [base|bases|theta] [do|does] [the global layers|the local layers|the layers
            |Gemma 3|the model|one] [have|use]?
        [What|Which] base [does|do|has|is in] [rope|RoPE|the rotary embedding|the rotary position embeddings][| have
            | use]?
        """,
    clauses(
        "what [gemma_tpu|this toolkit|this library|this project] [is|does|can do]",
        "what [gemma_tpu|this toolkit] is for",
    )
    + nouns("the [purpose|use|aim] of [gemma_tpu|this toolkit|this library]")
    + """
        [What|Why] [is|should I use|do I need|would I use|can one do with|does one do with
            |can you do with] [gemma_tpu|this toolkit|this library|this project|this package]?
        What [kind of|sort of] [thing|software|toolkit|library|program] is gemma_tpu?
        [For what|What for] is [gemma_tpu|this toolkit|this library] [used|made|good]?
        [Summarize|Explain] [gemma_tpu|this toolkit|this library|this project][| to me| in one sentence].
        gemma_tpu[?|: what is it?]
        """,
    clauses(
        "how [to load|I load|one loads] a [model|checkpoint]",
        "which [function|call] loads a [model|checkpoint]",
        "how a [model|checkpoint] is loaded",
    )
    + nouns("the [call|function|code|line] [to load|that loads|for loading] a [model|checkpoint]")
    + """
        [How|With which call|With what function] [would|should|could|can|does|will] [I|one|you|we] [load|open|read
            |get] a [model|checkpoint][| in Python| with gemma_tpu| with this toolkit| in code]?
        [What|Which] [call|function|code|Python code|command in Python] [do I need|is there|should I use|do I use
            |must I write] to load a [model|checkpoint]?
        [What|Which] [call|function] [opens|reads|gives me|returns] a [model|checkpoint]?
        """,
    clauses(
        "how to [start|run|launch|open] the demo",
        "which command [starts|runs|launches] the demo",
        "how the demo is [started|run]",
    )
    + nouns("the command [to start|that starts|for|to run] the demo")
    + """
        [How|With which command|With what command] [would|should|could|can|does|will|is] [I|one|you|we|] [start|run
            |launch|open|get] the demo[| started| running]?
        [What|Which] command [do I need|is there|should I use|do I use|must I type] [to start|to run|for] the demo?
        [Where|At which address] [is|can I find|do I open|do I see] the demo?
        [Start|Run|Launch] the demo.
        How is the demo [run|launched|opened]?
        """,
    clauses(
        "[what|which] [checkpoint |]formats [can be loaded|are supported|it reads|gemma_tpu reads]",
        "which checkpoints [it|gemma_tpu|this toolkit] [reads|can load]",
    )
    + nouns("the [supported|possible] [checkpoint |]formats", "the checkpoint formats[| that it reads| of gemma_tpu]")
    + """
        [What|Which] [kinds of|sorts of|types of|] [checkpoints|checkpoint files|formats|weights] [are|can be
            |does it] [supported|loaded|read|load|support|read from disk]?
        [Can|Does] [it|gemma_tpu|this toolkit] [load|read|support|open] [Orbax|Hugging Face|safetensors
            |Hugging Face checkpoints|Orbax checkpoints]?
        [Is|Are] [Orbax|Hugging Face|safetensors] [supported|readable]?
        """,
    clauses(
        "how to convert [a checkpoint|checkpoints]",
        "which command converts [a checkpoint|checkpoints]",
        "how [a checkpoint is|checkpoints are] converted",
    )
    + nouns("the command [to convert|that converts|for converting] [a checkpoint|checkpoints]")
    + """
        [How|With which command|With what] [would|should|could|can|does] [I|one|you|we] [convert|transform|change
            |turn] [a checkpoint|checkpoints|weights|the weights][| to another format| to safetensors| to Orbax
            | into safetensors| into another format]?
        [What|Which] command [do I need|is there|should I use|must I type] [to convert|for converting] [a checkpoint
            |checkpoints|the weights]?
        [Convert|How to convert] [a checkpoint|checkpoints|my checkpoint][| to safetensors| to Orbax][.|?]
        """,
    clauses(
        "[what|which] [framework|library] [gemma_tpu|this toolkit|it] is [built on|written in|made with|based on]",
        "what [gemma_tpu|this toolkit] is [written in|built with|made of]",
    )
    + nouns("the [framework|language|library] [of|behind] [gemma_tpu|this toolkit]")
    + """
        [On|With|In] [what|which] [framework|library|language] [is|was] [gemma_tpu|this toolkit|it] [built|written
            |made|based]?
        [What|Which] [framework|library|language|programming language] [does it use|is behind it|is used here
            |is it in|was used]?
        What [is|was] [gemma_tpu|this toolkit|it] [built|written|made] [with|in|on|of]?
        Does [gemma_tpu|it|this toolkit] use [JAX|Flax|PyTorch|TensorFlow|Flax NNX]?
        """,
    clauses(
        "[how|where] to get [a real checkpoint|the real weights|Gemma 3|a larger model]",
        "where the [real|full] [weights|checkpoints] are",
        "how to download [Gemma 3|a real checkpoint]",
    )
    + nouns(
        "the command [to download|that downloads] [Gemma 3|a real checkpoint|the weights]",
        "the [place|source] of the real [weights|checkpoints]",
    )
    + """
        [How|Where|From where] [can|do|does|would|could|should] [I|one|you|we] [get|find|download|obtain|fetch
            |take] [a real model|the real model|a real Gemma 3|a real checkpoint|the weights|the Gemma 3 weights
            |the real weights|a bigger model|gemma3-4b-it]?
        [Where|How] [are|can] the [real |Gemma 3 |real Gemma 3 |]weights [be found|be downloaded|be had|stored|kept
            |obtained]?
        [Download|How to download] [Gemma 3|a real checkpoint|the weights|gemma3-4b-it][.|?]
        """,
)

MORE_CHAT = {
    "who": clauses("who you are", "what you are", "what your name is", "which model you are")
    + nouns("your name")
    + """
        [Who|What] [is this|is there|is speaking|is talking|might you be|exactly are you|am I chatting with
            |am I dealing with]?
        [What|Which] [kind of|sort of|] [model|AI|assistant|program|chatbot] [are you|is this|do I talk to
            |is answering]?
        [How|What] [are you|should I call you|do they call you|are you called]?
        [Say|Tell me|Explain] [who you are|what you are|a bit about yourself|a few words about yourself|your name].
        Are you [an AI|a model|a chatbot|a bot|a demo|the demo model|a small model|a big model|a real model
            |Gemma 3 4B]?
        """,
    "able": clauses(
        "what you can do", "what you [are able to do|know|are good at|can help with]", "what [to ask you|I can ask you]"
    )
    + nouns("your [skills|abilities|tasks|talents|capabilities|strengths]")
    + """
        [What|Which] [skills|talents|capabilities|tasks|features|strengths] [do you have|are yours|have you]?
        [What|Which] [things|tasks|kinds of tasks|topics] [do you know|can you do|are you good at|are you able to do
            |were you made for|have you learnt]?
        [How|In what way|With what things] [can|could|would] you [help|assist|be of help|be useful][| me][| today]?
        [What|Which kind of things] [have you|did you] [learn|learned|learnt]?
        What are your [skills|talents|capabilities|strengths|tasks|features]?
        What [else |]can [I do with you|one ask you|you tell me|be done here]?
        """,
    "hello": """
        [Hello|Hi|Hey|Hiya|Howdy|Good morning|Good evening|Good afternoon|Greetings|Welcome|Yo][ Gemma| my friend
            | model| you| everyone| again|][!|.|,|]
        [Hello|Hi|Hey|Good morning][,|!] [nice to see you|how is it going|how are things|good to see you
            |pleased to meet you|what's up|how do you do|glad to meet you][.|!|?|]
        [How is it going|How are things|How's life|Are you well|How have you been|Is everything fine]?
        [Nice|Pleased|Glad|Good] to [meet|see] you[.|!|]
        [Good [morning|evening|afternoon]|Morning|Evening][ to you| dear model| all| there||, Gemma][!|.|]
        [A very good|A nice|A wonderful] [day|morning|evening] [to you|, Gemma][!|.|]
        """,
    "thanks": """
        [Thanks|Thank you|Many thanks|Thanks a lot|Thank you so much|I thank you|Thx|Thanks so much][| for your help
            | for that| for the answer| for everything| Gemma|, that helped|, great][!|.|]
        [That|This|It] [was|is] [good|great|helpful|nice|very good|perfect|wonderful|right|excellent|correct][|!|.
            |, thanks.|, thanks]
        [Great|Good|Excellent|Wonderful|Fantastic|Brilliant|Lovely|Super|Cool|Awesome|Nice] [job|work|answer|one|][!
            |.|]
        [Bye|Goodbye|See you|Good night|Farewell|Take care|So long|See you later][| Gemma| then| and thanks][!|.|]
        """,
    "trained": clauses("how you were [trained|made|built]", "what you were trained on", "who [made|trained] you")
    + nouns("your training data", "the data you were trained on")
    + """
        [On|With|From] [what|which|what kind of] [data|examples|pictures|texts|material] [were you trained
            |did you learn|are you trained|have you learnt]?
        [What|Which] [is|was|are] your [training data|training|training set|data]?
        [Who|What] [is your maker|is your creator|programmed you|designed you|taught you]?
        How [have you been|did they] [trained|train you|built|build you|teach you]?
        """,
    "size": clauses("how [big|large|small] you are", "how many [parameters|weights|layers] you have")
    + nouns("your size", "your number of [parameters|weights|layers]", "the number of your parameters")
    + """
        [How|What] many [parameters|weights|layers|blocks] [have you|do you have|are in you|are there in you
            |does this model have]?
        [Are you|Is this] [a big|a large|a small] model?
        [What|How] is your [parameter count|size|number of parameters]?
        """,
    "zh_who": """
        [请问|][你|您][是谁|是什么|叫什么|叫什么名字|是什么模型|是哪个模型|是机器人吗|是人吗][？|]
        [请|请你|][说说|介绍|介绍一下|讲讲][你自己|自己|你是谁][。|]
        [我想知道|你能告诉我|请告诉我][你是谁|你是什么|你的名字][？|。|]
        你[能做什么|会什么|可以做什么|有什么用|会做什么]？
        """,
    "zh_hello": """
        [你好|您好|嗨|早|喂|Hi|大家早上好|大家晚上好|老师好|朋友好|早上好|下午好|晚上好|大家下午好|哈喽|你们好|你好呀|你好啊|各位好][！|。|，
            |][| 很高兴认识你。|你好吗？|最近好吗？]
        """,
    "zh_thanks": """
        [谢谢|多谢|谢谢你|谢谢您|非常感谢|感谢|太感谢了|谢谢啦|好的，谢谢][！|。|，再见。|]
        [再见|拜拜|下次见|晚安|回头见][！|。|]
        [很好|太好了|真棒|不错|好极了][！|。|，谢谢。]
        """,
}
