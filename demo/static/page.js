// Changes to the behaviour of Gradio's page.
{
  // The Chat page is loaded when its tab is first seen. Gradio knows under which prefix a proxy serves it.
  const load = new IntersectionObserver((seen) => {
    for (const { target, isIntersecting } of seen) {
      if (isIntersecting && !target.src) target.src = `${window.gradio_config.root.replace(/\/$/, "")}/chat/`;
    }
  });
  const frames = new MutationObserver(() => document.querySelectorAll("iframe[data-chat]").forEach((frame) => load.observe(frame)));
  frames.observe(document, { childList: true, subtree: true });

  // Each paragraph takes its text direction from its first letter. Gradio sets one direction for all.
  const blocks = ".message :is(p, ul, ol, blockquote, table, h1, h2, h3, h4, h5, h6):not([dir])";
  new MutationObserver(() => document.querySelectorAll(blocks).forEach((block) => (block.dir = "auto"))).observe(document, {
    childList: true,
    subtree: true,
  });

  // Upload files of other types too, because the server's error says what the file is. Gradio's own error names only
  // the MIME type.
  const isPicture = (file) => file.type.startsWith("image/");
  const asPictures = (files) => {
    const transfer = new DataTransfer();
    for (const file of files) {
      transfer.items.add(isPicture(file) ? file : new File([file], file.name, { type: "image/unknown" }));
    }
    return transfer;
  };
  const isOther = (event, files) => event.target.closest?.(".pictures") && files && ![...files].every(isPicture);
  const onChange = (event) => {
    const input = event.target;
    if (isOther(event, input.files)) input.files = asPictures(input.files).files;
  };
  const onDrop = (event) => {
    const { target, dataTransfer } = event;
    if (!isOther(event, dataTransfer?.files)) return;
    event.preventDefault();
    event.stopPropagation();
    const dropped = { bubbles: true, cancelable: true, dataTransfer: asPictures(dataTransfer.files) };
    target.dispatchEvent(new DragEvent("drop", dropped));
  };
  addEventListener("change", onChange, { capture: true });
  addEventListener("drop", onDrop, { capture: true });
}
