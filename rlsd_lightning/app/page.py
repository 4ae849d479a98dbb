"""The page's layout, and what its controls do."""

import os
import socket
from pathlib import Path
from typing import Any, Protocol

import gradio as gr
from PIL import Image

from rlsd_lightning.app import view
from rlsd_lightning.app.choices import PAINTED, PHOTOS, PRIORS, TASKS, Choice, checkpoint_settings
from rlsd_lightning.app.examples import EXAMPLES, Example
from rlsd_lightning.app.layout import CSS, NOTHING_YET, THEME, Layout
from rlsd_lightning.app.runs import Queue, Solve, State
from rlsd_lightning.app.tabs import Tab, Tabs
from rlsd_lightning.errors import InputError, first_line

__all__ = ["Page", "Solver", "serve"]

LARGEST_UPLOAD = "50mb"
LOCAL = ("127.0.0.1", "localhost", "::1")
"""Hosts that only this machine can open."""
STARTED_WITH, CHECKPOINT = "As started", "A checkpoint's folder"
"""Priors beside the package's own: that of the command line, and one whose path is typed on the page."""


class Solver(Protocol):
    """What solves the page's runs: a :data:`Solve` with the settings that it was started with."""

    prior: tuple[str, ...]
    given: tuple[str, ...]
    gamma: float
    __call__: Solve

    def family(self, folder: str) -> str:
        """Name of the prior that takes a checkpoint's folder."""


class Page:
    """The page and what is behind it.

    Args:
        solver: Solves the runs.
        root: Folder of everything that is uploaded and made; gradio's cache is in it.
        is_local: Whether only this machine can open it; checkpoints are then chosen by their path.
    """

    def __init__(self, solver: Solver, root: Path, is_local: bool = True) -> None:
        self.solver, self.is_local = solver, is_local
        self.queue = Queue(solver)
        self.tabs = Tabs(root, Path(os.environ["GRADIO_TEMP_DIR"]), self.queue)
        self.priors = {**({STARTED_WITH: solver.prior} if solver.prior else {}), **PRIORS}
        with gr.Blocks(title="rlsd-lightning", analytics_enabled=False) as self.blocks:
            self.layout = Layout([*self.priors, *([CHECKPOINT] if is_local else [])])
            self._events()

    def _events(self) -> None:
        ui = self.layout
        on = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
        picture = [ui.editor, ui.shown, ui.status]
        results = [
            *(ui.runs, ui.status, ui.during, ui.stop, ui.gallery, ui.after, ui.which, ui.slider),
            *(ui.figures, ui.command, ui.download, ui.timer),
        ]
        asked = [
            *(ui.task, ui.editor, ui.strength, ui.is_damaged, ui.prior, ui.checkpoint, ui.side),
            *(ui.particles, ui.repulsion, ui.steps, ui.seed),
        ]
        self.blocks.load(self._load_first, outputs=picture, **on)
        ui.examples.select(self._load_example, outputs=[*picture, ui.task, ui.prior, ui.steps], **on)
        ui.upload.upload(self._upload, ui.upload, picture, **on)
        ui.task.change(self._change_task, ui.task, [ui.editor, ui.shown, ui.strength], **on)
        ui.prior.change(self._change_prior, ui.prior, [ui.checkpoint, ui.side], **on)
        # one at a time: runs keep the order of the clicks
        ui.run.click(self._ask, asked, results, trigger_mode="multiple", **on | {"concurrency_limit": 1})
        ui.timer.tick(self._look, outputs=results, **on)
        ui.runs.input(self._choose, ui.runs, results, **on)
        ui.which.input(self._compare, ui.which, ui.slider, **on)
        ui.stop.click(self._stop, outputs=ui.stop, **on)
        ui.cancel.click(self._cancel, outputs=results, **on)
        self.blocks.unload(self._close)

    def _load_first(self, request: gr.Request) -> list[Any]:
        return self._show(request, EXAMPLES[0].picture, EXAMPLES[0])

    def _load_example(self, event: gr.SelectData, request: gr.Request) -> list[Any]:
        example = EXAMPLES[event.index]
        return [*self._show(request, example.picture, example), example.task, example.prior, example.steps]

    def _upload(self, file: str, request: gr.Request) -> list[Any]:
        return self._show(request, Path(file))

    def _show(self, request: gr.Request, file: Path, example: Example | None = None) -> list[Any]:
        """Take a picture, and show it to be painted on and as it is."""
        try:
            picture = self._tab(request).take(file)
        except InputError as error:
            return [None, None, view.error_line(str(error))]
        layers = [example.layer(picture.size)] if example is not None and example.painted else []
        return [
            {"background": picture, "layers": layers, "composite": None},
            picture,
            gr.skip() if self._tab(request).runs else NOTHING_YET,
        ]

    def _change_task(self, task: str) -> list[Any]:
        strength, paints = TASKS[task].strength, task == PAINTED
        slider = {"visible": strength is not None}
        if strength is not None:
            slider |= {"label": strength.label, "minimum": strength.low, "maximum": strength.high}
            slider |= {"step": strength.step, "value": strength.value}
        return [gr.update(visible=paints), gr.update(visible=not paints), gr.update(**slider)]

    def _change_prior(self, prior: str) -> list[Any]:
        return [gr.update(visible=prior == CHECKPOINT), gr.update(visible=prior == PHOTOS)]

    def _ask(
        self,
        task: str,
        painted: dict[str, Any] | None,
        strength: float,
        is_damaged: bool,
        prior: str,
        checkpoint: str,
        side: int,
        particles: int,
        repulsion: float,
        steps: int,
        seed: int,
        request: gr.Request,
    ) -> list[Any]:
        """Put a run into the queue, and show it."""
        tab = self._tab(request)
        try:
            choice = Choice(
                picture=Path(),
                mask=None,
                task=task,
                strength=None if TASKS[task].strength is None else strength,
                is_damaged=is_damaged,
                prior=self._prior(prior, checkpoint),
                side=int(side) if prior == PHOTOS else None,
                particles=int(particles),
                gamma=repulsion * self.solver.gamma,
                steps=int(steps),
                seed=int(seed or 0),
                given=self.solver.given,
            )
            layers = ((painted or {}).get("layers") or []) if task == PAINTED else None
            tab.ask(self.queue, choice, layers)
        except InputError as error:
            return [gr.skip(), view.error_line(str(error)), *[gr.skip()] * 10]
        return self._results(tab)

    def _prior(self, name: str, checkpoint: str) -> tuple[str, ...]:
        """Settings of a prior; the page's own names only where others can open it."""
        if name == CHECKPOINT and self.is_local:
            return checkpoint_settings(self.solver.family(checkpoint), checkpoint)
        if name not in self.priors:
            raise InputError(f"prior must be one of {', '.join(self.priors)}, got '{name}'")
        return self.priors[name]

    def _look(self, request: gr.Request) -> list[Any]:
        """What has changed since the last look."""
        tab = self._tab(request)
        return [gr.skip()] * 12 if self._version(tab) == tab.seen else self._results(tab)

    def _choose(self, index: int, request: gr.Request) -> list[Any]:
        tab = self._tab(request)
        tab.chosen = tab.runs[index]
        return self._results(tab)

    def _version(self, tab: Tab) -> tuple:
        states = tuple(run.state for run in tab.runs)
        return tab.chosen, tab.chosen and tab.chosen.version, tab.chosen and self.queue.ahead(tab.chosen), states

    def _results(self, tab: Tab) -> list[Any]:
        """All that is shown of the chosen run, and the list of runs."""
        tab.seen, run = self._version(tab), tab.chosen
        if run is None:
            return [gr.skip()] * 12
        marks = {State.WAITING: " · waiting", State.RUNNING: " · running", State.DONE: ""}
        titles = [(one.title + marks.get(one.state, f" · {one.state.value}"), i) for i, one in enumerate(tab.runs)]
        is_done, ends = run.state is State.DONE, all(one.has_ended for one in tab.runs)
        after = [view.MEAN, *[gr.skip()] * 4]
        if is_done:
            after = [
                gr.update(choices=view.compared(run), value="0"),
                view.pair(run, "0"),
                view.figures(run),
                run.command,
                gr.update(value=str(run.archive)),
            ]
        return [
            gr.update(choices=titles, value=tab.runs.index(run), visible=len(titles) > 1),
            view.status(run, self.queue.ahead(run)),
            gr.update(visible=not run.has_ended),
            gr.update(interactive=run.state is State.RUNNING and run.step > 0 and not run.stop.is_set()),
            view.gallery(run),
            gr.update(visible=is_done),
            *(after if is_done else [gr.skip()] * 5),
            gr.update(active=not ends),
        ]

    def _compare(self, which: str, request: gr.Request) -> tuple[Image.Image, Image.Image]:
        return view.pair(self._tab(request).chosen, which)

    def _stop(self, request: gr.Request) -> Any:
        self._tab(request).chosen.stop.set()
        return gr.update(interactive=False)

    def _cancel(self, request: gr.Request) -> list[Any]:
        tab = self._tab(request)
        self.queue.cancel([tab.chosen])
        return self._results(tab)

    def _close(self, request: gr.Request) -> None:
        self.tabs.close(request.session_hash)

    def _tab(self, request: gr.Request) -> Tab:
        return self.tabs[request.session_hash]

    def launch(self, host: str, port: int, **more: Any) -> str:
        """Serve the page; returns its address.

        Raises:
            InputError: If nothing can listen there.
        """
        _check_free(host, port)
        try:
            _, address, _ = self.blocks.launch(
                server_name=host,
                server_port=port,
                share=False,
                quiet=True,
                footer_links=[],
                ssr_mode=False,
                max_file_size=LARGEST_UPLOAD,
                allowed_paths=[],
                theme=THEME,
                css=CSS,
                prevent_thread_lock=True,
                **more,
            )
        except OSError as error:
            raise _not_free(host, port, error) from error
        self.tabs.keep_cached()
        return address


def _check_free(host: str, port: int) -> None:
    """Check that a server can listen at an address, and at this machine's own, where gradio looks for it.

    Raises:
        InputError: With the reason, which gradio does not tell.
    """
    for each in (host.strip("[]"), LOCAL[0]):
        try:
            family, kind, _, _, address = socket.getaddrinfo(each, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except (OSError, UnicodeError) as error:
            raise _not_free(host, port, error) from error


def _not_free(host: str, port: int, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or first_line(error)
    return InputError(f"can't listen on {host}:{port} ({reason}); choose another --port or --host")


def serve(solver: Solver, root: Path, host: str, port: int) -> None:
    """Serve the page until Ctrl-C."""
    page = Page(solver, root, is_local=host in LOCAL)
    print(f"{page.launch(host, port)} (Ctrl-C ends it)", flush=True)
    try:
        page.blocks.block_thread()
    finally:
        page.queue.close()
