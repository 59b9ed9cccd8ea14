// The Chat tab: the Chat page of a running demo, or a recording of it.

class ChatTab {
  constructor() {
    this.name = "chat";
    this.places = []; // the Chat page takes pictures itself
    this.source = null;
    this.shown = null;
    this.element = make("div", { id: "chat-frame" });
    inEveryLanguage(() => this.frame?.setAttribute("title", say("tab_chat")));
  }

  use(source) {
    this.source = source;
    if (this.frame) this.fit();
  }

  // What is in the frame is loaded when the tab is first opened.
  fit() {
    const address = this.source.server ? `${this.source.server}/chat/` : null;
    if (this.frame && this.shown === address) return;
    this.shown = address;
    this.frame = make("iframe", { title: say("tab_chat"), allow: "clipboard-write; camera" });
    if (address) this.frame.src = address;
    else this.frame.srcdoc = DATA.chat;
    this.element.replaceChildren(this.frame);
  }
}
