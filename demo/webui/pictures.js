// A place for one picture, which can be chosen, dropped or pasted. `value` is a data URL, or null.

class PicturePlace {
  constructor(number, { onChange, onProblem }) {
    const suffix = number === 1 ? "" : "_2";
    this.value = null;
    this.onChange = onChange;
    this.onProblem = onProblem;
    this.name = `picture${suffix}`;
    this.input = make("input", { type: "file", accept: "image/*", class: "unseen" });
    this.input.addEventListener("change", () => this.read(this.input.files[0]));
    const icon = document.getElementById("upload-icon").content.cloneNode(true);
    this.words = makeSaying(`picture_drop${suffix}`, "span");
    this.face = make("label", { class: "face" }, this.input, make("span", { class: "wrap" }, icon, this.words));
    this.remove = make("button", { type: "button", class: "remove", on: { click: () => this.clear() } }, "×");
    this.element = make("div", { id: `picture-${number}` }, this.face);
    inEveryLanguage(() => {
      this.input.setAttribute("aria-label", say(this.name));
      this.remove.setAttribute("aria-label", say("remove_picture"));
      if (this.image) this.image.alt = say(this.name);
    });
    this.element.addEventListener("dragover", (event) => event.preventDefault());
    this.element.addEventListener("drop", (event) => {
      event.preventDefault();
      this.read(event.dataTransfer.files[0]);
    });
  }

  async read(file) {
    if (!file) return;
    this.input.value = ""; // so that the same file can be chosen again
    try {
      const url = await readAsDataURL(file);
      const probe = make("img", { src: url });
      await probe.decode();
      if (!url.startsWith("data:image/")) throw new TypeError(`${file.name} is not named as a picture`);
      if (url.startsWith("data:image/svg")) return this.refuse(file, "drawing"); // the model's decoder cannot read SVG
      this.set(url);
    } catch {
      this.refuse(file, "unshowable");
    }
  }

  // Also removes the previous picture, which the visitor wanted to replace.
  refuse(file, why) {
    this.set(null);
    this.onProblem(() => say("bad_picture", { error: `${file.name}: ${say(why)}` }));
  }

  set(url) {
    this.value = url;
    this.image?.remove();
    this.image = url === null ? null : make("img", { src: url, alt: say(this.name) });
    if (this.image) {
      this.face.append(this.image);
      this.element.append(this.remove);
    } else {
      this.remove.remove();
    }
    this.onChange();
  }

  clear() {
    this.set(null);
    this.input.focus();
  }
}

function readAsDataURL(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
