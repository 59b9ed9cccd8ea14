"""All texts of the page, in English and Chinese."""

from __future__ import annotations

LANGUAGES = {"en": "English", "zh": "中文"}

# key: (English, Chinese); {…} are filled in by `text`.
TEXTS: dict[str, tuple[str, str]] = {
    # The header.
    "tagline": ("Gemma 3 on plain JAX", "用纯 JAX 运行 Gemma 3"),
    "language": ("Language", "语言"),
    "checkpoint": ("Checkpoint", "检查点"),
    "devices": ("Devices", "设备"),
    "mesh": ("Mesh", "网格"),
    "mesh_value": ("{data} data × {model} model", "{data} 数据 × {model} 模型"),
    "dtype": ("Precision", "精度"),
    "text_and_images": ("{parameters} parameters, text and images", "{parameters} 参数，文本与图像"),
    "text_only": ("{parameters} parameters, text only", "{parameters} 参数，仅文本"),
    # Loading.
    "idle": ("Not loaded", "未加载"),
    "starting": ("Starting", "正在启动"),
    "reading": ("Reading weights", "正在读取权重"),
    "compiling": ("Compiling", "正在编译"),
    "ready": ("Ready", "就绪"),
    "failed": ("Loading failed", "加载失败"),
    "step_starting": ("Opening the checkpoint and starting JAX", "正在打开检查点并启动 JAX"),
    "step_reading": ("Step 1 of 2: reading weights, {done} of {total}", "第 1 步，共 2 步：读取权重，{done} / {total}"),
    "step_compiling": (
        "Step 2 of 2: compiling {step}, {done} of {total} programs done",
        "第 2 步，共 2 步：编译 {step}，已完成 {done} / {total} 个程序",
    ),
    "loaded_in": ("loaded in {seconds} s", "加载用时 {seconds} 秒"),
    "load": ("Load model", "加载模型"),
    "loading": ("Loading… {percent} %", "加载中… {percent} %"),
    "loaded": ("Model loaded", "模型已加载"),
    "retry": ("Try again", "重试"),
    # The tabs.
    "tab_image": ("Image + text → text", "图像 + 文本 → 文本"),
    "tab_text": ("Text → text", "文本 → 文本"),
    "tab_chat": ("Chat", "聊天"),
    "picture": ("Picture", "图片"),
    "picture_2": ("Second picture", "第二张图片"),
    "picture_drop": ("Drop a picture here\nor click to choose one", "将图片拖到此处\n或点击选择"),
    "picture_drop_2": ("A second one, to compare", "第二张图片，用于比较"),
    "picture_hint": (
        "Ask as many questions about it as you like. A new picture starts a new conversation.",
        "可以针对同一张图片连续提问。换一张图片会开始新的对话。",
    ),
    "picture_address": ("Or the URL of a picture: https://…", "或输入图片地址：https://…"),
    "examples": ("Examples", "示例"),
    "chat_empty_image": (
        "Choose a picture, or one of the examples, and ask about it.",
        "请选择一张图片或一个示例，然后提问。",
    ),
    "chat_empty_text": ("Ask something, or choose one of the examples.", "请输入问题，或选择一个示例。"),
    "prompt_image": ("Ask about the picture", "针对图片提问"),
    "prompt_text": ("Ask something", "请输入问题"),
    "prompt_keys": ("Enter sends, Shift+Enter starts a new line", "按 Enter 发送，Shift+Enter 换行"),
    "send": ("Send", "发送"),
    "stop": ("Stop", "停止"),
    "go_on": ("Continue the answer", "继续回答"),
    "clear": ("New conversation", "新对话"),
    # Settings.
    "settings": ("Settings", "设置"),
    "max_tokens": ("Longest answer (tokens)", "回答的最大长度（token）"),
    "temperature": ("Temperature", "温度"),
    "temperature_info": ("0 always takes the likeliest token", "0 表示总是选择概率最高的 token"),
    "top_k": ("Top-k", "Top-k"),
    "top_k_info": ("0 turns it off", "0 表示关闭"),
    "top_p": ("Top-p", "Top-p"),
    "min_p": ("Min-p", "Min-p"),
    "min_p_info": ("0 turns it off", "0 表示关闭"),
    "random_seed": ("A new seed for every answer", "每次回答使用新的随机种子"),
    "seed": ("Seed", "随机种子"),
    "drop_oldest": ("Forget the oldest turns when the context is full", "上下文已满时忘记最早的对话"),
    "pan_and_scan": (
        "Show crops of wide or tall pictures too, for small print",
        "同时展示宽图或长图的局部，便于识别小字",
    ),
    # Under an answer.
    "waiting": ("Reading the prompt…", "正在读取提示…"),
    "writing": ("Writing…", "正在生成…"),
    "queued": ("Waiting: {count} answers are before yours", "正在排队：前面还有 {count} 个回答"),
    "queued_one": ("Waiting: 1 answer is before yours", "正在排队：前面还有 1 个回答"),
    "queued_next": ("Waiting: yours is the next answer", "正在排队：下一个就是您的回答"),
    "no_answer": ("(no answer)", "（没有回答）"),
    "stat_tokens": ("{count} tokens", "{count} 个 token"),
    "stat_token": ("1 token", "1 个 token"),
    "stat_speed": ("{speed} tokens/s", "{speed} token/秒"),
    "stat_first": ("first token after {seconds} s", "首个 token 用时 {seconds} 秒"),
    "stat_cached": (
        "{cached} of {prompt} prompt tokens from the cache",
        "提示的 {prompt} 个 token 中 {cached} 个来自缓存",
    ),
    "stat_prompt": ("prompt of {prompt} tokens", "提示 {prompt} 个 token"),
    "stat_forgotten": ("oldest turns forgotten: {count}", "已忘记最早的 {count} 轮对话"),
    "stat_seed": ("seed {seed}", "随机种子 {seed}"),
    "ended_cancelled": ("stopped", "已停止"),
    "ended_length": ("cut at the longest answer that is set", "达到设置的最大长度"),
    "ended_context": ("cut because the context is full", "上下文已满，回答中断"),
    "fresh": ("The picture has changed: a new conversation", "换了图片：新的对话"),
    "lost_picture": ("a picture that is no longer here", "图片已不存在"),
    # Reloads and a lost connection.
    "lost": ("Connection lost, trying again…", "连接已断开，正在重试…"),
    "unrestorable": (
        "This browser could not store the whole conversation.",
        "浏览器未能保留此前的全部对话。",
    ),
    "unfinished": (
        "This page is not complete yet: reload it, then ask again.",
        "页面尚未加载完整：请刷新后再提问。",
    ),
    # Errors.
    "not_loaded": ("The model is not loaded yet: press “Load model” first.", "模型尚未加载：请先点击“加载模型”。"),
    "still_loading": ("The model is still loading; please try again in a moment.", "模型仍在加载，请稍后再试。"),
    "load_failed": (
        "The model could not be loaded; see the message at the top.",
        "模型加载失败，请查看页面顶部的信息。",
    ),
    "empty_prompt": ("Write a question first.", "请先输入问题。"),
    "no_picture": (
        "Choose a picture first, or use the other tab for text alone.",
        "请先选择一张图片；纯文本请使用另一个标签页。",
    ),
    "bad_picture": ("This cannot be used as a picture: {error}", "无法用作图片：{error}"),
    "no_address": ("an address begins with https:// or http://", "地址应以 https:// 或 http:// 开头"),
    "no_vision": ("This checkpoint reads only text: use the other tab.", "此检查点仅支持文本：请使用另一个标签页。"),
    "format_TranslateGemma": (
        "This checkpoint is TranslateGemma, which must be told two languages; this page has no fields for them. "
        "On the command line: gemma-tpu generate … --source-lang cs --target-lang en",
        "此检查点是 TranslateGemma，需要指定两种语言，而本页面没有相应的输入框。"
        "请使用命令行：gemma-tpu generate … --source-lang cs --target-lang en",
    ),
    "format_ShieldGemma 2": (
        "This checkpoint is ShieldGemma 2, which judges pictures and writes nothing: use Model.classify.",
        "此检查点是 ShieldGemma 2，只对图片进行判断，不生成文本：请使用 Model.classify。",
    ),
    "refused": ("The model cannot take this: {error}", "模型无法处理此输入：{error}"),
    "broke": ("The answer broke off: {error}", "回答中断：{error}"),
    "busy": (
        "An answer is still being written. What you have typed stays here: send it after that.",
        "正在生成回答。您输入的内容会保留，请在回答结束后发送。",
    ),
    # The page that replays recordings (demo/webui).
    "recording": ("Recording", "录制"),
    "recording_about": (
        "No model runs in this page. It replays real runs of {checkpoint}, recorded on {date}: loading {faster}× as "
        "fast as it was, answers {slower}× as slowly, so that they can be watched, in the Chat tab at their own pace. "
        "The figures under an answer are those measured.",
        "本页面不运行模型，只回放 {checkpoint} 的真实运行（录制于 {date}）：加载以 {faster} 倍速回放，"
        "回答放慢 {slower} 倍，便于观看，“聊天”页则按原速。回答下方的数据是录制时测得的。",
    ),
    "recorded_next": ("Recorded follow-ups", "已录制的追问"),
    "unrecorded_question": ("There is no recording of this question here.", "此处没有这个问题的录制。"),
    "unrecorded_picture": ("There is no recording about this picture.", "没有关于这张图片的录制。"),
    "unrecorded_settings": ("There is no recording with these settings.", "没有使用这些设置的录制。"),
    "unrecorded_chat": (
        "This is a recording: it has the examples' answers, as they were asked, and of the first one what is inside. "
        "For anything else, start the real demo with “make demo”.",
        "这是录制：只有示例问题的回答，以及第一个示例的内部细节。其他问题请用“make demo”启动真正的演示。",
    ),
    "unrecorded_help": (
        "This page can only replay what was recorded: the examples, and the follow-ups offered after an answer, with "
        "the settings as they were. For anything else, start the real demo with “make demo”, or give the address of a "
        "running one at the top of this page.",
        "本页面只能回放已录制的内容：示例以及回答之后列出的追问，且设置须与录制时相同。如需其他回答，"
        "请用“make demo”启动真正的演示，或在页面顶部填写正在运行的演示的地址。",
    ),
    "live": ("Live", "实时"),
    "live_about": ("Answers come from the demo running at {server}.", "回答来自运行于 {server} 的演示。"),
    "server": ("Address of a running demo", "正在运行的演示的地址"),
    "connect": ("Connect", "连接"),
    "connecting": ("Connecting…", "正在连接…"),
    "disconnect": ("Back to the recordings", "返回录制"),
    "server_malformed": (
        "“{server}” is not the address of a demo. One looks like http://127.0.0.1:7860",
        "“{server}”不是演示的地址。地址形如 http://127.0.0.1:7860",
    ),
    "server_silent": (
        "Nothing answers at {server}. Start the demo there with: python -m demo --allow-origin {origin}",
        "{server} 没有响应。请在该处启动演示：python -m demo --allow-origin {origin}",
    ),
    "server_refuses": (
        "Something answers at {server}, but does not let this page in. Start the demo with: "
        "python -m demo --allow-origin {origin}",
        "{server} 有响应，但不允许本页面访问。请这样启动演示：python -m demo --allow-origin {origin}",
    ),
    "server_lost": ("The demo at {server} no longer answers.", "{server} 的演示不再响应。"),
    "remove_picture": ("Remove the picture", "移除图片"),
    "drawing": (
        "an SVG drawing, which is not made of pixels; export it as PNG first",
        "SVG 图形不是由像素构成的，请先导出为 PNG",
    ),
    "unshowable": ("this browser cannot show it", "此浏览器无法显示"),
    "conversation": ("Conversation", "对话"),
    "copy": ("Copy", "复制"),
    "needs_script": ("This page needs JavaScript.", "本页面需要 JavaScript。"),
}


def text(key: str, lang: str, **values: object) -> str:
    """The text `key` in `lang`, with its {…} filled in."""
    return TEXTS[key][list(LANGUAGES).index(lang)].format(**values)


def explain(error: BaseException) -> str:
    """An error on one line; the class name is omitted for the library's ValueErrors, which are self-explanatory."""
    message = " ".join(str(error).split())
    return message if isinstance(error, ValueError) and message else f"{type(error).__name__}: {message}".rstrip(": ")
