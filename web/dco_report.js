// What the nodes of this pack say, on the nodes: progress while one works, its report afterwards, its pictures, and
// errors. The host sends all of it; its frontend draws the ui text of few nodes, and pictures only at a node's foot.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const PACK = "DCO";
// The frontend writes the progress text of a node into the widget of this name, and makes one at the foot if there is
// none. So there is a single place, whichever of the two it comes from.
const WIDGET = "$$node-text-preview";
const ON_TOP = ["DCOLoRATrainer"]; // long nodes, whose foot is off the screen
const EMPTY = "What this node reports appears here.";
const MIN_HEIGHT = 56;
const MAX_HEIGHT = 180;
const PICTURE_HEIGHT = 160;
const LINE_HEIGHT = 15;
const CHARACTER_WIDTH = 6.2;

const STYLE = `
.dco-report { box-sizing: border-box; display: flex; flex-direction: column; gap: 4px; overflow: hidden; padding: 6px 8px;
  border-radius: 4px; background: var(--comfy-input-bg); color: var(--input-text); }
.dco-report-text { flex: 1 1 auto; min-height: 0; overflow-y: auto; white-space: pre-wrap; overflow-wrap: anywhere;
  font: 12px/${LINE_HEIGHT}px Inter, Arial, sans-serif; user-select: text; cursor: text; }
.dco-report-text:empty::before { content: "${EMPTY}"; opacity: 0.6; }
.dco-report-error { color: var(--error-text, #ff6b6b); }
.dco-report-pictures { flex: 0 0 auto; display: flex; flex-direction: column; gap: 4px; }
.dco-report-pictures > img { height: ${PICTURE_HEIGHT}px; width: 100%; object-fit: contain; }
`;

function addStyle() {
  const style = document.createElement("style");
  style.textContent = STYLE;
  document.head.append(style);
}

/** Height for all of the text at the node's width, without a layout: the element may not be on the page yet. */
function wholeHeight(node, report) {
  const columns = Math.max(20, (node.size[0] - 56) / CHARACTER_WIDTH);
  const lines = report.text.split("\n").reduce((sum, line) => sum + Math.max(1, Math.ceil(line.length / columns)), 0);
  return Math.max(MIN_HEIGHT, lines * LINE_HEIGHT + 14);
}

const picturesHeight = (report) => report.pictures.children.length * (PICTURE_HEIGHT + 4);
const heightOf = (node, report) => Math.min(MAX_HEIGHT, wholeHeight(node, report)) + picturesHeight(report);

/** The node grows to what it has to show, and never shrinks under the user's hand. */
function fit(node) {
  const report = node.dcoReport;
  report.root.style.minHeight = `${heightOf(node, report)}px`;
  report.root.style.maxHeight = `${wholeHeight(node, report) + picturesHeight(report)}px`; // what is free is others'
  const least = node.computeSize()[1];
  if (node.size[1] < least) node.setSize([node.size[0], least]);
  node.graph?.setDirtyCanvas(true, true);
}

function write(node, text, error = "") {
  const report = node.dcoReport;
  report.text = [error, text].filter(Boolean).join("\n\n");
  report.error = error;
  report.element.textContent = error ? text && `\n\n${text}` : text;
  if (error) {
    const sentence = document.createElement("span");
    sentence.className = "dco-report-error";
    sentence.textContent = error;
    report.element.prepend(sentence);
  }
  fit(node);
}

function showPictures(node, sources) {
  const { pictures } = node.dcoReport;
  for (const { src } of pictures.children) if (src.startsWith("blob:")) URL.revokeObjectURL(src);
  pictures.replaceChildren(...sources.map((source) => Object.assign(document.createElement("img"), { src: source })));
  fit(node);
}

function addReport(node) {
  const root = document.createElement("div");
  const element = document.createElement("div");
  const pictures = document.createElement("div");
  root.className = "dco-report";
  element.className = "dco-report-text";
  element.dataset.captureWheel = "true";
  element.addEventListener("wheel", (event) => event.stopPropagation());
  pictures.className = "dco-report-pictures";
  root.append(element, pictures);
  node.dcoReport = { root, element, pictures, text: "" };
  const widget = node.addDOMWidget(WIDGET, "dcoReport", root, {
    serialize: false,
    hideOnZoom: false,
    hideInPanel: true,
    read_only: true,
    margin: 10,
    getMinHeight: () => heightOf(node, node.dcoReport) + 4,
    getMaxHeight: () => wholeHeight(node, node.dcoReport) + picturesHeight(node.dcoReport) + 4,
    getValue: () => node.dcoReport.text,
    setValue: (text) => write(node, typeof text === "string" ? text : ""),
  });
  widget.serialize = false;
  fit(node);
  if (ON_TOP.includes(node.comfyClass)) {
    node.widgets.splice(node.widgets.indexOf(widget), 1);
    node.widgets.unshift(widget);
  }
  return node.dcoReport;
}

function reportOf(node) {
  return node.dcoReport ?? addReport(node);
}

/** Texts and pictures of a node's output, as they come when it has run, when it was cached and when a tab returns. */
function showOutput(node, output) {
  const lines = output?.text ?? [];
  const text = (Array.isArray(lines) ? lines : [lines]).join("\n\n");
  const pictures = output?.dco_pictures ?? [];
  if (!text && !pictures.length) return;
  reportOf(node);
  if (text) write(node, text);
  if (pictures.length) showPictures(node, pictures.map((file) => api.apiURL(`/view?${new URLSearchParams(file)}`)));
}

/** The node of an id as the host has it ("12", inside of a subgraph "7:12") or as the frontend has it ("uuid:12"). */
function nodeOf(id) {
  const root = app.rootGraph ?? app.graph;
  const [first, ...rest] = String(id ?? "").split(":");
  const inside = root.subgraphs?.get(first);
  if (inside) return inside.getNodeById(Number(rest[0]));
  return rest.reduce((node, part) => node?.subgraph?.getNodeById(Number(part)), root.getNodeById(Number(first)));
}

const isOurs = (node) => node?.comfyClass?.startsWith(PACK);

function onError({ detail }) {
  if (detail.exception_type !== "DCOError") return; // anything else is the frontend's to explain
  const sentence = detail.exception_message.trim();
  const node = nodeOf(detail.node_id);
  if (isOurs(node)) {
    write(node, reportOf(node).text, sentence);
  }
  app.extensionManager.toast.add({
    severity: "error",
    summary: node?.title ?? detail.node_type,
    detail: sentence,
    life: 20000,
  });
}

function onPreview({ detail }) {
  const node = nodeOf(detail.displayNodeId);
  if (ON_TOP.includes(node?.comfyClass)) {
    reportOf(node);
    showPictures(node, [URL.createObjectURL(detail.blob)]);
  }
}

function extend(nodeType, nodeData) {
  const { onNodeCreated, onExecuted, onExecutionStart, onSerialize } = nodeType.prototype;
  nodeType.prototype.onNodeCreated = function () {
    onNodeCreated?.apply(this, arguments);
    if (!nodeData.output_node) return;
    addReport(this);
  };
  nodeType.prototype.onExecutionStart = function () {
    onExecutionStart?.apply(this, arguments);
    if (this.dcoReport?.error) write(this, ""); // everything else stays: only a part of the graph may run
  };
  nodeType.prototype.onExecuted = function (output) {
    onExecuted?.apply(this, arguments);
    showOutput(this, output);
  };
  nodeType.prototype.onSerialize = function (saved) {
    onSerialize?.apply(this, arguments);
    // The frontend leaves a hole where a widget is not saved, and reads the values back without holes.
    if (saved.widgets_values) saved.widgets_values = saved.widgets_values.filter((_, i) => this.widgets[i]?.serialize !== false);
  };
}

app.registerExtension({
  name: "ComfyUI-DCO.Report",
  setup() {
    addStyle();
    api.addEventListener("execution_error", onError);
    api.addEventListener("b_preview_with_metadata", onPreview);
  },
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.name.startsWith(PACK)) extend(nodeType, nodeData);
  },
  onNodeOutputsUpdated(outputs) {
    for (const [locator, output] of Object.entries(outputs)) {
      const node = nodeOf(locator);
      if (isOurs(node)) showOutput(node, output);
    }
  },
});
