// Files as pictures: pictures as they are, pages of a PDF, frames of a video, the camera.

import { make, randomId } from "./dom.js";
import { put } from "./store.js";
import { say } from "./words.js";

const DRAWING_SIDE = 896; // pixels of the longer side of an SVG
const PAGE_SIDE = 1792; // pixels of the longer side of a page: twice what the model sees of it at once
export const MOST = 16; // pictures of a request, which the server takes
const LARGE = 1_400_000; // bytes of a picture, so that the server takes as many of them as MOST in base64
const MANY = 64_000_000; // pixels of a picture, which the server takes
const SIDES = [3584, 2688, 1792]; // pixels of the longer side of one that was larger: four, three and two crops

class Unusable extends Error {}

// Stores `files`, and hands the ids of their pictures to `attach`; returns what was wrong with the others.
// `room`: how many pictures more there may be.
export async function addFiles(files, room, { attach, chooseFrames, busy }) {
  const problems = [];
  for (const file of files) {
    try {
      if (room < 1) throw new Unusable(say("too_many", { most: MOST }));
      const ids = await picturesIn(file, room, chooseFrames, busy);
      room -= ids.length;
      attach(ids);
    } catch (error) {
      const { name } = file;
      problems.push(error instanceof Unusable ? error.message : say("not_added", { name, error: error.message }));
    }
  }
  return [...new Set(problems)];
}

async function picturesIn(file, room, chooseFrames, busy) {
  const kind = await kindOf(file);
  if (kind === "pdf") return pages(file, room, busy);
  if (kind === "video") return frames(file, room, chooseFrames);
  return [await keep(await shownPicture(file, kind), file.name)];
}

// A picture as the server takes it: drawings are made of pixels first. HEIC and TIFF it reads, but few browsers do.
async function shownPicture(file, kind) {
  if (file.type === "image/svg+xml" || /\.svg$/i.test(file.name)) return drawn(file);
  try {
    (await createImageBitmap(file)).close();
  } catch {
    if (kind !== "unseen") throw new Unusable(say("not_a_picture", { name: file.name }));
  }
  return file;
}

// An SVG as a PNG.
async function drawn(file) {
  const url = URL.createObjectURL(new Blob([file], { type: "image/svg+xml" }));
  try {
    const image = make("img", { src: url });
    await image.decode();
    const scale = DRAWING_SIDE / Math.max(image.naturalWidth || 1, image.naturalHeight || 1);
    const [width, height] = [image.naturalWidth || 1, image.naturalHeight || 1].map((side) => Math.round(side * scale));
    const canvas = make("canvas", { width, height });
    const context = canvas.getContext("2d");
    context.fillStyle = "white";
    context.fillRect(0, 0, width, height);
    context.drawImage(image, 0, 0, width, height);
    return await blobOf(canvas);
  } catch {
    throw new Unusable(say("not_a_picture", { name: file.name }));
  } finally {
    URL.revokeObjectURL(url);
  }
}

export async function keep(blob, name = "") {
  const id = randomId();
  await put("pictures", { id, blob: await fitting(blob), name, created: Date.now() });
  return id;
}

// A picture that can be sent with others; smaller if it is large, unless the browser cannot show it.
async function fitting(blob) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob);
  } catch {
    return blob;
  }
  let smaller = blob;
  for (const side of blob.size > LARGE || bitmap.width * bitmap.height > MANY ? SIDES : []) {
    const scale = Math.min(1, side / Math.max(bitmap.width, bitmap.height));
    const [width, height] = [bitmap.width, bitmap.height].map((size) => Math.max(1, Math.round(size * scale)));
    const canvas = make("canvas", { width, height });
    const context = canvas.getContext("2d");
    context.fillStyle = "white"; // behind what can be seen through
    context.fillRect(0, 0, width, height);
    context.drawImage(bitmap, 0, 0, width, height);
    smaller = await blobOf(canvas, "image/jpeg", 0.9);
    if (smaller.size <= LARGE) break;
  }
  bitmap.close();
  return smaller;
}

// By its first bytes: "pdf", "video", "unseen" for pictures that the browser may not show, "picture" for all else.
async function kindOf(file) {
  const head = new TextDecoder("latin1").decode(await file.slice(0, 16).arrayBuffer());
  if (head.startsWith("%PDF-")) return "pdf";
  if (/^(II\*\0|MM\0\*)/.test(head)) return "unseen"; // TIFF
  const brand = head.slice(4, 8) === "ftyp" ? head.slice(8, 12) : "";
  if (["heic", "heix", "heim", "heis", "hevc", "mif1", "msf1", "avif"].includes(brand)) return "unseen";
  return brand || file.type.startsWith("video/") ? "video" : "picture";
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

const blobOf = (canvas, type = "image/png", quality = 1) =>
  new Promise((resolve) => canvas.toBlob(resolve, type, quality));

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
