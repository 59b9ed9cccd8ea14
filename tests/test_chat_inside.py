"""Pictures of the Chat page, what it shows of the model's inside, and the same answer from elsewhere."""

from __future__ import annotations

import base64
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from chat_site import EXAMPLES, SHAPES, Visitor, about, chat_app, said, serve_chat
from demo_site import CHROMIUM
from playwright.sync_api import Browser, Route, expect

import gemma_tpu
from demo.auth import BasicAuth
from gemma_tpu.cli.main import main

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install Debian's `chromium`, or set CHROMIUM")


def test_pictures_stand_where_the_text_says(visitor: Visitor, chat_model: gemma_tpu.Model) -> None:
    other = EXAMPLES / "word.png"
    page = visitor.page
    page.set_input_files(".composer input[multiple]", [SHAPES, other])
    expect(page.locator(".composer .attached")).to_have_count(2)
    page.fill(".composer textarea", "First: ")
    page.locator(".composer .insert").nth(1).click()
    page.locator(".composer textarea").press("End")
    page.keyboard.type(" What is it?")
    page.keyboard.press("Enter")
    shown = [
        {"type": "image", "image": SHAPES},
        {"type": "text", "text": "First: "},
        {"type": "image", "image": other},
        {"type": "text", "text": " What is it?"},
    ]
    expect(visitor.answers).to_have_count(1)
    assert visitor.ended() == chat_model.generate([{"role": "user", "content": shown}]).text


def test_tokens_and_going_on_from_another(
    visitor: Visitor, chat_model: gemma_tpu.Model, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    question = "What is in the picture?"
    asked = about(question, SHAPES)
    answer = visitor.ask(question, SHAPES)
    visitor.press("tokens")
    tokens = visitor.answers.locator(".token")
    expect(tokens.first).to_be_visible()
    assert "".join(tokens.all_inner_texts()).strip() == answer
    expected = chat_model.generate(asked, logprobs=5)
    tokens.nth(2).click()
    rows = visitor.answers.locator(".alternatives li")
    top = expected.logprobs[2].top
    assert rows.count() == len(top)
    assert f"{100 * 2.718281828459045 ** top[0][1]:.0f} %" in rows.first.inner_text()
    other = next(i for i in range(rows.count()) if rows.nth(i).get_by_role("button").count())
    before = "".join(tokens.all_inner_texts()[:2])
    chosen = rows.nth(other).locator("code").inner_text().replace("·", " ")
    rows.nth(other).get_by_role("button").click()
    expect(visitor.answers.locator(".versions")).to_contain_text("2/2")
    begun = before + chosen
    rest = chat_model.generate([*asked, {"role": "assistant", "content": begun}], continue_final=True).text
    assert visitor.ended() == (begun + rest).strip()
    assert re.search(r"from the cache", visitor.answers.locator(".state").inner_text())
    whole = visitor.answer
    visitor.press("reproduce")
    dialog = visitor.page.locator("dialog.programs")
    expect(dialog).to_contain_text(said("only_rest"))
    monkeypatch.chdir(SHAPES.parent)
    program = dialog.locator("pre").first.inner_text().replace("picture-1.png", SHAPES.name)
    monkeypatch.setattr(gemma_tpu, "load", lambda checkpoint: chat_model)
    exec(program, {})
    assert capsys.readouterr().out.strip() == whole


def test_large_photos_are_made_smaller(visitor: Visitor, tmp_path: Path) -> None:
    """So that the server takes as many as it takes pictures, and each of them; a small one stays as it is."""
    noise = np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), dtype=np.uint8)
    PIL.Image.fromarray(noise).save(tmp_path / "photo.png")  # 9 MB
    PIL.Image.new("RGB", (8100, 8000), "red").save(tmp_path / "scan.png")  # 65 million pixels, 200 kB
    visitor.ask("What is in the last picture?", tmp_path / "photo.png", tmp_path / "scan.png", SHAPES)
    kept = {
        picture["name"]: picture["size"]
        for picture in visitor.page.evaluate(
            """async () => (await (await import("./static/store.js")).all("pictures"))
                .map(({ name, blob }) => ({ name, size: blob.size }))"""
        )
    }
    assert kept["shapes.png"] == SHAPES.stat().st_size
    assert kept["photo.png"] < 2_500_000  # noise is larger than any photo
    assert kept["scan.png"] < (tmp_path / "scan.png").stat().st_size


def test_pages_of_a_pdf_and_what_is_no_picture(visitor: Visitor, tmp_path: Path) -> None:
    from PIL import Image

    pages = [Image.open(EXAMPLES / name).convert("RGB").resize((384, 288)) for name in ("shapes.png", "word.png")]
    pdf = tmp_path / "two.pdf"
    pages[0].save(pdf, save_all=True, append_images=pages[1:])
    page = visitor.page
    page.set_input_files(".composer input[multiple]", pdf)
    expect(page.locator(".composer .attached")).to_have_count(2)
    expect(page.locator(".composer img.thumbnail").first).to_have_js_property("naturalWidth", 1792)
    assert "red circle" in visitor.ask("What is in the first picture?")
    (tmp_path / "notes.txt").write_text("words")
    page.set_input_files(".composer input[multiple]", tmp_path / "notes.txt")
    expect(page.locator(".note .notice")).to_contain_text("notes.txt")
    (tmp_path / "bad.pdf").write_bytes(b"%PDF-1.4 nothing")
    page.set_input_files(".composer input[multiple]", tmp_path / "bad.pdf")
    expect(page.locator(".note .notice")).to_contain_text("bad.pdf")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    drawing = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="64" height="32"><rect width="64" height="32" fill="red"/></svg>'
    )
    (tmp_path / "drawing.svg").write_text(drawing)
    (tmp_path / "picture.txt").write_bytes(SHAPES.read_bytes())
    page.set_input_files(".composer input[multiple]", [tmp_path / n for n in ("bad.png", "drawing.svg", "picture.txt")])
    expect(page.locator(".note .notice")).to_contain_text("bad.png")
    expect(page.locator(".composer .attached")).to_have_count(2)  # those that are pictures
    expect(page.locator(".composer img.thumbnail").first).to_have_js_property("naturalWidth", 896)
    assert visitor.ask("What is it?")


def test_a_pdf_with_a_password(visitor: Visitor, tmp_path: Path) -> None:
    """Not one that any program wrote: its key fits no password, so that it asks for one."""
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 90 90] >>",
        b"<< /Filter /Standard /V 1 /R 2 /P -4 /O <" + b"12" * 32 + b"> /U <" + b"34" * 32 + b"> >>",
    ]
    file, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(file))
        file += b"%d 0 obj\n%b\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    trailer = b"<< /Size 5 /Root 1 0 R /Encrypt 4 0 R /ID [<00><00>] >>"
    start = len(file)
    file += b"xref\n0 5\n0000000000 65535 f \n%btrailer\n%b\nstartxref\n%d\n%%%%EOF\n" % (table, trailer, start)
    (tmp_path / "secret.pdf").write_bytes(file)
    visitor.page.set_input_files(".composer input[multiple]", tmp_path / "secret.pdf")
    expect(visitor.page.locator(".note .notice")).to_contain_text(
        "secret.pdf cannot be read as a PDF: No password given"
    )
    expect(visitor.page.locator(".composer .attached")).to_have_count(0)


PASTE = """async ([name, base64, text]) => {
  const transfer = new DataTransfer();
  const bytes = Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
  transfer.items.add(new File([bytes], name, { type: "image/png" }));
  if (text) transfer.setData("text/plain", text);
  const event = new ClipboardEvent("paste", { bubbles: true, cancelable: true, clipboardData: transfer });
  document.querySelector(".composer textarea").dispatchEvent(event);
  return event.defaultPrevented;
}"""


def test_a_pasted_picture(visitor: Visitor) -> None:
    """The text beside it, as of a cell that a spreadsheet copies, is pasted by the browser."""
    encoded = base64.b64encode(SHAPES.read_bytes()).decode()
    for number, text in enumerate(("", "a cell"), 1):
        assert visitor.page.evaluate(PASTE, ["shapes.png", encoded, text]) == (not text)
        expect(visitor.page.locator(".composer .attached")).to_have_count(number)
    assert "red circle" in visitor.ask("What is in the first picture?")


def test_a_picture_from_the_camera(browser: Browser, chat: str) -> None:
    visitor = Visitor(browser, chat, permissions=["camera"])
    page, dialog = visitor.page, visitor.page.locator("dialog.camera")
    for button, count in (("cancel", 0), ("shoot", 1)):
        page.get_by_role("button", name=said("camera"), exact=True).click()
        expect(dialog.locator("video")).not_to_have_js_property("videoWidth", 0)
        dialog.get_by_role("button", name=said(button)).click()
        expect(dialog).to_be_hidden()
        expect(page.locator(".composer img.thumbnail")).to_have_count(count)
    expect(page.locator(".composer img.thumbnail")).not_to_have_js_property("naturalWidth", 0)
    assert visitor.ask("What is in the picture?")
    visitor.close()
    visitor = Visitor(browser, chat)  # who refuses it
    visitor.page.get_by_role("button", name=said("camera"), exact=True).click()
    expect(visitor.page.locator(".note .notice")).to_contain_text(said("no_camera", error="")[:20])
    visitor.close()


RECORD = """async () => {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 64;
  const context = canvas.getContext("2d");
  const recorder = new MediaRecorder(canvas.captureStream(20), { mimeType: "video/webm" });
  const chunks = [];
  recorder.ondataavailable = ({ data }) => chunks.push(data);
  const done = new Promise((resolve) => (recorder.onstop = resolve));
  recorder.start();
  for (let i = 0; i < 20; i++) {
    context.fillStyle = i < 10 ? "red" : "blue";
    context.fillRect(0, 0, 64, 64);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  recorder.stop();
  await done;
  const transfer = new DataTransfer();
  transfer.items.add(new File(chunks, "clip.webm", { type: "video/webm" }));
  document.dispatchEvent(new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: transfer }));
}"""


def test_frames_of_a_video_that_was_dropped(visitor: Visitor) -> None:
    visitor.page.evaluate(RECORD)
    dialog = visitor.page.locator("dialog.choose")
    dialog.locator("input").fill("4")
    dialog.get_by_role("button", name=said("take")).click()
    expect(visitor.page.locator(".composer .attached")).to_have_count(4)


def test_the_same_answer_from_elsewhere(
    visitor: Visitor, chat_model: gemma_tpu.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """What the page gives for Python, the command line and curl is run, and gives the page's answer."""
    visitor.set(temperature=1.2, top_k=40, seed=3, max_tokens=30, system='- say "it" in $1 `word`.')
    answer = visitor.ask('What\'s in the picture? 100% "sure" $HOME `x` \\n', SHAPES)
    visitor.press("reproduce")
    dialog = visitor.page.locator("dialog.programs")
    with visitor.page.expect_download() as download:
        dialog.get_by_role("button", name="picture-1.png").click()
    download.value.save_as(tmp_path / "picture-1.png")
    python, command, curl = dialog.locator("pre").all_inner_texts()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gemma_tpu, "load", lambda checkpoint: {"gemma3-demo": chat_model}[checkpoint])
    exec(python, {})
    assert capsys.readouterr().out.strip() == answer
    done = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    address = f"{visitor.url.removesuffix('chat/')}v1"
    assert address in curl
    assert json.loads(done.stdout)["choices"][0]["message"]["content"].strip() == answer
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert main([*shlex.split(command.replace(" -- ", " --max-context 1024 -- "))[1:]]) == 0
    assert capsys.readouterr().out.strip() == answer


def test_curl_says_whose_password_it_needs(browser: Browser, chat_model: gemma_tpu.Model) -> None:
    loader = gemma_tpu.Loader("gemma3-demo", lambda progress: chat_model)
    loader.start()
    assert loader.wait(600).phase == "ready"
    app = chat_app(loader)
    app.add_middleware(BasicAuth, accounts=["ann b:s cret", "李:密码"])
    with serve_chat(app) as url:
        for name, password in (("ann b", "s cret"), ("李", "密码")):
            other = Visitor(browser, url, http_credentials={"username": name, "password": password})
            answer = other.ask("What is 12 + 30?")
            other.press("reproduce")
            curl = other.page.locator("dialog.programs pre").last.inner_text()
            assert f" -u '{name}' " in curl
            asked = curl.replace(f"-u '{name}'", f"-u '{name}:{password}'")  # as typed when it asks
            done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True)
            assert json.loads(done.stdout)["choices"][0]["message"]["content"].strip() == answer
            other.close()


def test_what_is_inside(visitor: Visitor, chat_model: gemma_tpu.Model) -> None:
    visitor.ask("What is in the picture?", SHAPES)
    visitor.page.click("[data-drawer=inside]")
    panel = visitor.page.locator(".panel")
    expect(panel.locator("[data-section=pictures] img")).to_have_js_property("naturalWidth", 896)
    expect(panel.locator("[data-section=sequence] .chip").first).to_have_text("<bos>")
    expect(panel.locator("[data-section=sequence] .soft")).to_contain_text("256")
    context = panel.locator("[data-section=context] dd").all_inner_texts()
    assert context[1] == "256"
    used = chat_model.generate(about("What is in the picture?", SHAPES)).usage
    assert int(context[0]) == used.prompt_tokens + used.completion_tokens - 256
    expect(panel.locator("[data-section=machine]")).to_contain_text("CPU", ignore_case=True)


def test_what_is_attached_counts(visitor: Visitor) -> None:
    """In the meter before it is sent: at least its soft tokens."""
    foot = visitor.page.locator(".context")
    expect(foot).to_contain_text(re.compile(r"^0 of"))
    visitor.page.set_input_files(".composer input[multiple]", [SHAPES, SHAPES])
    expect(foot).to_contain_text(re.compile(r"^512 of"))
    expect(foot.locator(".meter")).to_have_attribute("aria-label", re.compile("attached 512"))
    visitor.page.get_by_role("button", name=re.compile(said("remove"))).first.click()
    expect(foot).to_contain_text(re.compile(r"^256 of"))
    visitor.ask("What is in the picture?")
    expect(foot.locator(".meter")).not_to_have_attribute("aria-label", re.compile("attached"))
    expect(foot.locator(".meter .pictures")).to_have_attribute("title", "pictures: 256")


def test_where_the_model_looked(visitor: Visitor, chat_model: gemma_tpu.Model) -> None:
    answer = visitor.ask("What is in the picture?", SHAPES)
    assert answer.startswith("A red circle, a blue star")
    visitor.press("tokens")
    tokens = visitor.answers.locator(".token")
    star = next(i for i, text in enumerate(tokens.all_inner_texts()) if text.strip() == "star")
    before = "".join(tokens.all_inner_texts()[:star])
    tokens.nth(star).click()
    visitor.page.get_by_role("button", name=said("look")).click()
    dialog = visitor.page.locator("dialog.attention")
    expect(dialog.locator("h2")).to_have_text(said("looked", token="star"))
    messages = [*about("What is in the picture?", SHAPES), {"role": "assistant", "content": before}]
    heads = chat_model.attention(messages, positions=[-1], continue_final=True).on_image()[0]  # [L, N, 16, 16]
    layer, head = np.unravel_index(heads.max(axis=(2, 3)).argmax(), heads.shape[:2])
    expect(dialog.locator("option:checked")).to_have_text(said("sharpest", layer=layer + 1, head=head + 1))
    pixels = "c => [...c.getContext('2d').getImageData(0, 0, 16, 16).data].filter((_, i) => i % 4 === 3)"
    for choice, square in (
        (None, heads[layer, head]),
        ("1", heads[1].mean(axis=0)),
        ("mean", heads.mean(axis=(0, 1))),
    ):
        if choice:
            dialog.locator("select").select_option(choice)
        drawn = np.reshape(dialog.locator("canvas").evaluate(pixels), (16, 16))
        np.testing.assert_allclose(drawn, 205 * (1 - np.sqrt(square / square.max())), atol=5)
        shown = float(dialog.locator("[role=status]").inner_text().split(" %")[0])
        assert shown == pytest.approx(100 * square.sum(), abs=0.6)
    visitor.page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    visitor.page.keyboard.press("Escape")
    expect(visitor.answers.locator(".token")).to_have_count(0)


def test_who_has_left_an_answer_is_not_shown_where_the_model_looked(visitor: Visitor) -> None:
    """It takes a while the first time."""
    visitor.ask("What is in the picture?", SHAPES)
    visitor.press("tokens")
    tokens = visitor.answers.locator(".token")
    tokens.first.click()
    asked: list[Route] = []
    visitor.page.route("**/attention", lambda route: asked.append(route))
    look = visitor.page.locator(".alternatives > button")
    new = visitor.page.get_by_role("button", name=said("new"), exact=True)
    for leave in (None, tokens.nth(1), new):
        look.click()
        expect(look).to_have_text(said("looking"))
        expect(look).to_have_attribute("aria-busy", "true")
        look.click()  # changes nothing
        if leave:
            leave.click()
        (request,) = asked
        asked.clear()
        with visitor.page.expect_response("**/seen") as seen:
            request.continue_()
        seen.value.finished()
        visitor.page.wait_for_timeout(300)
        expect(visitor.page.locator("dialog.attention")).to_have_count(int(leave is None))
        if leave is None:
            visitor.page.keyboard.press("Escape")
            expect(look).to_be_focused()
            expect(look).to_have_text(said("look"))


def test_the_picture_that_the_model_looked_at_is_shown(visitor: Visitor) -> None:
    """Of several that do not fit into the dialog."""
    visitor.page.set_viewport_size({"width": 390, "height": 600})
    visitor.ask("What is in the picture?", EXAMPLES / "word.png", EXAMPLES / "word.png", SHAPES)
    visitor.press("tokens")
    tokens = visitor.answers.locator(".token")
    most = []
    for nth in range(min(6, tokens.count())):
        tokens.nth(nth).click()
        visitor.page.get_by_role("button", name=said("look")).click()
        figures = visitor.page.locator("dialog.attention figure")
        light = "c => [...c.getContext('2d').getImageData(0, 0, 16, 16).data].filter((a, i) => i % 4 === 3)"
        shares = [np.square(205 - np.array(figures.nth(i).locator("canvas").evaluate(light))).sum() for i in range(3)]
        most.append(int(np.argmax(shares)))
        expect(figures.nth(most[-1])).to_be_in_viewport()
        visitor.page.keyboard.press("Escape")
    assert max(most) > 0  # of the first picture it would be so anyhow
