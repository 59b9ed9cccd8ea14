// Renders answers as a subset of Markdown: paragraphs, headings, lists, fenced code, `code`, **bold**. Anything else
// (tags, image links, formulas) is shown as plain text.

const LIST_ITEM = /^\s*([-*]|\d+[.)]) +(.*)$/;

function renderMarkdown(text) {
  const blocks = [];
  let open = null; // the paragraph or list that the next line can continue
  const lines = text.split("\n");
  for (let i = 0; i < lines.length; i++) {
    const line = lines[i];
    const fence = line.match(/^\s*(```|~~~)/)?.[1];
    const heading = line.match(/^(#{1,6}) +(.*)$/);
    const item = line.match(LIST_ITEM);
    if (fence) {
      let end = i + 1;
      while (end < lines.length && !lines[end].trimStart().startsWith(fence)) end++;
      blocks.push(make("pre", {}, make("code", {}, lines.slice(i + 1, end).join("\n"))));
      open = null;
      i = end;
    } else if (heading) {
      blocks.push(make("p", { class: "heading", dir: "auto" }, ...renderInline(heading[2])));
      open = null;
    } else if (item) {
      const tag = /\d/.test(item[1]) ? "OL" : "UL";
      if (open?.tagName !== tag) {
        open = make(tag, { dir: "auto" });
        if (tag === "OL") open.start = parseInt(item[1]);
        blocks.push(open);
      }
      open.append(make("li", {}, ...renderInline(item[2])));
    } else if (!line.trim()) {
      open = null;
    } else {
      if (open?.tagName !== "P") blocks.push((open = make("p", { dir: "auto" })));
      else open.append("\n");
      open.append(...renderInline(line));
    }
  }
  return blocks;
}

function renderInline(text) {
  return text.split(/((?<!`)`[^`]+`(?!`)|(?<!`)``(?!`).+?(?<!`)``(?!`)|\*\*[^*]+\*\*)/).map((part) => {
    const ticks = part.length > 2 && part.match(/^(``?).+\1$/s)?.[1];
    if (ticks) return make("code", {}, part.slice(ticks.length, -ticks.length));
    if (part.length > 4 && part.startsWith("**") && part.endsWith("**")) return make("strong", {}, part.slice(2, -2));
    return part;
  });
}
