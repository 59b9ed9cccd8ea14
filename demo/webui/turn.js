// The view of one turn. It is built once; afterwards only the answer changes.

class TurnView {
  constructor(turn) {
    this.turn = turn;
    this.bot = make("div", { class: "bot", "data-testid": "bot" });
    this.copy = make("button", { class: "copy", on: { click: () => navigator.clipboard.writeText(turn.answer) } });
    this.copy.append(document.getElementById("copy-icon").content.cloneNode(true));
    this.pictures = turn.pictures.map((src) => make("img", { src }));
    const pictures = this.pictures.map((picture) => make("div", { class: "message" }, picture));
    const question = make("div", { class: "message typed", dir: "auto" }, turn.question);
    const user = make("div", { class: "user", "data-testid": "user" }, ...pictures, question);
    this.anew = turn.fresh ? make("p", { class: "anew" }) : null;
    this.elements = [
      ...(this.anew ? [this.anew] : []),
      make("div", { class: "message-row user-row" }, user),
      make("div", { class: "message-row" }, make("div", { class: "answer" }, this.bot, this.copy)),
    ];
  }

  show(writing) {
    const { answer } = this.turn;
    this.bot.replaceChildren(...(answer ? renderMarkdown(answer) : [writing ? "…" : say("no_answer")]));
    this.copy.hidden = writing || !answer || !navigator.clipboard; // missing on insecure origins
    this.copy.setAttribute("aria-label", say("copy"));
    this.pictures.forEach((picture) => (picture.alt = say("picture")));
    if (this.anew) this.anew.textContent = say("clear");
  }
}
