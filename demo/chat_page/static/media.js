// Files as pictures: pictures as they are, pages of a PDF, frames of a video, the camera.

import { make, randomId } from "./dom.js";
import { put } from "./store.js";
import { say } from "./words.js";

const PAGE_SIDE = 1792; // pixels of the longer side of a page: twice what the model sees of it at once
export const MOST = 16; // pictures of a request, which the server takes

export class Unusable extends Error {}

// Stores `files` and returns the ids of their pictures. `room`: how many more there may be.
export async function addFiles(files, room, { chooseFrames, busy }) {
  const ids = [];
  for (const file of files) {
    const left = room - ids.length;
    if (left < 1) throw new Unusable(say("too_many", { most: MOST }));
    const kind = await kindOf(file);
    if (kind === "pdf") ids.push(...(await pages(file, left, busy)));
    else if (kind === "video") ids.push(...(await frames(file, left, chooseFrames)));
    else if (kind === "picture") ids.push(await keep(file, file.name));
    else throw new Unusable(say("not_a_picture", { name: file.name }));
  }
  return ids;
}

export async function keep(blob, name = "") {
  const id = randomId();
  await put("pictures", { id, blob, name, created: Date.now() });
  return id;
}

// By its first bytes where the name and type say nothing.
async function kindOf(file) {
  const head = new TextDecoder("latin1").decode(await file.slice(0, 16).arrayBuffer());
  if (head.startsWith("%PDF-")) return "pdf";
  if (file.type.startsWith("video/")) return "video";
  const brand = head.slice(4, 8) === "ftyp" ? head.slice(8, 12) : "";
  if (["heic", "heix", "mif1", "msf1", "avif"].includes(brand)) return "picture";
  if (brand) return "video";
  return file.type.startsWith("image/") || /\.(png|jpe?g|gif|webp|bmp|tiff?|heic|heif|avif)$/i.test(file.name)
    ? "picture"
    : "other";
}

async function pages(file, room, busy) {
  const pdfjs = await import("./vendor/pdf.min.mjs");
  pdfjs.GlobalWorkerOptions.workerSrc = new URL("vendor/pdf.worker.min.mjs", import.meta.url).href;
  let document;
  try {
    document = await pdfjs.getDocument({ data: await file.arrayBuffer(), isEvalSupported: false }).promise;
  } catch (error) {
    throw new Unusable(say("bad_pdf", { name: file.name, error: error.message }));
  }
  const count = Math.min(room, document.numPages);
  const ids = [];
  for (let number = 1; number <= count; number++) {
    busy(say("reading_page", { page: number, pages: count }));
    const page = await document.getPage(number);
    const whole = page.getViewport({ scale: 1 });
    const viewport = page.getViewport({ scale: PAGE_SIDE / Math.max(whole.width, whole.height) });
    const canvas = make("canvas", { width: Math.round(viewport.width), height: Math.round(viewport.height) });
    await page.render({ canvas, viewport, background: "white" }).promise;
    ids.push(await keep(await blobOf(canvas), `${file.name}, ${number}`));
  }
  if (document.numPages > count) busy(say("pages_left", { count, pages: document.numPages }), true);
  else busy("");
  return ids;
}

// Evenly spread frames of a video, as many as `choose` says.
async function frames(file, room, choose) {
  const video = make("video", { muted: true, playsInline: true, preload: "auto", src: URL.createObjectURL(file) });
  try {
    await new Promise((resolve, reject) => {
      video.onloadeddata = resolve;
      video.onerror = () => reject(new Unusable(say("bad_video", { name: file.name })));
    });
    const count = await choose(file.name, video.duration, room);
    const canvas = make("canvas", { width: video.videoWidth, height: video.videoHeight });
    const ids = [];
    for (let i = 0; i < count; i++) {
      const at = ((i + 0.5) / count) * video.duration;
      await seek(video, at);
      canvas.getContext("2d").drawImage(video, 0, 0);
      ids.push(await keep(await blobOf(canvas), `${file.name}, ${at.toFixed(1)} s`));
    }
    return ids;
  } finally {
    URL.revokeObjectURL(video.src);
  }
}

function seek(video, seconds) {
  return new Promise((resolve, reject) => {
    video.onseeked = resolve;
    video.onerror = () => reject(new Unusable(say("bad_video", { name: "" })));
    video.currentTime = seconds;
  });
}

const blobOf = (canvas) => new Promise((resolve) => canvas.toBlob(resolve, "image/png"));

// A picture from the camera of a machine, in a dialog; null if none was taken.
export async function takePicture() {
  const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  const video = make("video", { autoplay: true, playsInline: true, muted: true, srcObject: stream });
  const dialog = make("dialog", { class: "camera", "aria-label": say("camera") });
  const chosen = new Promise((resolve) => {
    const shoot = async () => {
      const canvas = make("canvas", { width: video.videoWidth, height: video.videoHeight });
      canvas.getContext("2d").drawImage(video, 0, 0);
      resolve(await blobOf(canvas));
      dialog.close();
    };
    const buttons = make(
      "div",
      { class: "buttons" },
      make("button", { type: "button", on: { click: () => dialog.close() } }, say("cancel")),
      make("button", { type: "button", class: "primary", on: { click: shoot } }, say("shoot")),
    );
    dialog.append(video, buttons);
    dialog.addEventListener("close", () => resolve(null));
  });
  document.body.append(dialog);
  dialog.showModal();
  try {
    const blob = await chosen;
    return blob && (await keep(blob, say("camera")));
  } finally {
    stream.getTracks().forEach((track) => track.stop());
    dialog.remove();
  }
}
