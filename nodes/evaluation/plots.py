"""The paper's evaluation in the graph: its prompts, its plots, and sheets of pictures."""

from __future__ import annotations

from collections.abc import Sequence

from comfy_api.latest import io

from ...dco_core.data.pixels import as_image, as_uint8
from ...dco_core.drawing.pareto_plot import pareto_plot
from ...dco_core.errors import DCOError
from ...dco_core.evidence.labelled_sheet import labelled_sheet
from ...dco_core.evidence.prompts import CATEGORIES, PROMPT_TYPES, evaluation_prompts, fill
from ...dco_core.evidence.score_table import ALIGNMENT, LIKENESS, STYLE_LIKENESS, ScoreTable
from . import inputs as shared

AXES = {LIKENESS: "subject likeness", STYLE_LIKENESS: "style likeness", ALIGNMENT: "prompt alignment"}


class DCOEvaluationPrompts(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DCOEvaluationPrompts", display_name="Evaluation Prompts (DCO)",
            category="model/training",
            description="The prompts that the paper evaluates on (App. D.2, Table 2), with your word in their slot: "
            "the subject in new places, in other styles, other things in your style, and your subject in your style. "
            "Also for the Toy World.",
            search_aliases=["prompt list", "benchmark prompts", "dreambooth prompts", "evaluate", "dco"],
            inputs=[
                io.Combo.Input(
                    "kind", options=list(PROMPT_TYPES), default=PROMPT_TYPES[0],
                    tooltip="customization: the subject in new places. stylization: in other styles. style: other "
                    "things in the style you taught. merge: your subject in your style.",
                ),
                io.Combo.Input(
                    "category", options=list(CATEGORIES), default=CATEGORIES[0],
                    tooltip="What the subject is: an object, a live subject (animals, people, plush ones too), or the "
                    "Toy World's toy.",
                ),
                io.String.Input(
                    "word", default="<dog>",
                    tooltip="What goes into the slot: the subject's word, for kind style the style's. <dog> stays a "
                    "marker, for Encode DCO Prompt; plain CLIP encoders want dog.",
                ),
                io.Int.Input(
                    "count", default=0, min=0, max=100,
                    tooltip="How many prompts, from the first. 0: all of them.",
                ),
                io.String.Input(
                    "style", default="", optional=True,
                    tooltip="For kind merge: the style's word, such as <watercolor painting> or print.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="prompts", is_output_list=True,
                    tooltip="The prompts, one after the other: what is connected runs once for each.",
                ),
                io.String.Output(display_name="text", tooltip="The same prompts, one a line."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, kind, category, word, count, style="") -> io.NodeOutput:
        templates = evaluation_prompts(kind, category)
        prompts = fill(templates[: count or len(templates)], word, style)
        return io.NodeOutput(prompts, "\n".join(prompts))


class DCOParetoPlot(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        curves = io.Autogrow.TemplatePrefix(
            shared.Scores.Input("scores", tooltip="The scores of one method, with both axes in them."),
            prefix="scores_", min=1, max=20,
        )  # fmt: skip
        return io.Schema(
            node_id="DCOParetoPlot", display_name="Pareto Plot (DCO)", category="image/scores",
            description="Two scores against each other, a curve a method, as in the paper's Fig. 1, 5 and 9: which "
            "method has more likeness at the same alignment? A point is the mean over the images of a label, with its "
            "standard error.",
            search_aliases=["pareto", "plot", "chart", "scatter", "likeness", "alignment", "evaluate", "dco"],
            inputs=[
                io.Autogrow.Input("curves", template=curves, tooltip="One table of scores for each method."),
                io.String.Input(
                    "names", multiline=True, default="",
                    tooltip="The methods' names, one a line, in the order of the connections. Empty: they are "
                    "numbered.",
                ),
                io.String.Input("title", default="", tooltip="Stands above the plot."),
                io.Combo.Input(
                    "x", options=list(AXES), default=ALIGNMENT,
                    tooltip="The score to the right; the paper's is "
                    "alignment.",
                ),
                io.Combo.Input(
                    "y", options=list(AXES), default=LIKENESS,
                    tooltip="The score upwards; the paper's is image "
                    "likeness.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="plot", tooltip="The plot."),
                io.String.Output(display_name="table", tooltip="Mean scores of all points, as Markdown tables."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, curves, names, title, x, y) -> io.NodeOutput:
        tables: list[ScoreTable] = [table for table in curves.values() if table is not None]
        titles = [name.strip() for name in names.splitlines() if name.strip()]
        if titles and len(titles) != len(tables):
            raise DCOError(
                f"There are {len(tables)} curves and {len(titles)} names: give one name a line for each."
            )
        titles = titles or [f"method {i + 1}" for i in range(len(tables))]
        drawn = [c for name, table in zip(titles, tables, strict=True) for c in table.curves(name, x, y)]
        picture = pareto_plot(drawn, title, AXES[x], AXES[y])
        text = "\n\n".join(f"{name}\n\n{table.text()}" for name, table in zip(titles, tables, strict=True))
        return io.NodeOutput(as_image(picture)[None], text)


class DCOContactSheet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DCOContactSheet", display_name="Contact Sheet (DCO)", category="image/scores",
            description="Images side by side with their labels. Labels of a sweep put each image in its row and "
            "column; a sweep over several prompts gets a row for each prompt.",
            search_aliases=[
                "contact sheet", "image grid", "xy plot", "xyz grid", "collage", "compare images", "labels",
                "dco",
            ],
            is_input_list=True,
            inputs=[
                shared.IMAGES,
                io.String.Input(
                    "labels", optional=True, force_input=True,
                    tooltip='A label for each image: "column", or "row, column" as a sweep gives them. Not connected: '
                    "the images are numbered.",
                ),
                io.String.Input(
                    "row_names", multiline=True, default="", optional=True,
                    tooltip="Names of the rows, one a line or a list: one for each row, or, where the labels repeat, "
                    "one for each repetition: the prompts.",
                ),
                io.String.Input("title", default="", optional=True, tooltip="Stands above the sheet."),
                io.Int.Input(
                    "columns", default=0, min=0, max=100, optional=True,
                    tooltip="At most so many images side by side, the rest goes below. 0: chosen.",
                ),
            ],
            outputs=[io.Image.Output(display_name="sheet", tooltip="The sheet.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, images, labels=None, row_names=None, title=None, columns=None) -> io.NodeOutput:
        pictures, _ = shared.flattened(images)
        sheet = labelled_sheet(
            [as_uint8(picture) for picture in pictures],
            [label for label in labels or [] if label is not None],
            _lines(row_names or []),
            (columns or [0])[0],
            (title or [""])[0],
        )
        return io.NodeOutput(as_image(sheet)[None])


def _lines(texts: Sequence[str]) -> list[str]:
    lines = texts[0].splitlines() if len(texts) == 1 else list(texts)
    return [line.strip() for line in lines if line.strip()]


NODES = [DCOEvaluationPrompts, DCOParetoPlot, DCOContactSheet]
