// A recipe fills in steps and rank: the widgets of the trainer that stand on their own and do not come with the recipe.

import { app } from "../../scripts/app.js";

function fill(node, values) {
  for (const [name, value] of Object.entries(values ?? {})) {
    const widget = node.widgets.find((other) => other.name === name);
    if (!widget) continue;
    widget.value = value;
    widget.callback?.(value, app.canvas, node);
  }
}

app.registerExtension({
  name: "ComfyUI-DCO.Recipes",
  beforeRegisterNodeDef(nodeType, nodeData) {
    const fills = nodeData.input?.required?.recipe?.[1]?.dco_fills;
    if (!fills) return;
    const { onNodeCreated } = nodeType.prototype;
    nodeType.prototype.onNodeCreated = function () {
      onNodeCreated?.apply(this, arguments);
      const recipe = this.widgets.find((widget) => widget.name === "recipe");
      const { callback } = recipe;
      // the user's choice alone comes here; a workflow that is opened sets values
      recipe.callback = (value, ...rest) => {
        callback?.call(recipe, value, ...rest);
        fill(this, fills[value]);
      };
    };
  },
});
