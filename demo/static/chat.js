// Each paragraph of a conversation has the direction of its first letter. Gradio gives all of them one.

const BLOCKS = ":is(p, ul, ol, blockquote, table, h1, h2, h3, h4, h5, h6):not([dir])";

new MutationObserver(() => {
  document.querySelectorAll(`.message ${BLOCKS}`).forEach((block) => (block.dir = "auto"));
}).observe(document, { childList: true, subtree: true });
