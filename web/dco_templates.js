// Templates in the order of their numbers. The host lists a folder as the disk has it, and the frontend keeps that order.

import { api } from "../../scripts/api.js";

const pack = decodeURIComponent(new URL(import.meta.url).pathname.split("/extensions/")[1].split("/")[0]);
const listed = api.getWorkflowTemplates.bind(api);

api.getWorkflowTemplates = async () => {
  const templates = await listed();
  templates[pack]?.sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  return templates;
};
