// Photos and Captions: photos are dropped on the node, captioned beside each picture, and what is to be mended is told
// there. The node's only value is the list, as JSON in its widget `photos`.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const NODE = "DCOPhotos";
const FOLDER = "dco_photos";
const ROW_HEIGHT = 92;
const LEAST_HEIGHT = 150;
const MOST_HEIGHT = 620;

const STYLE = `
.dco-photos { box-sizing: border-box; display: flex; flex-direction: column; gap: 6px; overflow-y: auto; padding: 6px;
  border-radius: 4px; background: var(--comfy-input-bg); color: var(--input-text); font: 12px/15px Inter, Arial, sans-serif; }
.dco-photos.dco-over { outline: 2px dashed var(--p-primary-color, #4b9fff); }
.dco-photos-row { display: grid; grid-template-columns: 84px 1fr 18px; gap: 6px; min-height: ${ROW_HEIGHT - 8}px; }
.dco-photos-row img { width: 84px; height: 84px; object-fit: cover; border-radius: 3px; }
.dco-photos-row textarea { width: 100%; min-height: 52px; box-sizing: border-box; resize: none; border: 0; border-radius: 3px;
  padding: 4px; background: var(--comfy-menu-bg); color: inherit; font: inherit; }
.dco-photos-notes { color: var(--warning-text, #d9a441); overflow-wrap: anywhere; }
.dco-photos button { border: 0; border-radius: 3px; background: var(--comfy-menu-bg); color: inherit; cursor: pointer;
  font: inherit; }
.dco-photos-add { padding: 10px; flex: 0 0 auto; }
`;

function rowsOf(widget) {
  try {
    const rows = JSON.parse(widget.value || "[]");
    return Array.isArray(rows) ? rows : [];
  } catch {
    return [];
  }
}

function source(file) {
  const at = file.lastIndexOf("/");
  const where = { filename: file.slice(at + 1), subfolder: file.slice(0, Math.max(at, 0)), type: "input" };
  return api.apiURL(`/view?${new URLSearchParams(where)}`);
}

async function upload(file) {
  const body = new FormData();
  body.append("image", file);
  body.append("subfolder", FOLDER);
  const answer = await api.fetchApi("/upload/image", { method: "POST", body });
  if (answer.status !== 200) throw new Error(`${file.name}: ${answer.status} ${answer.statusText}`);
  const { name, subfolder } = await answer.json();
  return subfolder ? `${subfolder}/${name}` : name;
}

class Photos {
  constructor(node, value) {
    this.node = node;
    this.value = value;
    this.notes = {};
    this.root = document.createElement("div");
    this.root.className = "dco-photos";
    this.root.addEventListener("wheel", (event) => event.stopPropagation());
    for (const kind of ["dragover", "dragleave", "drop"]) {
      this.root.addEventListener(kind, (event) => this.drag(event));
    }
  }

  get height() {
    return Math.min(MOST_HEIGHT, LEAST_HEIGHT - ROW_HEIGHT + ROW_HEIGHT * Math.max(1, rowsOf(this.value).length));
  }

  drag(event) {
    event.preventDefault();
    event.stopPropagation();
    this.root.classList.toggle("dco-over", event.type === "dragover");
    if (event.type === "drop") this.add(event.dataTransfer.files);
  }

  /** Upload pictures and put them at the end of the list. */
  async add(files) {
    for (const file of [...files].filter(({ type }) => type.startsWith("image/"))) {
      try {
        const name = await upload(file);
        this.write([...rowsOf(this.value), { file: name, caption: "" }]);
      } catch (error) {
        app.extensionManager.toast.add({ severity: "error", summary: this.node.title, detail: String(error), life: 8000 });
      }
    }
  }

  write(rows, draw = true) {
    this.value.value = JSON.stringify(rows);
    this.node.graph?.change?.();
    if (draw) this.draw();
  }

  draw() {
    const rows = rowsOf(this.value);
    this.root.replaceChildren(...rows.map((row, i) => this.row(row, i)), this.button(rows.length));
    this.root.style.minHeight = `${this.height}px`;
    const least = this.node.computeSize()[1];
    if (this.node.size[1] < least) this.node.setSize([this.node.size[0], least]);
    this.node.graph?.setDirtyCanvas(true, true);
  }

  row({ file, caption }, i) {
    const row = document.createElement("div");
    row.className = "dco-photos-row";
    const text = Object.assign(document.createElement("textarea"), {
      value: caption ?? "",
      placeholder: "Subject as <dog>, background, view, style. Empty: Run drafts it.",
    });
    text.addEventListener("input", () => {
      const rows = rowsOf(this.value);
      rows[i].caption = text.value;
      this.write(rows, false);
    });
    const notes = Object.assign(document.createElement("div"), { className: "dco-photos-notes" });
    const { advice = [], of } = this.notes[i] ?? {};
    notes.textContent = of === (caption ?? "") ? advice.join(" ") : "";
    const middle = document.createElement("div");
    middle.append(text, notes);
    const remove = Object.assign(document.createElement("button"), { textContent: "×", title: "Remove" });
    remove.addEventListener("click", () => {
      this.notes = {};
      this.write(rowsOf(this.value).filter((_, other) => other !== i));
    });
    row.append(Object.assign(document.createElement("img"), { src: source(file), title: file }), middle, remove);
    return row;
  }

  button(count) {
    const button = document.createElement("button");
    button.className = "dco-photos-add";
    button.textContent = count ? "Drop more photos here, or choose files" : "Drop 1 to 20 photos here, or choose files";
    button.addEventListener("click", () => {
      const chooser = Object.assign(document.createElement("input"), { type: "file", accept: "image/*", multiple: true });
      chooser.addEventListener("change", () => this.add(chooser.files));
      chooser.click();
    });
    return button;
  }

  /** What a run has made of the list: drafts where captions were empty, and what is to be mended. */
  show({ dco_photos: texts, dco_captions: entries = [] }) {
    if (!texts) return;
    const rows = rowsOf(this.value);
    if (texts.length !== rows.length) return; // the list has changed since
    rows.forEach((row, i) => (row.caption ||= texts[i]));
    this.notes = Object.fromEntries(
      entries.map(({ image, caption, notes }) => [image, { of: caption, advice: notes.map(({ advice }) => advice) }]),
    );
    this.write(rows);
  }
}

app.registerExtension({
  name: "ComfyUI-DCO.Photos",
  setup() {
    document.head.append(Object.assign(document.createElement("style"), { textContent: STYLE }));
  },
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.name !== NODE) return;
    const { onNodeCreated, onExecuted, onConfigure, onDragDrop } = nodeType.prototype;
    nodeType.prototype.onNodeCreated = function () {
      onNodeCreated?.apply(this, arguments);
      const value = this.widgets.find((widget) => widget.name === "photos");
      const photos = (this.dcoPhotos = new Photos(this, value));
      const gallery = this.addDOMWidget("gallery", "dcoPhotos", photos.root, {
        serialize: false,
        hideOnZoom: false,
        margin: 10,
        getMinHeight: () => photos.height,
        getMaxHeight: () => MOST_HEIGHT,
      });
      gallery.serialize = false;
      photos.draw();
    };
    nodeType.prototype.onConfigure = function () {
      onConfigure?.apply(this, arguments);
      this.dcoPhotos.draw();
    };
    nodeType.prototype.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      this.dcoPhotos.show(output ?? {});
    };
    nodeType.prototype.onDragOver = () => true;
    nodeType.prototype.onDragDrop = function (event) {
      if (!event?.dataTransfer?.files?.length) return onDragDrop?.apply(this, arguments) ?? false;
      this.dcoPhotos.add(event.dataTransfer.files);
      return true;
    };
  },
});
