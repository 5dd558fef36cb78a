"""The routes of the page and of programs: /lora-loom/v1/... behind the host's own password where it asks for one, for its own page alone."""

from __future__ import annotations

import dataclasses
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, JSONResponse

from ...lora_core.events import Control
from ...lora_core.messages.message import Message
from ...lora_core.runs import listing, trash
from ..jobs import answers
from ..jobs.editing import LARGE_PX, MAX_BODY, THUMB_PX, edits_in
from ..jobs.exports import told_of
from ..jobs.options import TOOLS, Tool
from ..jobs.requests import SMALL_BODY, Refused, object_in, refusal, require_own_page
from .bench import Outcome, worked
from .captions import captioner_places
from .desk import NODE, Desk, Order
from .names import as_shown
from .names import table as names_of_settings
from .pictures import stored

log = logging.getLogger(__name__)
PREFIX, TAG = "/lora-loom/v1", "LoRA Loom"
ROOT = Path(__file__).resolve().parents[2]
MAX_UPLOAD_BYTES = 4 * 2**30
BODY_BYTES = 2**20  # of settings
ASKED: dict[str, Callable[[Control], None]] = {
    "stop": Control.stop_and_keep, "save": Control.save_now, "sample": Control.sample_now, "pause": Control.pause,
}  # fmt: skip
JPEG_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private, max-age=3600"}
JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}
Schemas = Mapping[str, Mapping[str, Any]]  # JSON schemas by name
TEXT, NUMBER, OBJECT = ({"type": kind} for kind in ("string", "integer", "object"))


@dataclasses.dataclass(frozen=True)
class Route:
    """`takes`: name -> JSON schema, of the query of a GET, of the body of a POST; `needs`: those that must be there."""

    path: str
    answer: Callable[..., Any]
    summary: str
    takes: Schemas = dataclasses.field(default_factory=dict)
    needs: Sequence[str] = ()
    returns: str = "application/json"

    def described(self, method: str) -> dict[str, Any]:
        """What the description of the API says beyond the summary, as OpenAPI has it."""
        if method == "GET":
            inside = [name for name in self.takes if f"{{{name}}}" in self.path]
            return {"parameters": [self._parameter(name, name in inside) for name in self.takes]}
        schema = {"type": "object", "properties": dict(self.takes), "required": list(self.needs)}
        kind = "multipart/form-data" if "files" in self.takes and self.path == "upload" else "application/json"
        return {"requestBody": {"required": True, "content": {kind: {"schema": schema}}}}

    def _parameter(self, name: str, in_path: bool) -> dict[str, Any]:
        place, needed = ("path" if in_path else "query"), in_path or name in self.needs
        return {"name": name, "in": place, "required": needed, "schema": self.takes[name]}


class Routes:
    """What a page's desk answers to requests."""

    def __init__(self, desk: Desk):
        self._desk = desk

    def add_to(self, app: FastAPI) -> None:
        """Registers everything below PREFIX; a second time, as after Reload UI, it is a new app."""
        guards = list(self._desk.host.guards())
        failures = {
            403: "Another site asks.",
            409: "A setting or a file needs a change; `error` says which and what to do.",
        }
        for method, table in (("GET", self._reads()), ("POST", self._writes())):
            for route in table:
                name = f"lora_loom_{route.path.split('{')[0].strip('/').replace('/', '_').replace('-', '_')}"
                responses: dict[int | str, dict[str, Any]] = {k: {"description": v} for k, v in failures.items()}
                responses[200] = {"content": {route.returns: {}}, "description": "Done."}
                app.add_api_route(
                    f"{PREFIX}/{route.path}",
                    _guarded(route.answer),
                    methods=[method],
                    summary=route.summary,
                    name=name,
                    tags=[TAG],
                    dependencies=guards,
                    responses=responses,
                    openapi_extra=route.described(method),
                )

    def _reads(self) -> list[Route]:
        jpeg, ids = "image/jpeg", {"id": TEXT}
        of_picture = {"session": TEXT, "id": TEXT, "large": NUMBER}
        after = {"node": TEXT, "after": NUMBER, "session": TEXT}
        of_panel, of_run = {"run": TEXT, "step": NUMBER, "size": NUMBER}, {"id": TEXT, "step": NUMBER, "large": NUMBER}
        return [
            Route("panel", self._panel, "State of the run that goes on or went on last, with the chart's rows after a step.", after),
            Route("state", self._state, "What goes on: the panel, and the jobs that wait.", after),
            Route("panel/sample", self._sample, "Sample pictures of a run after a step, as JPEG.", of_panel, ("run", "step"), jpeg),
            Route("panel/samples", self._samples, "The steps a run was sampled at, and the prompts and seeds of its pictures.", of_panel, ("run",)),
            Route("messages/{language}", self._messages, "The sentences of a language by code.", {"language": TEXT}),
            Route("runs", self._runs, "All runs of this folder, and what lies in the trash."),
            Route("runs/curve", self._curve, "The course of a run's loss.", ids, ("id",)),
            Route("runs/settings", self._settings, "The settings of a run by path, and what its steps took.", ids, ("id",)),
            Route("runs/measured", self._measured, "The loss of a run on each measured picture, and on each concept under every trigger.", ids, ("id",)),
            Route("runs/thumbnails", self._thumbnails, "Those pictures in small on one sheet, as JPEG.", ids, ("id",), jpeg),
            Route("runs/queue", self._queue, "What goes on and what waits, in its order, with the seconds each takes."),
            Route("runs/picture", self._run_picture, "Sample pictures of a run, for the list.", of_run, ("id", "step"), jpeg),
            Route("runs/resume", self._resume, "The name to go on with.", ids, ("id",)),
            Route("picture", self._picture, "A picture that a job has drawn: a learning rate test, a sweep's comparison.", ids, ("id",), jpeg),
            Route("dataset", self._dataset, "The pictures and captions of a dataset that was opened.", {"session": TEXT}, ("session",)),
            Route("dataset/thumb", self._thumb, "One of its pictures, small, or large with large=1.", of_picture, ("session", "id"), jpeg),
            Route("dataset/notes", self._notes, "What was noticed about its pictures; again=1 looks anew.", {"session": TEXT, "again": NUMBER}, ("session",)),
            Route("dataset/captioning", self._captioning, "How far the captioning of a dataset is.", {"session": TEXT}, ("session",)),
            Route("dataset/captioners", self._captioners, "The taggers and captioners there are."),
            Route("files/{path:path}", self._file, "Scripts of the page.", {"path": TEXT}, (), "text/javascript"),
        ]  # fmt: skip

    def _writes(self) -> list[Route]:
        node: Schemas = {"node": TEXT}
        work: Schemas = {
            "settings": {**OBJECT, "description": "by config path, such as adapter.rank"},
            "preset": TEXT,
            "work": {**TEXT, "enum": list(self._desk.works)},
            "more": {**OBJECT, "description": "what the kind of job asks besides"},
        }
        save: Schemas = {"id": TEXT, "save": {"description": "result, best, last or a step"}}
        remark: Schemas = {"id": TEXT, "title": TEXT, "note": TEXT, "star": {"type": "boolean"}}
        session: Schemas = {"session": TEXT}
        edits: Schemas = {
            **session,
            "captions": {**OBJECT, "description": "picture: [as it was seen, as it shall be]"},
            "excluded": {**OBJECT, "description": "picture: left out or not"},
        }
        texts: Schemas = {**session, "captions": {**OBJECT, "description": "picture: a caption"}}
        files: Schemas = {"files": {"type": "array", "items": {"type": "string", "format": "binary"}}}
        return [
            Route("start", self._start, "Starts a run or another kind of job, or queues it behind others.", work, ("settings",)),
            Route("go_on", self._go_on, "Goes on with a run from its newest checkpoint.", {**node, "run": TEXT}, ("run",)),
            Route("upload", self._upload, "Pictures, captions or ZIP files for a new folder of pictures; answers with its path.", files, ("files",)),
            Route("dataset/open", self._open, "Opens a folder of pictures for the caption editor; answers with its session.", {"folder": TEXT}, ("folder",)),
            Route("dataset/edit", self._edit, "Writes captions and which pictures are left out.", edits, ("session",)),
            Route("dataset/trained", self._trained, "What will be trained of captions that are not saved yet.", texts, ("session", "captions")),
            Route("dataset/stop_captioning", self._stop_captioning, "Ends the captioning of a dataset; what is written stays.", session, ("session",)),
            Route("dataset/undo", self._undo, "Takes the last edit back.", session, ("session",)),
            *(Route(name, self._tool(tool), str(Message.of(tool.about)), _schema(tool), [f.name for f in tool.files]) for name, tool in TOOLS.items()),
            Route("runs/remark", self._remark, "Writes a title, a note or a star into the folder of a run.", remark, ("id",)),
            Route("runs/export", self._export, "Writes a run's result where the host lists LoRAs and embeddings.", save, ("id",)),
            Route("runs/delete", self._delete, "Moves a run into the trash.", {"id": TEXT}, ("id",)),
            Route("runs/restore", self._restore, "Takes a run back from the trash.", {"trash": TEXT}, ("trash",)),
            *(Route(name, self._asking(name), f"Asks the job that goes on to {name}.", node) for name in ASKED),
        ]  # fmt: skip

    # ---- what changes nothing ----------------------------------------------------------------------------------------

    def _panel(self, request: Request) -> dict[str, Any]:
        node, after = _text(request, "node") or NODE, _number(request, "after")
        return answers.panel_state(self._desk.panels, node, "", after, _text(request, "session"))

    def _state(self, request: Request) -> dict[str, Any]:
        desk = self._desk
        return {**self._panel(request), "waiting": desk.waiting, "busy": desk.busy, "host": desk.host.version()}

    def _sample(self, request: Request) -> Response:
        root, run, step = self._desk.runs_root(), _text(request, "run"), _number(request, "step")
        if "picture" in request.query_params:
            return _jpeg(answers.sample_cell_jpeg(root, run, step, _number(request, "picture")))
        return _jpeg(answers.sample_jpeg(root, run, step, _number(request, "size", answers.SAMPLE_SIZES_PX[-1])))

    def _samples(self, request: Request) -> dict[str, Any]:
        return answers.samples_of(self._desk.runs_root(), _text(request, "run"))

    def _messages(self, request: Request) -> Response:
        text, digest = answers.sentences(request.path_params["language"], names_of_settings)
        headers = {"Cache-Control": "no-cache", "ETag": f'"{digest}"'}
        if digest in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(text, media_type="application/json", headers=headers)

    def _runs(self, request: Request) -> dict[str, Any]:
        root = self._desk.runs_root()
        return {**answers.listed(root, _details, str(root)), "local": False}

    def _curve(self, request: Request) -> Any:
        return listing.curve(answers.run_named(self._desk.runs_root(), _text(request, "id")))

    def _settings(self, request: Request) -> dict[str, Any]:
        return answers.settings_of(self._desk.runs_root(), _text(request, "id"))

    def _measured(self, request: Request) -> dict[str, Any]:
        return answers.measured_of(self._desk.runs_root(), _text(request, "id"))

    def _thumbnails(self, request: Request) -> Response:
        return _jpeg(answers.thumbnails_of(self._desk.runs_root(), _text(request, "id")))

    def _queue(self, request: Request) -> dict[str, Any]:
        return {"queue": self._desk.queue()}

    def _run_picture(self, request: Request) -> Response:
        run, step, large = _text(request, "id"), _text(request, "step"), _text(request, "large") == "1"
        return _jpeg(answers.run_picture(self._desk.runs_root(), run, step, large))

    def _resume(self, request: Request) -> dict[str, Any]:
        return answers.resumed(self._desk.runs_root(), _text(request, "id"))

    def _picture(self, request: Request) -> Response:
        data = self._desk.picture(_text(request, "id"))
        if data is None:
            raise Refused(404, "sample.missing")
        return _jpeg(data)

    def _dataset(self, request: Request) -> dict[str, Any]:
        return self._desk.editors.contents(_text(request, "session"))

    def _thumb(self, request: Request) -> Response:
        side = LARGE_PX if _text(request, "large") == "1" else THUMB_PX
        return _jpeg(self._desk.editors.picture(_text(request, "session"), _text(request, "id"), side))

    def _notes(self, request: Request) -> dict[str, Any]:
        return self._desk.editors.looked_at(_text(request, "session"), _text(request, "again") == "1")

    def _captioning(self, request: Request) -> dict[str, Any]:
        now = self._desk.editors.named(_text(request, "session")).captioning
        return {"captioning": now and now.as_json()}

    def _captioners(self, request: Request) -> dict[str, Any]:
        return {"captioners": [{"id": name, "kind": "folder"} for name in captioner_places(self._desk.host)]}

    def _file(self, request: Request) -> Response:
        """Scripts and their texts, below js/ alone."""
        path = (ROOT / request.path_params["path"]).resolve()
        kinds = {".js": "text/javascript", ".json": "application/json"}
        if not path.is_relative_to(ROOT / "js") or path.suffix not in kinds or not path.is_file():
            raise Refused(404, "page.no_file")
        return FileResponse(path, media_type=kinds[path.suffix], headers={"Cache-Control": "no-cache"})

    # ---- what changes something --------------------------------------------------------------------------------------

    def _asking(self, name: str) -> Callable[[Request], Any]:
        async def ask(request: Request) -> dict[str, Any]:
            await _body(request)
            control = self._desk.control
            if control is None:
                raise Refused(404, "run.none_in_node")
            ASKED[name](control)
            return {"asked": name, "node": NODE}

        return ask

    async def _start(self, request: Request) -> dict[str, Any]:
        body = await _body(request, BODY_BYTES)
        values, preset, more = body.get("settings", {}), body.get("preset", "concept"), body.get("more", {})
        if not isinstance(values, dict) or not isinstance(preset, str) or not isinstance(more, dict):
            raise Refused(400, "request.no_object")
        order = Order(values, preset, work=str(body.get("work", "train")), more=more)
        return {"node": NODE, "before": await run_in_threadpool(self._desk.add, order)}

    async def _go_on(self, request: Request) -> dict[str, Any]:
        run = (await _body(request)).get("run")
        await run_in_threadpool(answers.resumed, self._desk.runs_root(), run)
        return {"node": NODE, "before": await run_in_threadpool(self._desk.add, Order(resume=str(run)))}

    async def _upload(self, request: Request) -> dict[str, Any]:
        """multipart/form-data with any number of files; multipart is the host's own package, as its uploads need it."""
        if int(request.headers.get("content-length") or 0) > MAX_UPLOAD_BYTES:
            raise Refused(413, "request.body_large", limit=MAX_UPLOAD_BYTES)
        form = await request.form()
        files = [(file.filename or "", await file.read()) for _, file in form.multi_items() if hasattr(file, "read")]
        folder = await run_in_threadpool(stored, files, self._desk.host.data_root())
        return {"folder": str(folder), "files": len(files)}

    async def _open(self, request: Request) -> dict[str, Any]:
        folder = str((await _body(request)).get("folder", ""))
        return {"session": await run_in_threadpool(self._opened, folder)}

    def _opened(self, folder: str) -> str:
        sets = self._desk.shown_sets({"data.folder": folder})
        sets.opened()  # which says what is wrong with the folder
        return self._desk.editors.open(sets.sets)

    async def _edit(self, request: Request) -> dict[str, Any]:
        body = await _body(request, MAX_BODY)
        return {"changed": await run_in_threadpool(self._desk.editors.edit, body.get("session"), edits_in(body))}

    async def _trained(self, request: Request) -> dict[str, Any]:
        body = await _body(request, MAX_BODY)
        texts = body.get("captions")
        if not isinstance(texts, dict):
            raise Refused(400, "request.caption")
        return {"trained": await run_in_threadpool(self._desk.editors.trained, body.get("session"), texts)}

    async def _stop_captioning(self, request: Request) -> dict[str, Any]:
        now = self._desk.editors.named((await _body(request)).get("session")).captioning
        if now is not None:
            now.stop.set()
        return {"asked": now is not None}

    async def _undo(self, request: Request) -> dict[str, Any]:
        session = (await _body(request)).get("session")
        return {"changed": await run_in_threadpool(self._desk.editors.take_back, session)}

    def _tool(self, tool: Tool) -> Callable[[Request], Any]:
        async def work(request: Request) -> dict[str, Any]:
            body = await _body(request, BODY_BYTES)
            outcome: Outcome = await run_in_threadpool(worked, self._desk, tool.name, body)
            lines = [line.as_json(as_shown) if isinstance(line, Message) else {"text": line} for line in outcome.lines]
            files = [str(path) for path in outcome.files]
            return {"report": "\n".join(line["text"] for line in lines), "lines": lines, "files": files}

        return work

    async def _export(self, request: Request) -> dict[str, Any]:
        body = await _body(request)
        folder = await run_in_threadpool(answers.run_named, self._desk.runs_root(), body.get("id"))
        return {"files": await run_in_threadpool(self._desk.exported, folder, answers.save_named(body.get("save")))}

    async def _remark(self, request: Request) -> dict[str, Any]:
        body = await _body(request, answers.REMARK_BODY)
        return await run_in_threadpool(answers.remarked, self._desk.runs_root(), body)

    async def _delete(self, request: Request) -> dict[str, Any]:
        run = (await _body(request)).get("id")
        root = self._desk.runs_root()
        await run_in_threadpool(answers.run_named, root, run)
        return {"trash": await run_in_threadpool(trash.throw_away, root, run)}

    async def _restore(self, request: Request) -> dict[str, Any]:
        number = (await _body(request)).get("trash")
        if not isinstance(number, str):
            raise Refused(400, "request.trash")
        return {"id": await run_in_threadpool(trash.take_back, self._desk.runs_root(), number)}


def _schema(tool: Tool) -> dict[str, dict[str, Any]]:
    """What a tool takes, as JSON schema."""
    names = {"type": "array", "items": TEXT}
    out: dict[str, dict[str, Any]] = {}
    for files in tool.files:
        out[files.name] = {**(names if files.many else TEXT), "description": str(Message.of(files.about))}
    for option in tool.options:
        kind = names if option.many else {"type": JSON_TYPES[option.kind], "default": option.starts or option.default}
        choices = {"enum": list(option.choices)} if option.choices else {}
        out[option.name] = {**kind, **choices, "description": str(Message.of(option.about))}
    return out


def _details(run: listing.RunInfo) -> dict[str, str]:
    return told_of(run, embedding="")


def _jpeg(data: bytes) -> Response:
    return Response(data, media_type=answers.picture_type(data), headers=JPEG_HEADERS)


def _guarded(answer: Callable[..., Any]) -> Callable[[Request], Any]:
    """A route that answers strangers with 403 and every expected failure with its status and its message as JSON."""

    async def guarded(request: Request) -> Response:
        try:
            require_own_page(request.headers)
            if inspect.iscoroutinefunction(answer):
                out = await answer(request)
            else:
                out = await run_in_threadpool(answer, request)
        except Exception as error:  # the page shows a sentence, the log the rest
            status, message = refusal(error)
            if status == 500:
                log.exception("A request to %s failed", request.url.path)
            return JSONResponse({"error": message.as_json(as_shown)}, status)
        return out if isinstance(out, Response) else JSONResponse(out, headers={"Cache-Control": "no-store"})

    return guarded


def _text(request: Request, name: str) -> str:
    value = request.query_params.get(name, "")
    if len(value) > 200:
        raise Refused(400, "request.long", name=name)
    return value


def _number(request: Request, name: str, default: int = 0) -> int:
    value = request.query_params.get(name)
    if value is None:
        return default
    if not (value.isascii() and value.isdigit() and len(value) < 10):
        raise Refused(400, "request.number", name=name)
    return int(value)


async def _body(request: Request, limit: int = SMALL_BODY) -> dict[str, Any]:
    if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
        raise Refused(400, "request.json_type")
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > limit:
            raise Refused(413, "request.body_large", limit=limit)
    return object_in(bytes(raw))
