"""The page's controls, and how they look; fonts are the system's, so nothing is fetched."""

from collections.abc import Sequence

import gradio as gr

from rlsd_lightning.app.choices import PAINTED, TASKS
from rlsd_lightning.app.examples import EXAMPLES, PAINT
from rlsd_lightning.app.pictures import CANVAS

__all__ = ["CSS", "NOTHING_YET", "THEME", "Layout"]

TITLE = """# Many reconstructions of one picture
Many pictures agree with a damaged one. Each **particle** is a whole picture that agrees with what is left of it.
**Repulsion** keeps the particles apart, so that together they show what is possible.
"""
NOTHING_YET = '<div class="said">Particles appear here while they form.</div>'
REPULSION = "Pushes particles apart while they form. 0 turns it off, 1 is the default, more makes them differ more."
THEME = gr.themes.Default(
    primary_hue="indigo",
    neutral_hue="slate",
    font=["system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
)
CSS = """
.gradio-container { max-width: 1240px !important; margin: 0 auto !important; }
@media (max-width: 600px) { .gradio-container .fillable { padding: 12px !important; } }
.particles { display: grid; grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); gap: 12px; }
.particles figure { margin: 0; }
.particles img { width: 100%; border-radius: 6px; display: block; }
.particles figcaption { font-size: 0.85em; margin-top: 4px; color: var(--body-text-color-subdued); line-height: 1.25; }
.said { padding: 10px 14px; border-radius: 6px; background: var(--background-fill-secondary); }
.said.failed { background: var(--error-background-fill); color: var(--error-text-color); overflow-wrap: anywhere; }
.bar { height: 5px; margin-top: 8px; border-radius: 3px; background: var(--border-color-primary); }
.bar div { height: 100%; border-radius: 3px; background: var(--color-accent); transition: width 0.4s; }
#figures :is(table, tbody, tr) { border: 0 !important; }
#figures table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
#figures td { padding: 4px 2px !important; border: 0 solid var(--border-color-primary) !important; }
#figures td { border-bottom-width: 1px !important; }
#figures td:last-child { text-align: right; white-space: nowrap; }
#examples .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)) !important; }
#examples .gallery-item, #examples button { min-width: 0 !important; width: 100% !important; }
#examples .caption-label { inset: auto 0 0; max-width: none; padding: 3px; border-radius: 0; }
#examples .caption-label { font-size: 0.7em; text-align: center; }
"""


class Layout:
    """The controls, in the order of the page.

    Args:
        priors: Names of the priors to choose from.
    """

    def __init__(self, priors: Sequence[str]) -> None:
        gr.Markdown(TITLE)
        with gr.Row():
            with gr.Column(scale=4, min_width=320):
                self._picture()
                self._choices(priors)
            with gr.Column(scale=6, min_width=320):
                self._results()
        self.timer = gr.Timer(0.5, active=False)

    def _picture(self) -> None:
        self.examples = gr.Gallery(
            [(str(example.picture), example.label) for example in EXAMPLES],
            show_label=False,
            columns=len(EXAMPLES),
            height=112,
            allow_preview=False,
            object_fit="cover",
            interactive=False,
            buttons=[],
            elem_id="examples",
        )
        self.upload = gr.File(label="A picture of your own", height=120, elem_id="upload")
        self.task = gr.Radio([(task.label, name) for name, task in TASKS.items()], value=PAINTED, label="Task")
        self.editor = gr.ImageEditor(
            label="Paint over what is missing",
            type="pil",
            sources=(),
            transforms=(),
            layers=False,
            canvas_size=(CANVAS, CANVAS),
            brush=gr.Brush(default_size=40, colors=["#{:02x}{:02x}{:02x}".format(*PAINT)], color_mode="fixed"),
            buttons=[],
            height=400,
            elem_id="editor",
        )
        self.shown = gr.Image(label="Picture", interactive=False, visible=False, buttons=[], height=400)
        self.strength = gr.Slider(visible=False, elem_id="strength")

    def _choices(self, priors: Sequence[str]) -> None:
        self.prior = gr.Dropdown(list(priors), value=priors[0], label="Prior: the pictures that the model knows")
        self.checkpoint = gr.Textbox(
            label="Folder of a diffusers pipeline, on this machine", visible=False, elem_id="checkpoint"
        )
        self.particles = gr.Slider(1, 16, 4, step=1, label="Particles", elem_id="particles")
        self.repulsion = gr.Slider(0, 4, 1, step=0.25, label="Repulsion", info=REPULSION, elem_id="repulsion")
        with gr.Accordion("More choices", open=False):
            self.is_damaged = gr.Checkbox(
                False,
                label="The picture is damaged already",
                info="Else it is damaged here first, and the results are compared with it.",
            )
            self.side = gr.Slider(64, 256, 96, step=32, label="Longest side in pixels", visible=False)
            self.steps = gr.Slider(
                20, 200, 50, step=10, label="Steps", info="More are slower and better.", elem_id="steps"
            )
            self.seed = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="seed")
        self.run = gr.Button("Reconstruct", variant="primary", elem_id="run")

    def _results(self) -> None:
        self.runs = gr.Radio(label="Your runs", visible=False, elem_id="runs")
        self.status = gr.HTML(NOTHING_YET, elem_id="status")
        with gr.Row(visible=False) as self.during:
            self.stop = gr.Button("Stop and keep", elem_id="stop")
            self.cancel = gr.Button("Cancel", elem_id="cancel")
        self.gallery = gr.HTML(elem_id="gallery")
        with gr.Column(visible=False) as self.after:
            self.which = gr.Radio(label="Compare the measurement with particle", elem_id="which")
            self.slider = gr.ImageSlider(
                show_label=False, interactive=False, buttons=[], max_height=460, elem_id="slider"
            )
            self.figures = gr.HTML(elem_id="figures")
            self.command = gr.Textbox(
                label="The same on the command line, in the unpacked folder",
                lines=3,
                buttons=["copy"],
                interactive=False,
                elem_id="command",
            )
            self.download = gr.DownloadButton("Download the run's folder", elem_id="download")
