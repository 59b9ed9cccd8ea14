// One tab: pictures and examples, the conversation, the prompt, the settings. Like demo/tab.py.

class Tab {
  constructor(name) {
    this.name = name;
    this.source = null;
    this.conversation = new Conversation();
    this.views = []; // one for each turn
    this.running = null; // the running answer, {stop}, or null
    this.footer = () => say("prompt_keys");
    this.problem = null; // a function that returns the notice's text, or null

    this.places = name === "image" ? [1, 2].map((number) => this.layPlace(number)) : [];
    this.chat = make("div", { id: `${name}-chat`, class: "chat", role: "log", tabIndex: 0 });
    this.placeholder = make("p", { class: "placeholder" });
    this.next = make("div", { class: "next" });
    this.notice = make("div", { id: `${name}-notice`, class: "notice-place" });
    this.prompt = make("textarea", { rows: 1, on: { keydown: (event) => this.onKey(event), input: () => this.fit() } });
    this.sending = makeSaying("send", "button", { id: `${name}-send`, class: "primary", on: { click: () => this.ask() } });
    this.stopping = makeSaying("stop", "button", { id: `${name}-stop`, hidden: true, on: { click: () => this.stop() } });
    this.stats = make("div", { id: `${name}-stats`, class: "stats", role: "status" });
    this.clearing = makeSaying("clear", "button", { id: `${name}-clear`, on: { click: () => this.clear() } });
    this.settings = new Settings(name);
    this.element = this.lay();
    inEveryLanguage(() => {
      this.prompt.placeholder = say(`prompt_${name}`);
      this.prompt.setAttribute("aria-label", say(`prompt_${name}`));
      this.chat.setAttribute("aria-label", say("conversation"));
      this.show();
    });
  }

  lay() {
    const pictures = [make("div", { class: "pictures" }, ...this.places.map((place) => place.element))];
    pictures.push(make("div", { class: "hint" }, makeSaying("picture_hint", "p")));
    const caption = make("div", { class: "caption" }, makeSaying("examples", "p"));
    const examples = make("div", { class: "examples" }, ...DATA.examples[this.name].map((one) => this.layExample(one)));
    const talk = [
      make("div", { id: `${this.name}-prompt`, class: "ask" }, this.prompt, this.sending, this.stopping),
      make("div", { class: "under" }, this.stats, this.clearing),
    ];
    return make(
      "div",
      { class: "desk" },
      make("div", { class: "side" }, ...(this.places.length ? pictures : []), caption, examples),
      make("div", { class: "talk" }, make("div", { class: "stage" }, this.chat, this.notice), this.next, ...talk, this.settings.element),
    );
  }

  layPlace(number) {
    return new PicturePlace(number, {
      onChange: () => this.refuse(null),
      onProblem: (words) => this.refuse(words),
    });
  }

  layExample(example) {
    const pictures = (example.pictures ?? []).map((file) => DATA.pictures[file]);
    const words = make("span");
    inEveryLanguage(() => (words.textContent = example[language]));
    const fill = () => {
      this.places.forEach((place, i) => place.set(pictures[i] ?? null));
      this.prompt.value = example[language];
      this.fit();
      this.refuse(null);
    };
    const icon = pictures.length ? make("img", { src: pictures[0], alt: "" }) : null;
    return make("button", { class: `example ${this.name}-example`, on: { click: fill } }, icon, words);
  }

  // Switches to another source of answers, which clears the tab.
  use(source) {
    this.source = source;
    this.clear();
  }

  onKey(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    this.ask();
  }

  async ask(question = this.prompt.value) {
    const laid = this.places.map((place) => place.value);
    const problem = this.obstacle(question, laid);
    if (problem) return this.refuse(problem);
    const before = this.footer;
    const running = (this.running = { stop: () => (running.stopped = true) });
    this.footer = () => say("waiting");
    this.refuse(null);
    this.prompt.focus();
    let answer;
    try {
      const { name, conversation, settings } = this;
      answer = await this.source.ask(name, conversation.told(laid), question, conversation.unseen(laid), settings.values());
    } catch (error) {
      if (this.running !== running) return;
      this.footer = before;
      return this.end(error);
    }
    if (this.running !== running || running.stopped) answer.stop();
    if (this.running !== running) return;
    running.stop = answer.stop;
    const turn = this.conversation.add(question, laid, answer.forgotten, answer.fresh);
    const view = new TurnView(turn);
    this.placeholder.remove();
    this.chat.append(...view.elements);
    this.views.push(view);
    this.prompt.value = "";
    this.fit();
    this.show();
    try {
      for await (const event of answer.events) {
        if (this.running !== running) return;
        this.write(turn, event);
      }
      this.end(null);
    } catch (error) {
      if (this.running !== running) return;
      this.footer = () => say("prompt_keys");
      this.end(error);
    }
  }

  // A function that returns why no answer can be given now, or null.
  obstacle(question, laid) {
    const { phase } = this.source.heads[language];
    if (phase !== "ready") return () => say({ idle: "not_loaded", failed: "load_failed" }[phase] ?? "still_loading");
    if (this.running) return () => say("busy");
    if (!question.trim()) return () => say("empty_prompt");
    const pictures = this.conversation.told(laid).flatMap((turn) => turn.pictures);
    if (this.places.length && !laid.some(Boolean) && !pictures.length) return () => say("no_picture");
    return null;
  }

  write(turn, { piece, waiting, statistics, error }) {
    if (waiting) this.footer = waiting;
    else if (piece !== undefined) {
      turn.answer += piece;
      this.footer = () => say("writing");
    } else {
      this.footer = statistics;
      if (error) this.refuse(error);
    }
    this.show();
  }

  // Ends the running answer. `error` is the exception, if any.
  end(error) {
    this.running = null;
    if (error) {
      if (!(error instanceof Refusal)) this.source.onLost?.();
      this.refuse(error.words ?? (() => say("broke", { error: error.message })));
    }
    this.show();
  }

  stop() {
    this.running?.stop();
    this.prompt.focus();
  }

  clear() {
    this.running?.stop();
    this.running = null;
    this.conversation = new Conversation();
    this.views = [];
    this.chat.replaceChildren(this.placeholder);
    this.places.forEach((place) => place.set(null));
    this.prompt.value = "";
    this.fit();
    this.footer = () => say("prompt_keys");
    this.refuse(null);
  }

  refuse(words) {
    this.problem = words;
    this.show();
  }

  // Updates every element that depends on the state.
  show() {
    if (!this.element) return; // the constructor has not finished
    const atEnd = this.chat.scrollHeight - this.chat.scrollTop - this.chat.clientHeight < 40;
    this.chat.setAttribute("aria-busy", this.running !== null);
    this.placeholder.textContent = say(`chat_empty_${this.name}`);
    this.views.forEach((view, i) => view.show(this.running !== null && i === this.views.length - 1));
    if (atEnd || this.running) this.chat.scrollTop = this.chat.scrollHeight;
    this.next.replaceChildren(...this.showNext());
    this.notice.replaceChildren(...(this.problem ? [notice(this.problem())] : []));
    this.sending.hidden = this.running !== null;
    this.stopping.hidden = this.running === null;
    this.stats.textContent = this.footer();
  }

  // Lists the recorded questions that can follow.
  showNext() {
    const told = this.running || !this.source ? [] : this.conversation.told([]);
    const questions = told.length ? this.source.questions(this.name, told) : [];
    const buttons = questions.map((one) => make("button", { class: "follow-up", on: { click: () => this.ask(one) } }, one));
    return buttons.length ? [make("span", {}, say("recorded_next")), ...buttons] : [];
  }

  // Makes the prompt's field as high as its text.
  fit() {
    this.prompt.style.height = "auto";
    this.prompt.style.height = `${this.prompt.scrollHeight + 2}px`;
  }
}
