"""Photos dropped in the browser: uploaded, captioned beside the picture, drafted and checked by a run, and kept."""

from __future__ import annotations

import base64
import io
import json

from frontend_page import open_prompt, run, says
from PIL import Image

from devtools import browser

ROWS = "() => JSON.parse(window.app.graph._nodes[0].widgets.find(w => w.name === 'photos').value || '[]')"
CAPTION = "a photo of a <dog> sitting on a ledge in front of a red wall, close-up view, macro style"


def drop(page, *colours):
    """Drop pictures on the gallery, as from a file manager."""
    files = []
    for colour in colours:
        data = io.BytesIO()
        Image.new("RGB", (80, 64), colour).save(data, "PNG")
        files.append([f"{colour}.png", base64.b64encode(data.getvalue()).decode()])
    page.evaluate(
        """async (files) => {
             const transfer = new DataTransfer();
             for (const [name, data] of files) {
               const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
               transfer.items.add(new File([bytes], name, {type: 'image/png'}));
             }
             const target = document.querySelector('.dco-photos');
             target.dispatchEvent(new DragEvent('drop', {dataTransfer: transfer, bubbles: true, cancelable: true}));
           }""",
        files,
    )
    page.wait_for_function(f"() => ({ROWS})().length >= {len(colours)}")


def test_photos_are_dropped_captioned_and_checked(host, nodes):
    page = nodes
    open_prompt(
        page, {"1": {"class_type": "DCOPhotos", "inputs": {"photos": "", "kind": "subject", "name": "dog"}}}
    )
    drop(page, "teal", "red", "gold")
    rows = page.evaluate(ROWS)
    assert [row["file"].split("/")[0] for row in rows] == ["dco_photos"] * 3
    assert all((host.base_dir / "input" / row["file"]).is_file() for row in rows)
    assert page.locator(".dco-photos-row img").count() == 3
    page.wait_for_function(
        "() => [...document.querySelectorAll('.dco-photos-row img')].every(i => i.naturalWidth === 80)"
    )
    page.locator(".dco-photos-row textarea").nth(0).fill(CAPTION)
    page.locator(".dco-photos-row textarea").nth(1).fill("a photo of sks dog")
    assert [row["caption"] for row in page.evaluate(ROWS)] == [CAPTION, "a photo of sks dog", ""]

    run(page, says("DCOPhotos", "Drafted 1 of 3 captions"))
    texts = [page.locator(".dco-photos-row textarea").nth(i).input_value() for i in range(3)]
    assert texts[:2] == [CAPTION, "a photo of sks dog"] and "<dog>" in texts[2]
    notes = [page.locator(".dco-photos-notes").nth(i).inner_text() for i in range(3)]
    assert notes[0] == "" and "sks" in notes[1] and notes[2]

    saved = page.evaluate("() => window.app.graph.serialize()")
    assert len(saved["nodes"][0]["widgets_values"]) == 3
    browser.load_workflow(page, saved)
    assert [row["caption"] for row in page.evaluate(ROWS)] == texts
    sent = page.evaluate("async () => (await window.app.graphToPrompt()).output['1'].inputs")
    assert set(sent) == {"photos", "kind", "name"} and len(json.loads(sent["photos"])) == 3

    page.locator(".dco-photos-row button").nth(1).click()
    assert [row["caption"] for row in page.evaluate(ROWS)] == [texts[0], texts[2]]
